"""A cluster: picking, counting, ejection with its timer, endpoint changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.config.resources import (
    CircuitBreakers,
    ClusterConfig,
    Discovery,
    EndpointConfig,
    EndpointsConfig,
    Health,
    Http2Options,
    LbPolicy,
    LocalityEndpoints,
    OutlierDetection,
    SocketAddress,
)
from sidecar.upstream.cluster import Cluster
from sidecar.upstream.endpoint import Endpoint
from sidecar.upstream.host import Ejection
from tests.support.fake_upstream import FakeNetwork, Waiter, make_context, scenario, settle
from tests.support.virtual_clock import VirtualClock

OUTLIERS = OutlierDetection(consecutive_5xx=2, base_ejection_time=10.0, max_ejection_percent=50)


def member(number: int, **changes: Any) -> EndpointConfig:
    return replace(EndpointConfig(SocketAddress(f"10.0.0.{number}", 80), hostname=f"pod-{number}"), **changes)


def assignment(*members: EndpointConfig, priority: int = 0, weight: int = 1) -> EndpointsConfig:
    return EndpointsConfig("c", (LocalityEndpoints("r", "z", "", priority, weight, members),))


def config(n: int = 3, **changes: Any) -> ClusterConfig:
    base = ClusterConfig(
        "c",
        http2=Http2Options(),
        outlier_detection=OUTLIERS,
        endpoints=assignment(*(member(i) for i in range(n))),
    )
    return replace(base, **changes)


class Rig:
    def __init__(self, wanted: ClusterConfig) -> None:
        self.clock = VirtualClock()
        self.network = FakeNetwork(self.clock)
        self.context = make_context(self.clock, self.network)
        self.cluster = Cluster(self.context, wanted)

    def request(self, endpoint: Endpoint, failed: bool = False, latency: float | None = 0.01) -> None:
        assert self.cluster.begin(endpoint)
        self.cluster.finish(endpoint, None if failed else latency, failed)

    def eject(self, endpoint: Endpoint) -> None:
        for _ in range(2):
            self.request(endpoint, failed=True)
        assert endpoint.ejected

    def picks(self, tried: list[Endpoint] | None = None) -> set[Endpoint | None]:
        return {self.cluster.pick(tried or ()) for _ in range(30)}


def test_max_requests_refuses_and_counts() -> None:
    rig = Rig(config(circuit_breakers=CircuitBreakers(max_requests=2)))
    a, b, c = rig.cluster.endpoints
    assert rig.cluster.begin(a)
    assert rig.cluster.begin(b)
    assert not rig.cluster.begin(c)
    stats = rig.cluster.stats
    assert (stats.requests, stats.requests_active, stats.requests_overflow) == (2, 2, 1)
    rig.cluster.finish(a, 0.01, False)
    assert rig.cluster.begin(c)


def test_finish_counts_out_and_counts_failures() -> None:
    rig = Rig(config())
    endpoint = rig.cluster.endpoints[0]
    rig.request(endpoint)
    rig.request(endpoint, failed=True)
    rig.request(endpoint, latency=None)
    assert (endpoint.stats.requests, endpoint.stats.failures, endpoint.stats.active) == (3, 1, 0)
    assert (endpoint.active, rig.cluster.active, rig.cluster.stats.requests_active) == (0, 0, 0)


def test_latency_is_measured_for_peak_ewma() -> None:
    rig = Rig(config(2, lb_policy=LbPolicy.PEAK_EWMA))
    slow, fast = rig.cluster.endpoints
    rig.request(slow, latency=0.5)
    rig.request(fast, latency=0.001)
    assert rig.picks() == {fast}


def test_every_policy_spreads_over_all_endpoints() -> None:
    for policy in LbPolicy:
        rig = Rig(config(3, lb_policy=policy))
        assert rig.picks() == set(rig.cluster.endpoints), policy


def test_consecutive_failures_eject_and_time_brings_back_one_probe() -> None:
    rig = Rig(config())
    bad, *others = rig.cluster.endpoints
    rig.eject(bad)
    assert (rig.cluster.stats.ejections, rig.cluster.stats.ejected) == (1, 1)
    assert rig.picks() == set(others)
    rig.clock.advance(9.9)
    assert rig.picks() == set(others)
    rig.clock.advance(0.2)
    assert rig.cluster.pick(()) is bad
    assert rig.cluster.begin(bad)
    assert rig.picks() == set(others)  # one probe at a time
    rig.cluster.finish(bad, 0.01, False)
    assert rig.picks() == {bad, *others}
    assert rig.cluster.stats.ejected == 0


def test_a_failed_probe_ejects_for_longer() -> None:
    rig = Rig(config())
    bad, *others = rig.cluster.endpoints
    rig.eject(bad)
    rig.clock.advance(10.0)
    rig.request(bad, failed=True)
    rig.clock.advance(19.0)
    assert rig.picks() == set(others)
    rig.clock.advance(1.0)
    assert rig.cluster.pick(()) is bad
    assert (rig.cluster.stats.ejections, rig.cluster.stats.ejected) == (2, 1)


def test_a_probe_that_takes_long_is_followed_by_another() -> None:
    rig = Rig(config())
    bad, *_ = rig.cluster.endpoints
    rig.eject(bad)
    rig.clock.advance(10.0)
    assert rig.cluster.pick(()) is bad
    rig.cluster.begin(bad)
    assert bad not in rig.picks()
    rig.clock.advance(1.0)
    assert rig.cluster.pick(()) is bad
    rig.cluster.begin(bad)
    assert bad not in rig.picks()


def test_a_retry_is_no_probe() -> None:
    rig = Rig(config())
    bad, good, other = rig.cluster.endpoints
    rig.eject(bad)
    rig.clock.advance(10.0)
    assert rig.picks([good]) == {other}


def test_a_probe_that_the_caller_abandons_decides_nothing() -> None:
    rig = Rig(config())
    bad, *_ = rig.cluster.endpoints
    rig.eject(bad)
    rig.clock.advance(10.0)
    rig.request(bad, latency=None)
    assert bad.ejected
    assert rig.cluster.pick(()) is bad


def test_an_endpoint_of_a_priority_that_does_not_serve_is_not_probed() -> None:
    near = LocalityEndpoints("r", "near", "", 0, 1, (member(0), member(1)))
    far = LocalityEndpoints("r", "far", "", 1, 1, (member(2), member(3)))
    rig = Rig(config(endpoints=EndpointsConfig("c", (near, far))))
    first, second, spare, _ = rig.cluster.endpoints
    rig.eject(spare)
    rig.clock.advance(10.0)
    assert rig.picks() == {first, second}


@pytest.mark.parametrize("health", [Health.DRAINING, Health.UNHEALTHY])
def test_an_endpoint_that_is_on_its_way_out_is_not_probed(health: Health) -> None:
    rig = Rig(config())
    leaving, *others = rig.cluster.endpoints
    rig.eject(leaving)
    members = (member(0, health=health), member(1), member(2))
    rig.cluster.set_endpoints(assignment(*members))
    rig.clock.advance(10.0)
    assert leaving.ejection is Ejection.PROBING
    assert rig.picks() == set(others)
    rig.cluster.set_endpoints(assignment(member(0), member(1), member(2)))
    assert rig.cluster.pick(()) is leaving


def test_a_failed_first_priority_is_probed_while_the_second_serves() -> None:
    near = LocalityEndpoints("r", "near", "", 0, 1, (member(0),))
    far = LocalityEndpoints("r", "far", "", 1, 1, (member(1), member(2)))
    rig = Rig(config(endpoints=EndpointsConfig("c", (near, far))))
    first, *others = rig.cluster.endpoints
    rig.eject(first)
    assert rig.picks() == set(others)
    rig.clock.advance(10.0)
    assert rig.cluster.pick(()) is first
    rig.request(first)
    assert rig.picks() == {first}


def test_the_last_usable_endpoint_is_never_ejected() -> None:
    rig = Rig(config(2, outlier_detection=replace(OUTLIERS, max_ejection_percent=100)))
    first, last = rig.cluster.endpoints
    rig.eject(first)
    for _ in range(20):
        rig.request(last, failed=True)
    assert rig.picks() == {last}


def test_an_ejected_endpoint_takes_over_when_the_last_usable_one_fails() -> None:
    rig = Rig(config(2))
    first, last = rig.cluster.endpoints
    rig.eject(first)
    rig.clock.advance(1.0)  # it is well again, but its time is not over
    assert rig.picks([last]) == {first}
    rig.request(last, failed=True)
    rig.request(last, failed=True)
    assert rig.cluster.pick(()) is first
    rig.request(first)
    rig.request(last, failed=True)
    assert rig.picks() == {first}
    assert rig.cluster.stats.ejected == 1


def test_without_usable_endpoints_requests_still_go_somewhere() -> None:
    rig = Rig(config(2))
    rig.cluster.set_endpoints(assignment(member(0, health=Health.UNHEALTHY)))
    assert rig.picks() == set(rig.cluster.endpoints)


def test_draining_and_unhealthy_endpoints_get_no_requests() -> None:
    rig = Rig(config(3))
    rig.cluster.set_endpoints(
        assignment(member(0), member(1, health=Health.DRAINING), member(2, health=Health.UNHEALTHY))
    )
    assert rig.picks() == {rig.cluster.endpoints[0]}


def test_a_locality_of_weight_zero_is_out_of_use() -> None:
    used = LocalityEndpoints("r", "a", "", 0, 1, (member(0),))
    unused = LocalityEndpoints("r", "b", "", 0, 0, (member(1),))
    rig = Rig(config(endpoints=EndpointsConfig("c", (used, unused))))
    assert [endpoint.name for endpoint in rig.cluster.endpoints] == ["pod-0"]


@scenario
async def test_endpoints_that_stay_keep_connections_latency_and_ejection() -> None:
    rig = Rig(config(4, lb_policy=LbPolicy.PEAK_EWMA))
    kept, bad, gone, _ = rig.cluster.endpoints
    waiter = Waiter()
    kept.acquire(waiter)
    await settle()
    rig.request(kept, latency=0.2)
    rig.eject(bad)
    rig.cluster.set_endpoints(assignment(member(0, weight=5), member(1), member(9)))
    assert rig.cluster.endpoints[:2] == [kept, bad]
    assert (kept.weight, kept.latency_ewma, kept.connections) == (5, 0.2, 1)
    assert bad.ejected
    assert gone not in rig.cluster.endpoints
    assert [endpoint.name for endpoint in rig.cluster.endpoints] == ["pod-0", "pod-1", "pod-9"]
    rig.clock.advance(10.0)
    assert rig.cluster.pick(()) is bad


@scenario
async def test_an_endpoint_that_left_finishes_its_streams() -> None:
    rig = Rig(config(2))
    stays, leaves = rig.cluster.endpoints
    waiter = Waiter()
    leaves.acquire(waiter)
    await settle()
    rig.cluster.begin(leaves)
    rig.cluster.set_endpoints(assignment(member(0)))
    assert rig.picks() == {stays}
    assert waiter.resets == []
    assert rig.cluster.connections == 1
    assert waiter.stream is not None
    waiter.end()
    rig.cluster.finish(leaves, None, True)
    rig.clock.advance(0)
    assert rig.network.connections[0].ended == "closed"
    assert rig.cluster.connections == 0
    assert rig.cluster.active == 0


def test_the_address_of_another_pod_is_another_endpoint() -> None:
    rig = Rig(config(2))
    old = rig.cluster.endpoints[0]
    rig.cluster.set_endpoints(assignment(member(0, hostname="pod-new")))
    (new,) = rig.cluster.endpoints
    assert new is not old
    assert new.address == old.address


def test_an_address_that_is_listed_twice_counts_once() -> None:
    rig = Rig(config(endpoints=assignment(member(0), member(0, weight=7))))
    assert len(rig.cluster.endpoints) == 1


def test_metrics_forget_endpoints_that_left() -> None:
    rig = Rig(config(2))
    rig.cluster.set_endpoints(assignment(member(0)))
    assert [row["endpoint"] for row in rig.context.metrics.snapshot()["endpoints"]] == ["pod-0"]


def test_a_pod_that_moved_keeps_its_series() -> None:
    rig = Rig(config(1))
    rig.request(rig.cluster.endpoints[0])
    rig.cluster.set_endpoints(assignment(member(5, hostname="pod-0")))
    (row,) = rig.context.metrics.snapshot()["endpoints"]
    assert (row["endpoint"], row["requests"]) == ("pod-0", 1)


def test_why_there_is_no_endpoint_is_said_in_words() -> None:
    rig = Rig(ClusterConfig("c", discovery=Discovery.EDS))
    assert rig.cluster.pick(()) is None
    assert rig.cluster.why_none() == "discovery lists no endpoints"
    assert Rig(ClusterConfig("c")).cluster.why_none() == "it has no endpoints"


@scenario
async def test_description_has_what_an_operator_asks_for() -> None:
    rig = Rig(config(2, lb_policy=LbPolicy.PEAK_EWMA))
    good, bad = rig.cluster.endpoints
    good.acquire(Waiter())
    await settle()
    rig.request(good, latency=0.025)
    rig.eject(bad)
    rig.clock.advance(4.0)
    described = rig.cluster.describe()
    rows = described.pop("endpoints")
    assert described == {
        "name": "c",
        "discovery": "STATIC",
        "lb_policy": "PEAK_EWMA",
        "protocol": "HTTP/2",
        "tls": False,
        "requests_active": 0,
        "connections": 1,
        "pending": 0,
        "draining_endpoints": 0,
        "dns_errors": {},
    }
    assert isinstance(rows, list)
    assert rows[0] == {
        "name": "pod-0",
        "address": "10.0.0.0:80",
        "protocol": "HTTP/2",
        "locality": "r/z",
        "priority": 0,
        "weight": 1,
        "health": "HEALTHY",
        "ejection": "IN",
        "ejected_for": 0.0,
        "consecutive_failures": 0,
        "active": 0,
        "latency_ms": 6.59,
        "connections": 1,
        "pending": 0,
        "requests": 1,
        "failures": 0,
    }
    assert (rows[1]["ejection"], rows[1]["ejected_for"], rows[1]["failures"]) == ("EJECTED", 6.0, 2)


def test_a_drained_cluster_leaves_no_timer_and_no_ejection_count() -> None:
    rig = Rig(config())
    rig.eject(rig.cluster.endpoints[0])
    rig.cluster.drain()
    assert rig.clock.pending == 0
    assert rig.cluster.stats.ejected == 0
