"""The sidecar put together: configuration, identity, clusters, listeners, telemetry, admin; start to drain.

`sidecar/main.py` calls `run`. Nothing else knows all the parts, and nothing here decides about a request.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Mapping
from random import Random

import uvloop

from mesh_api.names import CERTIFICATE_PROVIDER
from sidecar.admin import AdminServer
from sidecar.admin_sources import admin_sources
from sidecar.config.dependency_manager import DependencyManager
from sidecar.config.resources import Bootstrap, ClusterConfig, Http2Options, ListenerConfig
from sidecar.discovery import Discovery
from sidecar.identity.certificate_provider import CertificateProvider
from sidecar.identity.tls_contexts import TlsConfigError, TlsContexts
from sidecar.net.connection import connect
from sidecar.protocol.events import Codec, ConnectionHandler
from sidecar.protocol.h1 import H1ClientCodec, H1Options
from sidecar.protocol.h2 import H2Codec, H2Options
from sidecar.protocol.raw import RawCodec
from sidecar.runtime.tasks import cancel_all, spawn
from sidecar.server.chain_factory import ChainFactory
from sidecar.server.listener_manager import ListenerManager
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry_exports import TelemetryExports
from sidecar.upstream.cluster_manager import ClusterManager

logger = logging.getLogger(__name__)

FLUSH_DEADLINE = 2.0


def run(bootstrap: Bootstrap, http2_engine: str, drain_deadline: float) -> int:
    """Runs until SIGTERM or SIGINT has been obeyed; returns the exit status."""
    return uvloop.run(Sidecar(bootstrap, http2_engine, drain_deadline).run())
