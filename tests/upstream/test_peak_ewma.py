"""Peak EWMA: what it expects of a host, and whom it prefers."""

from __future__ import annotations

from math import exp
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.upstream.host import Host
from sidecar.upstream.peak_ewma import DECAY, INITIAL, MAXIMUM, PeakEwma, expected_time, latency, observe


def host(milliseconds: float = 0.0, active: int = 0, at: float = 100.0) -> Host:
    made = Host()
    made.latency_ewma = milliseconds / 1000
    made.latency_at = at
    made.active = active
    return made


def picks(hosts: list[Host], now: float = 100.0) -> set[Host]:
    balancer: PeakEwma[Host] = PeakEwma(Random(1).random, lambda: now)
    balancer.update(hosts)
    return {picked for picked in (balancer.pick(()) for _ in range(60)) if picked is not None}


def test_a_peak_counts_at_once() -> None:
    measured = host(10)
    observe(measured, 0.5, False, 100.0)
    assert latency(measured, 100.0) == 0.5


def test_a_faster_answer_counts_by_the_time_that_has_passed() -> None:
    measured = host(100, at=100.0)
    observe(measured, 0.010, False, 102.0)
    kept = exp(-2.0 / DECAY)
    assert measured.latency_ewma == pytest.approx(0.100 * kept + 0.010 * (1 - kept))


def test_an_answer_in_no_time_still_counts_as_measured() -> None:
    measured = host()
    observe(measured, 0.0, False, 100.0)
    assert 0 < measured.latency_ewma <= 1e-6


def test_the_faster_of_two_idle_hosts_is_preferred() -> None:
    slow, fast = host(20), host(2)
    assert picks([slow, fast]) == {fast}


def test_load_outweighs_speed() -> None:
    slow, fast = host(20), host(2, active=10)
    assert picks([slow, fast]) == {slow}


def test_a_slow_host_is_tried_again_after_a_while() -> None:
    recovered = host(1000, at=100.0)
    assert picks([recovered, steady := host(10, at=101.0)], now=101.0) == {steady}
    assert picks([recovered, host(10, at=150.0)], now=150.0) == {recovered}


def test_a_new_host_gets_one_request_to_show_what_it_can_do() -> None:
    new, known = host(), host(1)
    assert picks([new, known]) == {new}
    new.active = 1
    assert picks([new, known]) == {known}
    assert expected_time(new, 100.0) == 2 * INITIAL


def test_what_a_request_waits_for_is_the_latency_of_all_that_are_in_flight_and_its_own() -> None:
    assert expected_time(host(10, active=3), 100.0) == pytest.approx(0.040)


def test_a_failure_that_took_long_counts_as_long() -> None:
    hanging = host(10)
    observe(hanging, 5.0, True, 100.0)
    assert hanging.latency_ewma == 5.0


def test_failing_fast_does_not_attract_traffic() -> None:
    broken, healthy = host(1), host(20)
    observe(broken, 0.0001, True, 100.0)
    observe(broken, 0.0001, True, 100.1)
    assert picks([broken, healthy], now=100.1) == {healthy}


def test_failures_add_up_to_a_maximum() -> None:
    broken = host()
    expected = []
    for _ in range(8):
        observe(broken, None, True, 100.0)
        expected.append(broken.latency_ewma)
    assert expected == pytest.approx([0.03, 0.12, 0.48, 1.92, 7.68, MAXIMUM, MAXIMUM, MAXIMUM])


def test_one_that_neither_answered_nor_failed_says_nothing() -> None:
    measured = host(5, at=100.0)
    observe(measured, None, False, 105.0)
    assert (measured.latency_ewma, measured.latency_at) == (0.005, 100.0)


@given(
    st.lists(
        st.tuples(st.floats(0, 60), st.booleans(), st.floats(0, 100)),
        min_size=1,
        max_size=30,
    )
)
def test_the_average_stays_between_nothing_and_the_worst_seen(
    outcomes: list[tuple[float, bool, float]],
) -> None:
    measured, now, worst = host(), 100.0, MAXIMUM
    for seconds, failed, passed in outcomes:
        now += passed
        worst = max(worst, seconds)
        observe(measured, seconds, failed, now)
        assert 0 < measured.latency_ewma <= worst
        assert latency(measured, now + 1) < measured.latency_ewma
