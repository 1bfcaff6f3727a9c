"""EndpointSlices to ClusterLoadAssignment: one for each port of a Service.

A pure function of the model, called by the pipeline. This is what churns most, so it depends on nothing
but the slices of its own service.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.core.v3.base_pb2 import Locality, Metadata
from envoy.config.core.v3.health_check_pb2 import HealthStatus
from envoy.config.endpoint.v3.endpoint_components_pb2 import Endpoint as XdsEndpoint
from envoy.config.endpoint.v3.endpoint_components_pb2 import LbEndpoint, LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from google.protobuf.wrappers_pb2 import UInt32Value

from control_plane.model.discovery import Dialect
from control_plane.model.service import AppProtocol, Endpoint, EndpointSlice, ServicePort
from control_plane.translate.names import address_name
from mesh_api.names import GROUP


def load_assignment(
    name: str, port: ServicePort, slices: Iterable[EndpointSlice], dialect: Dialect, client_zone: str = ""
) -> ClusterLoadAssignment:
    """Replicas that take traffic, by zone; those that are leaving are marked DRAINING. Where EndpointSlices
    hint at the client's zone, the replicas meant for it come first and all others are their reserve.

    Every locality has a weight, because gRPC drops one without, and no address is there twice, because
    gRPC refuses that.
    """
    with_port = [(item, found.port) for item in slices if (found := item.port(port.name)) is not None]
    meshed = any(item.takes_mtls(number) for item, number in with_port)
    hinted = _hinted([item for item, _ in with_port], client_zone)
    zones: defaultdict[tuple[int, str], dict[tuple[str, int], LbEndpoint]] = defaultdict(dict)
    seen: set[tuple[str, int]] = set()
    for item, number in with_port:
        if dialect is Dialect.GRPC and meshed and not item.takes_mtls(number):
            continue  # gRPC has one TLS setting for a whole cluster
        for endpoint in item.endpoints:
            address = (endpoint.address, number)
            if address not in seen and (endpoint.ready or (endpoint.serving and endpoint.terminating)):
                seen.add(address)
                priority = 1 if hinted and client_zone not in endpoint.hints else 0
                zones[priority, endpoint.zone][address] = _endpoint(item, endpoint, number, port.protocol)
    return ClusterLoadAssignment(
        cluster_name=name,
        endpoints=[
            LocalityLbEndpoints(
                locality=Locality(zone=zone),
                lb_endpoints=[endpoints[address] for address in sorted(endpoints)],
                load_balancing_weight=UInt32Value(value=len(endpoints)),
                priority=priority,
            )
            for (priority, zone), endpoints in sorted(zones.items())
        ],
    )


def _hinted(slices: Iterable[EndpointSlice], zone: str) -> bool:
    """Whether hints count for a client in `zone`: every replica must have one and one of them name the
    zone, as for kube-proxy (Kubernetes, Topology Aware Routing, safeguards)."""
    ready = [e for item in slices for e in item.endpoints if e.ready and not e.terminating]
    return bool(zone) and all(e.hints for e in ready) and any(zone in e.hints for e in ready)


def _endpoint(item: EndpointSlice, endpoint: Endpoint, port: int, protocol: AppProtocol) -> LbEndpoint:
    metadata = Metadata()
    # With publishNotReadyAddresses an endpoint is ready until it is gone.
    takes_traffic = endpoint.ready and not endpoint.terminating
    if item.takes_mtls(port):
        metadata.filter_metadata[GROUP]["tunnel"] = address_name(endpoint.address, port)
        reached_at = item.settings.peers_port(port)
    else:
        metadata.filter_metadata["envoy.transport_socket_match"]["tlsMode"] = "disabled"
        if protocol is AppProtocol.HTTP:
            # One sidecar among the replicas makes the cluster HTTP/2, and nobody here translates.
            metadata.filter_metadata[GROUP]["protocol"] = "http1"
        reached_at = port
    return LbEndpoint(
        endpoint=XdsEndpoint(
            address=Address(socket_address=SocketAddress(address=endpoint.address, port_value=reached_at)),
            hostname=endpoint.hostname,
        ),
        health_status=HealthStatus.HEALTHY if takes_traffic else HealthStatus.DRAINING,
        metadata=metadata,
    )
