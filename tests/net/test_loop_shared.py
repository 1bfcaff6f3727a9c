"""Connections that write at the end of a turn, in virtual time."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest
import uvloop

from sidecar.net.loop_shared import FlushQueue, shared_of
from tests.support.virtual_clock import VirtualClock


class Writer:
    def __init__(self, name: str, written: list[str], then: Callable[[], object] = lambda: None) -> None:
        self.name = name
        self.written = written
        self.then = then

    def scheduled_flush(self) -> None:
        self.written.append(self.name)
        self.then()


def test_all_that_were_added_in_a_turn_write_at_its_end_in_their_order() -> None:
    clock, written = VirtualClock(), list[str]()
    queue = FlushQueue(clock.call_soon)
    for name in "abc":
        queue.add(Writer(name, written))
    assert (written, clock.pending) == ([], 1)
    clock.turn()
    assert (written, clock.pending) == (["a", "b", "c"], 0)


def test_one_that_has_more_to_do_lets_a_turn_pass() -> None:
    clock, written = VirtualClock(), list[str]()
    queue = FlushQueue(clock.call_soon)
    busy = Writer("busy", written)
    busy.then = lambda: len(written) < 3 and queue.add(busy)
    queue.add(busy)
    turns = 0
    while clock.pending:
        clock.turn()
        turns += 1
    assert (written, turns) == (["busy"] * 3, 3)


def test_one_that_fails_holds_up_no_other() -> None:
    clock, written = VirtualClock(), list[str]()
    queue = FlushQueue(clock.call_soon)
    queue.add(Writer("bad", written, lambda: 1 // 0))
    queue.add(Writer("good", written))
    with pytest.raises(ZeroDivisionError):
        clock.turn()
    clock.turn()
    assert (written, clock.pending) == (["bad", "good"], 0)


def test_what_is_shared_ends_with_its_loop() -> None:
    for make_loop in (asyncio.new_event_loop, uvloop.new_event_loop):
        loop = make_loop()
        assert shared_of(loop) is shared_of(loop)
        gone = weakref.ref(loop)
        loop.close()
        del loop
        gc.collect()
        assert gone() is None
