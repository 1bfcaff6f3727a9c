"""Leader election: in virtual time among candidates, and on a real Lease over TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from control_plane import leader
from control_plane.kube.access import from_kubeconfig
from control_plane.kube.client import KubeClient
from control_plane.leader import LEASE, NAME, RENEW_DEADLINE, RETRY, Election, Lease, elect
from tests.support.kube_api import KubeApi


class Board:
    """The Lease that candidates share: a write onto another version than the newest is a conflict."""

    def __init__(self) -> None:
        self.lease = Lease()
        self.reachable = True

    def step(self, election: Election, now: float) -> None:
        """What the driver does once."""
        if not self.reachable:
            election.on_failed(False)
            return
        if election.must_look or not election.leads(now):
            election.on_seen(self.lease, now)
        wanted = election.claim(now, f"t{now}")
        if wanted is not None:
            self.write(election, wanted, now)

    def write(self, election: Election, wanted: Lease, now: float) -> None:
        if wanted.version != self.lease.version:
            election.on_failed(True)
            return
        self.lease = replace(wanted, version=str(int(self.lease.version or "0") + 1))
        election.on_written(self.lease, now)


def test_the_first_one_leads_and_the_second_waits() -> None:
    board, first, second = Board(), Election("a"), Election("b")
    now = 100.0
    while now < 200.0:
        board.step(first, now)
        board.step(second, now + 0.5)
        assert (first.leads(now), second.leads(now)) == (True, False)
        now += RETRY
    assert (board.lease.holder, board.lease.transitions) == ("a", 0)


def test_another_takes_over_after_the_lease_and_never_before_the_silent_leader_stepped_down() -> None:
    board, first, second = Board(), Election("a"), Election("b")
    board.step(first, 0.0)
    now, took_over = 0.0, 0.0
    while not took_over:
        now += 0.1
        board.step(second, now)
        assert not (first.leads(now) and second.leads(now))
        took_over = now if second.leads(now) else 0.0
        assert first.leads(now) is (now < RENEW_DEADLINE)
    assert LEASE <= took_over <= LEASE + RETRY
    assert (board.lease.holder, board.lease.transitions) == ("b", 1)
    board.step(first, now)
    assert not first.leads(now)


def test_a_clock_that_differs_between_machines_does_not_matter() -> None:
    board, first, second = Board(), Election("a"), Election("b")
    for turn in range(20):
        board.step(first, turn * RETRY)
        board.step(second, 1e6 + turn * RETRY)
        assert not second.leads(1e6 + turn * RETRY)


def test_of_two_that_take_a_free_lease_at_once_one_wins() -> None:
    board, first, second = Board(), Election("a"), Election("b")
    claims = []
    for election in (first, second):
        election.on_seen(board.lease, 0.0)
        claim = election.claim(0.0, "t")
        assert claim is not None
        claims.append(claim)
    board.write(first, claims[0], 0.0)
    board.write(second, claims[1], 0.0)
    assert (first.leads(0.1), second.leads(0.1)) == (True, False)
    board.step(second, 0.2)
    assert board.lease.holder == "a"


def test_a_leader_that_cannot_renew_leads_until_its_deadline_and_again_when_it_can() -> None:
    board, only = Board(), Election("a")
    board.step(only, 0.0)
    board.reachable = False
    for now in (2.0, 4.0, 9.9):
        board.step(only, now)
        assert only.leads(now)
    assert not only.leads(RENEW_DEADLINE)
    board.reachable = True
    board.step(only, 12.0)
    assert only.leads(12.0)
    assert board.lease.transitions == 0


def test_a_lease_that_was_given_back_is_taken_at_the_next_look() -> None:
    board, first, second = Board(), Election("a"), Election("b")
    board.step(first, 0.0)
    board.step(second, 0.1)
    freed = first.release("t")
    assert freed is not None
    board.write(first, freed, 1.0)
    assert not first.leads(1.0)
    board.step(second, 2.0)
    assert second.leads(2.0)
    assert second.release("t") is not None
    assert first.release("t") is None


def test_a_written_over_lease_ends_the_lead_at_once() -> None:
    board, first = Board(), Election("a")
    board.step(first, 0.0)
    board.lease = replace(board.lease, holder="b", version="99", renewed="x")
    board.step(first, 2.0)
    assert not first.leads(2.0)


# --- on a Lease of an API server ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "RETRY", 0.02)


@asynccontextmanager
async def client_of(tmp_path: Path) -> AsyncIterator[tuple[KubeApi, KubeClient]]:
    async with KubeApi(tmp_path) as api:
        client = KubeClient(from_kubeconfig(api.kubeconfig()))
        try:
            yield api, client
        finally:
            await client.close()


async def until(condition: object) -> None:
    async with asyncio.timeout(20):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_replicas_elect_one_and_a_stopped_leader_hands_over(tmp_path: Path, quick: None) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), client_of(tmp_path) as (api, client):
            leads: dict[str, bool] = {}
            tasks = {}
            async with asyncio.TaskGroup() as group:
                for name in ("a", "b", "c"):
                    heard = lambda now, name=name: leads.__setitem__(name, now)  # noqa: E731
                    run = elect(client, "mesh", Election(name), heard, Random(1))
                    tasks[name] = group.create_task(run)
                await until(lambda: leads)
                [winner] = leads
                spec = lambda: api.get("Lease", NAME, "mesh")["spec"]  # noqa: E731
                before = spec()
                await until(lambda: spec()["renewTime"] != before["renewTime"])
                assert (before["holderIdentity"], before["leaseDurationSeconds"]) == (winner, 15)
                tasks[winner].cancel()
                await until(lambda: len(leads) == 2)
                assert leads.pop(winner) is False
                assert list(leads.values()) == [True]
                assert spec()["leaseTransitions"] == 1
                for task in tasks.values():
                    task.cancel()

    asyncio.run(main())


def test_a_leader_that_is_stopped_while_it_renews_gives_its_lease_back(tmp_path: Path, quick: None) -> None:
    """The renewal is taken though nobody waits for its answer any more."""

    async def main() -> None:
        async with asyncio.timeout(60), client_of(tmp_path) as (api, client):
            heard: list[bool] = []
            async with asyncio.TaskGroup() as group:
                task = group.create_task(elect(client, "mesh", Election("a"), heard.append, Random(1)))
                await until(lambda: heard)
                api.delay = 0.1  # from its coming to its taking effect
                puts = len(api.seen("PUT", NAME))
                await until(lambda: len(api.seen("PUT", NAME)) > puts)
                task.cancel()
            assert heard == [True, False]
            assert api.get("Lease", NAME, "mesh")["spec"]["holderIdentity"] == ""

    asyncio.run(main())


def test_conflicts_and_failures_of_the_server_are_survived(tmp_path: Path, quick: None) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), client_of(tmp_path) as (api, client):
            api.answer(409, path="/leases", times=2)
            api.answer(503, path=NAME, times=3)
            heard: list[bool] = []
            async with asyncio.TaskGroup() as group:
                task = group.create_task(elect(client, "mesh", Election("a"), heard.append, Random(1)))
                await until(lambda: heard == [True])
                api.answer(409, path=NAME)
                await until(lambda: heard == [True, False, True])
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert heard == [True, False, True, False]

    asyncio.run(main())
