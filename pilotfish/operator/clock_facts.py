"""Facts about clocks: this machine's, the nodes', the control plane's and the sidecars'.

Called by `check`. All are held against the API server's, which dates its answers, so that one wrong clock
makes one line. Where it does not date them, this machine's counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mesh_api.names import ADMIN_PORT
from pilotfish.operator.errors import ApiError
from pilotfish.operator.facts import Fact, failed, ok, some, warning
from pilotfish.operator.pods import full_name, is_ready
from pilotfish.operator.replicas import Replica, parse_time
from pilotfish.operator.transport import Object
from pilotfish.operator.world import World

WARNING = 5.0
FAILURE = 60.0
"""Seconds. Certificates are valid from a minute before they were signed."""
MOST = 20
"""Sidecars that are asked."""
_LEASE = 40.0
"""Seconds for which a kubelet takes a lease where it does not say; it renews it after a quarter of them."""
_NTP = "is NTP running there (timedatectl)? Certificates and tokens are refused by wrong clocks"
_LINK = "docs/troubleshooting.md#clocks"


@dataclass(frozen=True, slots=True)
class Reference:
    """What clocks are held against."""

    name: str
    ahead: float
    """Seconds by which this machine is before it; negative: behind."""


def _reference(world: World) -> Reference:
    asked, answer = world.version
    if answer.date is None:
        return Reference("this machine's", 0.0)
    # `Date` has whole seconds: half of one is as good a guess as any.
    return Reference("the API server's", asked - (answer.date + 0.5))


def machine(world: World) -> Iterator[Fact]:
    if world.version[1].date is None:
        hint = (
            "does a proxy before it take the header Date away? Other clocks are held against this machine's"
        )
        yield warning("clock", "the API server does not tell its time", hint, _LINK)
        return
    reference = _reference(world)
    yield clock_fact("clock", "this machine's clock", reference.ahead, reference.name)


def control_plane(world: World) -> Iterator[Fact]:
    """Of each replica, by the time on its status page."""
    reference = _reference(world)
    for replica in world.answering:
        ahead = _ahead(replica)
        if ahead is not None:
            name = f"the clock of {replica.name}"
            yield clock_fact("control-plane-clock", name, ahead + reference.ahead, reference.name)


def _ahead(replica: Replica) -> float | None:
    told = replica.status.get("time")
    if told is None or replica.asked_at is None:
        return None
    # Whole seconds here too.
    return parse_time(told).timestamp() + 0.5 - replica.asked_at


def nodes(world: World) -> Iterator[Fact]:
    """Roughly: a kubelet writes its own time into its lease, so long ago at most as it lets pass between two
    renewals. The lease of a node that is not ready is merely old."""
    asked, leases = world.node_leases
    reference = _reference(world)
    ready = {node["metadata"]["name"] for node in world.nodes if _is_ready_node(node)}
    ahead = {
        lease["metadata"]["name"]: _lease_ahead(lease["spec"], asked - reference.ahead)
        for lease in leases
        if lease["metadata"]["name"] in ready and lease["spec"].get("renewTime")
    }
    wrong = {name: seconds for name, seconds in ahead.items() if abs(seconds) > FAILURE}
    if wrong:
        yield failed("node-clocks", _many("nodes", wrong, ahead, reference, "at least "), _NTP, _LINK)
    elif ahead:
        yield ok(
            "node-clocks", f"clocks of nodes agree with {reference.name}, to a minute (nodes: {len(ahead)})"
        )


def _is_ready_node(node: Object) -> bool:
    conditions = node["status"].get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _lease_ahead(spec: Object, now: float) -> float:
    """The least that the times allow; `now`: by the reference."""
    ahead = parse_time(spec["renewTime"]).timestamp() - now
    return ahead if ahead > 0 else min(0.0, ahead + (spec.get("leaseDurationSeconds") or _LEASE) / 4)


def sidecars(world: World) -> Iterator[Fact]:
    """Of one a node, whose clock it has: by when its certificate ends, and how far away that is."""
    running = [pod for pod in world.meshed if is_ready(pod)]
    by_node = {pod["spec"].get("nodeName") or full_name(pod): pod for pod in reversed(running)}
    asked = [by_node[node] for node in sorted(by_node)][:MOST]
    reference = _reference(world)
    answers = world.api.at_once(lambda pod: _sidecar_ahead(world, reference, pod), asked)
    told = dict(zip(map(full_name, asked), answers, strict=True))
    silent = {name: error for name, error in told.items() if isinstance(error, ApiError)}
    ahead = {name: seconds for name, seconds in told.items() if isinstance(seconds, float)}
    wrong = {name: seconds for name, seconds in ahead.items() if abs(seconds) > WARNING}
    if wrong:
        make = failed if any(abs(seconds) > FAILURE for seconds in wrong.values()) else warning
        yield make("sidecar-clocks", _many("sidecars", wrong, ahead, reference), _NTP, _LINK)
    elif ahead:
        of = f" of {len(by_node)}" if len(by_node) > MOST else ""
        text = f"clocks of sidecars agree with {reference.name} (asked: {len(ahead)}{of}, one a node)"
        yield ok("sidecar-clocks", text)
    if silent:
        error = next(iter(silent.values()))
        text = f"sidecars that cannot be asked: {len(silent)} of {len(told)}: {some(list(silent))}"
        yield warning(
            "sidecars-asked",
            f"{text} ({error.text})",
            error.hint,
            error.link,
        )


def _sidecar_ahead(world: World, reference: Reference, pod: Object) -> float | ApiError | None:
    """The least that the times allow: it answered at some time between `asked` and `answered`, both by the
    reference. None: not to be told, because it has no certificate or is of another version."""
    namespace, name = full_name(pod).split("/")
    asked = world.now() - reference.ahead
    try:
        answer = world.api.page(namespace, name, ADMIN_PORT, "/certs")
        answered = world.now() - reference.ahead
        for entry in json.loads(answer.body).values():
            if entry["seconds_left"] is not None:
                told = parse_time(entry["not_after"]).timestamp() - float(entry["seconds_left"])
                return told - min(max(told, asked), answered)
    except ApiError as error:
        return None if error.status == 403 else error  # of a right that is missing, `rights_facts` has told
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return None


def clock_fact(name: str, whose: str, ahead: float, reference: str) -> Fact:
    """`ahead`: seconds by which it is before the reference; negative: behind."""
    if abs(ahead) <= WARNING:
        return ok(name, f"{whose} agrees with {reference}")
    make = failed if abs(ahead) > FAILURE else warning
    return make(name, f"{whose} is {_apart(ahead)}{' of' if ahead > 0 else ''} {reference}", _NTP, _LINK)


def _many(
    whose: str, wrong: Mapping[str, float], known: Mapping[str, float], reference: Reference, least: str = ""
) -> str:
    clocks = [f"{name} ({least}{_apart(wrong[name])})" for name in sorted(wrong)]
    return f"clocks of {whose} differ from {reference.name}: {len(wrong)} of {len(known)}: {some(clocks)}"


def _apart(ahead: float) -> str:
    return f"{abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}"
