"""Facts about routes: what the control plane wrote into their status.

Called by `check`. Only routes whose parent is a Service are the mesh's; those of gateways are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pilotfish.operator.api import Object
from pilotfish.operator.facts import Fact, failed, ok, some, warning
from pilotfish.operator.kinds import CONTROLLER, GRPC_ROUTES, HTTP_ROUTES
from pilotfish.operator.world import World, full_name

_LINK = "docs/troubleshooting.md#a-route-has-no-effect"


def routes(world: World) -> Iterator[Fact]:
    for kind, name in ((HTTP_ROUTES, "HTTPRoute"), (GRPC_ROUTES, "GRPCRoute")):
        ours = [route for route in world.routes(kind) if _is_ours(route)]
        yield from route_facts(name, ours, world.system)


def route_facts(kind: str, ours: Sequence[Object], system: str) -> Iterator[Fact]:
    wrong = [(full_name(route), why) for route in ours for why in refusals(route)]
    undecided = [full_name(route) for route in ours if _undecided(route)]
    for name, why in wrong:
        yield failed(
            "routes",
            f"{kind} {name}: {why}",
            f"kubectl describe {kind.lower()} -n {name.replace('/', ' ')}",
            _LINK,
        )
    if undecided:
        yield warning(
            "routes",
            f"{kind}s that the control plane has not decided on: {some(undecided)}",
            f"does one of its replicas lead? kubectl -n {system} get lease pilotfish-control-plane",
            _LINK,
        )
    if ours and not wrong and not undecided:
        yield ok("routes", f"{kind}: {len(ours)} accepted, and all that they name is there")


def _is_ours(route: Object) -> bool:
    return any(parent.get("kind") == "Service" for parent in route["spec"].get("parentRefs") or ())


def refusals(route: Object) -> list[str]:
    """Conditions that the mesh's controller set to False."""
    return [
        f"{condition['type']} is False ({condition.get('reason', '')}): {condition.get('message', '')}"
        for parent in _verdicts(route)
        for condition in parent.get("conditions") or ()
        if condition.get("type") in ("Accepted", "ResolvedRefs") and condition.get("status") == "False"
    ]


def _undecided(route: Object) -> bool:
    """Nothing was said of this generation."""
    generation = route["metadata"].get("generation", 0)
    seen = [
        condition.get("observedGeneration", 0)
        for parent in _verdicts(route)
        for condition in parent.get("conditions") or ()
    ]
    return not seen or max(seen) < generation


def _verdicts(route: Object) -> list[Object]:
    parents = (route.get("status") or {}).get("parents") or ()
    return [parent for parent in parents if parent.get("controllerName") == CONTROLLER]
