"""Envoy `Cluster`: discovery, protocol, limits. Load balancing policies are in `load_balancing.py`."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2  # noqa: F401  registers the types
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from sidecar.config.decode.common import ads_source, http2_options, is_ip
from sidecar.config.decode.endpoint import SOCKET_MATCH, endpoints
from sidecar.config.decode.limits import circuit_breakers, outlier_detection
from sidecar.config.decode.load_balancing import lb_policy
from sidecar.config.decode.tls import RAW_BUFFER_TYPE, SOCKET, upstream_socket
from sidecar.config.decode.upstream_filters import upstream_filters
from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import ClusterConfig, Discovery, EndpointsConfig, Http2Options

_CLUSTER = Fields(
    "name type eds_cluster_config connect_timeout lb_policy load_balancing_policy load_assignment "
    "max_requests_per_connection circuit_breakers outlier_detection common_http_protocol_options "
    "http_protocol_options http2_protocol_options typed_extension_protocol_options dns_refresh_rate "
    "dns_lookup_family transport_socket transport_socket_matches common_lb_config least_request_lb_config "
    "protocol_selection upstream_bind_config",
    "alt_stat_name metadata per_connection_buffer_limit_bytes dns_jitter dns_failure_refresh_rate "
    "respect_dns_ttl "
    "cleanup_interval upstream_connection_options close_connections_on_host_health_failure "
    "ignore_health_on_host_removal wait_for_warm_on_init lrs_server lrs_report_endpoint_metrics "
    "track_timeout_budgets track_cluster_stats round_robin_lb_config",
    hints={
        "health_checks": "active health checks are not implemented; use outlier_detection",
        "cluster_type": "use a type of STATIC, STRICT_DNS, LOGICAL_DNS, EDS or ORIGINAL_DST",
        "upstream_http_protocol_options": "set the name in the transport socket's sni",
    },
)
_EDS = Fields("eds_config service_name")
_BIND = Fields("source_address extra_source_addresses")
_SOURCE = Fields("address port_value protocol")
_COMMON_LB = Fields(
    "healthy_panic_threshold",
    # Locality weights are always honoured; there are no active health checks or override hosts.
    "locality_weighted_lb_config update_merge_window ignore_new_hosts_until_first_hc "
    "consistent_hashing_lb_config "
    "override_host_status",
)
_COMMON_HTTP = Fields("idle_timeout max_requests_per_connection headers_with_underscores_action")
_HTTP1 = Fields("", "allow_absolute_url accept_http_10 enable_trailers use_balsa_parser allow_custom_methods")
_PROTOCOL = Fields("common_http_protocol_options explicit_http_config http_filters")
_EXPLICIT = Fields("http_protocol_options http2_protocol_options")
_OPTIONS_KEY: str = http_protocol_options_pb2.HttpProtocolOptions.DESCRIPTOR.full_name
_DISCOVERY = {discovery.value: discovery for discovery in Discovery}
_DNS_FAMILIES = {"AUTO": "AUTO", "ALL": "AUTO", "V4_ONLY": "V4_ONLY", "V6_ONLY": "V6_ONLY"}


def cluster(view: View) -> ClusterConfig:
    """A cluster with Envoy's defaults."""
    view.check(_CLUSTER)
    view.choice("protocol_selection", {"USE_CONFIGURED_PROTOCOL": None}, None)
    discovery = view.choice("type", _DISCOVERY, Discovery.STATIC)
    name = view.required("name")
    http2, idle_timeout, max_requests = _protocol(view)
    _common_lb(view)
    _transport_socket_matches(view)
    return ClusterConfig(
        name=name,
        discovery=discovery,
        eds_service_name=_eds(view) if discovery is Discovery.EDS else "",
        endpoints=_endpoints(view, discovery, name),
        lb_policy=lb_policy(view, discovery),
        connect_timeout=view.seconds("connect_timeout", 5.0, positive=True),
        http2=http2,
        tls=upstream_socket(view.sub("transport_socket")) if view.has("transport_socket") else None,
        circuit_breakers=circuit_breakers(view),
        outlier_detection=outlier_detection(view),
        idle_timeout=idle_timeout,
        max_requests_per_connection=max_requests,
        dns_refresh_rate=view.seconds("dns_refresh_rate", 5.0, positive=True),
        dns_lookup_family=view.choice("dns_lookup_family", _DNS_FAMILIES, "AUTO"),
        source_addresses=_source_addresses(view.sub("upstream_bind_config")),
    )


def _eds(view: View) -> str:
    if not view.has("eds_cluster_config"):
        view.error("required for a cluster of type EDS", "eds_cluster_config")
        return ""
    eds = view.sub("eds_cluster_config", _EDS)
    ads_source(eds.sub("eds_config"))
    return eds.text("service_name")


def _endpoints(view: View, discovery: Discovery, name: str) -> EndpointsConfig | None:
    if discovery is Discovery.EDS:
        if view.has("load_assignment"):
            view.error("a cluster of type EDS gets its endpoints by discovery; remove it", "load_assignment")
        return None
    if view.has("eds_cluster_config"):
        view.error("only for clusters of type EDS; remove it", "eds_cluster_config")
    if discovery is Discovery.ORIGINAL_DST:
        if view.has("load_assignment"):
            view.error(
                "a cluster of type ORIGINAL_DST has no endpoints of its own; remove it", "load_assignment"
            )
        return None
    if not view.has("load_assignment"):
        # Envoy takes a cluster without endpoints; every request to it fails.
        return EndpointsConfig(name)
    assignment = endpoints(view.sub("load_assignment"), ip_only=discovery is Discovery.STATIC)
    if discovery is Discovery.LOGICAL_DNS and sum(len(each.endpoints) for each in assignment.localities) != 1:
        view.error("a cluster of type LOGICAL_DNS has exactly one endpoint", "load_assignment.endpoints")
    return assignment


def _source_addresses(view: View) -> tuple[str, ...]:
    """Hosts of a `BindConfig`; the port is the kernel's choice."""
    view.check(_BIND)
    found = [view.sub("source_address")] if view.has("source_address") else []
    found += [each.sub("address") for each in view.subs("extra_source_addresses", Fields("address"))]
    for each in found:
        each.check(_SOURCE)
        each.choice("protocol", {"TCP": None}, None)
        if not is_ip(each.text("address")):
            each.error("required: an IP address", "address")
        if each.message.port_value:
            each.error("must be 0: connections need a port each", "port_value")
    return tuple(each.text("address") for each in found)


def _protocol(view: View) -> tuple[Http2Options | None, float, int]:
    """HTTP/2 options (None: HTTP/1.1), idle timeout and requests a connection, from the typed options
    or the older fields of the cluster itself."""
    options: View | None = None
    for key, entry in view.entries("typed_extension_protocol_options"):
        type_name, message = entry.any("")
        if message is None or type_name != _OPTIONS_KEY or key != _OPTIONS_KEY:
            entry.error(f"{key} ({type_name}) is not supported; supported is {_OPTIONS_KEY}")
        else:
            options = message
    legacy = next(
        (
            name
            for name in ("common_http_protocol_options", "http_protocol_options", "http2_protocol_options")
            if view.has(name)
        ),
        None,
    )
    max_requests = view.number("max_requests_per_connection", 0)
    if options is None:
        idle_timeout, limit = _common_http(view)
        return _http_version(view), idle_timeout, limit or max_requests
    if legacy is not None:
        view.error("excludes typed_extension_protocol_options; remove one of them", legacy)
    options.check(_PROTOCOL)
    upstream_filters(options, "http_filters")
    idle_timeout, limit = _common_http(options)
    if not options.has("explicit_http_config"):
        if options.which("upstream_protocol_options") is None:
            options.error("required", "explicit_http_config")
        return None, idle_timeout, limit or max_requests
    explicit = options.sub("explicit_http_config", _EXPLICIT)
    return _http_version(explicit), idle_timeout, limit or max_requests


def _common_http(view: View) -> tuple[float, int]:
    common = view.sub("common_http_protocol_options", _COMMON_HTTP)
    common.choice("headers_with_underscores_action", {"ALLOW": None}, None)
    return common.seconds("idle_timeout", 3600.0), common.number("max_requests_per_connection", 0)


def _http_version(view: View) -> Http2Options | None:
    if view.has("http2_protocol_options"):
        return http2_options(view.sub("http2_protocol_options"))
    view.sub("http_protocol_options", _HTTP1)
    return None


def _common_lb(view: View) -> None:
    common = view.sub("common_lb_config", _COMMON_LB)
    if common.percent("healthy_panic_threshold", 0.0) != 0.0:
        common.error("only 0 is supported: unhealthy endpoints are never used", "healthy_panic_threshold")


def _transport_socket_matches(view: View) -> None:
    """One use is implemented: plain text for the endpoints whose metadata says `tlsMode: disabled`."""
    for match in view.subs("transport_socket_matches", Fields("match transport_socket", "name")):
        criteria = match.message.match.fields
        type_name, _ = match.sub("transport_socket", SOCKET).any("typed_config")
        wanted = (
            len(criteria) == 1 and "tlsMode" in criteria and criteria["tlsMode"].string_value == "disabled"
        )
        if not wanted or type_name != RAW_BUFFER_TYPE:
            match.error(f"only raw_buffer for endpoints with {SOCKET_MATCH} `tlsMode: disabled` is supported")
