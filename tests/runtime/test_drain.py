"""Drain in virtual time."""

from __future__ import annotations

import pytest

from sidecar.runtime.drain import DrainTrigger
from tests.support.virtual_clock import VirtualClock


class Drain:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.completions: list[int] = []
        self.trigger = DrainTrigger(self.clock, self.completions.append)
        self.watcher = self.trigger.watcher


def test_completes_at_once_when_nothing_is_held() -> None:
    drain = Drain()
    drain.trigger.start(5.0)
    assert drain.completions == [0]
    assert drain.clock.pending == 0


def test_completes_when_the_last_hold_is_released() -> None:
    drain = Drain()
    drain.watcher.hold()
    drain.watcher.hold()
    drain.watcher.release()
    drain.trigger.start(5.0)
    drain.clock.advance(4.0)
    assert drain.completions == []
    drain.watcher.release()
    assert drain.completions == [0]
    drain.clock.advance(10.0)
    assert drain.completions == [0]


def test_deadline_completes_with_what_is_still_held() -> None:
    drain = Drain()
    drain.watcher.hold()
    drain.trigger.start(5.0)
    drain.clock.advance(4.999)
    assert drain.completions == []
    drain.clock.advance(0.001)
    assert drain.completions == [1]
    drain.watcher.release()
    assert drain.completions == [1]


def test_subscribers_hear_it_once_late_ones_at_once_and_unsubscribed_ones_never() -> None:
    drain, heard = Drain(), list[str]()
    drain.watcher.hold()
    drain.watcher.subscribe(lambda: heard.append("early"))
    drain.watcher.subscribe(lambda: heard.append("gone"))()
    drain.trigger.start(5.0)
    drain.trigger.start(1.0)
    drain.watcher.subscribe(lambda: heard.append("late"))
    assert heard == ["early", "late"]


def test_subscriber_may_hold_when_the_drain_starts() -> None:
    drain = Drain()
    drain.watcher.subscribe(drain.watcher.hold)
    drain.trigger.start(5.0)
    assert drain.completions == []
    drain.watcher.release()
    assert drain.completions == [0]


def test_release_without_hold_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="without hold"):
        Drain().watcher.release()
