"""Going away gracefully: one trigger, many watchers, and an end that comes by itself.

The composition root keeps the `DrainTrigger` and starts it on SIGTERM; listeners, connections and
background work get the `DrainWatcher`. Sans-IO: the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class TimerHandle(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """The part of an event loop that is needed here."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> TimerHandle: ...


class DrainWatcher:
    """What those see that must finish before the process may end."""

    __slots__ = ("_callbacks", "_on_idle", "draining", "held")

    def __init__(self, on_idle: Callable[[], None]) -> None:
        self._on_idle = on_idle
        self._callbacks: dict[object, Callable[[], None]] = {}
        self.draining = False
        self.held = 0
        """How many `hold`s are not released yet."""

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` when draining starts, at once if it has. Returns the function that unsubscribes."""
        key = object()
        if self.draining:
            callback()
        else:
            self._callbacks[key] = callback
        return lambda: self._callbacks.pop(key, None) and None

    def hold(self) -> None:
        """Something is in flight; each `hold` is followed by one `release`."""
        self.held += 1

    def release(self) -> None:
        if self.held <= 0:
            raise RuntimeError("release() without hold()")
        self.held -= 1
        if self.draining and not self.held:
            self._on_idle()

    def announce(self) -> None:
        """For `DrainTrigger`: tell every subscriber once."""
        self.draining = True
        callbacks, self._callbacks = list(self._callbacks.values()), {}
        for callback in callbacks:
            callback()

    def __repr__(self) -> str:
        return f"<DrainWatcher draining={self.draining} held={self.held} subscribers={len(self._callbacks)}>"


class DrainTrigger:
    """Starts the drain; complete when nothing is held any more, or at the deadline."""

    __slots__ = ("_clock", "_on_complete", "_timer", "completed", "watcher")

    def __init__(self, clock: Clock, on_complete: Callable[[int], None]) -> None:
        """`on_complete(remaining)` is called once, `remaining` being what was still held at the deadline."""
        self._clock = clock
        self._on_complete = on_complete
        self._timer: TimerHandle | None = None
        self.completed = False
        self.watcher = DrainWatcher(self._complete)

    def start(self, deadline: float) -> None:
        """Announce the drain and complete within `deadline` seconds. A second call changes nothing."""
        if self.watcher.draining:
            return
        self._timer = self._clock.call_later(deadline, self._complete)
        self.watcher.announce()
        if not self.watcher.held:
            self._complete()

    def _complete(self) -> None:
        if self.completed:
            return
        self.completed = True
        if self._timer is not None:
            self._timer.cancel()
        self._on_complete(self.watcher.held)

    def __repr__(self) -> str:
        return f"<DrainTrigger completed={self.completed} {self.watcher!r}>"
