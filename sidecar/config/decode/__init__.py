"""Envoy v3 protobuf to the dataclasses of `resources.py`, strictly.

A field that is set, would change traffic and is not implemented is an error that names its path; fields
that only name or describe are accepted. Called by `sidecar/bootstrap.py` for files and by the xDS client for
what discovery sends. Protobuf does not leave this package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from sidecar.config.decode.bootstrap import bootstrap
from sidecar.config.decode.cluster import cluster
from sidecar.config.decode.endpoint import endpoints
from sidecar.config.decode.listener import listener
from sidecar.config.decode.route import route_configuration
from sidecar.config.decode.view import ConfigError, Report, View, known_message
from sidecar.config.resources import (
    Bootstrap,
    ClusterConfig,
    EndpointsConfig,
    ListenerConfig,
    RouteConfiguration,
)

__all__ = [
    "ConfigError",
    "decode_bootstrap",
    "decode_cluster",
    "decode_endpoints",
    "decode_listener",
    "decode_route_configuration",
]

T = TypeVar("T")


def decode_listener(body: bytes | Message, path: str = "") -> ListenerConfig:
    """A `Listener`, serialised or parsed. Raises `ConfigError`, every path starting with `path`."""
    return _decode(body, "envoy.config.listener.v3.Listener", path, listener)


def decode_route_configuration(body: bytes | Message, path: str = "") -> RouteConfiguration:
    """A `RouteConfiguration`. Raises `ConfigError`."""
    return _decode(body, "envoy.config.route.v3.RouteConfiguration", path, route_configuration)


def decode_cluster(body: bytes | Message, path: str = "") -> ClusterConfig:
    """A `Cluster`. Raises `ConfigError`."""
    return _decode(body, "envoy.config.cluster.v3.Cluster", path, cluster)


def decode_endpoints(body: bytes | Message, path: str = "") -> EndpointsConfig:
    """A `ClusterLoadAssignment`. Raises `ConfigError`."""
    return _decode(body, "envoy.config.endpoint.v3.ClusterLoadAssignment", path, endpoints)


def decode_bootstrap(message: Message) -> Bootstrap:
    """A `Bootstrap`, its references checked. Raises `ConfigError` with every error in it."""
    return _decode(message, "envoy.config.bootstrap.v3.Bootstrap", "", bootstrap)


def _decode(body: bytes | Message, type_name: str, path: str, decoder: Callable[[View], T]) -> T:
    message: Any = body
    if isinstance(body, bytes):
        message = known_message(type_name)
        try:
            message.ParseFromString(body)
        except DecodeError:
            raise ConfigError([f"{path}: the bytes are no valid {type_name}; the sender is broken"]) from None
    report = Report()
    result = decoder(View(message, path, report))
    report.raise_if_wrong()
    return result
