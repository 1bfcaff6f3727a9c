"""What a Reflector asks for next, in virtual time."""

from __future__ import annotations

from random import Random

import pytest

from control_plane.kube.client import KubeError
from control_plane.kube.reflector import (
    ABSENT_RETRY,
    BACKOFF_FIRST,
    BACKOFF_MOST,
    WATCH_SECONDS,
    List,
    Reflector,
    Wait,
    Watch,
)


def reflector() -> Reflector:
    return Reflector(Random(1))


def listed(version: str = "7") -> Reflector:
    made = reflector()
    assert made.on_page(version, "")
    return made


def wait_of(made: Reflector, now: float = 0.0) -> float:
    step = made.step(now)
    assert isinstance(step, Wait)
    return step.seconds


def test_it_lists_page_by_page_and_then_watches_from_the_lists_version() -> None:
    made = reflector()
    assert made.step(0.0) == List("")
    assert not made.on_page("7", "more")
    assert made.step(0.0) == List("more")
    assert made.on_page("7", "")
    step = made.step(0.0)
    assert isinstance(step, Watch)
    assert step.version == "7"
    assert WATCH_SECONDS <= step.seconds <= 2 * WATCH_SECONDS


def test_a_watch_that_ended_goes_on_from_the_last_version_seen() -> None:
    made = listed()
    made.step(0.0)
    made.on_event("9")
    made.on_event("12")
    made.on_watch_end(0.1)
    step = made.step(0.1)
    assert isinstance(step, Watch)
    assert step.version == "12"


def test_watches_that_end_at_once_are_not_repeated_at_once() -> None:
    made = listed()
    made.step(0.0)
    made.on_watch_end(0.1)
    assert wait_of(made) > 0
    made.step(1.0)
    made.on_watch_end(400.0)
    assert isinstance(made.step(400.0), Watch)


def test_waits_grow_with_each_failure_up_to_a_bound_and_differ_between_replicas() -> None:
    made = reflector()
    waits = []
    for _ in range(12):
        made.on_error(KubeError(0, "refused"), 0.0)
        waits.append(wait_of(made))
        assert made.step(0.0) == List("")
    for number, wait in enumerate(waits):
        most = min(BACKOFF_MOST, BACKOFF_FIRST * 2**number)
        assert most / 2 <= wait <= most
    other = Reflector(Random(2))
    other.on_error(KubeError(0, "refused"), 0.0)
    assert wait_of(other) != waits[0]


def test_a_failed_page_is_asked_for_again_and_not_the_whole_list() -> None:
    made = reflector()
    made.on_page("7", "more")
    made.on_error(KubeError(503, "busy"), 0.0)
    wait_of(made)
    assert made.step(0.0) == List("more")


def test_what_the_server_says_about_waiting_is_obeyed() -> None:
    made = listed()
    made.step(0.0)
    made.on_error(KubeError(429, "slow down", retry_after=17.0), 0.0)
    assert wait_of(made) == 17.0
    made.on_error(KubeError(429, "slow down", retry_after=1e9), 0.0)
    assert wait_of(made) == 600.0


def test_after_410_the_list_begins_at_once_and_anew() -> None:
    made = listed()
    made.step(0.0)
    made.on_error(KubeError(410, "too old"), 60.0)
    assert made.step(0.0) == List("")
    assert made.resyncs == 1


def test_an_expired_continue_token_begins_the_list_anew() -> None:
    made = reflector()
    made.on_page("7", "more")
    made.on_error(KubeError(410, "continue expired"), 0.0)
    assert made.step(0.0) == List("")


def test_a_server_that_answers_410_for_ever_is_not_asked_in_a_tight_loop() -> None:
    made = listed()
    waited = 0.0
    for _ in range(20):
        step = made.step(0.0)
        if isinstance(step, Wait):
            waited += step.seconds
        elif isinstance(step, List):
            made.on_page("7", "")
        else:
            made.on_error(KubeError(410, "too old"), 0.0)
    assert waited > 5.0


def test_a_long_quiet_watch_that_breaks_is_a_first_failure() -> None:
    made = listed()
    for _ in range(8):
        made.step(0.0)
        made.on_error(KubeError(0, "cut"), 0.0)
        wait_of(made)
    made.step(100.0)
    made.on_error(KubeError(0, "cut"), 400.0)
    assert wait_of(made) <= BACKOFF_FIRST


@pytest.mark.parametrize("start", [reflector, listed])
def test_a_kind_that_is_absent_is_looked_for_now_and_then(start: object) -> None:
    made = start()  # type: ignore[operator]
    made.on_error(KubeError(404, "no such kind"), 0.0)
    assert 0.75 * ABSENT_RETRY <= wait_of(made) <= 1.25 * ABSENT_RETRY
    assert made.step(0.0) == List("")
