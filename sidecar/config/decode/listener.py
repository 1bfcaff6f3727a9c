"""Envoy `Listener` with its listener filters and filter chains, and the TCP proxy."""

from __future__ import annotations

from envoy.config.listener.v3 import listener_pb2  # noqa: F401  registers the types
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2

from mesh_api.names import GROUP
from sidecar.config.decode.common import listening_addresses
from sidecar.config.decode.filter_chain_match import check_distinct, filter_chain_match
from sidecar.config.decode.hcm import HCM_TYPE, http_connection_manager
from sidecar.config.decode.tls import downstream_socket
from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import (
    FilterChainConfig,
    HttpConnectionManagerConfig,
    ListenerConfig,
    TcpProxyConfig,
    WeightedCluster,
)

_TCP_PROXY_TYPE: str = tcp_proxy_pb2.TcpProxy.DESCRIPTOR.full_name
_ORIGINAL_DST_TYPE: str = original_dst_pb2.OriginalDst.DESCRIPTOR.full_name
_TLS_INSPECTOR_TYPE: str = tls_inspector_pb2.TlsInspector.DESCRIPTOR.full_name
_HTTP_INSPECTOR_TYPE: str = http_inspector_pb2.HttpInspector.DESCRIPTOR.full_name

_LISTENER = Fields(
    "name address additional_addresses filter_chains default_filter_chain traffic_direction api_listener "
    "listener_filters listener_filters_timeout continue_on_listener_filters_timeout bind_to_port "
    "use_original_dst metadata",
    "stat_prefix per_connection_buffer_limit_bytes drain_type "
    "tcp_fast_open_queue_length connection_balance_config reuse_port "
    "enable_reuse_port access_log tcp_backlog_size max_connections_to_accept_per_socket_event "
    "ignore_global_conn_limit bypass_overload_manager",
    "transparent freebind",
)
_LISTENER_FILTER = Fields("name typed_config filter_disabled")
_TLS_INSPECTOR = Fields(
    "", "enable_ja3_fingerprinting enable_ja4_fingerprinting initial_read_buffer_size max_client_hello_size"
)
_ADDITIONAL_ADDRESS = Fields("address")
_CHAIN = Fields(
    "filter_chain_match filters transport_socket",
    "name metadata transport_socket_connect_timeout",
    "use_proxy_proto",
)
_FILTER = Fields("name typed_config")
_TCP_PROXY = Fields(
    "stat_prefix cluster weighted_clusters idle_timeout tunneling_config max_connect_attempts "
    "upstream_connect_mode",
    "access_log access_log_flush_interval flush_access_log_on_connected access_log_options hash_policy",
)
_TUNNELING = Fields("hostname")


def listener(view: View) -> ListenerConfig:
    """A socket listener, or an API listener (routes for the authority that its name says)."""
    view.check(_LISTENER)
    name = view.text("name")
    inbound = view.choice(
        "traffic_direction", {"UNSPECIFIED": False, "OUTBOUND": False, "INBOUND": True}, False
    )
    if view.has("api_listener"):
        return ListenerConfig(name=name, api_listener=_api_listener(view), inbound=inbound)
    bound, *more = listening_addresses(view.sub("address"))
    for each in view.subs("additional_addresses", _ADDITIONAL_ADDRESS):
        more += listening_addresses(each.sub("address"))
    hand_off = view.flag("use_original_dst")
    filters = _listener_filters(view, hand_off)
    chains = _filter_chains(view)
    default = _filter_chain(view.sub("default_filter_chain")) if view.has("default_filter_chain") else None
    if not (view.has("default_filter_chain") or view.message.filter_chains or hand_off):
        view.error("required", "filter_chains")
    return ListenerConfig(
        name=name or str(bound),
        address=bound,
        filter_chains=chains,
        inbound=inbound,
        draining=_draining(view),
        default_filter_chain=default,
        additional_addresses=tuple(more),
        bind_to_port=view.flag("bind_to_port", True),
        original_dst=hand_off or _ORIGINAL_DST_TYPE in filters,
        hand_off=hand_off,
        inspect_tls=(hand_off and _TLS_INSPECTOR_TYPE in filters)
        or any(
            chain.match.server_names or chain.match.transport_protocol or chain.match.application_protocols
            for chain in chains
        ),
        listener_filters_timeout=view.seconds("listener_filters_timeout", 15.0),
        continue_on_timeout=view.flag("continue_on_listener_filters_timeout"),
    )


def _draining(view: View) -> bool:
    metadata = view.message.metadata.filter_metadata
    known = GROUP in metadata and "draining" in metadata[GROUP]
    if view.has("metadata") and not known:
        view.without_effect("metadata")
    return known and metadata[GROUP]["draining"] is True


def _filter_chains(view: View) -> tuple[FilterChainConfig, ...]:
    views = list(view.subs("filter_chains"))
    chains = [(each, _filter_chain(each)) for each in views]
    found = [(each, chain) for each, chain in chains if chain is not None]
    check_distinct([(each, chain.match) for each, chain in found])
    return tuple(chain for _, chain in found)


def _api_listener(view: View) -> HttpConnectionManagerConfig | None:
    api = view.sub("api_listener", Fields("api_listener"))
    type_name, config = api.any("api_listener")
    if type_name != HCM_TYPE or config is None:
        api.error(f"{type_name or 'nothing'} is not supported; use {HCM_TYPE}", "api_listener")
        return None
    return http_connection_manager(config)


def _listener_filters(view: View, hand_off: bool) -> set[str]:
    """Types of the listener filters. Protocols are always detected and TLS is inspected where a filter chain
    asks for it, so that the inspectors themselves say nothing new; but where connections are handed on, TLS
    is inspected only if the filter is there."""
    types = set()
    for each in view.subs("listener_filters", _LISTENER_FILTER):
        type_name, config = each.any("typed_config")
        types.add(type_name)
        if each.has("filter_disabled"):
            each.error("not supported; remove it", "filter_disabled")
        if type_name in (_TLS_INSPECTOR_TYPE, _HTTP_INSPECTOR_TYPE):
            if not hand_off or type_name == _HTTP_INSPECTOR_TYPE:
                each.without_effect()
            if type_name == _TLS_INSPECTOR_TYPE and config is not None:
                config.check(_TLS_INSPECTOR)
        elif type_name != _ORIGINAL_DST_TYPE:
            each.error(f"listener filter {each.text('name')} ({type_name}) is not supported; remove it")
    return types


def _filter_chain(view: View) -> FilterChainConfig | None:
    view.check(_CHAIN)
    match = filter_chain_match(view.sub("filter_chain_match"))
    tls = downstream_socket(view.sub("transport_socket")) if view.has("transport_socket") else None
    filters = list(view.subs("filters", _FILTER))
    if not filters:
        view.error("required: envoy.filters.network.http_connection_manager or tcp_proxy", "filters")
    networks = [_network_filter(each) for each in filters]
    if len(filters) > 1 and None not in networks:
        filters[1].error("one network filter a chain is supported")
    network = next((network for network in networks if network is not None), None)
    if network is None:
        return None
    return FilterChainConfig(network=network, tls=tls, match=match)


def _network_filter(view: View) -> HttpConnectionManagerConfig | TcpProxyConfig | None:
    type_name, config = view.any("typed_config")
    if type_name == HCM_TYPE and config is not None:
        return http_connection_manager(config)
    if type_name == _TCP_PROXY_TYPE and config is not None:
        return _tcp_proxy(config)
    view.error(
        f"network filter {view.text('name') or '(unnamed)'} ({type_name or 'no typed_config'}) is not "
        f"supported; "
        "supported are envoy.filters.network.http_connection_manager and tcp_proxy"
    )
    return None


def _tcp_proxy(view: View) -> TcpProxyConfig:
    view.check(_TCP_PROXY)
    view.choice("upstream_connect_mode", {"IMMEDIATE": None}, None)
    if view.number("max_connect_attempts", 1) != 1:
        view.error("only 1, the default, is supported", "max_connect_attempts")
    tunneling = view.sub("tunneling_config", _TUNNELING)
    hostname = tunneling.text("hostname")
    if "%" in hostname:
        tunneling.error("command operators such as %REQUESTED_SERVER_NAME% are not supported", "hostname")
    return TcpProxyConfig(
        stat_prefix=view.text("stat_prefix"),
        clusters=_tcp_clusters(view),
        idle_timeout=view.seconds("idle_timeout", 3600.0),
        tunneling=view.has("tunneling_config"),
        tunneling_hostname=hostname,
    )


def _tcp_clusters(view: View) -> tuple[WeightedCluster, ...]:
    kind = view.which("cluster_specifier")
    if kind == "cluster":
        return (WeightedCluster(view.required("cluster"), 1),)
    if kind is None:
        view.error("required: cluster or weighted_clusters")
    weighted = view.sub("weighted_clusters", Fields("clusters"))
    return tuple(
        WeightedCluster(
            cluster.required("name"), cluster.in_range(cluster.message.weight, 1, 0xFFFFFFFF, "weight")
        )
        for cluster in weighted.subs("clusters", Fields("name weight"))
    )
