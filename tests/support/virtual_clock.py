"""Virtual time for sans-IO parts: an object with the scheduling methods of an asyncio loop, moved by hand."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class VirtualHandle:
    """What `call_later` returns; `cancel()` keeps the callback from running."""

    __slots__ = ("_args", "_callback", "_cancelled", "_when")

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self._when

    def run(self) -> None:
        if not self._cancelled:
            self._callback(*self._args)

    def __repr__(self) -> str:
        return f"<VirtualHandle at {self._when} cancelled={self._cancelled}>"


class VirtualClock:
    """Stands in for the loop: `time`, `call_later`, `call_at`, `call_soon`; time passes in `advance` alone.

    Callbacks run in order of their time, those of one instant in the order they were scheduled. One that
    schedules another within the span that `advance` covers has it run too, at its own time.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._order = itertools.count()
        self._queue: list[tuple[float, int, VirtualHandle]] = []

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> VirtualHandle:
        handle = VirtualHandle(max(when, self._now), callback, args)
        heapq.heappush(self._queue, (handle.when(), next(self._order), handle))
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> VirtualHandle:
        return self.call_at(self._now + delay, callback, *args)

    def call_soon(self, callback: Callable[..., object], *args: Any) -> VirtualHandle:
        return self.call_at(self._now, callback, *args)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; 0 runs what is due now (`call_soon`)."""
        end = self._now + seconds
        while self._queue and self._queue[0][0] <= end:
            when, _, handle = heapq.heappop(self._queue)
            self._now = when
            handle.run()
        self._now = end

    def turn(self) -> None:
        """Run what is due now, and not what that schedules."""
        due = []
        while self._queue and self._queue[0][0] <= self._now:
            due.append(heapq.heappop(self._queue)[2])
        for handle in due:
            handle.run()

    @property
    def pending(self) -> int:
        """How many callbacks are still to run."""
        return sum(not handle.cancelled() for _, _, handle in self._queue)

    def __repr__(self) -> str:
        return f"<VirtualClock now={self._now} pending={self.pending}>"
