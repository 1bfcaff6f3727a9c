"""Envoy `Listener` with its filter chains, and the TCP proxy."""

from __future__ import annotations

from envoy.config.listener.v3 import listener_pb2  # noqa: F401  registers the types
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2

from sidecar.config.decode.common import address
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
_INSPECTORS = frozenset(
    {
        http_inspector_pb2.HttpInspector.DESCRIPTOR.full_name,
        tls_inspector_pb2.TlsInspector.DESCRIPTOR.full_name,
    }
)

_LISTENER = Fields(
    "name address filter_chains default_filter_chain traffic_direction api_listener listener_filters "
    "bind_to_port",
    "stat_prefix metadata per_connection_buffer_limit_bytes drain_type listener_filters_timeout "
    "continue_on_listener_filters_timeout tcp_fast_open_queue_length connection_balance_config reuse_port "
    "enable_reuse_port access_log tcp_backlog_size max_connections_to_accept_per_socket_event "
    "ignore_global_conn_limit bypass_overload_manager",
    "use_original_dst transparent freebind",
    hints={"additional_addresses": "write a listener for each address"},
)
_CHAIN = Fields(
    "filter_chain_match filters transport_socket",
    "name metadata transport_socket_connect_timeout",
    "use_proxy_proto",
)
_CHAIN_MATCH = Fields("", "name")
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
    if not view.flag("bind_to_port", True):
        view.error("not supported; remove it", "bind_to_port")
    _listener_filters(view)
    chain = _only_chain(view)
    bound = address(view.sub("address"), 0, ip_only=True)
    return ListenerConfig(
        name=name or str(bound),
        address=bound,
        filter_chains=(chain,) if chain is not None else (),
        inbound=inbound,
    )


def _only_chain(view: View) -> FilterChainConfig | None:
    chains = list(view.subs("filter_chains"))
    if view.has("default_filter_chain"):
        chains.append(view.sub("default_filter_chain"))
    if not chains:
        view.error("required", "filter_chains")
        return None
    for other in chains[1:]:
        other.error("one filter chain a listener is supported; write a listener for each")
    return _filter_chain(chains[0])


def _api_listener(view: View) -> HttpConnectionManagerConfig | None:
    api = view.sub("api_listener", Fields("api_listener"))
    type_name, config = api.any("api_listener")
    if type_name != HCM_TYPE or config is None:
        api.error(f"{type_name or 'nothing'} is not supported; use {HCM_TYPE}", "api_listener")
        return None
    return http_connection_manager(config)


def _listener_filters(view: View) -> None:
    """Protocols are always detected, so that the inspectors say nothing new; others are not supported."""
    for each in view.subs("listener_filters", Fields("name typed_config filter_disabled")):
        type_name, _ = each.any("typed_config")
        if type_name in _INSPECTORS:
            each.without_effect()
        else:
            each.error(f"listener filter {each.text('name')} ({type_name}) is not supported; remove it")


def _filter_chain(view: View) -> FilterChainConfig | None:
    view.check(_CHAIN)
    view.sub("filter_chain_match", _CHAIN_MATCH)
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
    return FilterChainConfig(
        network=network,
        tls=tls,
    )


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
