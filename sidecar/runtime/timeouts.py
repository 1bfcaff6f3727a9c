"""Time limits of one length, of which nearly none is ever reached: one timer of the loop serves them all.

Used by the router for every request, and by whatever waits for connections: to begin and to end a wait is to
put it into a dictionary and to take it out. They begin in the order in which they would end, so the first is
always the next to look at.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from math import inf
from typing import Any, Protocol


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """The part of an event loop that makes timers."""

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Timer: ...


class Waiter(Protocol):
    def on_timeout(self, seconds: float) -> None:
        """`seconds` have passed since `begin`."""


class Timeouts:
    """Waits of `seconds` each. `now`: monotonic seconds."""

    __slots__ = ("_clock", "_now", "_seconds", "_timer", "_waiting")

    def __init__(self, clock: Clock, now: Callable[[], float], seconds: float) -> None:
        self._clock = clock
        self._now = now
        self._seconds = seconds
        self._waiting: dict[Waiter, float] = {}
        """When each is over, the first to end first."""
        self._timer: Timer | None = None

    @property
    def waiting(self) -> int:
        """How many waits have begun and not ended."""
        return len(self._waiting)

    def begin(self, waiter: Waiter, now: float) -> None:
        """Call its `on_timeout`, unless `end` is called before. `now`: when the wait began, or a little
        later than that of the one before."""
        self._waiting[waiter] = now + self._seconds
        if self._timer is None:
            self._timer = self._clock.call_later(self._seconds, self._expire)

    def end(self, waiter: Waiter) -> None:
        self._waiting.pop(waiter, None)

    def _expire(self) -> None:
        waiting, now = self._waiting, self._now()
        try:
            # Not the first again and again: a dictionary looks for it past all that have gone.
            for waiter in [*takewhile(lambda each: waiting[each] <= now, waiting)]:
                if waiting.get(waiter, inf) <= now:  # else it was ended by one before it
                    del waiting[waiter]
                    waiter.on_timeout(self._seconds)
        finally:
            self._timer = None
            if waiting:
                delay = waiting[next(iter(waiting))] - now
                self._timer = self._clock.call_later(max(delay, 0.0), self._expire)

    def __repr__(self) -> str:
        return f"<Timeouts of {self._seconds:g} s waiting={self.waiting}>"
