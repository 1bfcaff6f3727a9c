"""A TrafficPolicy in a folder, a real control plane, and what the sidecar of a caller then does."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.clients import Answer, fetch
from tests.support.kubernetes import account, endpoint_slice, policy, service
from tests.support.load import Load
from tests.support.mesh import Mesh
from tests.support.processes import Process, eventually, loopback
from tests.support.sidecars import OUTBOUND

CLUSTER = "users.shop.svc.cluster.local:80"
REPLICAS = 3


class Policed:
    """A caller with a sidecar, and three replicas of `users` without: the policy is the caller's matter."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.host = loopback()
        self.hosts = [loopback() for _ in range(REPLICAS)]
        self.apps: list[Process] = []
        self._timeouts = itertools.count(2)

    def start(self) -> Policed:
        mesh = self.mesh
        mesh.save("accounts", account("shopper"))
        mesh.save("users", service("users"), endpoint_slice("users-a", *self.hosts))
        mesh.start_control_plane()
        self.sidecar = mesh.sidecar("shopper", "shopper", self.host)
        self.apps = [mesh.app(f"users-{i}", host) for i, host in enumerate(self.hosts)]
        self.sidecar.ready()
        assert self.fetch("/").status == 200
        return self

    def fetch(self, path: str) -> Answer:
        return fetch((self.host, OUTBOUND), f"http://users{path}")

    def apply(self, **spec: Any) -> None:
        """Replaces the policy and waits until the sidecar follows it, which a time-out of its own tells."""
        seconds = next(self._timeouts)
        connections = {**spec.pop("connections", {}), "connectTimeout": f"{seconds}s"}
        self.mesh.save("policy", policy("users", **spec, connections=connections))
        eventually(lambda: self.config()["connect_timeout"] == seconds, "the policy in the sidecar")

    def config(self) -> Any:
        [found] = [c for c in self.sidecar.json("/config_dump")["clusters"] if c["name"] == CLUSTER]
        return found

    def stats(self) -> Any:
        return self.sidecar.stats("clusters", cluster=CLUSTER)

    def __repr__(self) -> str:
        return f"<Policed {self.host} {self.hosts}>"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policed]:
    mesh = Mesh(tmp_path_factory.mktemp("policed"))
    try:
        yield Policed(mesh).start()
    finally:
        mesh.stop()


@pytest.fixture
def policed(shared: Policed) -> Policed:
    """All replicas are alive."""
    for i, app in enumerate(shared.apps):
        if app.child.poll() is not None:
            shared.apps[i] = shared.mesh.app(f"users-{i}", shared.hosts[i])
    return shared


def picks(policed: Policed, number: int) -> list[str]:
    return [policed.fetch("/").headers["x-replica"] for _ in range(number)]


def by_turns(replicas: list[str]) -> bool:
    """Each in turn. By chance in less than one of a billion lists of sixty."""
    first = replicas[:REPLICAS]
    return len(set(first)) == REPLICAS and replicas == first * (len(replicas) // REPLICAS)


def test_the_balancer_is_the_one_that_is_asked_for(policed: Policed) -> None:
    policed.apply(loadBalancer={"type": "LeastRequest"})
    assert not by_turns(picks(policed, 60))
    policed.apply(loadBalancer={"type": "RoundRobin"})
    assert by_turns(picks(policed, 60))
    (policed.mesh.config / "policy.yaml").unlink()
    eventually(lambda: policed.config()["connect_timeout"] == 1.0, "the default")
    assert policed.config()["lb_policy"] == "PEAK_EWMA"
    assert not by_turns(picks(policed, 60))


def test_changing_a_policy_under_load_loses_no_request(policed: Policed) -> None:
    with Load((policed.host, OUTBOUND), "http://users/", rate=200.0) as load:
        for kind in ("RoundRobin", "PeakEwma", "LeastRequest"):
            policed.apply(loadBalancer={"type": kind}, connections={"maxRequests": 1000})
            load.more(20)
    assert load.failures() == []


def test_a_replica_that_fails_is_ejected_unless_ejection_is_disabled(policed: Policed) -> None:
    turns = {"loadBalancer": {"type": "RoundRobin"}, "retryBudget": {"percent": 100}}
    policed.apply(**turns, outlierDetection={"disabled": True})
    policed.apps[0].kill()
    before = policed.stats()
    assert {policed.fetch("/").status for _ in range(30)} == {200}
    after = policed.stats()
    assert after["ejections"] == before["ejections"]
    assert after["retries"] - before["retries"] >= 10, "it is still asked in its turn"
    policed.apply(**turns, outlierDetection={"consecutiveFailures": 2, "baseEjectionTime": "10m"})
    assert {policed.fetch("/").status for _ in range(30)} == {200}
    ejected = policed.stats()
    assert ejected["ejections"] - after["ejections"] == 1
    assert ejected["retries"] - after["retries"] == 2, "then it got nothing more"


def test_without_a_budget_nothing_is_sent_again(policed: Policed) -> None:
    policed.apply(
        loadBalancer={"type": "RoundRobin"},
        outlierDetection={"disabled": True},
        retryBudget={"percent": 0, "minRetriesPerSecond": 0},
    )
    policed.apps[0].kill()
    statuses = [policed.fetch("/").status for _ in range(12)]
    assert (statuses.count(200), statuses.count(503)) == (8, 4)


def test_requests_over_the_limit_are_refused(policed: Policed) -> None:
    policed.apply(connections={"maxRequests": 1})
    answers: list[Answer] = []
    waiting = threading.Thread(target=lambda: answers.append(policed.fetch("/wait?for=policy")))
    waiting.start()
    try:
        eventually(lambda: policed.stats()["requests_active"] == 1, "a request in flight")
        assert policed.fetch("/over").status == 503
        assert policed.sidecar.logged(path="/over")["flags"] == "UO"
    finally:
        for host in policed.hosts:
            fetch((host, 8080), "/release?for=policy")
        waiting.join()
    assert [answer.status for answer in answers] == [200]
    assert policed.fetch("/").status == 200


def test_an_older_policy_holds_and_the_status_page_says_so(policed: Policed) -> None:
    policed.apply(loadBalancer={"type": "RoundRobin"})
    younger = policy("another", loadBalancer={"type": "LeastRequest"})
    older = policy("users", created="2026-01-01T00:00:00Z", connections={"maxRequests": 77})
    policed.mesh.save("policy", younger, older)
    eventually(lambda: policed.config()["circuit_breakers"]["max_requests"] == 77, "the older policy")
    [problem] = policed.mesh.status()["problems"]
    assert (problem["severity"], problem["file"]) == ("warning", "policy.yaml")
    assert (problem["object"], problem["field"]) == ("TrafficPolicy shop/another", "spec.targetRefs[0]")
    assert policed.config()["lb_policy"] == "PEAK_EWMA"
