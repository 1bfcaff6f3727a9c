"""The resource types that are asked for over ADS: names, and how bytes become configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf.message import DecodeError

from sidecar.config.decode import (
    ConfigError,
    decode_cluster,
    decode_endpoints,
    decode_listener,
    decode_route_configuration,
)
from sidecar.config.type_urls import CLUSTER, ENDPOINTS, LISTENER, ROUTE


@dataclass(frozen=True, slots=True)
class ResourceType:
    """One type. `full_state`: a state-of-the-world response holds all resources, and one that is missing
    does not exist (xDS protocol, "Knowing When a Requested Resource Does Not Exist")."""

    url: str
    label: str
    message: Callable[[], Any]
    name_field: str
    full_state: bool
    decode: Callable[[Any, str], object]

    def name_of(self, body: bytes) -> str:
        """The name that a serialised resource gives itself, "" when it has none. Raises `ConfigError`."""
        message = self.message()
        try:
            message.ParseFromString(body)
        except DecodeError:
            raise ConfigError([f"{self.label}: the bytes are no valid {self.url}"]) from None
        return str(getattr(message, self.name_field))


RESOURCE_TYPES = {
    each.url: each
    for each in (
        ResourceType(CLUSTER, "Cluster", cluster_pb2.Cluster, "name", True, decode_cluster),
        ResourceType(
            ENDPOINTS,
            "ClusterLoadAssignment",
            endpoint_pb2.ClusterLoadAssignment,
            "cluster_name",
            False,
            decode_endpoints,
        ),
        ResourceType(LISTENER, "Listener", listener_pb2.Listener, "name", True, decode_listener),
        ResourceType(
            ROUTE,
            "RouteConfiguration",
            route_pb2.RouteConfiguration,
            "name",
            False,
            decode_route_configuration,
        ),
    )
}
"""In the order in which a new stream asks for them."""
