"""What becomes of a request, decided once for each distinct head and route and remembered with the head.

Called by the router at the start of every request; on keep-alive traffic it is one dictionary look-up, and
for a path that was not seen before one match of the route table. Only the route depends on the path; the
router puts the path into each head that it sends.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.config.matcher import CompiledRoute, CompiledRoutes
from sidecar.config.resources import HeaderOperation, WeightedCluster
from sidecar.http.context import Downstream, HttpContext
from sidecar.http.forwarding import XFCC, rewrite_request
from sidecar.http.local_reply import is_grpc
from sidecar.protocol.events import Field, RequestHead
from sidecar.telemetry.metrics import RouteStats
from sidecar.upstream.cluster_manager import PASSTHROUGH

_MAX_PATHS = 64
"""Paths whose route is remembered, for heads that differ in the path alone."""
_Plans = tuple[object, dict[bytes, "Plan"], dict[CompiledRoute, "Plan"]]
"""With the identity of the route table, not the table: heads that connections share outlive many."""


@dataclass(slots=True)
class Target:
    """One of a route's clusters, with the head that goes there, whatever its path and fresh fields."""

    cluster: str
    weight: int
    head: RequestHead
    response_operations: tuple[HeaderOperation, ...]
    stats: RouteStats


@dataclass(slots=True)
class Plan:
    """A route applied to a head."""

    route: CompiledRoute
    targets: tuple[Target, ...]
    total_weight: int
    grpc: bool
    tunnel: bool
    """A CONNECT that becomes a TCP connection here."""
    merge_fresh: bool
    """Made for one request, whose fresh fields matter: they are in the targets' heads already."""
    sensitive: frozenset[bytes]
    """Names of fields that decide about this plan: among the fresh ones they make it wrong."""


def is_grpc_request(head: RequestHead) -> bool:
    """True for gRPC calls, decided by `content-type`."""
    return head.method == b"POST" and is_grpc(head.get(b"content-type"))


def make_plan(
    context: HttpContext, downstream: Downstream, head: RequestHead, route: CompiledRoute, merge_fresh: bool
) -> Plan:
    """Everything about forwarding `head` by `route`; with `merge_fresh` its fresh fields are part of it,
    otherwise nothing depends on them."""
    action = route.action
    assert action is not None
    if merge_fresh:
        fields = head.fields + head.fresh
        head = RequestHead(head.method, head.scheme, head.authority, head.path, fields, (), head.protocol)
    grpc = head.method == b"POST" and is_grpc(_first(head.fields, b"content-type"))
    # Gateway API and Envoy both send nothing to a weight of 0.
    clusters = [c for c in action.clusters if c.weight > 0] or action.clusters
    drop = b"grpc-timeout" if grpc and action.grpc_timeout_max is not None else b""
    targets = tuple(_target(context, downstream, head, route, c, drop) for c in clusters)
    return Plan(
        route=route,
        targets=targets,
        total_weight=sum(c.weight for c in clusters),
        grpc=grpc,
        tunnel=route.config.match.connect and not head.protocol,
        merge_fresh=merge_fresh,
        sensitive=_sensitive(downstream, route),
    )


def _sensitive(downstream: Downstream, route: CompiledRoute) -> frozenset[bytes]:
    assert route.action is not None
    names = {b"content-type", *(op.name for op in route.request_headers)}
    for cluster in route.action.clusters:
        names.update(op.name for op in cluster.request_headers)
    if downstream.client_cert and downstream.keep_client_cert:
        names.add(XFCC)  # ours comes after the caller's
    return frozenset(names)


def _first(fields: tuple[Field, ...], name: bytes) -> bytes | None:
    return next((value for known, value in fields if known == name), None)


def _target(
    context: HttpContext,
    downstream: Downstream,
    head: RequestHead,
    route: CompiledRoute,
    to: WeightedCluster,
    drop: bytes,
) -> Target:
    upstream = rewrite_request(
        head,
        to.request_headers + route.request_headers,
        route.host_rewrite or head.authority,
        downstream.client_cert,
        downstream.keep_client_cert,
        drop,
    )
    # Destinations outside the mesh are named by the wire: in metrics they are one.
    label = PASSTHROUGH if to.name.startswith(PASSTHROUGH + "|") else to.name
    return Target(
        to.name,
        to.weight,
        upstream,
        to.response_headers + route.response_headers,
        stats_for(context, downstream, route.name, label),
    )


def stats_for(
    context: HttpContext, downstream: Downstream, route: str, cluster: str = "unknown"
) -> RouteStats:
    """The counters of this route, cluster and caller; kept with the connection."""
    key = (route, cluster)
    stats = downstream.stats.get(key)
    if stats is None:
        stats = context.metrics.route(context.direction, route, cluster, downstream.peer)
        downstream.stats[key] = stats
    return stats


def plan_for(
    context: HttpContext, downstream: Downstream, head: RequestHead, routes: CompiledRoutes
) -> Plan | CompiledRoute | None:
    """The plan, or the route itself when it answers without a cluster (redirect, direct response), or
    None when no route matches."""
    memo: _Plans | None = head.memo.get("plans")
    if memo is None or memo[0] is not routes.identity:
        memo = head.memo["plans"] = (routes.identity, {}, {})
    _, by_path, by_route = memo
    plan = by_path.get(head.path)
    if plan is None:
        route = routes.match(head, context.random)
        if route is None or route.action is None:
            return route
        plan = by_route.get(route)
        if plan is None:
            plan = by_route[route] = make_plan(context, downstream, head, route, False)
        if route.is_static:
            if len(by_path) >= _MAX_PATHS:
                by_path.clear()
            by_path[head.path] = plan
    for name, _ in head.fresh:
        if name in plan.sensitive:
            return make_plan(context, downstream, head, plan.route, True)
    return plan
