"""What the demo must have shown, and whether it did: pure functions from what was seen to a verdict.

The demo's exit status is 0 only if every fact held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilotfish.demo.spans import Trace
from pilotfish.demo.traffic import Call, failures

REROUTE_LIMIT = 1.0
"""Seconds within which running traffic must follow a saved file."""
FEWEST_CALLS = 20
"""Fewer calls in a phase prove nothing."""


@dataclass(frozen=True, slots=True)
class Fact:
    """`detail` says what was seen, above all when it did not hold."""

    name: str
    held: bool
    detail: str


def exit_status(facts: Sequence[Fact]) -> int:
    """0 if there are facts and all of them held."""
    return 0 if facts and all(fact.held for fact in facts) else 1


def identities(expected: Mapping[str, str], certificates: Mapping[str, str]) -> Fact:
    """`expected` and `certificates`: SPIFFE ids by workload; the second as the sidecars show them."""
    wrong = [
        f"{name} has {certificates.get(name) or 'none'}"
        for name, identity in expected.items()
        if certificates.get(name) != identity
    ]
    detail = "; ".join(wrong) or f"{len(expected)} certificates, one for each workload"
    return Fact("every workload has its own identity", not wrong, detail)


def in_step(expected: Iterable[str], status: Mapping[str, Any]) -> Fact:
    """`expected`: node ids; `status`: the control plane's status.json."""
    accepted = {client["node"] for client in status["clients"] if client["in_step"]}
    behind = sorted(set(expected) - accepted)
    problems = [problem["message"] for problem in status["problems"] if problem["severity"] == "error"]
    wrong = [*(f"{name} is not connected or behind" for name in behind), *problems]
    detail = "; ".join(wrong) or f"{len(accepted)} sidecars have accepted what the control plane sent"
    return Fact("the control plane and all sidecars agree", not wrong, detail)


def all_succeeded(name: str, calls: Sequence[Call]) -> Fact:
    """No call failed, and there were enough of them to say so."""
    failed = failures(calls)
    if failed:
        kinds = Counter(f"{call.call} → {call.status}" for call in failed)
        text = ", ".join(f"{number} times {kind}" for kind, number in kinds.most_common(3))
        return Fact(name, False, f"{len(failed)} of {len(calls)} failed: {text}")
    if len(calls) < FEWEST_CALLS:
        return Fact(name, False, f"only {len(calls)} requests were made, too few to say")
    return Fact(name, True, f"{len(calls)} requests, none failed")


def served_by_all(replicas: Iterable[str], calls: Iterable[Call]) -> Fact:
    served = Counter(call.served_by for call in calls if call.ok)
    idle = sorted(set(replicas) - set(served))
    detail = f"{', '.join(idle)} served nothing" if idle else f"{len(served)} replicas served"
    return Fact("every replica had its share", not idle, detail)


def moved_away(name: str, dead: str, calls: Iterable[Call]) -> Fact:
    """`calls`: those that began well after `dead` was killed."""
    still = sum(call.ok and call.served_by == dead for call in calls)
    detail = f"{still} answers came from {dead}" if still else f"nothing came from {dead} any more"
    return Fact(name, not still, detail)


def rerouted(seconds: float | None) -> Fact:
    name = f"running traffic follows a saved file in under {REROUTE_LIMIT:.0f} s"
    if seconds is None:
        return Fact(name, False, "the traffic never followed")
    return Fact(name, seconds < REROUTE_LIMIT, f"all of it followed after {seconds:.2f} s")


def traced(trace: Trace | None, services: frozenset[str]) -> Fact:
    name = "a request is one trace through all its sidecars"
    if trace is None:
        return Fact(name, False, f"no complete trace goes through {', '.join(sorted(services))}")
    return Fact(name, True, f"{sum(1 for _ in trace.walk())} spans in {len(trace.services)} services")
