"""What a rule does with a request it matched: forward, split, redirect, rewrite, retry, change headers.

Pure functions of the model, called by `routes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from envoy.config.core.v3.base_pb2 import DataSource, HeaderValue, HeaderValueOption, RuntimeFractionalPercent
from envoy.config.route.v3.route_components_pb2 import (
    DirectResponseAction,
    RedirectAction,
    RetryPolicy,
    Route,
    RouteAction,
    WeightedCluster,
)
from envoy.type.matcher.v3.regex_pb2 import RegexMatchAndSubstitute, RegexMatcher
from envoy.type.v3.percent_pb2 import FractionalPercent
from google.protobuf.wrappers_pb2 import UInt32Value

from control_plane.model.discovery import Dialect
from control_plane.model.route import BackendRef, HeaderModifier, PathRewrite, Redirect, RouteRule
from control_plane.translate.names import Target, canonical
from control_plane.translate.protobuf import duration

RETRY_ON = "connect-failure,refused-stream,reset-before-request,reset"
"""Always safe: nothing was processed, or (`reset`) the sidecar itself sees to it that only idempotent
requests are sent again."""
RETRIES = 2

_REDIRECT_CODES = {
    301: RedirectAction.MOVED_PERMANENTLY,
    302: RedirectAction.FOUND,
    303: RedirectAction.SEE_OTHER,
    307: RedirectAction.TEMPORARY_REDIRECT,
    308: RedirectAction.PERMANENT_REDIRECT,
}
_SCHEME_PORTS = {"http": 80, "https": 443}


def forward(cluster: str) -> RouteAction:
    """To one cluster. No timeout unless someone asks for one, because streams may last; what a gRPC
    client asks for holds."""
    action = RouteAction(cluster=cluster, timeout=duration(0.0))
    action.max_stream_duration.grpc_timeout_header_max.CopyFrom(duration(0.0))
    return action


def retry_policy(rule: RouteRule | None = None) -> RetryPolicy:
    """The mesh's default, with what a rule adds to it."""
    policy = RetryPolicy(retry_on=RETRY_ON, num_retries=UInt32Value(value=RETRIES))
    if rule is None:
        return policy
    if rule.backend_timeout:
        policy.per_try_timeout.CopyFrom(duration(rule.backend_timeout))
    if rule.retry is not None:
        if rule.retry.codes:
            policy.retry_on += ",retriable-status-codes"
            policy.retriable_status_codes.extend(rule.retry.codes)
        if rule.retry.attempts is not None:
            policy.num_retries.value = rule.retry.attempts
        if rule.retry.backoff:
            policy.retry_back_off.base_interval.CopyFrom(duration(rule.retry.backoff))
    return policy


def apply_rule(
    route: Route, rule: RouteRule, rewrite: PathRewrite | None, port: int, dialect: Dialect, domain: str
) -> None:
    """Gives `route` its action and headers. `rewrite` is what becomes of the path under the route's own
    match; `port` is the parent's, which a redirect keeps."""
    _change_headers(route, rule.filters.request_headers, rule.filters.response_headers)
    backends = [backend for backend in rule.backends if backend.weight and backend.resolved]
    if rule.filters.redirect is not None:
        route.redirect.CopyFrom(_redirect(rule.filters.redirect, rewrite, port))
    elif not backends:
        # Gateway API v1, HTTPRouteRule.backendRefs: 500 where nobody may answer.
        route.direct_response.CopyFrom(DirectResponseAction(status=500))
    else:
        route.route.CopyFrom(_route_action(rule, backends, rewrite, dialect, domain))


def carry(route: Route, source: str, rule: RouteRule, domain: str) -> None:
    """Gives `route` for CONNECT what a TCPRoute's rule says: its backends, one of which each connection goes
    to by weight. `source` names the TCPRoute, for messages."""
    backends = [backend for backend in rule.backends if backend.weight and backend.resolved]
    if not backends:
        found = any(backend.resolved for backend in rule.backends)
        why = "has a weight" if found else "exists and may be named"
        refuse_connection(route, f"no backend of {source} {why}")
        return
    names = [canonical(Target(backend.service, backend.port), domain) for backend in backends]
    route.route.CopyFrom(RouteAction(cluster=names[0], timeout=duration(0.0)))
    if len(backends) > 1:
        route.route.weighted_clusters.CopyFrom(_split(backends, names))


def refuse_connection(route: Route, why: str) -> None:
    """HTTP has a status for what nobody may answer; a connection is cut, and the caller's log says why."""
    route.direct_response.CopyFrom(DirectResponseAction(status=503, body=DataSource(inline_string=why)))


def unresolved_share(rule: RouteRule) -> float:
    """The share of a rule's requests, 0 to 1, whose backends do not exist or may not be named."""
    total = sum(backend.weight for backend in rule.backends)
    missing = sum(backend.weight for backend in rule.backends if not backend.resolved)
    return missing / total if total else 0.0


def limit_to_share(route: Route, share: float) -> None:
    """Makes `route` match this share and leave the rest to the next one."""
    fraction = FractionalPercent(numerator=round(share * 1_000_000), denominator=FractionalPercent.MILLION)
    route.match.runtime_fraction.CopyFrom(RuntimeFractionalPercent(default_value=fraction))


def refuse_share(route: Route, share: float) -> None:
    """Makes `route` answer 500 to this share of what it matches."""
    limit_to_share(route, share)
    route.direct_response.CopyFrom(DirectResponseAction(status=500))


def _route_action(
    rule: RouteRule,
    backends: Sequence[BackendRef],
    rewrite: PathRewrite | None,
    dialect: Dialect,
    domain: str,
) -> RouteAction:
    names = [canonical(Target(backend.service, backend.port), domain) for backend in backends]
    action = forward(names[0])
    filters = backends[0].filters
    if len(backends) > 1 or filters.request_headers or filters.response_headers:
        action.weighted_clusters.CopyFrom(_split(backends, names))
    if rule.request_timeout:
        action.timeout.CopyFrom(duration(rule.request_timeout))
        action.max_stream_duration.grpc_timeout_header_max.CopyFrom(duration(rule.request_timeout))
    if (rule.retry or rule.backend_timeout) and dialect is not Dialect.GRPC:
        action.retry_policy.CopyFrom(retry_policy(rule))
    if rule.filters.rewrite and rule.filters.rewrite.hostname:
        action.host_rewrite_literal = rule.filters.rewrite.hostname
    if rewrite is not None and rewrite.prefix:
        action.prefix_rewrite = rewrite.value
    elif rewrite is not None:
        action.regex_rewrite.CopyFrom(
            # The pattern sees the path without its query; a backslash would name a group.
            RegexMatchAndSubstitute(
                pattern=RegexMatcher(regex="^/.*$"), substitution=re.sub(r"\\", r"\\\\", rewrite.value)
            )
        )
    return action


def _split(backends: Sequence[BackendRef], names: Sequence[str]) -> WeightedCluster:
    clusters = []
    for backend, name in zip(backends, names, strict=True):
        cluster = WeightedCluster.ClusterWeight(name=name, weight=UInt32Value(value=backend.weight))
        _change_headers(cluster, backend.filters.request_headers, backend.filters.response_headers)
        clusters.append(cluster)
    return WeightedCluster(clusters=clusters)


def _redirect(redirect: Redirect, rewrite: PathRewrite | None, port: int) -> RedirectAction:
    """Gateway API: without a port the scheme's own, without a scheme the port that was asked; and no
    port in the answer where it is the scheme's own."""
    action = RedirectAction(response_code=_REDIRECT_CODES[redirect.status], host_redirect=redirect.hostname)
    if redirect.scheme:
        action.scheme_redirect = redirect.scheme
    wanted = redirect.port or _SCHEME_PORTS.get(redirect.scheme, port)
    if wanted != _SCHEME_PORTS[redirect.scheme or "http"] or not redirect.hostname:
        action.port_redirect = wanted
    if rewrite is not None and rewrite.prefix:
        action.prefix_rewrite = rewrite.value
    elif rewrite is not None:
        action.path_redirect = rewrite.value
    return action


def _change_headers(
    target: Route | WeightedCluster.ClusterWeight,
    request: HeaderModifier | None,
    response: HeaderModifier | None,
) -> None:
    if request is not None:
        target.request_headers_to_add.extend(_additions(request))
        target.request_headers_to_remove.extend(request.remove)
    if response is not None:
        target.response_headers_to_add.extend(_additions(response))
        target.response_headers_to_remove.extend(response.remove)


def _additions(modifier: HeaderModifier) -> Iterable[HeaderValueOption]:
    for pairs, action in (
        (modifier.set, HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD),
        (modifier.add, HeaderValueOption.APPEND_IF_EXISTS_OR_ADD),
    ):
        for name, value in pairs:
            # `%` starts a formatter in xDS; Gateway API has none.
            escaped = value.replace("%", "%%")
            yield HeaderValueOption(header=HeaderValue(key=name, value=escaped), append_action=action)
