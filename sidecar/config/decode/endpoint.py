"""Envoy `ClusterLoadAssignment`."""

from __future__ import annotations

from envoy.config.endpoint.v3 import endpoint_pb2  # noqa: F401  registers the types

from mesh_api.names import GROUP
from sidecar.config.decode.common import address
from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import EndpointConfig, EndpointsConfig, Health, LocalityEndpoints

_ASSIGNMENT = Fields("cluster_name endpoints policy")
_POLICY = Fields("overprovisioning_factor")
_LOCALITY = Fields("locality lb_endpoints load_balancing_weight priority", "metadata proximity")
_NAMES = Fields("region zone sub_zone")
_LB_ENDPOINT = Fields("endpoint health_status load_balancing_weight metadata")
_ENDPOINT = Fields("address hostname", "health_check_config")
_HEALTH = {
    "UNKNOWN": Health.HEALTHY,
    "HEALTHY": Health.HEALTHY,
    "UNHEALTHY": Health.UNHEALTHY,
    "TIMEOUT": Health.UNHEALTHY,
    "DRAINING": Health.DRAINING,
}
SOCKET_MATCH = "envoy.transport_socket_match"


def endpoints(view: View, ip_only: bool = True) -> EndpointsConfig:
    """All endpoints of a cluster. `ip_only`: names are an error (STATIC and EDS clusters)."""
    view.check(_ASSIGNMENT)
    policy = view.sub("policy", _POLICY)
    if policy.number("overprovisioning_factor", 140) != 140:
        policy.error("only 140, the default, is supported", "overprovisioning_factor")
    return EndpointsConfig(
        cluster_name=view.required("cluster_name"),
        localities=tuple(_locality(locality, ip_only) for locality in view.subs("endpoints", _LOCALITY)),
    )


def _locality(view: View, ip_only: bool) -> LocalityEndpoints:
    names = view.sub("locality", _NAMES)
    return LocalityEndpoints(
        region=names.text("region"),
        zone=names.text("zone"),
        sub_zone=names.text("sub_zone"),
        priority=view.number("priority", 0, 0, 128),
        weight=view.number("load_balancing_weight", 1),
        endpoints=tuple(_endpoint(endpoint, ip_only) for endpoint in view.subs("lb_endpoints", _LB_ENDPOINT)),
    )


def _endpoint(view: View, ip_only: bool) -> EndpointConfig:
    endpoint = view.sub("endpoint", _ENDPOINT)
    metadata = view.message.metadata.filter_metadata
    for name in sorted(metadata):
        if name not in (GROUP, SOCKET_MATCH):
            view.without_effect(f'metadata.filter_metadata["{name}"]')
    return EndpointConfig(
        address=address(endpoint.sub("address"), 1, ip_only),
        weight=view.number("load_balancing_weight", 1, 1),
        health=view.choice("health_status", _HEALTH, Health.HEALTHY),
        hostname=endpoint.text("hostname"),
        tunnel_authority=_metadata(metadata, GROUP, "tunnel"),
        plaintext=_metadata(metadata, SOCKET_MATCH, "tlsMode") == "disabled",
        http1=_http1(view, _metadata(metadata, GROUP, "protocol")),
    )


def _http1(view: View, protocol: str) -> bool:
    """Envoy has no protocol of an endpoint, only of a cluster; clients that do not know the key ignore it."""
    if protocol not in ("", "http1"):
        view.error(f"{protocol} is not supported; supported is http1", f'metadata["{GROUP}"]["protocol"]')
    return protocol == "http1"


def _metadata(metadata: dict[str, dict[str, object]], namespace: str, key: str) -> str:
    if namespace not in metadata or key not in metadata[namespace]:
        return ""
    value = metadata[namespace][key]
    return value if isinstance(value, str) else ""
