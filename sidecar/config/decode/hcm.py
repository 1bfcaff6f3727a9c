"""Envoy `HttpConnectionManager` and its HTTP filters. Tracing and logs are in `observability.py`."""

from __future__ import annotations

from envoy.extensions.filters.http.on_demand.v3 import on_demand_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

from sidecar.config.decode import adaptive_concurrency as adaptive
from sidecar.config.decode.common import ads_source, http2_options
from sidecar.config.decode.observability import access_log, tracing
from sidecar.config.decode.route import route_configuration
from sidecar.config.decode.upstream_filters import upstream_filters
from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import (
    ClientCert,
    FilterConfig,
    HttpConnectionManagerConfig,
    RouteConfiguration,
)

HCM_TYPE: str = http_connection_manager_pb2.HttpConnectionManager.DESCRIPTOR.full_name
_ROUTER_TYPE: str = router_pb2.Router.DESCRIPTOR.full_name
_ON_DEMAND_TYPE: str = on_demand_pb2.OnDemand.DESCRIPTOR.full_name

_HCM = Fields(
    "codec_type stat_prefix rds route_config http_filters tracing common_http_protocol_options "
    "http_protocol_options "
    "http2_protocol_options max_request_headers_kb stream_idle_timeout request_timeout "
    "request_headers_timeout "
    "access_log forward_client_cert_details set_current_client_cert_details upgrade_configs "
    "server_header_transformation path_with_escaped_slashes_action generate_request_id",
    # x-forwarded-for, x-request-id and `server` are passed through untouched; 100-continue is the
    # application's to answer.
    "delayed_close_timeout drain_timeout "
    "access_log_flush_interval flush_access_log_on_new_request access_log_options "
    "internal_address_config skip_xff_append preserve_external_request_id proxy_100_continue "
    "append_local_overload "
    "represent_ipv4_remote_address_as_ipv4_mapped_ipv6 http1_safe_max_connection_duration "
    "add_proxy_protocol_connection_state",
    "use_remote_address normalize_path add_user_agent stream_error_on_invalid_http_message",
    hints={
        "scoped_routes": "use route_config or rds",
        "use_remote_address": "x-forwarded-for is passed through and not appended to; set it to false",
        "normalize_path": "paths are passed through as they came; set it to false",
    },
)
_RDS = Fields("config_source route_config_name")
_FILTER = Fields("name typed_config is_optional disabled")
_ROUTER = Fields(
    "upstream_http_filters",
    # Spans, statistics and x-envoy- fields that this router makes or omits in any case.
    "dynamic_stats start_child_span upstream_log upstream_log_options suppress_envoy_headers "
    "suppress_grpc_request_failure_code_stats",
)
_COMMON_HTTP = Fields("idle_timeout max_headers_count headers_with_underscores_action")
_HTTP1 = Fields("", "allow_absolute_url accept_http_10 enable_trailers use_balsa_parser allow_custom_methods")
_CERT_DETAILS = Fields("uri", off="subject")
_UPGRADE = Fields("upgrade_type enabled")
_CODECS = {"AUTO": "AUTO", "HTTP1": "HTTP1", "HTTP2": "HTTP2"}
_CLIENT_CERT = {mode.value: mode for mode in ClientCert}


def http_connection_manager(view: View) -> HttpConnectionManagerConfig:
    """An HttpConnectionManager with Envoy's defaults."""
    view.check(_HCM)
    _fixed_choices(view)
    filters, on_demand = _filters(view)
    route_config, rds_route_name = _routes(view, on_demand)
    upgrades = _upgrades(view)
    common = view.sub("common_http_protocol_options", _COMMON_HTTP)
    common.choice("headers_with_underscores_action", {"ALLOW": None}, None)
    view.sub("http_protocol_options", _HTTP1)
    logged, log_path = access_log(view)
    standard = HttpConnectionManagerConfig("")
    return HttpConnectionManagerConfig(
        stat_prefix=view.text("stat_prefix"),
        codec=view.choice("codec_type", _CODECS, "AUTO"),
        route_config=route_config,
        rds_route_name=rds_route_name,
        on_demand=on_demand and not rds_route_name and route_config is None,
        filters=filters,
        tracing=tracing(view.sub("tracing")) if view.has("tracing") else None,
        client_cert=view.choice("forward_client_cert_details", _CLIENT_CERT, ClientCert.SANITIZE),
        client_cert_uri=view.sub("set_current_client_cert_details", _CERT_DETAILS).flag("uri"),
        http2=http2_options(view.sub("http2_protocol_options")),
        access_log=logged,
        access_log_path=log_path or standard.access_log_path,
        stream_idle_timeout=view.seconds("stream_idle_timeout", standard.stream_idle_timeout),
        idle_timeout=common.seconds("idle_timeout", standard.idle_timeout),
        request_headers_timeout=view.seconds("request_headers_timeout", standard.request_headers_timeout),
        max_request_headers_kb=view.number("max_request_headers_kb", 0, 1, 8192),
        max_headers_count=common.number("max_headers_count", standard.max_headers_count, 1),
        upgrades=tuple(sorted(upgrades - {"connect"})),
    )


def _fixed_choices(view: View) -> None:
    """Fields of which only the value that describes this implementation is accepted."""
    view.choice(
        "path_with_escaped_slashes_action", {"IMPLEMENTATION_SPECIFIC_DEFAULT": 0, "KEEP_UNCHANGED": 1}, 0
    )
    view.choice("server_header_transformation", {"OVERWRITE": 0, "PASS_THROUGH": 1}, 0)
    if view.flag("generate_request_id"):
        view.error(
            "x-request-id is not made, traces identify requests; set it to false", "generate_request_id"
        )
    if view.seconds("request_timeout", 0.0) != 0.0:
        view.error("not supported; use the timeout of the routes", "request_timeout")


def _routes(view: View, on_demand: bool) -> tuple[RouteConfiguration | None, str]:
    kind = view.which("route_specifier")
    if kind == "route_config":
        return route_configuration(view.sub("route_config")), ""
    if kind == "rds":
        rds = view.sub("rds", _RDS)
        ads_source(rds.sub("config_source"))
        name = rds.text("route_config_name")
        if not name and not on_demand:
            rds.error(
                "required; it may be empty only with the filter envoy.filters.http.on_demand, which finds "
                "routes "
                "by authority",
                "route_config_name",
            )
        return None, name
    if kind is None:
        view.error("required: route_config or rds")
    return None, ""


def _filters(view: View) -> tuple[tuple[FilterConfig, ...], bool]:
    """The HTTP filters before the router, and whether `on_demand` is among them."""
    on_demand = False
    filters: list[FilterConfig] = []
    last = ""
    for each in view.subs("http_filters", _FILTER):
        if each.flag("disabled"):
            each.without_effect()
            continue
        type_name, config = each.any("typed_config")
        if type_name == _ROUTER_TYPE and config is not None:
            config.check(_ROUTER)
            upstream_filters(config, "upstream_http_filters")
        elif type_name == _ON_DEMAND_TYPE and config is not None:
            config.check(Fields(""))
            on_demand = True
        elif type_name == adaptive.TYPE and config is not None:
            settings = adaptive.adaptive_concurrency(config)
            if settings is not None:
                filters.append(FilterConfig(each.text("name"), settings))
        elif each.flag("is_optional"):
            each.without_effect()
            continue
        else:
            each.error(
                f"filter {each.text('name') or '(unnamed)'} ({type_name or 'no typed_config'}) is not "
                f"supported; "
                "remove it, or set is_optional to go without it"
            )
        last = type_name
    if last != _ROUTER_TYPE:
        view.error("the last filter must be envoy.filters.http.router", "http_filters")
    return tuple(filters), on_demand


def _upgrades(view: View) -> set[str]:
    """Upgrade types that are enabled, in lower case."""
    enabled = set()
    for upgrade in view.subs("upgrade_configs", _UPGRADE):
        name = upgrade.text("upgrade_type").lower()
        if name not in ("connect", "websocket"):
            upgrade.error(f"{name!r} is not supported; supported are CONNECT and websocket", "upgrade_type")
        elif upgrade.flag("enabled", True):
            enabled.add(name)
        elif name == "connect":
            upgrade.error("not supported; leave the connect_matcher routes out instead", "enabled")
    return enabled
