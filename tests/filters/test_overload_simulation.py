"""The concurrency limit in front of a simulated application, in virtual time: what is answered, and how late.

Loads are multiples of the capacity, `workers / mean service time`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sidecar.config.resources import AdaptiveConcurrency
from sidecar.filters.concurrency_limit import ConcurrencyLimit
from tests.support.queueing import Application, Service, Simulation, exponential, fixed, mixed, uniform

ENDLESS = 10_000
"""Workers of an application in which nothing ever queues."""
RECOVERY = 12
"""Seconds until the limit has settled in an overload: some for the queue that had grown until it was seen."""


@dataclass(frozen=True)
class Work:
    workers: int
    mean: float
    service: Service
    even: bool = True

    @property
    def capacity(self) -> float:
        return self.workers / self.mean


WORK = {
    "fixed": Work(20, 0.05, fixed(0.05)),
    "uniform": Work(20, 0.05, uniform(0.05, 0.5)),
    "exponential": Work(20, 0.05, exponential(0.05), even=False),
    "short": Work(8, 0.01, exponential(0.01), even=False),
    "hits-and-misses": Work(20, 0.0525, mixed(0.005, 0.1), even=False),
    "long": Work(20, 0.3, fixed(0.3)),
}
works = pytest.mark.parametrize("work", WORK.values(), ids=WORK)


def simulate(workers: int, service: Service, bypass: float = 0.0) -> Simulation:
    return Simulation(ConcurrencyLimit(AdaptiveConcurrency()), Application(workers, service, bypass))


@works
def test_calm_traffic_is_never_refused(work: Work) -> None:
    sim = simulate(work.workers, work.service)
    assert sim.run(work.capacity * 0.5, 60).refused == 0
    assert sim.limit.limit == 1000


@works
def test_at_nine_tenths_of_the_capacity_next_to_nothing_is_refused(work: Work) -> None:
    """Random arrivals of random work do queue there for seconds, now and then."""
    sim = simulate(work.workers, work.service)
    sim.run(work.capacity * 0.5, 10)
    busy = sim.run(work.capacity * 0.9, 30)
    assert busy.refused <= 0.01 * len(busy.latencies)


@works
@pytest.mark.parametrize("load", [3, 10])
def test_in_an_overload_goodput_holds_and_accepted_requests_keep_their_latency(work: Work, load: int) -> None:
    sim = simulate(work.workers, work.service)
    calm = sim.run(work.capacity * 0.5, 10)
    sim.run(work.capacity * load, max(RECOVERY, 200 * work.mean))
    flooded = sim.run(work.capacity * load, 20)
    assert flooded.goodput >= 0.95 * work.capacity
    slower = sum(flooded.latencies) / len(flooded.latencies) / work.mean
    # Where work is short, what the scheduler alone may add is no queue; random work needs some.
    assert slower <= (1.15 if work.even else 1.3 if work.mean > 0.02 else 1.5)
    assert flooded.percentile(0.99) <= 1.8 * calm.percentile(0.99)


def test_after_an_overload_the_limit_is_soon_out_of_the_way() -> None:
    sim = simulate(20, fixed(0.05))
    sim.run(200, 10)
    sim.run(1200, 20)
    sim.run(200, 10)
    assert sim.run(200, 10).refused == 0
    assert sim.burst(100, 5).refused == 0


def test_bursts_after_idleness_are_let_through() -> None:
    sim = simulate(20, fixed(0.005))
    sim.run(200, 10)
    for _ in range(10):
        assert sim.burst(100, 3).refused == 0


def test_a_short_flood_is_a_burst() -> None:
    sim = simulate(20, fixed(0.05))
    sim.run(200, 10)
    assert sim.run(800, 1).refused == 0
    assert sim.run(200, 10).refused == 0


def test_half_of_the_workers_lost_in_an_overload() -> None:
    sim = simulate(20, fixed(0.05))
    sim.run(200, 10)
    sim.run(1200, 20)
    sim.application.workers = 10
    sim.run(1200, 10)
    after = sim.run(1200, 20)
    assert after.goodput >= 0.95 * 200
    assert after.percentile(0.5) <= 1.3 * 0.05


def test_twice_the_workers_in_an_overload() -> None:
    sim = simulate(20, fixed(0.05))
    sim.run(200, 10)
    sim.run(1600, 20)
    sim.application.workers = 40
    sim.run(1600, 8)
    after = sim.run(1600, 20)
    assert after.goodput >= 0.95 * 800
    assert after.percentile(0.5) <= 1.15 * 0.05


def test_work_that_takes_twice_as_long_in_an_overload() -> None:
    """Its latency is no queue: going on by the old baseline would starve the application."""
    sim = simulate(20, fixed(0.05))
    sim.run(200, 10)
    sim.run(1200, 20)
    sim.application.service = fixed(0.1)
    sim.run(1200, 10)
    slower = sim.run(1200, 20)
    assert slower.goodput >= 0.95 * 200
    assert slower.percentile(0.5) <= 1.3 * 0.1


def test_work_that_takes_half_as_long_in_an_overload() -> None:
    sim = simulate(20, fixed(0.1))
    sim.run(100, 10)
    sim.run(1200, 20)
    sim.application.service = fixed(0.05)
    sim.run(1200, 30)
    faster = sim.run(1200, 20)
    assert faster.goodput >= 0.95 * 400
    assert faster.percentile(0.5) <= 1.3 * 0.05


def test_an_application_that_became_slower_without_a_queue_is_throttled_for_a_moment_at_most() -> None:
    sim = simulate(ENDLESS, fixed(0.005))
    sim.run(1000, 20)
    sim.application.service = fixed(0.1)
    assert sim.run(1000, 5).refused <= 300
    assert sim.run(1000, 20).refused == 0


def test_latency_that_wanders_is_no_overload() -> None:
    sim = simulate(ENDLESS, fixed(0.05))
    for seconds in (0.05, 0.055, 0.05, 0.08, 0.052):
        sim.application.service = uniform(seconds, 0.5)
        assert sim.run(1000, 10).refused == 0


def test_an_application_that_answers_at_once_is_not_overloaded_when_its_machine_is_slow() -> None:
    sim = simulate(ENDLESS, fixed(0.0003))
    for seconds in (0.0003, 0.004, 0.0003, 0.012, 0.015, 0.0003):
        sim.application.service = uniform(seconds, 0.5)
        assert sim.run(2000, 5).refused == 0
    assert sim.burst(200, 1).refused == 0


def test_one_slow_second_is_no_overload() -> None:
    sim = simulate(ENDLESS, fixed(0.001))
    sim.run(500, 10)
    sim.application.service = fixed(0.4)
    sim.run(500, 1)
    sim.application.service = fixed(0.001)
    assert sim.run(500, 10).refused == 0
    assert sim.limit.limit == 1000


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_mix_of_endpoints_that_shifts_is_no_overload(share: float) -> None:
    sim = simulate(ENDLESS, mixed(0.002, 0.2, 0.6))
    sim.run(400, 20)
    sim.application.service = mixed(0.002, 0.2, share)
    assert sim.run(400, 20).refused == 0


@pytest.mark.parametrize("bypass", [0.01, 0.1, 0.3])
def test_answers_that_need_no_worker_do_not_hide_the_queue(bypass: float) -> None:
    """A cache or an event loop in front of the pool of threads."""
    capacity = 400 / (1 - bypass)
    sim = simulate(20, fixed(0.05), bypass)
    assert sim.run(capacity * 0.5, 20).refused == 0
    sim.run(capacity * 3, RECOVERY)
    flooded = sim.run(capacity * 3, 10)
    assert flooded.goodput >= 0.95 * capacity
    assert flooded.percentile(0.5) <= 1.15 * 0.05


def test_what_delays_answers_outside_the_application_costs_little_goodput() -> None:
    """In an overload the machine is busy too."""
    sim = simulate(20, fixed(0.05))
    sim.run(200, 10)
    sim.application.delay = 0.008
    sim.run(1200, RECOVERY)
    assert sim.run(1200, 20).goodput >= 0.95 * 400


def test_fewer_than_the_floor_in_flight_are_never_refused_however_latency_wanders() -> None:
    sim = simulate(ENDLESS, fixed(0.01))
    for seconds in (0.01, 0.04, 0.02, 0.05, 0.01, 0.05):
        sim.application.service = fixed(seconds)
        assert sim.run(20, 30).refused == 0


def test_an_application_that_waits_for_events_is_never_limited() -> None:
    sim = simulate(ENDLESS, fixed(5.0))
    for seconds in (5.0, 30.0, 8.0, 60.0):
        sim.application.service = fixed(seconds)
        assert sim.run(10, 300).refused == 0


def test_an_overload_from_the_first_request_on_is_found_out() -> None:
    sim = simulate(20, fixed(0.05))
    sim.run(1200, 60)
    after = sim.run(1200, 20)
    assert after.goodput >= 0.95 * 400
    assert after.percentile(0.5) <= 1.5 * 0.05


def test_an_overload_of_ten_minutes_does_not_lift_the_baseline() -> None:
    sim = simulate(8, fixed(0.05))
    sim.run(80, 10)
    sim.run(400, 600)
    after = sim.run(400, 20)
    assert after.goodput >= 0.95 * 160
    assert after.percentile(0.5) <= 1.3 * 0.05
