"""TrafficPolicies of a cluster: read, followed, judged, and told what became of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from control_plane.kube import reflector
from control_plane.kube.access import from_kubeconfig
from control_plane.kube.client import KubeClient
from control_plane.model.mesh import Mesh
from control_plane.model.policy import LoadBalancer
from control_plane.model.problem import Problem, Severity
from control_plane.sources.kubernetes import KubernetesSource
from control_plane.sources.status_writer import StatusWriter
from tests.support.kube_api import KubeApi
from tests.support.kubernetes import backend, parent, policy, route, service

OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-02T00:00:00Z"
USERS = {"group": "", "kind": "Service", "name": "users"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "BACKOFF_FIRST", 0.02)
    monkeypatch.setattr(reflector, "ABSENT_RETRY", 0.1)


class Rig:
    """A source and a writer, of which `leads` says whether it leads."""

    def __init__(self, api: KubeApi, client: KubeClient) -> None:
        self.api = api
        self.leads = True
        self.meshes: list[Mesh] = []
        self.writer = StatusWriter(client, lambda: self.leads)
        self.source = KubernetesSource(client, self.meshes.append, self.writer.on_verdicts, Random(1))

    def ancestors(self, name: str = "p") -> Any:
        return (self.api.get("TrafficPolicy", name).get("status") or {}).get("ancestors", [])

    def reasons(self, name: str = "p") -> list[tuple[str, str]]:
        """Status and reason of each target's condition Accepted."""
        conditions = [condition for entry in self.ancestors(name) for condition in entry["conditions"]]
        assert {condition["type"] for condition in conditions} <= {"Accepted"}
        return [(condition["status"], condition["reason"]) for condition in conditions]

    def problems(self) -> list[Problem]:
        return [found for found in self.source.problems if found.object.startswith("TrafficPolicy")]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not (self.meshes and condition()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)


def run(tmp_path: Path, scenario: Callable[[Rig], Awaitable[None]], *objects: Any, absent: str = "") -> None:
    async def main() -> None:
        async with asyncio.timeout(30), KubeApi(tmp_path) as api:
            api.absent = {absent} - {""}
            api.put(service("users"), *objects)
            client = KubeClient(from_kubeconfig(api.kubeconfig()))
            rig, stop = Rig(api, client), asyncio.Event()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(rig.source.run(stop))
                    writing = group.create_task(rig.writer.run())
                    try:
                        await scenario(rig)
                    finally:
                        stop.set()
                        writing.cancel()
            finally:
                await client.close()

    asyncio.run(main())


FINE = [("True", "Accepted")]


def test_a_policy_is_served_and_told_so_once_by_server_side_apply(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: rig.reasons() == FINE)
        [found] = rig.meshes[-1].policies
        assert found.settings.load_balancer is LoadBalancer.ROUND_ROBIN
        published = rig.source.published
        rig.api.put(service("another"))
        await rig.until(lambda: rig.source.published > published)
        await asyncio.sleep(0.1)
        [patch] = rig.api.seen(
            "PATCH", "/apis/mesh.pilotfish.dev/v1alpha1/namespaces/shop/trafficpolicies/p/status"
        )
        assert patch.headers["Content-Type"] == "application/apply-patch+yaml"
        assert dict(patch.query) == {"fieldManager": "pilotfish", "force": "true"}
        [entry] = rig.ancestors()
        [condition] = entry.pop("conditions")
        assert entry == {"ancestorRef": USERS, "controllerName": "mesh.pilotfish.dev/controller"}
        assert condition.pop("lastTransitionTime")
        assert condition == {
            "type": "Accepted",
            "status": "True",
            "reason": "Accepted",
            "message": "calls to this Service follow the policy",
            "observedGeneration": 1,
        }

    run(tmp_path, scenario, policy("p"))


def test_a_cluster_without_the_definition_is_served_and_policies_when_it_comes(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: True)
        [note] = rig.problems()
        assert (note.object, note.severity) == ("TrafficPolicy", Severity.NOTE)
        assert rig.meshes[-1].policies == ()
        rig.api.absent = set()
        await rig.until(lambda: rig.meshes[-1].policies and rig.reasons() == FINE)
        assert rig.problems() == []

    run(tmp_path, scenario, policy("p"), absent="trafficpolicies")


def test_the_older_policy_holds_until_it_goes(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: (rig.reasons("a"), rig.reasons("b")) == ([("False", "Conflicted")], FINE))
        message = (
            "TrafficPolicy shop/b is older and holds for Service shop/users; remove one of the two, or what "
            "both name"
        )
        assert rig.ancestors("a")[0]["conditions"][0]["message"] == message
        [problem] = rig.problems()
        assert (problem.object, problem.severity) == ("TrafficPolicy shop/a", Severity.WARNING)
        assert (problem.field, problem.message) == ("spec.targetRefs[0]", message)
        rig.api.delete("TrafficPolicy", "b")
        await rig.until(lambda: rig.reasons("a") == FINE)
        assert rig.problems() == []

    run(tmp_path, scenario, policy("a", created=NEW), policy("b", created=OLD))


def test_a_policy_that_others_go_before_is_accepted_and_told_where(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: rig.reasons() == rig.reasons("q") == FINE)
        [note] = rig.problems()
        assert (note.object, note.severity) == ("TrafficPolicy shop/p", Severity.NOTE)
        assert rig.ancestors()[0]["conditions"][0]["message"] == note.message
        assert note.message.startswith("every port of Service shop/users has a policy of its own")

    run(tmp_path, scenario, policy("p"), policy("q", [parent("users", sectionName="http")]))


def test_each_target_has_its_own_verdict_which_follows_the_services(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        lost = ("False", "TargetNotFound")
        await rig.until(lambda: rig.reasons() == [*FINE, lost, lost, ("False", "Invalid")])
        assert [entry["ancestorRef"]["name"] for entry in rig.ancestors()] == [
            "users",
            "users",
            "orders",
            "away",
        ]
        rig.api.put(service("orders"), service("users", {"name": "grpc", "port": 80}))
        await rig.until(lambda: rig.reasons() == [*FINE, *FINE, *FINE, ("False", "Invalid")])

    away = service("away")
    away["spec"] = {"type": "ExternalName", "externalName": "example.org"}
    targets = [parent("users"), parent("users", sectionName="grpc"), parent("orders"), parent("away")]
    run(tmp_path, scenario, away, policy("p", targets))


def test_a_policy_with_a_mistake_keeps_what_it_was_and_says_so(tmp_path: Path) -> None:
    """The definition refuses most; a newer definition may let more through."""

    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: rig.reasons() == FINE)
        rig.api.put(
            policy("p", loadBalancer={"type": "Random"}), policy("q", loadBalancer={"type": "Random"})
        )
        await rig.until(lambda: rig.reasons() == rig.reasons("q") == [("False", "Invalid")])
        reason = "spec.loadBalancer.type: is 'Random'; expected one of PeakEwma, LeastRequest, RoundRobin"
        messages = [rig.ancestors(name)[0]["conditions"][0]["message"] for name in ("p", "q")]
        assert messages == [f"{reason}; the last good version stays in use", reason]
        assert [found.name for found in rig.meshes[-1].policies] == ["p"]
        assert [(p.severity, p.object, p.field) for p in rig.problems()] == [
            (Severity.ERROR, "TrafficPolicy shop/p", "spec.loadBalancer.type"),
            (Severity.ERROR, "TrafficPolicy shop/q", "spec.loadBalancer.type"),
        ]
        rig.api.put(policy("p"))
        await rig.until(lambda: rig.reasons() == FINE)
        condition = rig.ancestors()[0]["conditions"][0]
        assert (
            condition["observedGeneration"]
            == rig.api.get("TrafficPolicy", "p")["metadata"]["generation"]
            == 3
        )

    run(tmp_path, scenario, policy("p"))


def test_what_another_controller_says_stays(tmp_path: Path) -> None:
    foreign = {"ancestorRef": {"name": "gateway"}, "controllerName": "example.org/gateway", "conditions": []}

    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: rig.reasons() == FINE)
        assert rig.ancestors()[0] == foreign

    run(tmp_path, scenario, {**policy("p"), "status": {"ancestors": [foreign]}})


def test_a_status_has_room_for_sixteen(tmp_path: Path) -> None:
    foreign = [
        {"ancestorRef": {"name": f"g{n}"}, "controllerName": "example.org/gateway", "conditions": []}
        for n in range(15)
    ]

    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: rig.reasons() == FINE)
        assert len(rig.ancestors()) == 16

    both = policy("p", [parent("users"), parent("users", sectionName="http")])
    run(tmp_path, scenario, {**both, "status": {"ancestors": foreign}})


def test_who_does_not_lead_writes_nothing(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.leads = False
        await rig.until(lambda: rig.meshes[-1].policies)
        rig.api.put(policy("p", created=NEW))
        await asyncio.sleep(0.2)
        written = len(rig.api.seen("PATCH", "/status"))
        assert written <= 1  # one may have been on its way
        rig.api.put(policy("q", "orders"))
        await asyncio.sleep(0.2)
        assert len(rig.api.seen("PATCH", "/status")) == written
        rig.leads = True
        rig.writer.on_leading(True)
        await rig.until(lambda: rig.reasons("q") == [("False", "TargetNotFound")])

    run(tmp_path, scenario, policy("p"))


def test_a_missing_right_for_policies_leaves_the_status_of_routes_alone(tmp_path: Path) -> None:
    """As with the ClusterRole of an older version."""

    async def scenario(rig: Rig) -> None:
        rig.api.answer(403, path="/trafficpolicies/p/status", times=1000)
        await rig.until(lambda: rig.writer.problems)
        assert "403" in rig.writer.problems[0].message
        await rig.until(lambda: json.dumps(rig.api.get("HTTPRoute", "r").get("status", {})).count("Accepted"))

    run(tmp_path, scenario, policy("p"), route("r", {"backendRefs": [backend("users")]}))
