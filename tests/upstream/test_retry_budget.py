"""Retries are a share of requests, with a floor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.upstream.retry_budget import RetryBudget


def allowed(budget: RetryBudget, now: float, asked: int = 1000) -> int:
    return sum(budget.try_acquire(now) for _ in range(asked))


def requests(budget: RetryBudget, n: int, now: float) -> None:
    for _ in range(n):
        budget.on_request(now)


def test_retries_are_a_share_of_requests() -> None:
    budget = RetryBudget(20.0, 0.0)
    requests(budget, 100, 1000.0)
    assert allowed(budget, 1000.5) == 20


def test_without_requests_the_floor_is_left() -> None:
    budget = RetryBudget(20.0, 10.0)
    assert allowed(budget, 1000.0) == 10
    assert allowed(budget, 1000.0) == 0
    assert allowed(budget, 1000.5) == 5
    assert allowed(budget, 1001.5) == 10
    assert allowed(budget, 1999.0) == 10


def test_a_floor_below_one_a_second_still_lets_some_through() -> None:
    budget = RetryBudget(0.0, 0.5)
    assert [allowed(budget, 1000.0 + second) for second in range(5)] == [1, 0, 1, 0, 1]


def test_no_share_and_no_floor_means_no_retries() -> None:
    budget = RetryBudget(0.0, 0.0)
    requests(budget, 1000, 1000.0)
    assert allowed(budget, 1000.0) == 0


def test_requests_count_for_ten_seconds() -> None:
    budget = RetryBudget(20.0, 0.0)
    requests(budget, 50, 1000.0)
    requests(budget, 50, 1005.0)
    assert allowed(budget, 1011.0) == 10
    assert allowed(budget, 1014.9) == 0
    requests(budget, 5, 1030.0)
    assert allowed(budget, 1030.0) == 1


def test_requests_of_every_second_are_forgotten_in_turn() -> None:
    budget = RetryBudget(20.0, 0.0)
    for second in range(30):
        requests(budget, 10, 1000.0 + second)
    assert allowed(budget, 1029.5) == 20


def test_max_retries_limits_those_in_flight_instead() -> None:
    budget = RetryBudget(0.0, 0.0, max_concurrent=3)
    assert allowed(budget, 1000.0) == 3
    budget.release()
    assert allowed(budget, 1000.0) == 1
    assert budget.active == 3


def test_no_retries_are_allowed_when_max_retries_is_zero() -> None:
    assert allowed(RetryBudget(100.0, 100.0, max_concurrent=0), 1000.0) == 0


@given(
    st.floats(0, 100),
    st.floats(0, 20),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=40),
)
def test_the_budget_is_never_exceeded(
    percent: float, floor: float, steps: list[tuple[float, int, int]]
) -> None:
    """In whatever window of 10 s: at most the share of its requests (and those of the 10 s before, which the
    start of the window may still draw on) and the floor's rate, plus one second of it saved up."""
    budget = RetryBudget(percent, floor)
    now = 1000.0
    log: list[tuple[float, int, int]] = []
    for passed, asked, wanted in steps:
        now += passed
        requests(budget, asked, now)
        log.append((now, asked, allowed(budget, now, wanted)))
        window = [entry for entry in log if entry[0] > now - 10]
        sent = sum(retries for _, _, retries in window)
        base = sum(n for at, n, _ in log if at > now - 20)
        assert sent <= percent / 100 * base + floor * 10 + max(floor, 1) + 1e-6


@pytest.mark.parametrize("percent", [20.0, 100.0])
def test_a_storm_is_held_to_the_share(percent: float) -> None:
    """Every request fails, and every retry too."""
    budget = RetryBudget(percent, 0.0)
    sent = 0
    for tick in range(3000):
        now = 1000.0 + tick / 100
        budget.on_request(now)
        sent += allowed(budget, now, 3)
    assert sent == pytest.approx(3000 * percent / 100, rel=0.02)
