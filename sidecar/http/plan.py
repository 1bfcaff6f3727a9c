"""What becomes of a request, decided once for each distinct head and route and remembered with the head.

Called by the router at the start of every request; on keep-alive traffic it is one dictionary look-up.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.config.matcher import CompiledRoute, CompiledRoutes
from sidecar.config.resources import HeaderOperation, WeightedCluster
from sidecar.http.context import Downstream, HttpContext
from sidecar.http.forwarding import rewrite_request
from sidecar.http.local_reply import is_grpc
from sidecar.protocol.events import RequestHead
from sidecar.telemetry.metrics import RouteStats
from sidecar.upstream.cluster_manager import PASSTHROUGH


@dataclass(slots=True)
class Target:
    """One of a route's clusters, with the head that goes there (its fresh fields left out)."""

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
    """A header operation touches a fresh field, so the head is built anew for each request."""


def is_grpc_request(head: RequestHead) -> bool:
    """True for gRPC calls, decided by `content-type`."""
    return head.method == b"POST" and is_grpc(head.get(b"content-type"))


def make_plan(context: HttpContext, downstream: Downstream, head: RequestHead, route: CompiledRoute) -> Plan:
    """Everything about forwarding `head` by `route` that does not depend on its fresh fields."""
    action = route.action
    assert action is not None
    operations = {op.name for op in route.request_headers}
    for cluster in action.clusters:
        operations.update(op.name for op in cluster.request_headers)
    merge = any(name in operations for name, _ in head.fresh)
    if merge:
        head = RequestHead(
            head.method, head.scheme, head.authority, head.path, head.fields + head.fresh, (), head.protocol
        )
    targets = tuple(_target(context, downstream, head, route, c) for c in action.clusters)
    return Plan(
        route=route,
        targets=targets,
        total_weight=sum(c.weight for c in action.clusters),
        grpc=is_grpc_request(head),
        tunnel=route.config.match.connect and not head.protocol,
        merge_fresh=merge,
    )


def _target(
    context: HttpContext, downstream: Downstream, head: RequestHead, route: CompiledRoute, to: WeightedCluster
) -> Target:
    upstream = rewrite_request(
        head,
        to.request_headers + route.request_headers,
        route.rewrite_path(head.path),
        route.host_rewrite or head.authority,
        downstream.client_cert,
        downstream.keep_client_cert,
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


def stats_for(context: HttpContext, downstream: Downstream, route: str, cluster: str) -> RouteStats:
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
    memo = head.memo.get("plans")
    if memo is None or memo[0] is not routes:
        memo = (routes, {})
        head.memo["plans"] = memo
    plans: dict[CompiledRoute | None, Plan] = memo[1]
    plan = plans.get(None)
    if plan is not None:
        return plan
    route = routes.match(head, context.random)
    if route is None or route.action is None:
        return route
    plan = plans.get(route)
    if plan is None or plan.merge_fresh:
        plan = make_plan(context, downstream, head, route)
        if not plan.merge_fresh:
            plans[None if route.is_static else route] = plan
    return plan
