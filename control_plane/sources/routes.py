"""HTTPRoute, GRPCRoute and TCPRoute objects to the model: Gateway API v1's fields, each checked in place.

Called by `objects`. What the mesh cannot do is an error at that field, never left out: a route that
drops a filter would send traffic where nobody asked for it.
"""

from __future__ import annotations

import re

from control_plane.model.route import (
    BackendRef,
    GrpcMethod,
    ParentRef,
    PathKind,
    PathMatch,
    Retry,
    Route,
    RouteKind,
    RouteMatch,
    RouteRule,
    ValueMatch,
)
from control_plane.sources.fields import Fields
from control_plane.sources.route_filters import HEADER_NAME, HEADER_RULE, check_path, parse_filters

GATEWAY_GROUP = "gateway.networking.k8s.io"

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
_MATCH_KINDS = ("Exact", "RegularExpression")
_NOT_RE2 = re.compile(r"\(\?(?:[=!>(#]|<[=!]|P=)|(?<!\\)(?:\\\\)*\\[1-9]")
_GRPC_NAME = re.compile(r"[A-Za-z0-9_.]+")
_SPEC_FIELDS = ("hostnames", "parentRefs", "rules", "useDefaultGateways")
_RULE_FIELDS = ("backendRefs", "filters", "matches", "name", "retry", "sessionPersistence", "timeouts")


def parse_route(kind: RouteKind, namespace: str, name: str, fields: Fields) -> Route:
    """The route; its `parents` are Services alone (it may serve a Gateway too, which is not our concern).
    Raises FieldError."""
    spec = fields.mapping("spec")
    spec.only(_SPEC_FIELDS if kind is not RouteKind.TCP else ("parentRefs", "rules"))
    parents = tuple(
        ref for item in spec.mappings("parentRefs") if (ref := _parent(namespace, item)) is not None
    )
    read = _tcp_rule if kind is RouteKind.TCP else _rule
    rules = tuple(read(kind, namespace, item) for item in spec.mappings("rules"))
    if not rules and kind is RouteKind.HTTP:
        rules = (RouteRule(),)
    if len(rules) != 1 and kind is RouteKind.TCP:
        raise spec.error("rules", f"a TCPRoute has one rule, not {len(rules)}")
    created = fields.mapping("metadata").text("creationTimestamp", "")
    return Route(kind, namespace, name, parents, rules, created)


def _parent(namespace: str, item: Fields) -> ParentRef | None:
    item.only(("group", "kind", "name", "namespace", "port", "sectionName"))
    if item.text("kind", "Gateway") != "Service":
        return None
    if item.text("group", GATEWAY_GROUP) not in ("", "core"):
        raise item.error("group", 'a Service is in the core group: write group: ""')
    return ParentRef(
        namespace=item.text("namespace", namespace),
        name=item.text("name"),
        port=item.port("port") if item.has("port") else None,
        section_name=item.text("sectionName", ""),
        path=item.path,
    )


def _rule(kind: RouteKind, namespace: str, item: Fields) -> RouteRule:
    item.only(_RULE_FIELDS)
    if item.has("sessionPersistence"):
        raise item.error("sessionPersistence", "session persistence is not supported; remove it")
    read = _http_match if kind is RouteKind.HTTP else _grpc_match
    matches = tuple(read(match) for match in item.mappings("matches"))
    if not matches:
        empty: dict[str, object] = {}
        matches = (read(Fields(empty, item.path)),)
    filters = parse_filters(kind, item)
    change = filters.rewrite or filters.redirect
    cuts_prefix = change is not None and change.path is not None and change.path.prefix
    if cuts_prefix and not all(match.path.kind is PathKind.PREFIX for match in matches):
        raise item.error("filters", "ReplacePrefixMatch needs matches of type PathPrefix alone")
    backends = tuple(_backend(kind, namespace, ref) for ref in item.mappings("backendRefs"))
    if filters.redirect and backends:
        raise item.error("backendRefs", "a rule that redirects cannot have backends; remove one of the two")
    request, backend = _timeouts(item.mapping("timeouts"))
    return RouteRule(matches, filters, backends, request, backend, _retry(item))


def _tcp_rule(kind: RouteKind, namespace: str, item: Fields) -> RouteRule:
    item.only(("backendRefs", "name"))
    backends = tuple(_backend(kind, namespace, ref) for ref in item.mappings("backendRefs"))
    if not backends:
        raise item.error("backendRefs", "is required: one or more Services")
    return RouteRule(backends=backends)


def _backend(kind: RouteKind, namespace: str, item: Fields) -> BackendRef:
    fields = ("group", "kind", "name", "namespace", "port", "weight")
    item.only(fields if kind is RouteKind.TCP else ("filters", *fields))
    group, sort = item.text("group", ""), item.text("kind", "Service")
    is_service = group in ("", "core") and sort == "Service"
    filters = parse_filters(kind, item)
    if filters.rewrite or filters.redirect:
        raise item.error("filters", "only header modifiers work on one backend; move the others to the rule")
    return BackendRef(
        namespace=item.text("namespace", namespace),
        name=item.text("name"),
        port=item.port("port") if is_service else 0,
        weight=item.integer("weight", 0, 1_000_000, 1),
        filters=filters,
        resolved=is_service,
        kind="" if is_service else f"{group or 'core'}/{sort}",
        path=item.path,
    )


def _http_match(item: Fields) -> RouteMatch:
    if item.value:
        item.only(("headers", "method", "path", "queryParams"))
    return RouteMatch(
        path=_path(item.mapping("path")),
        method=item.choice("method", ("", *_METHODS), ""),
        headers=_values(item, "headers", lower=True),
        query=_values(item, "queryParams", lower=False),
    )


def _path(item: Fields) -> PathMatch:
    kind = PathKind(item.choice("type", ("Exact", "PathPrefix", "RegularExpression"), "PathPrefix"))
    value = item.text("value", "/")
    if kind is PathKind.REGEX:
        _check_regex(item, "value", value)
        return PathMatch(kind, value)
    check_path(item, "value", value)
    if kind is PathKind.PREFIX:
        value = value.rstrip("/") or "/"
    return PathMatch(kind, value)


def _values(item: Fields, name: str, lower: bool) -> tuple[ValueMatch, ...]:
    """Of entries with one name the first counts (Gateway API v1)."""
    found: dict[str, ValueMatch] = {}
    for entry in item.mappings(name):
        entry.only(("name", "type", "value"))
        key = entry.matching("name", HEADER_NAME, HEADER_RULE)
        regex = entry.choice("type", _MATCH_KINDS, "Exact") == "RegularExpression"
        value = entry.text("value")
        if regex:
            _check_regex(entry, "value", value)
        key = key.lower() if lower else key
        found.setdefault(key, ValueMatch(key, value, regex))
    return tuple(sorted(found.values()))


def _grpc_match(item: Fields) -> RouteMatch:
    if item.value:
        item.only(("headers", "method"))
    headers = _values(item, "headers", lower=True)
    method = item.mapping("method")
    method.only(("method", "service", "type"))
    service, name = method.text("service", ""), method.text("method", "")
    ranks = GrpcMethod(len(service), len(name))
    if not service and not name:
        return RouteMatch(PathMatch(PathKind.RAW_PREFIX, "/"), headers=headers, grpc=ranks)
    if method.choice("type", _MATCH_KINDS, "Exact") == "Exact":
        for key, value in (("service", service), ("method", name)):
            if value and not _GRPC_NAME.fullmatch(value):
                raise method.error(
                    key, f"is {value!r}; expected a name as in the .proto file, without slashes"
                )
        if service and name:
            path = PathMatch(PathKind.EXACT, f"/{service}/{name}")
        elif service:
            path = PathMatch(PathKind.RAW_PREFIX, f"/{service}/")
        else:
            path = PathMatch(PathKind.REGEX, f"/[^/]+/{re.escape(name)}")
    else:
        for key in ("service", "method"):
            _check_regex(method, key, method.text(key, ""))
        parts = (f"(?:{part})" if part else "[^/]+" for part in (service, name))
        path = PathMatch(PathKind.REGEX, "/" + "/".join(parts))
    return RouteMatch(path, headers=headers, grpc=ranks)


def _check_regex(item: Fields, name: str, value: str) -> None:
    if _NOT_RE2.search(value):
        what = "looks around or back, which RE2, the syntax of xDS, does not have; write it without"
        raise item.error(name, f"{value!r} {what}")
    try:
        re.compile(value)
    except re.error as error:
        raise item.error(name, f"{value!r} is not a regular expression: {error}") from None


def _timeouts(item: Fields) -> tuple[float, float]:
    """The request's and one attempt's, in seconds."""
    item.only(("backendRequest", "request"))
    request, backend = item.duration("request"), item.duration("backendRequest")
    if request and backend > request:
        raise item.error("backendRequest", "is longer than request; one attempt cannot outlast the whole")
    return request, backend


def _retry(rule: Fields) -> Retry | None:
    if not rule.has("retry"):
        return None
    item = rule.mapping("retry")
    item.only(("attempts", "backoff", "codes"))
    codes = []
    for code in item.items("codes"):
        if isinstance(code, bool) or not isinstance(code, int) or not 400 <= code <= 599:
            raise item.error("codes", f"{code!r} is not a status from 400 to 599")
        codes.append(code)
    return Retry(
        codes=tuple(sorted(set(codes))),
        attempts=item.integer("attempts", 0, 100) if item.has("attempts") else None,
        backoff=item.duration("backoff") if item.has("backoff") else None,
    )
