"""Clocks that differ: this machine's, of nodes, of the control plane and of sidecars."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pilotfish.operator import clock_facts
from pilotfish.operator.clock_facts import MOST
from pilotfish.operator.facts import Fact
from pilotfish.operator.world import World
from tests.support.kube_api import KubeApi, Object
from tests.support.operator_cluster import SYSTEM, at, lease, page, running, show_certificate, show_page
from tests.support.served_cluster import Served

LOOKS = (clock_facts.machine, clock_facts.nodes, clock_facts.control_plane, clock_facts.sidecars)


def lines(facts: Iterable[Fact]) -> list[str]:
    """With times to ten seconds: those of HTTP and of pages are whole ones, and asking takes its own."""
    return [
        re.sub(r"\d+(?= s\b)", lambda found: str(round(int(found[0]), -1)), f"{fact.state.value} {fact.text}")
        for fact in facts
    ]


def dated(**ahead: float) -> Callable[[], str]:
    """As an API server dates its answers whose clock is ahead."""
    return lambda: format_datetime(datetime.now(UTC) + timedelta(**ahead), usegmt=True)


def node(name: str, ready: str = "True") -> Object:
    info = {"kubeletVersion": "v1.33.1"}
    status = {"nodeInfo": info, "conditions": [{"type": "Ready", "status": ready}]}
    return {"kind": "Node", "metadata": {"name": name}, "status": status}


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (0.0, "ok it agrees with that"),
        (-5.0, "ok it agrees with that"),
        (6.0, "warning it is 6 s ahead of that"),
        (-61.0, "failed it is 61 s behind that"),
    ],
)
def test_clocks_may_differ_a_little(ahead: float, expected: str) -> None:
    fact = clock_facts.clock_fact("clock", "it", ahead, "that")
    assert f"{fact.state.value} {fact.text}" == expected


def test_a_machine_that_alone_is_wrong_is_the_only_line(served: Served) -> None:
    def change(api: KubeApi) -> None:
        api.date = dated(seconds=70)
        api.put(lease("node-1", seconds=70))
        for replica, sidecar in (("cp-a", "users-1"), ("cp-b", "users-2")):
            show_page(api, replica, page(time=at(seconds=70)))
            show_certificate(api, sidecar, seconds=70)

    assert [line for look in LOOKS for line in lines(served.facts(look, change))] == [
        "failed this machine's clock is 70 s behind the API server's",
        "ok clocks of nodes agree with the API server's, to a minute (nodes: 1)",
        "ok the clock of cp-a agrees with the API server's",
        "ok the clock of cp-b agrees with the API server's",
        "ok clocks of sidecars agree with the API server's (asked: 2, one a node)",
    ]


def test_where_the_api_server_tells_no_time_this_machine_s_counts(served: Served) -> None:
    def change(api: KubeApi) -> None:
        api.date = lambda: "never"
        show_page(api, "cp-a", page(time=at(seconds=30)))

    assert lines(served.facts(clock_facts.machine, change)) == [
        "warning the API server does not tell its time"
    ]
    assert lines(served.facts(clock_facts.control_plane, change)) == [
        "warning the clock of cp-a is 30 s ahead of this machine's",
        "ok the clock of cp-b agrees with this machine's",
    ]


@pytest.mark.parametrize(
    ("other", "renewed", "expected"),
    [
        (
            node("node-2"),
            {"seconds": 70},
            "failed clocks of nodes differ from the API server's: 1 of 2: node-2 (at least 70 s ahead)",
        ),
        (
            node("node-2"),
            {"seconds": -100},
            "failed clocks of nodes differ from the API server's: 1 of 2: node-2 (at least 90 s behind)",
        ),
        # Renewed in time, or about to be found out.
        (
            node("node-2"),
            {"seconds": -9},
            "ok clocks of nodes agree with the API server's, to a minute (nodes: 2)",
        ),
        (
            node("node-2"),
            {"seconds": -60},
            "ok clocks of nodes agree with the API server's, to a minute (nodes: 2)",
        ),
        # Nobody renews it.
        (
            node("node-2", ready="Unknown"),
            {"seconds": -1000},
            "ok clocks of nodes agree with the API server's, to a minute (nodes: 1)",
        ),
    ],
)
def test_a_lease_tells_the_clock_of_its_node(
    served: Served, other: Object, renewed: dict[str, float], expected: str
) -> None:
    found = served.facts(clock_facts.nodes, lambda api: api.put(other, lease("node-2", **renewed)))
    assert lines(found) == [expected]


def test_leases_that_may_not_be_listed_are_no_failure(served: Served) -> None:
    [fact] = served.facts(clock_facts.nodes, lambda api: api.answer(403, path="/kube-node-lease/leases"))
    assert (fact.state.value, fact.text) == (
        "warning",
        "clocks of nodes: you may not list leases.coordination.k8s.io in namespace kube-node-lease: "
        "as the test wants it",
    )


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (30, "warning clocks of sidecars differ from the API server's: 1 of 2: shop/users-1 (30 s ahead)"),
        (-70, "failed clocks of sidecars differ from the API server's: 1 of 2: shop/users-1 (70 s behind)"),
    ],
)
def test_a_certificate_tells_the_clock_of_its_sidecar(served: Served, ahead: float, expected: str) -> None:
    found = served.facts(clock_facts.sidecars, lambda api: show_certificate(api, "users-1", seconds=ahead))
    assert lines(found) == [expected]


@pytest.mark.parametrize("machine", [0, -70])
@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (0, "ok clocks of sidecars agree with the API server's (asked: 1, one a node)"),
        (-70, "failed clocks of sidecars differ from the API server's: 1 of 1: shop/users-1 (70 s behind)"),
        (80, "failed clocks of sidecars differ from the API server's: 1 of 1: shop/users-1 (70 s ahead)"),
    ],
)
def test_an_answer_that_takes_its_time_makes_no_clock_wrong(
    served: Served, machine: float, ahead: float, expected: str
) -> None:
    """It was given at some time between the question and its coming, whatever this machine's clock says."""
    late = 0.0

    def date() -> str:
        """Of an answer that then takes ten seconds to come."""
        nonlocal late
        given = dated(seconds=late)()
        late += 10
        return given

    def change(api: KubeApi) -> None:
        api.date = date
        api.delete("Pod", "users-2")
        show_certificate(api, "users-1", seconds=10 + ahead)  # asked when `/version` has come

    served.reset(change)
    with served.api() as api:
        world = World(api, SYSTEM, now=lambda: time.time() + late + machine)
        assert lines(clock_facts.sidecars(world)) == [expected]


def test_one_sidecar_of_a_node_is_asked_and_no_more_than_so_many(served: Served) -> None:
    def change(api: KubeApi) -> None:
        for number in range(MOST + 3):
            pod = running(f"a-{number:02}")
            pod["spec"]["nodeName"] = f"node-{number:02}"
            api.put(pod, {**pod, "metadata": {**pod["metadata"], "name": f"b-{number:02}"}})
            show_certificate(api, f"a-{number:02}")

    assert lines(served.facts(clock_facts.sidecars, change)) == [
        "ok clocks of sidecars agree with the API server's (asked: 20 of 25, one a node)"
    ]


def test_sidecars_that_cannot_be_asked_are_said(served: Served) -> None:
    def change(api: KubeApi) -> None:
        del api.documents["/api/v1/namespaces/shop/pods/users-2:15000/proxy/certs"]

    found = served.facts(clock_facts.sidecars, change)
    assert lines(found) == [
        "ok clocks of sidecars agree with the API server's (asked: 1, one a node)",
        "warning sidecars that cannot be asked: 1 of 2: shop/users-2 (the API server cannot reach "
        "shop/users-2 at port 15000: error trying to reach service: i/o timeout)",
    ]
    assert found[1].hint.startswith("is a NetworkPolicy or a firewall between them?")


@pytest.mark.parametrize("body", [{"mesh": {"not_after": None, "seconds_left": None}}, {"other": 1}, {}])
def test_a_sidecar_without_a_certificate_tells_no_time(served: Served, body: Object) -> None:
    def change(api: KubeApi) -> None:
        for name in ("users-1", "users-2"):
            api.documents[f"/api/v1/namespaces/shop/pods/{name}:15000/proxy/certs"] = body

    assert served.facts(clock_facts.sidecars, change) == []
