"""Envoy `RouteConfiguration` and all inside it, as dataclasses of `resources.py`."""

from __future__ import annotations

from envoy.config.route.v3 import route_components_pb2, route_pb2  # noqa: F401  registers the types

from sidecar.config.decode.common import header_operations, regex
from sidecar.config.decode.regex import translate_substitution
from sidecar.config.decode.retry import retry_policy
from sidecar.config.decode.route_match import route_match
from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import (
    DirectResponse,
    Redirect,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
)

_HEADERS = (
    " request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove"
)
_FILTERS = {"typed_per_filter_config": "no filter with settings per route is supported; remove it"}

_TABLE = Fields(
    "name virtual_hosts ignore_port_in_host_matching" + _HEADERS,
    "validate_clusters max_direct_response_body_size_bytes metadata",
    hints=_FILTERS,
)
_HOST = Fields(
    "name domains routes retry_policy" + _HEADERS,
    # Rate limits act only through a filter that would be refused.
    "virtual_clusters rate_limits metadata",
    hints=_FILTERS,
)
_ROUTE = Fields(
    "name match route redirect direct_response" + _HEADERS,
    "metadata decorator stat_prefix",
    hints=_FILTERS,
)
_ACTION = Fields(
    "cluster weighted_clusters cluster_not_found_response_code prefix_rewrite regex_rewrite "
    "host_rewrite_literal "
    "timeout idle_timeout retry_policy upgrade_configs max_stream_duration priority",
    # Hash policies act only with the ring hash and Maglev balancers, which are refused.
    "rate_limits hash_policy",
    "auto_host_rewrite include_vh_rate_limits",
    hints={
        "cluster_header": "name the cluster with `cluster`",
        "max_grpc_timeout": "use max_stream_duration.grpc_timeout_header_max",
        "path_rewrite_policy": "use prefix_rewrite or regex_rewrite",
    },
)
_DURATION = Fields("grpc_timeout_header_max", hints={"max_stream_duration": "use the route's timeout"})
_UPGRADE = Fields("upgrade_type enabled connect_config")
_WEIGHTED = Fields("clusters total_weight", "runtime_key_prefix")
_WEIGHT = Fields("name weight" + _HEADERS, hints=_FILTERS)
_REWRITE = Fields("pattern substitution")
_REDIRECT = Fields(
    "https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite response_code "
    "strip_query"
)
_DIRECT = Fields("status body")
_BODY = Fields("inline_string inline_bytes", hints={"filename": "give the body with inline_string"})
_REDIRECT_CODES = {
    "MOVED_PERMANENTLY": 301,
    "FOUND": 302,
    "SEE_OTHER": 303,
    "TEMPORARY_REDIRECT": 307,
    "PERMANENT_REDIRECT": 308,
}


def route_configuration(view: View) -> RouteConfiguration:
    """A route table; domains must be unique in it."""
    view.check(_TABLE)
    hosts = []
    domains: dict[str, str] = {}
    names: dict[str, str] = {}
    for host in view.subs("virtual_hosts", _HOST):
        decoded = _virtual_host(host)
        _unique(host, decoded.name, "name", names)
        for index, domain in enumerate(decoded.domains):
            _unique(host, domain.lower(), f"domains[{index}]", domains)
        hosts.append(decoded)
    return RouteConfiguration(
        name=view.text("name"),
        virtual_hosts=tuple(hosts),
        request_headers=header_operations(view, "request"),
        response_headers=header_operations(view, "response"),
        ignore_port=view.flag("ignore_port_in_host_matching"),
    )


def _unique(view: View, key: str, field: str, seen: dict[str, str]) -> None:
    if key in seen:
        view.error(f"{key!r} is also at {seen[key]}", field)
    seen.setdefault(key, view.at(field))


def _virtual_host(view: View) -> VirtualHost:
    domains = view.texts("domains")
    if not domains:
        view.error('required; use "*" for every authority', "domains")
    for index, domain in enumerate(domains):
        if not domain or "*" in domain[1:-1] or (len(domain) > 1 and domain.count("*") > 1):
            view.error(f"{domain!r}: a domain is exact, `*.suffix`, `prefix.*` or `*`", f"domains[{index}]")
    return VirtualHost(
        name=view.required("name"),
        domains=domains,
        routes=tuple(_route(route) for route in view.subs("routes", _ROUTE)),
        retry_policy=retry_policy(view.sub("retry_policy")) if view.has("retry_policy") else None,
        request_headers=header_operations(view, "request"),
        response_headers=header_operations(view, "response"),
    )


def _route(view: View) -> Route:
    match = route_match(view.sub("match"))
    kind = view.which("action")
    if kind is None:
        view.error("required: route, redirect or direct_response")
    return Route(
        name=view.text("name"),
        match=match,
        action=_action(view.sub("route"), match) if kind == "route" else None,
        redirect=_redirect(view.sub("redirect", _REDIRECT)) if kind == "redirect" else None,
        direct_response=_direct(view.sub("direct_response", _DIRECT)) if kind == "direct_response" else None,
        request_headers=header_operations(view, "request"),
        response_headers=header_operations(view, "response"),
    )


def _action(view: View, match: RouteMatch) -> RouteAction:
    view.check(_ACTION)
    view.choice("cluster_not_found_response_code", {"SERVICE_UNAVAILABLE": None}, None)
    view.choice("priority", {"DEFAULT": None}, None)
    _route_upgrades(view, match)
    if view.text("prefix_rewrite") and view.has("regex_rewrite"):
        view.error("prefix_rewrite and regex_rewrite exclude each other", "regex_rewrite")
    grpc_timeout_max = None
    if view.has("max_stream_duration"):
        duration = view.sub("max_stream_duration", _DURATION)
        if duration.has("grpc_timeout_header_max"):
            grpc_timeout_max = duration.seconds("grpc_timeout_header_max", 0.0)
    return RouteAction(
        clusters=_clusters(view),
        timeout=view.seconds("timeout", 15.0),
        grpc_timeout_max=grpc_timeout_max,
        idle_timeout=view.seconds("idle_timeout", 0.0),
        retry_policy=retry_policy(view.sub("retry_policy")) if view.has("retry_policy") else None,
        prefix_rewrite=view.text("prefix_rewrite"),
        regex_rewrite=_regex_rewrite(view.sub("regex_rewrite")) if view.has("regex_rewrite") else None,
        host_rewrite=view.text("host_rewrite_literal"),
    )


def _route_upgrades(view: View, match: RouteMatch) -> None:
    """CONNECT is the one upgrade that a route may ask for: its stream becomes a TCP connection."""
    terminates = False
    for upgrade in view.subs("upgrade_configs", _UPGRADE):
        if upgrade.text("upgrade_type").upper() != "CONNECT" or not upgrade.flag("enabled", True):
            upgrade.error("a route may only enable CONNECT; name other upgrades at the connection manager")
        elif not upgrade.has("connect_config"):
            upgrade.error("required: forwarding CONNECT itself is not supported", "connect_config")
        else:
            upgrade.sub("connect_config", Fields(""))
            terminates = True
    if match.connect and not terminates:
        view.error(
            "a connect_matcher needs one with upgrade_type CONNECT and connect_config", "upgrade_configs"
        )


def _clusters(view: View) -> tuple[WeightedCluster, ...]:
    kind = view.which("cluster_specifier")
    if kind == "cluster":
        return (WeightedCluster(view.required("cluster"), 1),)
    if kind != "weighted_clusters":
        if kind is None:
            view.error("required: cluster or weighted_clusters")
        return ()
    weighted = view.sub("weighted_clusters", _WEIGHTED)
    clusters = []
    for cluster in weighted.subs("clusters", _WEIGHT):
        if not cluster.has("weight"):
            cluster.error("required", "weight")
        clusters.append(
            WeightedCluster(
                cluster.required("name"),
                cluster.number("weight", 0),
                header_operations(cluster, "request"),
                header_operations(cluster, "response"),
            )
        )
    total = sum(cluster.weight for cluster in clusters)
    if not 0 < total <= 0xFFFFFFFF:
        weighted.error(f"the weights must add up to at least 1 and less than 2^32, not {total}", "clusters")
    if weighted.has("total_weight") and weighted.number("total_weight", 0) != total:
        weighted.error(f"must be the sum of the weights, {total}; or remove it", "total_weight")
    # A cluster of weight 0 is never chosen.
    return tuple(cluster for cluster in clusters if cluster.weight)


def _regex_rewrite(view: View) -> tuple[str, str]:
    view.check(_REWRITE)
    pattern = regex(view.sub("pattern"))
    try:
        return pattern, translate_substitution(view.text("substitution"), pattern)
    except ValueError as error:
        view.error(str(error), "substitution")
        return pattern, ""


def _redirect(view: View) -> Redirect:
    scheme = "https" if view.flag("https_redirect") else view.text("scheme_redirect")
    path = view.which("path_rewrite_specifier")
    return Redirect(
        status=view.choice("response_code", _REDIRECT_CODES, 301),
        scheme=scheme.lower(),
        host=view.text("host_redirect"),
        port=view.number("port_redirect", 0, 0, 65535),
        path=view.text("path_redirect") if path == "path_redirect" else None,
        prefix_rewrite=view.text("prefix_rewrite") if path == "prefix_rewrite" else None,
        strip_query=view.flag("strip_query"),
    )


def _direct(view: View) -> DirectResponse:
    body = view.sub("body", _BODY)
    kind = body.which("specifier")
    data = b""
    if kind == "inline_string":
        data = body.text("inline_string").encode()
    elif kind == "inline_bytes":
        data = body.message.inline_bytes
    return DirectResponse(view.in_range(view.message.status, 200, 599, "status"), data)
