"""Ejection by consecutive failures, its limits, and the way back."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config.resources import OutlierDetection
from sidecar.upstream.host import Ejection, Host
from sidecar.upstream.outlier_detection import EARLY_PROBE_INTERVAL, OutlierDetector

CONFIG = OutlierDetection(
    consecutive_5xx=3, base_ejection_time=10.0, max_ejection_time=60.0, max_ejection_percent=50
)


def detector(n: int, config: OutlierDetection = CONFIG) -> tuple[OutlierDetector, list[Host]]:
    hosts = [Host() for _ in range(n)]
    made = OutlierDetector(config)
    made.update(hosts)
    return made, hosts


def usable(hosts: list[Host]) -> int:
    return sum(not host.ejection for host in hosts)


def fail(made: OutlierDetector, hosts: list[Host], host: Host, times: int, now: float = 0.0) -> bool:
    """Whether one of them ejected it."""
    return True in [made.record_failure(host, now, usable(hosts)) for _ in range(times)]


def test_enough_failures_in_a_row_eject() -> None:
    made, hosts = detector(3)
    assert not fail(made, hosts, hosts[0], 2)
    assert fail(made, hosts, hosts[0], 1)
    assert hosts[0].ejection is Ejection.EJECTED
    assert made.next_return == 10.0
    assert made.out == 1


def test_a_success_in_between_starts_the_count_again() -> None:
    made, hosts = detector(3)
    fail(made, hosts, hosts[0], 2)
    assert hosts[0].notable
    assert not made.record_success(hosts[0], 0.0)
    assert not hosts[0].notable
    assert not fail(made, hosts, hosts[0], 2)


def test_zero_switches_detection_off() -> None:
    made, hosts = detector(3, replace(CONFIG, consecutive_5xx=0))
    assert not fail(made, hosts, hosts[0], 100)


def test_the_percentage_holds_but_one_may_always_go() -> None:
    made, hosts = detector(10, replace(CONFIG, max_ejection_percent=25))
    assert fail(made, hosts, hosts[0], 3)
    assert fail(made, hosts, hosts[1], 3)
    assert not fail(made, hosts, hosts[2], 3)
    made, hosts = detector(3, replace(CONFIG, max_ejection_percent=0))
    assert fail(made, hosts, hosts[0], 3)
    assert not fail(made, hosts, hosts[1], 3)


def test_the_last_usable_one_stays() -> None:
    made, hosts = detector(2, replace(CONFIG, max_ejection_percent=100))
    assert fail(made, hosts, hosts[0], 3)
    assert not fail(made, hosts, hosts[1], 100)
    made, hosts = detector(1)
    assert not fail(made, hosts, hosts[0], 100)


def test_when_the_last_one_fails_too_those_ejected_are_probed_before_their_time() -> None:
    made, hosts = detector(2)
    first, last = hosts
    fail(made, hosts, first, 3)
    assert not fail(made, hosts, last, 2, now=1.0)
    assert not made.probe_early(last, 1.0)
    assert not fail(made, hosts, last, 1, now=1.0)
    assert made.probe_early(last, 1.0)
    assert first.ejection is Ejection.PROBING
    assert made.record_success(first, 1.0)
    assert fail(made, hosts, last, 1, now=1.0)
    assert last.ejection is Ejection.EJECTED


def test_an_early_probe_that_fails_costs_no_longer_ejection_and_comes_again_after_a_pause() -> None:
    made, hosts = detector(2)
    first, last = hosts
    fail(made, hosts, first, 3)
    fail(made, hosts, last, 3, now=1.0)
    assert made.probe_early(last, 1.0)
    assert fail(made, hosts, first, 1, now=1.0)
    assert first.ejection is Ejection.EJECTED
    assert made.next_return == 10.0
    assert not made.probe_early(last, 1.0 + 0.9 * EARLY_PROBE_INTERVAL)
    assert made.probe_early(last, 1.0 + EARLY_PROBE_INTERVAL)


def test_one_that_was_ejected_a_moment_ago_is_not_probed_early() -> None:
    made, hosts = detector(2)
    fail(made, hosts, hosts[0], 3, now=1.0)
    fail(made, hosts, hosts[1], 3, now=1.0)
    assert not made.probe_early(hosts[1], 1.0)


def test_one_success_of_a_probe_brings_it_back() -> None:
    made, hosts = detector(3)
    fail(made, hosts, hosts[0], 3)
    assert not made.release_due(9.9)
    assert made.release_due(10.0)
    assert [host.ejection for host in hosts] == [Ejection.PROBING, Ejection.IN, Ejection.IN]
    assert made.out == 1
    assert made.next_return == inf
    assert made.record_success(hosts[0], 10.5)
    assert usable(hosts) == 3
    assert made.out == 0


def test_one_failure_of_a_probe_ejects_for_twice_as_long_up_to_the_maximum() -> None:
    made, hosts = detector(3)
    fail(made, hosts, hosts[0], 3)
    now = made.next_return
    durations = []
    for _ in range(4):
        made.release_due(now)
        assert fail(made, hosts, hosts[0], 1, now)
        durations.append(made.next_return - now)
        now = made.next_return
    assert durations == [20.0, 40.0, 60.0, 60.0]


def test_a_base_above_the_maximum_holds() -> None:
    made, hosts = detector(3, replace(CONFIG, base_ejection_time=90.0))
    fail(made, hosts, hosts[0], 3)
    assert made.next_return == 90.0


def test_a_late_failure_of_an_ejected_one_releases_nobody() -> None:
    made, hosts = detector(4)
    fail(made, hosts, hosts[0], 3)
    fail(made, hosts, hosts[1], 3)
    assert not fail(made, hosts, hosts[0], 1, now=1.0)
    assert not made.probe_early(hosts[0], 1.0)
    assert hosts[1].ejection is Ejection.EJECTED


def test_a_long_history_does_not_overflow() -> None:
    made, hosts = detector(3)
    hosts[0].ejections = 5000
    assert fail(made, hosts, hosts[0], 3)
    assert made.next_return == 60.0


def test_doing_well_lets_the_history_fade() -> None:
    made, hosts = detector(3)
    fail(made, hosts, hosts[0], 3)
    made.release_due(10.0)
    fail(made, hosts, hosts[0], 1, 10.0)
    made.release_due(30.0)
    made.record_success(hosts[0], 30.0)
    assert hosts[0].ejections == 2
    for now in (35.0, 40.0, 45.0):
        made.record_success(hosts[0], now)
    assert hosts[0].ejections == 1
    assert hosts[0].notable
    made.record_success(hosts[0], 50.0)
    assert hosts[0].ejections == 0
    assert not hosts[0].notable


def test_a_late_answer_does_not_end_an_ejection() -> None:
    made, hosts = detector(3)
    fail(made, hosts, hosts[0], 3)
    assert not made.record_success(hosts[0], 1.0)
    assert not fail(made, hosts, hosts[0], 5, 1.0)
    assert hosts[0].ejection is Ejection.EJECTED
    assert made.next_return == 10.0


@pytest.mark.parametrize("state", list(Ejection))
def test_what_is_reported_of_a_host_that_left_has_no_effect(state: Ejection) -> None:
    made, hosts = detector(4)
    gone = hosts.pop()
    gone.ejection = state
    made.update(hosts)
    assert not fail(made, hosts, gone, 10)
    assert not made.record_success(gone, 0.0)
    assert made.out == 0


def test_hosts_that_stay_keep_their_ejection() -> None:
    made, hosts = detector(4)
    fail(made, hosts, hosts[0], 3)
    fail(made, hosts, hosts[1], 3)
    made.update([hosts[0], hosts[2], hosts[3]])
    assert made.out == 1
    assert hosts[0].ejection is Ejection.EJECTED


@given(
    st.integers(1, 8),
    st.integers(0, 100),
    st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.floats(0, 20)), max_size=80),
)
def test_somebody_is_always_left_and_the_percentage_always_holds(
    n: int, percent: int, outcomes: list[tuple[int, bool, float]]
) -> None:
    made, hosts = detector(n, replace(CONFIG, consecutive_5xx=1, max_ejection_percent=percent))
    now = 0.0
    for number, failed, passed in outcomes:
        now += passed
        made.release_due(now)
        host = hosts[number % n]
        if failed:
            made.record_failure(host, now, usable(hosts))
        else:
            made.record_success(host, now)
        assert usable(hosts) >= 1
        assert made.out == n - usable(hosts)
        assert made.out <= max(1, n * percent // 100)
