"""The concurrency limit against a simulated application of fixed concurrency that sleeps, in virtual time."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from random import Random

import pytest

from sidecar.config.resources import AdaptiveConcurrency
from sidecar.filters.adaptive_concurrency import ConcurrencyLimit


@dataclass
class Outcome:
    answered: int
    refused: int
    mean_latency: float
    limit: float


class Application:
    """`workers` requests at a time, each for `sleep` seconds (times a factor); others queue."""

    def __init__(self, workers: int, sleep: float, jitter: float = 0.0) -> None:
        self.workers = workers
        self.sleep = sleep
        self.jitter = jitter


def run(
    limit: ConcurrencyLimit, app: Application, rate: float, seconds: float, start: float = 0.0, seed: int = 1
) -> Outcome:
    """Poisson arrivals at `rate` a second; what is answered in the second half is counted."""
    random = Random(seed)
    arrival = start + random.expovariate(rate)
    done: list[tuple[float, float]] = []
    queue: deque[float] = deque()
    busy = answered = refused = 0
    total = 0.0
    half, end = start + seconds / 2, start + seconds

    def serve(now: float, arrived: float) -> None:
        took = app.sleep * (1 + app.jitter * (random.random() * 2 - 1))
        heapq.heappush(done, (now + took, arrived))

    while True:
        now = min(arrival, done[0][0] if done else arrival)
        if now > end:
            for _ in range(limit.in_flight):
                limit.release(end, None)
            return Outcome(answered, refused, total / max(answered, 1), limit.limit)
        if done and done[0][0] <= arrival:
            _, arrived = heapq.heappop(done)
            limit.release(now, now - arrived)
            if now >= half:
                answered += 1
                total += now - arrived
            if queue:
                serve(now, queue.popleft())
            else:
                busy -= 1
            continue
        if limit.acquire():
            if busy < app.workers:
                busy += 1
                serve(now, now)
            else:
                queue.append(now)
        elif now >= half:
            refused += 1
        arrival = now + random.expovariate(rate)


def fresh() -> ConcurrencyLimit:
    return ConcurrencyLimit(AdaptiveConcurrency())


@pytest.mark.parametrize("workers", [8, 20, 50, 200])
@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_at_three_times_its_capacity_goodput_and_latency_stay(workers: int, jitter: float) -> None:
    app = Application(workers, 0.05, jitter)
    capacity = workers / 0.05
    limit = fresh()
    calm = run(limit, app, capacity * 0.6, 20)
    assert calm.refused == 0
    flooded = run(limit, app, capacity * 3, 20, start=20)
    goodput = flooded.answered / 10
    assert goodput >= 0.8 * capacity
    assert flooded.mean_latency <= 2 * calm.mean_latency
    assert flooded.refused > 0


def test_fewer_than_the_floor_in_flight_are_never_refused_however_latency_wanders() -> None:
    limit = fresh()
    start = 0.0
    for sleep in (0.01, 0.04, 0.02, 0.1, 0.01, 0.1):
        outcome = run(limit, Application(10_000, sleep), 20, 30, start=start)
        assert outcome.refused == 0
        start += 30


def test_healthy_traffic_is_not_refused_when_its_latency_wanders_a_little() -> None:
    limit = fresh()
    start = 0.0
    for sleep in (0.05, 0.055, 0.05, 0.06, 0.052):
        outcome = run(limit, Application(10_000, sleep, 0.5), 1000, 20, start=start)
        assert outcome.refused == 0
        start += 20


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


def test_one_slow_second_is_no_overload_yet_but_a_queue_that_stands_is() -> None:
    limit = fresh()
    run(limit, Application(10_000, 0.001), 500, 10)
    run(limit, Application(10_000, 0.4), 500, 1, start=10)
    before = limit.limit
    assert run(limit, Application(10_000, 0.001), 500, 10, start=11).refused == 0
    assert limit.limit == before
    run(limit, Application(10_000, 0.4), 500, 5, start=21)
    assert limit.limit < before / 4


def test_an_application_that_answers_at_once_is_not_overloaded_when_the_machine_stalls_for_a_moment() -> None:
    limit = fresh()
    start = 0.0
    for sleep in (0.0003, 0.004, 0.0003, 0.012, 0.02, 0.0003):
        outcome = run(limit, Application(10_000, sleep, 0.5), 2000, 10, start=start)
        assert outcome.refused == 0
        start += 10
    # What came together during a stall is let through.
    assert all(limit.acquire() for _ in range(200))


def test_a_limit_that_is_not_reached_rises_again_while_latency_is_good() -> None:
    limit = fresh()
    run(limit, Application(10, 0.05), 600, 20)
    run(limit, Application(10, 0.05), 50, 40, start=20)
    assert limit.limit > 100


def test_the_limit_rises_again_when_the_application_gets_more_workers() -> None:
    limit = fresh()
    run(limit, Application(10, 0.05), 120, 20)
    small = run(limit, Application(10, 0.05), 600, 20, start=20)
    large = run(limit, Application(40, 0.05), 750, 60, start=40)
    assert small.limit < 25
    assert large.answered / 30 >= 0.9 * 750


def test_an_overload_from_the_first_request_on_is_found_out() -> None:
    limit = fresh()
    run(limit, Application(10, 0.05), 600, 30)
    after = run(limit, Application(10, 0.05), 600, 240, start=30)
    assert after.answered / 120 >= 0.8 * 200


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


def test_an_application_that_waits_for_events_is_never_limited() -> None:
    limit = fresh()
    start = 0.0
    for sleep in (5.0, 30.0, 8.0, 60.0):
        outcome = run(limit, Application(10_000, sleep), 10, 300, start=start)
        assert outcome.refused == 0
        start += 300
