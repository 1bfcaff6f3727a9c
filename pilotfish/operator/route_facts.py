"""Facts about routes and policies: what the control plane wrote into their status.

Called by `check`. Only routes whose parent is a Service are the mesh's; those of gateways are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pilotfish.operator.facts import Fact, failed, ok, some, warning
from pilotfish.operator.kinds import CONTROLLER, GRPC_ROUTES, HTTP_ROUTES, TCP_ROUTES, TRAFFIC_POLICIES
from pilotfish.operator.pods import full_name
from pilotfish.operator.transport import Object
from pilotfish.operator.world import World

_LINKS = {
    "routes": "docs/troubleshooting.md#a-route-has-no-effect",
    "policies": "docs/traffic-policy.md#when-it-has-no-effect",
}


def routes(world: World) -> Iterator[Fact]:
    for kind, name in ((HTTP_ROUTES, "HTTPRoute"), (GRPC_ROUTES, "GRPCRoute"), (TCP_ROUTES, "TCPRoute")):
        ours = [route for route in world.routes(kind) if _is_ours(route)]
        yield from _verdict_facts("routes", name, ours, world.system)


def policies(world: World) -> Iterator[Fact]:
    yield from _verdict_facts("policies", "TrafficPolicy", world.routes(TRAFFIC_POLICIES), world.system)


def _verdict_facts(about: str, kind: str, ours: Sequence[Object], system: str) -> Iterator[Fact]:
    wrong = [(full_name(item), why) for item in ours for why in refusals(item)]
    undecided = [full_name(item) for item in ours if _undecided(item)]
    for name, why in wrong:
        yield failed(
            about,
            f"{kind} {name}: {why}",
            f"kubectl describe {kind.lower()} -n {name.replace('/', ' ')}",
            _LINKS[about],
        )
    if undecided:
        yield warning(
            about,
            f"{kind}: the control plane has not decided on {some(undecided)}",
            f"does one of its replicas lead? kubectl -n {system} get lease pilotfish-control-plane",
            _LINKS[about],
        )
    if ours and not wrong and not undecided:
        yield ok(about, f"{kind}: {len(ours)} accepted, and all that they name is there")


def _is_ours(route: Object) -> bool:
    return any(parent.get("kind") == "Service" for parent in route["spec"].get("parentRefs") or ())


def refusals(item: Object) -> list[str]:
    """Conditions that the mesh's controller set to False."""
    return [
        f"{condition['type']} is False ({condition.get('reason', '')}): {condition.get('message', '')}"
        for verdict in _verdicts(item)
        for condition in verdict.get("conditions") or ()
        if condition.get("type") in ("Accepted", "ResolvedRefs") and condition.get("status") == "False"
    ]


def _undecided(item: Object) -> bool:
    """Nothing was said of this generation."""
    generation = item["metadata"].get("generation", 0)
    seen = [
        condition.get("observedGeneration", 0)
        for verdict in _verdicts(item)
        for condition in verdict.get("conditions") or ()
    ]
    return not seen or max(seen) < generation


def _verdicts(item: Object) -> list[Object]:
    status = item.get("status") or {}
    entries = status.get("parents") or status.get("ancestors") or ()
    return [entry for entry in entries if entry.get("controllerName") == CONTROLLER]
