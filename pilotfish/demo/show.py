"""The demo's acts, one after the other, and the facts that they establish.

Called by main.py with a mesh that has not been started. Every claim that is printed comes from what the
shopper, the sidecars or the control plane reported.
"""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from mesh_api.spiffe import SpiffeId
from pilotfish.demo import facts, report
from pilotfish.demo.collector import Collector
from pilotfish.demo.facts import Fact
from pilotfish.demo.mesh import Mesh
from pilotfish.demo.processes import DemoError
from pilotfish.demo.routes import access_records, route_rows
from pilotfish.demo.spans import Trace, complete_traces
from pilotfish.demo.topology import NAMESPACE, REPLICAS, SHOPPER, STATUS, WORKLOADS, Replica
from pilotfish.demo.traffic import Call, Shopper, failures, followed_after

CALM_SECONDS = 4.0
REROUTE_SECONDS = 2.0
KILL_SECONDS = 4.0
SETTLE_SECONDS = 1.0
"""After a kill: calls that begin later cannot have been sent before it."""
FLUSH_SECONDS = 2.5
"""Sidecars export spans every second and write their logs every half."""
ROUTE_FILE = "users.yaml"
ROUTE_HEADER = "x-shop-route"
MARKER = "saved-while-running"
TRACED = frozenset({"shopper", "orders", "users"})
_CALLERS = tuple(replica for replica in WORKLOADS if replica.service in ("shopper", "orders"))


class Show:
    """One run. `facts` grows with each act."""

    def __init__(self, console: Console, mesh: Mesh, collector: Collector) -> None:
        self._console = console
        self._mesh = mesh
        self._collector = collector
        self._began = time.monotonic()
        self.facts: list[Fact] = []

    def run(self) -> list[Fact]:
        """All acts. Raises DemoError where the show cannot go on."""
        self._say(
            "[bold]pilotfish demo[/]: three services, their sidecars and a control plane on this machine"
        )
        self._say(f"configuration, keys and logs are in {self._mesh.folder}")
        self._start()
        self._introduce()
        shopper = self._mesh.start_shopper()
        self._console.print()
        self._calm(shopper)
        self._reroute(shopper)
        self._kill(shopper, REPLICAS[1], with_sidecar=True)
        self._kill(shopper, REPLICAS[2], with_sidecar=False)
        shopper.finish()
        self._mesh.processes.forget(f"{SHOPPER.name}-app")
        self._say("the shopper goes home; waiting for the last spans and log lines")
        time.sleep(FLUSH_SECONDS)
        self._conclude(shopper.calls())
        return self.facts

    def revive(self) -> None:
        """Starts again what the show killed."""
        self._mesh.start_sidecar(REPLICAS[1])
        for replica in REPLICAS[1:3]:
            self._mesh.start_application(replica)
        for replica in REPLICAS[1:3]:
            self._mesh.wait_workload(replica)

    def _start(self) -> None:
        self._mesh.start_control_plane()
        self._mesh.start_applications()
        self._mesh.wait_control_plane()
        self._say(f"control plane is ready: http://{STATUS}/")
        self._mesh.start_sidecars()
        for replica in WORKLOADS:
            self._mesh.wait_workload(replica)
        self._say(f"{len(REPLICAS)} applications and {len(WORKLOADS)} sidecars are ready")

    def _introduce(self) -> None:
        found = {replica.name: self._mesh.spiffe_id(replica) for replica in WORKLOADS}
        self._console.print(report.identity_table((replica, found[replica.name]) for replica in WORKLOADS))
        trust_domain = self._mesh.status()["trust_domain"]
        expected = {
            replica.name: str(SpiffeId(trust_domain, NAMESPACE, replica.service)) for replica in WORKLOADS
        }
        self.facts.append(facts.identities(expected, found))

    def _calm(self, shopper: Shopper) -> None:
        self._say("the shopper sends GET, POST and gRPC requests through its sidecar")
        since = self._let_flow(CALM_SECONDS)
        calls = shopper.calls(since)
        self.facts.append(facts.all_succeeded("calm traffic: every request succeeds", calls))
        self.facts.append(facts.served_by_all((replica.name for replica in REPLICAS), calls))
        self._tell(calls)

    def _reroute(self, shopper: Shopper) -> None:
        """The users route gets a response header, which the shopper sees."""
        documents = self._mesh.load_config(ROUTE_FILE)
        mark_routes(documents, ROUTE_HEADER, MARKER)
        saved = time.time()
        self._mesh.save_config(ROUTE_FILE, documents)
        self._say(f"saved {ROUTE_FILE}: its HTTPRoute now adds {ROUTE_HEADER}: {MARKER}")
        self._let_flow(REROUTE_SECONDS)
        calls = shopper.calls(saved)
        seconds = followed_after([call for call in calls if "/users" in call.call], saved, MARKER)
        self.facts.append(facts.rerouted(seconds))
        self.facts.append(facts.all_succeeded("re-route: no request was lost", calls))
        self._tell(calls, "" if seconds is None else f"; all of /users followed after {seconds:.2f} s")

    def _kill(self, shopper: Shopper, victim: Replica, with_sidecar: bool) -> None:
        shopper.tell("rough")
        self._let_flow(0.5)  # a POST that is under way may not be sent twice: let it end
        parts = ["app", "sidecar"] if with_sidecar else ["app"]
        retries = self._retries()
        killed = time.time()
        self._mesh.processes.kill(*(f"{victim.name}-{part}" for part in parts))
        what = "its sidecar and its application" if with_sidecar else "only its application"
        self._say(f"killed {victim.name}, {what} (SIGKILL)")
        self._let_flow(KILL_SECONDS)
        calls = [call for call in shopper.calls(killed) if call.is_get]
        self.facts.append(facts.all_succeeded(f"{victim.name} killed, {what}: no GET failed", calls))
        late = [call for call in calls if call.start > killed + SETTLE_SECONDS]
        self.facts.append(facts.moved_away(f"traffic left {victim.name}", victim.name, late))
        self._tell(calls, f"; retries by the sidecars: {self._retries() - retries}")

    def _retries(self) -> int:
        """Of all callers' sidecars so far; none of these is ever killed."""
        return sum(self._mesh.retries(replica) for replica in _CALLERS)

    def _conclude(self, calls: list[Call]) -> None:
        mesh = self._mesh
        records = (
            (caller.service, record)
            for caller in _CALLERS
            for record in access_records(mesh.sidecar_log(caller))
        )
        self._console.print()
        self._console.print(report.route_table(route_rows(records)))
        traces = complete_traces(self._collector.spans)
        quiet = _typical([trace for trace in traces if trace.services >= TRACED and not trace.retries])
        self._show_trace("One request as a trace", quiet)
        retried = [trace for trace in traces if trace.retries]
        self._show_trace(
            "And one that was retried when a replica was killed",
            next((trace for trace in retried if trace.services >= TRACED), next(iter(retried), None)),
            optional=True,
        )
        self.facts.append(facts.traced(quiet, TRACED))
        alive = [f"{replica.name}.{NAMESPACE}" for replica in WORKLOADS if replica is not REPLICAS[1]]
        self.facts.append(facts.in_step(alive, mesh.status()))
        self.facts.append(facts.all_succeeded("the whole show: no request failed", calls))
        self._console.print()
        self._console.print(report.facts_table(self.facts))
        self._console.print(report.verdict(self.facts))

    def _show_trace(self, title: str, trace: Trace | None, optional: bool = False) -> None:
        if trace is not None:
            self._console.print(f"\n[italic]{title}[/]\n[dim]trace {trace.root.trace_id}[/]")
            self._console.print(report.trace_tree(trace))
        elif not optional:
            self._console.print(f"\n[red]{title}: there is none[/]")

    def _let_flow(self, seconds: float) -> float:
        """Waits while traffic flows; returns when that began (Unix time)."""
        since = time.time()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))
            self._mesh.processes.check()
        return since

    def _tell(self, calls: list[Call], more: str = "") -> None:
        failed = len(failures(calls))
        style = "red" if failed else "green"
        self._say(f"  {len(calls)} requests, [{style}]{failed} failed[/]{more}")

    def _say(self, text: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._began:5.1f} s[/]  {text}", soft_wrap=True)

    def __repr__(self) -> str:
        return f"<Show facts={len(self.facts)} {self._mesh!r}>"


def mark_routes(documents: list[Any], header: str, value: str) -> None:
    """Adds to every rule of every HTTPRoute that answers carry `header: value`."""
    routes = [document for document in documents if document and document["kind"] == "HTTPRoute"]
    if not routes:
        raise DemoError(f"{ROUTE_FILE} holds no HTTPRoute")
    for route in routes:
        for rule in route["spec"]["rules"]:
            change = {"set": [{"name": header, "value": value}]}
            rule.setdefault("filters", []).append(
                {"type": "ResponseHeaderModifier", "responseHeaderModifier": change}
            )


def _typical(traces: list[Trace]) -> Trace | None:
    """The one that took the median time."""
    ordered = sorted(traces, key=lambda trace: trace.root.milliseconds)
    return ordered[len(ordered) // 2] if ordered else None
