"""The status of routes: what is written, by whom, when, and what of others is left alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from control_plane.kube import reflector
from control_plane.kube.access import from_kubeconfig
from control_plane.kube.client import KubeClient
from control_plane.sources import status_writer
from control_plane.sources.kube_objects import RouteFacts
from control_plane.sources.kubernetes import KubernetesSource
from control_plane.sources.route_admission import Condition, RouteVerdict
from control_plane.sources.status_writer import CONTROLLER, StatusWriter, wanted_entries
from tests.support.kube_api import KubeApi
from tests.support.kubernetes import backend, parent, route, service

THEN = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 2, 2, tzinfo=UTC)
USERS = json.dumps({"group": "", "kind": "Service", "name": "users"}, sort_keys=True)
ACCEPTED = Condition("Accepted", True, "Accepted", "fine")
FOREIGN = {"parentRef": {"name": "gateway"}, "controllerName": "example.org/gateway", "conditions": []}


def verdict(*conditions: Condition, status: object = (), generation: int = 3) -> RouteVerdict:
    facts = RouteFacts(
        None, "", "", "gateway.networking.k8s.io/v1", generation, "7", (USERS,), json.dumps(status)
    )
    return RouteVerdict("HTTPRoute", ("shop", "r"), facts, ((USERS, conditions),))


def test_a_new_route_gets_its_conditions() -> None:
    assert wanted_entries(verdict(ACCEPTED), THEN) == [
        {
            "parentRef": {"group": "", "kind": "Service", "name": "users"},
            "controllerName": "mesh.pilotfish.dev/controller",
            "conditions": [
                {
                    "type": "Accepted",
                    "status": "True",
                    "reason": "Accepted",
                    "message": "fine",
                    "observedGeneration": 3,
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }
            ],
        }
    ]


def test_what_the_status_says_already_is_not_written_again() -> None:
    written = wanted_entries(verdict(ACCEPTED), THEN)
    assert wanted_entries(verdict(ACCEPTED, status=written), LATER) is None


def test_the_time_of_a_condition_changes_with_its_status_alone() -> None:
    written = wanted_entries(verdict(ACCEPTED), THEN)
    [same] = wanted_entries(verdict(ACCEPTED, status=written, generation=4), LATER) or []
    assert same["conditions"][0]["observedGeneration"] == 4
    assert same["conditions"][0]["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    refused = Condition("Accepted", False, "NoMatchingParent", "gone")
    [other] = wanted_entries(verdict(refused, status=written), LATER) or []
    assert other["conditions"][0]["lastTransitionTime"] == "2026-02-02T00:00:00Z"


def test_what_other_controllers_say_stays() -> None:
    parents = wanted_entries(verdict(ACCEPTED, status=[FOREIGN]), THEN)
    assert parents is not None
    assert parents[0] == FOREIGN
    assert wanted_entries(verdict(ACCEPTED, status=parents), LATER) is None


def test_a_parent_that_the_route_no_longer_names_loses_its_entry() -> None:
    written = wanted_entries(verdict(ACCEPTED, status=[FOREIGN]), THEN)
    facts = verdict(ACCEPTED, status=written).facts
    assert wanted_entries(RouteVerdict("HTTPRoute", ("shop", "r"), facts, ()), LATER) == [FOREIGN]


# --- against an API server ---


class Rig:
    """A source and a writer that may or may not lead."""

    def __init__(self, api: KubeApi, client: KubeClient) -> None:
        self.api = api
        self.leads = True
        self.writer = StatusWriter(client, lambda: self.leads)
        self.source = KubernetesSource(client, lambda _: None, self.writer.on_verdicts, Random(1))

    def conditions(self, name: str = "r", kind: str = "HTTPRoute") -> dict[str, str]:
        """Type to reason, of our first entry."""
        for entry in (self.api.get(kind, name).get("status") or {}).get("parents", []):
            if entry["controllerName"] == CONTROLLER:
                return {c["type"]: c["reason"] for c in entry["conditions"]}
        return {}

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def patches(self) -> list[Any]:
        return self.api.seen("PATCH", "/status")


def run(tmp_path: Path, scenario: Callable[[Rig], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "BACKOFF_FIRST", 0.02)
    monkeypatch.setattr(status_writer, "RETRY_FIRST", 0.02)

    async def main() -> None:
        async with asyncio.timeout(30), KubeApi(tmp_path) as api:
            api.put(service("users"), route("r", {"backendRefs": [backend("users")]}))
            client = KubeClient(from_kubeconfig(api.kubeconfig()))
            rig, stop = Rig(api, client), asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(rig.source.run(stop))
                writing = group.create_task(rig.writer.run())
                try:
                    await scenario(rig)
                finally:
                    stop.set()
                    writing.cancel()
            await client.close()

    asyncio.run(main())


FINE = {"Accepted": "Accepted", "ResolvedRefs": "ResolvedRefs"}


def test_the_leader_writes_by_server_side_apply_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: rig.conditions() == FINE)
        rig.api.put(service("another"))
        published = rig.source.published
        await rig.until(lambda: rig.source.published > published)
        await asyncio.sleep(0.1)
        [patch] = rig.patches()
        assert patch.headers["Content-Type"] == "application/apply-patch+yaml"
        assert dict(patch.query) == {"fieldManager": "pilotfish", "force": "true"}

    run(tmp_path, scenario, monkeypatch)


def test_conditions_follow_what_becomes_of_the_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: rig.conditions() == FINE)
        rig.api.put(route("r", {"backendRefs": [backend("gone")]}))
        await rig.until(lambda: rig.conditions() == {**FINE, "ResolvedRefs": "BackendNotFound"})
        rig.api.put(route("r", {"timeouts": {"request": "soon"}}))
        await rig.until(lambda: rig.conditions() == {"Accepted": "UnsupportedValue"})
        entry = rig.api.get("HTTPRoute", "r")["status"]["parents"][0]["conditions"][0]
        assert entry["observedGeneration"] == rig.api.get("HTTPRoute", "r")["metadata"]["generation"] == 3
        assert "spec.rules[0].timeouts.request" in entry["message"]
        rig.api.put(route("r", {"backendRefs": [backend("users")]}))
        await rig.until(lambda: rig.conditions() == FINE)

    run(tmp_path, scenario, monkeypatch)


def test_routes_of_every_kind_have_their_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rig: Rig) -> None:
        rig.api.put(service("db"), route("t", {"backendRefs": [backend("gone")]}, to="db", kind="TCPRoute"))
        rig.api.put(service("rpc"), route("g", {"backendRefs": [backend("rpc")]}, to="rpc", kind="GRPCRoute"))
        good = {"Accepted": "Accepted", "ResolvedRefs": "ResolvedRefs"}
        await rig.until(
            lambda: rig.conditions("t", "TCPRoute") == {**good, "ResolvedRefs": "BackendNotFound"}
        )
        await rig.until(lambda: rig.conditions("g", "GRPCRoute") == good)

    run(tmp_path, scenario, monkeypatch)


def test_a_replica_that_does_not_lead_writes_nothing_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(rig: Rig) -> None:
        rig.leads = False
        rig.api.put(service("another"))
        await rig.until(lambda: rig.source.published)
        await asyncio.sleep(0.1)
        written = len(rig.patches())
        rig.api.put(route("s", {"backendRefs": [backend("users")]}))
        await asyncio.sleep(0.2)
        assert len(rig.patches()) == written
        rig.leads = True
        rig.writer.on_leading(True)
        await rig.until(lambda: rig.conditions("s") == FINE)

    run(tmp_path, scenario, monkeypatch)


def test_an_entry_that_another_controller_wrote_meanwhile_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: rig.conditions() == FINE)
        changed = {**rig.api.get("HTTPRoute", "r"), **route("r", {"backendRefs": [backend("gone")]})}
        parents = [FOREIGN, *changed["status"]["parents"]]
        rig.api.put({**changed, "status": {"parents": parents}})
        await rig.until(lambda: rig.conditions().get("ResolvedRefs") == "BackendNotFound")
        assert rig.api.get("HTTPRoute", "r")["status"]["parents"][0] == FOREIGN

    run(tmp_path, scenario, monkeypatch)


def test_conflicts_throttling_and_missing_rights_are_tried_again_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: rig.conditions() == FINE)
        rig.api.answer(403, path="/status", times=3)
        rig.api.put(route("s", {"backendRefs": [backend("users")]}))
        await rig.until(lambda: rig.writer.problems)
        assert "403 Forbidden" in rig.writer.problems[0].message
        await rig.until(lambda: rig.conditions("s") == FINE and not rig.writer.problems)
        rig.api.answer(409, path="/status")
        rig.api.put(route("s", to=[parent("users"), parent("gone")]))
        await asyncio.sleep(0.1)
        rig.api.put({**rig.api.get("HTTPRoute", "s"), "status": {}})
        await rig.until(lambda: len(rig.api.get("HTTPRoute", "s")["status"].get("parents", [])) == 2)

    run(tmp_path, scenario, monkeypatch)


@pytest.mark.parametrize("status", [403, 422, 500])
def test_an_object_that_is_refused_waits_by_itself_and_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: rig.conditions() == FINE)
        monkeypatch.setattr(status_writer, "RETRY_FIRST", 3600.0)
        rig.api.answer(status, path="/a/status", times=99)
        rig.api.answer(status, path="/b/status", times=99)
        for name in ("a", "b", "c"):
            rig.api.put(route(name, {"backendRefs": [backend("users")]}))
        await rig.until(lambda: rig.conditions("c") == FINE)
        rig.api.put(route("d", {"backendRefs": [backend("users")]}))
        await rig.until(lambda: rig.conditions("d") == FINE)
        assert [len(rig.api.seen("PATCH", f"/{name}/status")) for name in "abcd"] == [1, 1, 1, 1]
        [problem] = rig.writer.problems
        assert (problem.object, problem.severity.value) == ("HTTPRoute shop/a", "warning")
        assert problem.message.startswith(f"its status cannot be written (as that of 1 more): {status} ")
        rig.api.delete("HTTPRoute", "a")
        await rig.until(lambda: rig.writer.problems[0].object == "HTTPRoute shop/b")

    run(tmp_path, scenario, monkeypatch)


@pytest.mark.parametrize("status", [401, 429])
def test_nothing_more_is_tried_after_an_answer_that_concerns_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.until(lambda: rig.conditions() == FINE)
        written = len(rig.patches())
        monkeypatch.setattr(status_writer, "RETRY_FIRST", 3600.0)
        rig.api.answer(status, path="/status", times=99)
        for name in ("a", "b", "c"):
            rig.api.put(route(name, {"backendRefs": [backend("users")]}))
        await rig.until(lambda: rig.writer.problems)
        published = rig.source.published
        rig.api.put(route("d", {"backendRefs": [backend("users")]}))
        await rig.until(lambda: rig.source.published > published)
        assert len(rig.patches()) == written + 1

    run(tmp_path, scenario, monkeypatch)


def test_who_no_longer_leads_has_no_problem_with_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(rig: Rig) -> None:
        rig.api.answer(422, path="/status", times=99)
        await rig.until(lambda: rig.writer.problems)
        rig.leads = False
        await rig.until(lambda: not rig.writer.problems)

    run(tmp_path, scenario, monkeypatch)
