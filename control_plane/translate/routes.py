"""Routes of one port of a Service to RouteConfiguration.

A pure function of the model, called by the pipeline; `route_actions` makes what each route does. Once a
route is attached to a port it replaces the default: what no rule matches is answered 404 (GEP-1294).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envoy.config.route.v3.route_components_pb2 import (
    HeaderMatcher,
    QueryParameterMatcher,
    RouteAction,
    VirtualHost,
)
from envoy.config.route.v3.route_components_pb2 import Route as XdsRoute
from envoy.config.route.v3.route_components_pb2 import RouteMatch as XdsMatch
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.type.matcher.v3.regex_pb2 import RegexMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from control_plane.model.discovery import Dialect
from control_plane.model.route import PathKind, PathRewrite, Route, RouteKind, RouteMatch, ValueMatch
from control_plane.model.service import AppProtocol, ServicePort
from control_plane.translate.precedence import Candidate, most_specific, ordered
from control_plane.translate.protobuf import duration
from control_plane.translate.route_actions import (
    apply_rule,
    carry,
    forward,
    limit_to_share,
    refuse_connection,
    refuse_share,
    retry_policy,
    unresolved_share,
)


def route_configuration(
    name: str, port: ServicePort, routes: Sequence[Route], dialect: Dialect, domain: str
) -> RouteConfiguration:
    """Routes of the service's port whose canonical name is `name`, for one audience: `routes` are those
    that are attached to the port. `domain` is the cluster's."""
    host = VirtualHost(name=name, domains=["*"])
    if dialect is not Dialect.GRPC:
        host.retry_policy.CopyFrom(retry_policy())
        # Its presence says what the port carries: alone opaque TCP, beside others nobody knows.
        if port.protocol is AppProtocol.TCP or not port.declared:
            host.routes.extend(_opaque(name, routes, domain))
    if port.protocol is not AppProtocol.TCP:
        host.routes.extend(_routes(name, port, routes, dialect, domain))
    return RouteConfiguration(name=name, virtual_hosts=[host])


def connect_route(cluster: str) -> XdsRoute:
    """Opaque TCP: a CONNECT request becomes bytes to one of the cluster's endpoints."""
    route = _connect("tcp")
    route.route.CopyFrom(RouteAction(cluster=cluster, timeout=duration(0.0)))
    _upgrade(route)
    return route


def _opaque(name: str, routes: Sequence[Route], domain: str) -> Iterator[XdsRoute]:
    """What becomes of connections: one TCPRoute says it, or they go to the service itself. The share of
    backends that do not exist or may not be named is refused (Gateway API v1, TCPRouteRule.backendRefs)."""
    attached = most_specific(routes)
    if not attached or attached[0].kind is not RouteKind.TCP:
        yield connect_route(name)
        return
    route = attached[0]
    [rule] = route.rules
    label = f"{route.namespace}/{route.name}/0"
    share = unresolved_share(rule)
    if 0.0 < share < 1.0:
        refused = _connect(f"{label}/unresolved")
        limit_to_share(refused, share)
        refuse_connection(
            refused, f"this share of {route} is of backends that do not exist or may not be named"
        )
        yield refused
    made = _connect(label)
    carry(made, str(route), rule, domain)
    if made.HasField("route"):
        _upgrade(made)
    yield made


def _connect(name: str) -> XdsRoute:
    match = XdsMatch()
    match.connect_matcher.SetInParent()
    return XdsRoute(name=name, match=match)


def _upgrade(route: XdsRoute) -> None:
    connect = RouteAction.UpgradeConfig(upgrade_type="CONNECT")
    connect.connect_config.SetInParent()
    route.route.upgrade_configs.append(connect)


def _routes(
    name: str, port: ServicePort, routes: Sequence[Route], dialect: Dialect, domain: str
) -> Iterator[XdsRoute]:
    if not routes:
        default = XdsRoute(name="default", match=XdsMatch(prefix="/"))
        default.route.CopyFrom(forward(name))
        yield default
        return
    for candidate in ordered(most_specific(routes)):
        name = f"{candidate.route.namespace}/{candidate.route.name}/{candidate.rule_index}"
        share = unresolved_share(candidate.rule)
        for match, rewrite in _matches(candidate, dialect):
            if 0.0 < share < 1.0:
                refused = XdsRoute(name=f"{name}/unresolved", match=match)
                refuse_share(refused, share)
                yield refused
            route = XdsRoute(name=name, match=match)
            apply_rule(route, candidate.rule, rewrite, port.port, dialect, domain)
            yield route


def _matches(candidate: Candidate, dialect: Dialect) -> Iterator[tuple[XdsMatch, PathRewrite | None]]:
    """The candidate's match as one or two of xDS, each with what becomes of its path.

    A prefix of whole path elements is two matches (`/a` and `/a/`) for gRPC, which has no such thing, and
    where the prefix is replaced by `/`: cutting `/a` off `/a/b` must leave one slash.
    """
    match = candidate.match
    if dialect is Dialect.GRPC and (match.query or match.method not in ("", "POST")):
        return  # no gRPC call can match: its method is POST and it has no query
    filters = candidate.rule.filters
    change = filters.rewrite or filters.redirect
    rewrite = change.path if change else None
    cuts_to_root = rewrite is not None and rewrite.prefix and rewrite.value == ""
    prefix = match.path.value
    if match.path.kind is not PathKind.PREFIX:
        yield _match(match, dialect), rewrite
    elif prefix == "/":
        # Replacing the root by `/v2` turns `/a` into `/v2/a`.
        root = PathRewrite(rewrite.value + "/", True) if rewrite and rewrite.prefix else rewrite
        yield _match(match, dialect, prefix="/"), root
    elif dialect is Dialect.GRPC or cuts_to_root:
        ending = PathRewrite(rewrite.value + "/", True) if rewrite and rewrite.prefix else rewrite
        exact = PathRewrite("/", False) if cuts_to_root else rewrite
        yield _match(match, dialect, path=prefix), exact
        yield _match(match, dialect, prefix=prefix + "/"), ending
    else:
        yield _match(match, dialect, path_separated_prefix=prefix), rewrite


def _match(match: RouteMatch, dialect: Dialect, **path: str) -> XdsMatch:
    made = XdsMatch(**path)
    if match.path.kind is PathKind.EXACT:
        made.path = match.path.value
    elif match.path.kind is PathKind.RAW_PREFIX:
        made.prefix = match.path.value
    elif match.path.kind is PathKind.REGEX:
        made.safe_regex.CopyFrom(RegexMatcher(regex=match.path.value))
    if match.method and dialect is not Dialect.GRPC:
        made.headers.append(HeaderMatcher(name=":method", string_match=StringMatcher(exact=match.method)))
    made.headers.extend(
        HeaderMatcher(name=header.name, string_match=_string(header)) for header in match.headers
    )
    made.query_parameters.extend(
        QueryParameterMatcher(name=query.name, string_match=_string(query)) for query in match.query
    )
    return made


def _string(match: ValueMatch) -> StringMatcher:
    if match.regex:
        return StringMatcher(safe_regex=RegexMatcher(regex=match.value))
    return StringMatcher(exact=match.value)
