"""Turns between handshakes, in virtual time."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from typing import cast

from sidecar.net.handshakes import STEPS_PER_TURN, HandshakeQueue
from tests.support.virtual_clock import VirtualClock


def loop(clock: VirtualClock) -> AbstractEventLoop:
    return cast(AbstractEventLoop, clock)


def test_steps_run_in_turns_and_never_from_within_submit() -> None:
    turns: list[list[int]] = []
    clock = VirtualClock()
    ran: list[int] = []
    queue = HandshakeQueue(loop(clock))
    for number in range(2 * STEPS_PER_TURN + 1):
        queue.submit(lambda number=number: ran.append(number), begun=False)  # type: ignore[misc]
    assert ran == []
    while clock.pending:
        clock.turn()
        turns.append(ran[:])
    assert turns == [list(range(4)), list(range(8)), list(range(9))]


def test_what_has_begun_goes_before_what_is_new() -> None:
    clock, ran = VirtualClock(), list[str]()
    queue = HandshakeQueue(loop(clock))
    queue.submit(lambda: ran.append("new"), begun=False)
    queue.submit(lambda: ran.append("continuing"), begun=True)
    clock.advance(0)
    assert ran == ["continuing", "new"]


def test_step_that_raises_does_not_stop_the_others() -> None:
    clock, ran = VirtualClock(), list[str]()
    queue = HandshakeQueue(loop(clock))
    queue.submit(lambda: 1 // 0, begun=False)  # type: ignore[arg-type]
    queue.submit(lambda: ran.append("next"), begun=False)
    try:
        clock.advance(0)
    except ZeroDivisionError:
        clock.advance(0)
    assert ran == ["next"]
