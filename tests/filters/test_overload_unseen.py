"""Overloads that a latency baseline does not show: there from the first request on, too fast for few workers,
or hidden because callers give up. And the healthy traffic that looks like them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from random import Random

import pytest

from sidecar.config.resources import AdaptiveConcurrency
from sidecar.filters.concurrency_limit import ConcurrencyLimit
from tests.support.queueing import (
    Application,
    Outcome,
    Service,
    Simulation,
    exponential,
    fixed,
    mixed,
    uniform,
)

ENDLESS = 10**7
"""Workers of an application in which nothing ever queues."""
FLOOR = AdaptiveConcurrency().min_limit
FEW = 1.25
"""The limit may be so many times the floor where that is above the workers."""


def simulate(workers: int, service: Service, patience: float = inf, seed: int = 1) -> Simulation:
    return Simulation(ConcurrencyLimit(AdaptiveConcurrency()), Application(workers, service), seed, patience)


def settled(sim: Simulation, seconds: float, load: float, within: float) -> Outcome:
    """The 20 s after the first `within` of a flood."""
    rate = load * sim.application.workers / seconds
    sim.run(rate, within)
    return sim.run(rate, 20)


def assert_protected(outcome: Outcome, workers: int, seconds: float) -> None:
    assert outcome.goodput >= 0.95 * workers / seconds
    assert outcome.percentile(0.5) <= 1.25 * seconds * max(1.0, FEW * FLOOR / workers)


@pytest.mark.parametrize(
    ("workers", "seconds", "load", "within"),
    [
        (5, 0.05, 3, 20),
        (20, 0.05, 3, 15),
        (20, 0.05, 10, 30),
        (20, 0.3, 1.5, 40),
        (8, 0.2, 3, 25),
        (2, 0.05, 3, 15),
        (1, 0.05, 1.5, 40),
        (1, 0.05, 10, 40),
    ],
)
def test_an_overload_from_the_first_request_on(
    workers: int, seconds: float, load: float, within: float
) -> None:
    sim = simulate(workers, fixed(seconds))
    assert_protected(settled(sim, seconds, load, within), workers, seconds)


@pytest.mark.parametrize(("workers", "seconds"), [(1, 0.05), (4, 0.2)])
def test_few_workers_at_ten_times_their_capacity(workers: int, seconds: float) -> None:
    """They take seconds for as many answers as an update needs, while the queue grows by hundreds."""
    sim = simulate(workers, fixed(seconds))
    sim.run(0.5 * workers / seconds, 10)
    assert_protected(settled(sim, seconds, 10, 60), workers, seconds)


@pytest.mark.parametrize("calm", [0.0, 10.0])
@pytest.mark.parametrize(
    ("workers", "load", "patience"), [(5, 3, 0.5), (20, 3, 0.5), (20, 3, 1.0), (20, 10, 1.0)]
)
def test_callers_who_give_up_do_not_hide_the_overload(
    workers: int, load: float, patience: float, calm: float
) -> None:
    """The application works on for those who have, and answers nobody in time."""
    sim = simulate(workers, fixed(0.05), patience)
    if calm:
        sim.run(0.5 * workers / 0.05, calm)
    assert_protected(settled(sim, 0.05, load, 30), workers, 0.05)


def test_the_limit_goes_away_while_some_callers_always_give_up() -> None:
    sim = simulate(20, fixed(0.05), patience=1.0)
    sim.run(1200, 30)
    sim.application.workers = ENDLESS
    sim.application.service = mixed(0.05, 5.0, fast_share=0.7)
    sim.run(200, 60)
    assert sim.run(200, 20).refused == 0


def never(random: Random) -> float:
    """An event that nobody lives to see."""
    return 1e9


@pytest.mark.parametrize(
    ("service", "rate", "patience"),
    [
        (fixed(5.0), 10, inf),
        (fixed(30.0), 20, inf),
        (exponential(30.0), 20, inf),
        (uniform(30.0, 1.0), 20, inf),
        (exponential(100.0), 10, 25.0),
        (exponential(30.0), 20, 30.0),
        (never, 20, 30.0),
        (exponential(0.5), 200, 1.0),
    ],
)
def test_a_start_of_an_application_that_waits_for_events(
    service: Service, rate: float, patience: float
) -> None:
    """What is in flight grows for a minute, latency with it; routinely polls are given up."""
    assert simulate(ENDLESS, service, patience).run(rate, 300).refused == 0


@pytest.mark.parametrize("seed", range(1, 7))
def test_few_answers_say_little_of_throughput_whoever_is_first(seed: int) -> None:
    """Polls of up to a minute, of which ten have ended in the first ten seconds."""
    assert simulate(ENDLESS, uniform(30.0, 1.0), 40.0, seed).run(10, 300).refused == 0


@pytest.mark.parametrize("seed", range(1, 9))
def test_few_answers_say_little_of_random_work(seed: int) -> None:
    """In half a second thirty end; their number and their mean are wrong by a sixth."""
    sim = simulate(20, exponential(0.3), seed=seed)
    sim.run(33, 30)
    flooded = settled(sim, 0.3, 3, 20)
    assert flooded.goodput >= 0.8 * 20 / 0.3
    assert flooded.percentile(0.5) <= 1.5 * 0.3


def test_an_application_that_is_slow_at_first() -> None:
    sim = simulate(ENDLESS, fixed(2.0))
    assert sim.run(200, 4).refused == 0
    sim.application.service = fixed(0.02)
    assert sim.run(200, 30).refused == 0


@pytest.mark.parametrize(
    ("service", "rate"), [(fixed(0.05), 1000), (exponential(0.5), 800), (exponential(2.0), 200)]
)
def test_traffic_that_rises_from_nothing_within_seconds(service: Service, rate: float) -> None:
    sim = simulate(ENDLESS, service)
    for step in range(1, 17):
        assert sim.run(rate * step / 16, 0.25).refused == 0
    assert sim.run(rate, 20).refused == 0


@pytest.mark.parametrize(("seconds", "rate"), [(0.05, 100), (2.0, 20), (5.0, 10)])
@pytest.mark.parametrize("make", [fixed, exponential])
def test_ten_times_the_load(make: Callable[[float], Service], seconds: float, rate: float) -> None:
    sim = simulate(ENDLESS, make(seconds))
    assert sim.run(rate, 20).refused == 0
    assert sim.run(10 * rate, 30).refused == 0


@pytest.mark.parametrize(("first", "last", "seconds"), [(0.02, 0.5, 60), (0.02, 2.0, 60), (0.02, 0.5, 10)])
def test_latency_that_rises_by_itself_is_tried_for_a_moment_at_most(
    first: float, last: float, seconds: int
) -> None:
    sim = simulate(ENDLESS, fixed(first))
    sim.run(200, 10)
    refused = 0
    for step in range(seconds):
        sim.application.service = fixed(first * (last / first) ** (step / seconds))
        refused += sim.run(200, 1).refused
    assert refused <= 0.03 * 200 * max(30, seconds)
    assert sim.run(200, 60).refused <= 0.03 * 200 * 60
    assert sim.run(200, 60).refused == 0


def test_polls_beside_fast_requests_are_tried_for_a_moment_at_most() -> None:
    """The first polls that end make half of the answers late at once."""
    sim = simulate(ENDLESS, mixed(0.02, 30.0))
    assert sim.run(20, 300).refused <= 0.2 * 20 * 300
    assert sim.run(20, 300).refused == 0


def test_polls_that_come_to_be_given_up_are_tried_for_a_moment_at_most() -> None:
    """By day events answer them within a second, at night nothing does, as if the application had broken."""
    sim = simulate(ENDLESS, exponential(1.0), patience=30.0)
    sim.run(10, 120)
    sim.application.service = never
    sim.run(10, 600)
    assert sim.run(10, 600).refused == 0
