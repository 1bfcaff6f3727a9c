"""The concurrency limit, fed by hand. `test_overload_simulation.py` puts it before an application."""

from __future__ import annotations

import pytest

from sidecar.config.resources import AdaptiveConcurrency
from sidecar.filters.concurrency_limit import ConcurrencyLimit
from tests.support.queueing import Application, Simulation, fixed


def fresh() -> ConcurrencyLimit:
    return ConcurrencyLimit(AdaptiveConcurrency())


def test_a_machine_that_stalls_now_and_then_is_no_overloaded_application() -> None:
    limit = fresh()
    for second in range(60):
        # 2,000 requests a second; in every fifth nothing runs for 300 ms, then what has come is answered.
        waiting = 600 if second % 5 == 4 else 0
        assert all(limit.acquire() for _ in range(waiting))
        for i in range(waiting):
            limit.release(second + 0.3 + i * 1e-5, 0.3003 - i * 0.0005)
        for i in range(2000 - waiting):
            assert limit.acquire()
            limit.release(second + 0.31 + i * 0.0003, 0.0003)


@pytest.mark.parametrize(("min_samples", "lowered"), [(50, True), (10_000, False)])
def test_too_few_samples_change_nothing(min_samples: int, lowered: bool) -> None:
    config = AdaptiveConcurrency(min_samples=min_samples)
    sim = Simulation(ConcurrencyLimit(config), Application(4, fixed(0.05)))
    sim.run(40, 10)
    sim.run(800, 20)
    assert (sim.limit.limit < config.max_limit) is lowered


def test_the_floor_is_always_let_through() -> None:
    """Four workers need less than the 32 that the limit may not go below."""
    sim = Simulation(ConcurrencyLimit(AdaptiveConcurrency(min_limit=32)), Application(4, fixed(0.05)))
    sim.run(40, 10)
    limits = []
    for _ in range(150):
        sim.run(800, 0.25)
        limits.append(sim.limit.limit)
    assert min(limits) == 32


def test_answers_that_say_nothing_are_not_measured() -> None:
    limit = fresh()
    for i in range(400):
        assert limit.acquire()
        limit.release(i * 0.01, 0.05 if i % 2 else None)
    assert limit.in_flight == 0
    assert limit._controller.baseline.mean == pytest.approx(0.05)
