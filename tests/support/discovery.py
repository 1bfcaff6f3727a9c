"""Resources and messages of discovery for tests of the sidecar's side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from sidecar.config.type_urls import CLUSTER


def pack(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message, deterministic=True)
    return packed


def cluster(name: str, **fields: Any) -> Any:
    """A `Cluster` of static type, or as `fields` say."""
    return cluster_pb2.Cluster(name=name, **fields)


def assignment(name: str) -> Any:
    return endpoint_pb2.ClusterLoadAssignment(cluster_name=name)


def delta_response(
    nonce: str,
    resources: Mapping[str, tuple[str, Any]],
    removed: tuple[str, ...] = (),
    type_url: str = CLUSTER,
) -> bytes:
    """`resources`: version and message by name."""
    response = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce=nonce, removed_resources=removed)
    for name, (version, message) in resources.items():
        response.resources.add(name=name, version=version, resource=pack(message))
    return response.SerializeToString()


def sotw_response(nonce: str, version: str, messages: list[Any], type_url: str = CLUSTER) -> bytes:
    return discovery_pb2.DiscoveryResponse(
        type_url=type_url, nonce=nonce, version_info=version, resources=[pack(each) for each in messages]
    ).SerializeToString()


def delta_requests(bodies: list[bytes]) -> list[Any]:
    return [discovery_pb2.DeltaDiscoveryRequest.FromString(body) for body in bodies]


def sotw_requests(bodies: list[bytes]) -> list[Any]:
    return [discovery_pb2.DiscoveryRequest.FromString(body) for body in bodies]
