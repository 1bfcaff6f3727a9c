"""The concurrency limit, fed by hand. `test_overload_simulation.py` puts it before an application."""

from __future__ import annotations

from sidecar.config.resources import AdaptiveConcurrency
from sidecar.filters.concurrency_limit import ConcurrencyLimit


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


def test_too_few_samples_change_nothing() -> None:
    config = AdaptiveConcurrency(min_samples=50)
    limit = ConcurrencyLimit(config)
    for i in range(49):
        assert limit.acquire()
        limit.release(i * 1.0, 0.001 * (i + 1))
    assert limit.limit == config.max_limit


def test_the_floor_is_always_let_through() -> None:
    config = AdaptiveConcurrency(min_limit=4)
    limit = ConcurrencyLimit(config)
    now = 0.0
    for latency in (0.001, *[1.0] * 50):
        for _ in range(100):
            now += 0.01
            assert limit.acquire()
            limit.release(now, latency)
    assert limit.limit >= 4
    assert all(limit.acquire() for _ in range(4))


def test_answers_that_say_nothing_are_not_measured() -> None:
    limit = fresh()
    for _ in range(200):
        assert limit.acquire()
        limit.release(1.0, None)
    assert limit.in_flight == 0
    assert limit.limit == AdaptiveConcurrency().max_limit
