"""Many waits of one length behind one timer: each ends at its own time, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.runtime.timeouts import Timeouts
from tests.support.virtual_clock import VirtualClock


class Request:
    def __init__(self, clock: VirtualClock, then: Callable[[], object] = lambda: None) -> None:
        self.clock = clock
        self.then = then
        self.timed_out: list[float] = []

    def on_timeout(self, seconds: float) -> None:
        self.timed_out.append(self.clock.time())
        self.then()


def rig(seconds: float = 10.0) -> tuple[VirtualClock, Timeouts]:
    clock = VirtualClock(0.0)
    return clock, Timeouts(clock, clock.time, seconds)


def test_each_wait_ends_so_long_after_it_began() -> None:
    clock, timeouts = rig()
    requests = []
    for _ in range(5):
        requests.append(Request(clock))
        timeouts.begin(requests[-1], clock.time())
        clock.advance(3.0)
    clock.advance(100.0)
    assert [request.timed_out for request in requests] == [[10.0], [13.0], [16.0], [19.0], [22.0]]
    assert (clock.pending, timeouts.waiting) == (0, 0)


def test_a_wait_that_was_ended_is_not_heard_of() -> None:
    clock, timeouts = rig()
    first, second = Request(clock), Request(clock)
    timeouts.begin(first, clock.time())
    clock.advance(1.0)
    timeouts.begin(second, clock.time())
    timeouts.end(first)
    timeouts.end(first)
    clock.advance(100.0)
    assert (first.timed_out, second.timed_out) == ([], [11.0])


def test_one_timer_serves_any_number_of_waits_and_none_is_left_behind() -> None:
    clock, timeouts = rig()
    for _ in range(1000):
        request = Request(clock)
        timeouts.begin(request, clock.time())
        assert clock.pending == 1
        clock.advance(0.1)
        timeouts.end(request)
    assert timeouts.waiting == 0
    clock.advance(10.0)
    assert clock.pending == 0


def test_what_ends_in_one_moment_may_begin_and_end_other_waits() -> None:
    clock, timeouts = rig()
    ended, begun = Request(clock), Request(clock)

    def again() -> None:
        timeouts.end(ended)
        timeouts.begin(begun, clock.time())

    first = Request(clock, again)
    for each in (first, ended):
        timeouts.begin(each, clock.time())
    clock.advance(100.0)
    assert (first.timed_out, ended.timed_out, begun.timed_out) == ([10.0], [], [20.0])


def test_an_error_in_one_holds_up_no_other() -> None:
    clock, timeouts = rig()

    def fail() -> None:
        raise RuntimeError("a bug")

    bad, good = Request(clock, fail), Request(clock)
    timeouts.begin(bad, clock.time())
    timeouts.begin(good, clock.time())
    with pytest.raises(RuntimeError):
        clock.advance(10.0)
    clock.advance(0.0)
    assert good.timed_out == [10.0]


@given(st.lists(st.tuples(st.floats(0.0, 4.0), st.floats(0.0, 30.0))))
def test_whoever_waits_long_enough_is_told_in_time(requests: list[tuple[float, float]]) -> None:
    """Each begins so long after the one before, and lasts so long."""
    clock, timeouts = rig()
    began: list[tuple[Request, float, float]] = []
    for pause, lasts in requests:
        clock.advance(pause)
        request = Request(clock)
        began.append((request, clock.time(), lasts))
        timeouts.begin(request, clock.time())
        clock.call_later(lasts, timeouts.end, request)
    clock.advance(100.0)
    for request, start, lasts in began:
        if lasts < 10.0:
            assert request.timed_out == []
        elif lasts > 10.0:
            assert request.timed_out == [pytest.approx(start + 10.0)]
    assert timeouts.waiting == 0
