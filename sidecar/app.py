"""The sidecar put together: identity, clusters, discovery, listeners, telemetry, admin; from start to drain.

`sidecar/main.py` calls `run`. Nothing else knows all the parts, and nothing here decides about a request.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from random import Random

import uvloop

from sidecar.admin import AdminServer
from sidecar.admin_pages import AdminSources
from sidecar.config.resources import Bootstrap, ClusterConfig, Http2Options, SocketAddress
from sidecar.identity.ca_client import CaClient
from sidecar.identity.certificate_provider import CertificateProvider
from sidecar.identity.tls_contexts import TlsConfigError, TlsContexts
from sidecar.net.connection import connect
from sidecar.net.grpc_client import GrpcChannel
from sidecar.protocol.events import Codec, ConnectionHandler
from sidecar.protocol.h1 import H1ClientCodec, H1Options
from sidecar.protocol.h2 import H2Codec
from sidecar.protocol.raw import RawCodec
from sidecar.runtime.tasks import cancel_all
from sidecar.server.chain import MakeH2, h2_options
from sidecar.server.chain_factory import ChainFactory
from sidecar.server.listener_manager import ListenerManager
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry_exports import TelemetryExports
from sidecar.upstream.cluster_manager import ClusterManager
from sidecar.upstream.context import MakeH2 as MakeClientH2

logger = logging.getLogger(__name__)

FLUSH_DEADLINE = 2.0
"""Seconds that the last spans may take to leave."""


class StartError(Exception):
    """The sidecar cannot start; the text says why and what to do."""


def run(bootstrap: Bootstrap, http2_engine: str, drain_deadline: float) -> int:
    """Runs until SIGTERM or SIGINT has been obeyed; returns the exit status."""
    try:
        uvloop.run(_serve(bootstrap, http2_engine, drain_deadline))
    except (StartError, TlsConfigError) as error:
        logger.error("cannot start: %s", error)
        return 1
    return 0


async def _serve(bootstrap: Bootstrap, http2_engine: str, drain_deadline: float) -> None:
    sidecar = Sidecar(bootstrap, http2_engine)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await sidecar.start(stop)
        await stop.wait()
        await sidecar.drain(drain_deadline)
    finally:
        await sidecar.close()


class Sidecar:
    """`start`, then `drain`, then `close`, all on one running loop."""

    def __init__(self, bootstrap: Bootstrap, http2_engine: str) -> None:
        self._bootstrap = bootstrap
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._random = Random()
        self.metrics = Metrics()
        make_h2 = h2_engine(http2_engine)
        self._providers: dict[str, CertificateProvider] = {}
        self.tls = TlsContexts(self._providers)
        for provider in bootstrap.ca_providers:
            channel = self._channel(provider.cluster)
            client = CaClient(channel, provider.token_file)
            self._providers[provider.instance] = CertificateProvider(
                provider, client.sign, loop, self._random
            )
        self.clusters = ClusterManager(
            loop,
            self.metrics,
            self.tls,
            self._random,
            _client_h2(make_h2),
            _client_h1,
            _client_raw,
            connect,
        )
        self._telemetry = TelemetryExports(self.clusters, self.metrics, self._random)
        factory = ChainFactory(
            self.clusters,
            None,
            self.metrics,
            self._telemetry.tracer,
            self._telemetry.access_log,
            make_h2,
            loop,
            time.perf_counter,
            self._random,
            self._local_identity,
        )
        self.listeners = ListenerManager(factory, self.tls, self.metrics)
        self._admin: AdminServer | None = None
        self._not_ready = "starting"
        self._stop: asyncio.Event | None = None

    async def start(self, stop: asyncio.Event) -> None:
        """Returns once traffic is taken, or `stop` is set. Raises StartError."""
        self._stop = stop
        bootstrap = self._bootstrap
        if bootstrap.admin is not None:
            self._admin = AdminServer(self._loop, self._admin_sources())
            try:
                await self._admin.start(bootstrap.admin)
            except OSError as error:
                raise StartError(str(error)) from error
        for provider in self._providers.values():
            provider.start()
        self.clusters.apply({cluster.name: cluster for cluster in bootstrap.clusters})
        problems = await self.listeners.apply({listener.name: listener for listener in bootstrap.listeners})
        if problems:
            raise StartError("; ".join(problems))
        for path in bootstrap.without_effect:
            logger.info("%s: without effect", path)
        self._not_ready = ""
        logger.info("ready")
        # What exists now lives as long as the process: no collection needs to look at it again.
        gc.collect()
        gc.freeze()

    def _channel(self, cluster_name: str) -> GrpcChannel:
        cluster = next((c for c in self._bootstrap.clusters if c.name == cluster_name), None)
        if cluster is None:
            raise StartError(
                f"cluster {cluster_name} of the control plane is not in static_resources.clusters"
            )
        tls = cluster.tls
        make_tls = (lambda: self.tls.client(tls)) if tls is not None else None
        return GrpcChannel(self._loop, _addresses(cluster), cluster_name, make_tls)

    def _local_identity(self) -> str:
        return next((provider.spiffe_id for provider in self._providers.values()), "")

    def _admin_sources(self) -> AdminSources:
        return AdminSources(
            ready=lambda: self._not_ready,
            stats=self.metrics.snapshot,
            prometheus=self.metrics.prometheus_parts,
            config_dump=self._config_dump,
            clusters=self.clusters.describe,
            certs=lambda: {name: provider.status() for name, provider in self._providers.items()},
            listeners=lambda: [listener.config for listener in self.listeners.listeners.values()],
            drain=self._announce_drain,
            quit=self._quit,
        )

    def _config_dump(self) -> object:
        return {"bootstrap": self._bootstrap}

    def _announce_drain(self) -> None:
        self._not_ready = "draining"

    def _quit(self) -> None:
        assert self._stop is not None
        self._stop.set()

    async def drain(self, deadline: float) -> None:
        """Fail readiness, tell clients to go, wait for what is in flight up to `deadline` seconds."""
        self._not_ready = "draining"
        logger.info("draining, for at most %g s", deadline)
        left = await self.listeners.drain(deadline)
        logger.info("drained" if not left else f"drain deadline passed: {left} requests or sessions were cut")

    async def close(self) -> None:
        """Flush telemetry and let go of everything."""
        await self._telemetry.close(FLUSH_DEADLINE)
        for provider in self._providers.values():
            await provider.stop()
        await self.clusters.close()
        if self._admin is not None:
            self._admin.close()
        await cancel_all()


def h2_engine(name: str) -> MakeH2:
    """The HTTP/2 codec of `--http2-engine`."""
    if name == "h2":
        from sidecar.protocol.h2_reference import H2ReferenceCodec

        return H2ReferenceCodec
    return H2Codec


def _client_h2(make_h2: MakeH2) -> MakeClientH2:
    def make(handler: ConnectionHandler, options: Http2Options, trusted_peer: bool) -> Codec:
        return make_h2(True, handler, h2_options(options, trusted_peer=trusted_peer))

    return make


def _client_h1(handler: ConnectionHandler) -> Codec:
    return H1ClientCodec(handler, H1Options())


def _client_raw(handler: ConnectionHandler) -> Codec:
    return RawCodec(handler)


def _addresses(cluster: ClusterConfig) -> list[SocketAddress]:
    if cluster.endpoints is None:
        return []
    return [e.address for locality in cluster.endpoints.localities for e in locality.endpoints]
