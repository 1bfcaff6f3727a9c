"""Retry budget: retries are a share of requests, so that they cannot multiply an overload.

Called by `cluster.py` and, for retries, by the router. Sans-IO: time is an argument, in seconds of one
monotonic clock.
"""

from __future__ import annotations

WINDOW = 10
"""Seconds over which requests and retries are compared, counted in slots of one second."""


class RetryBudget:
    """Allows a retry while those of the last 10 s are under `percent` of the requests of the last 10 s;
    beyond that, `min_per_second` (saved up for at most a second).

    With `max_concurrent` (the circuit breaker `max_retries`) the number in flight decides instead.
    """

    __slots__ = (
        "_floor",
        "_floor_at",
        "_min_per_second",
        "_requests",
        "_requests_sum",
        "_retries",
        "_retries_sum",
        "_second",
        "_share",
        "active",
        "max_concurrent",
    )

    def __init__(self, percent: float, min_per_second: float, max_concurrent: int | None = None) -> None:
        self._share = percent / 100
        self._min_per_second = min_per_second
        self.max_concurrent = max_concurrent
        self._floor = max(min_per_second, 1.0) if min_per_second > 0 else 0.0
        self._floor_at = 0.0
        self._requests = [0] * WINDOW
        self._retries = [0] * WINDOW
        self._requests_sum = 0
        self._retries_sum = 0
        self._second = 0
        self.active = 0
        """Retries in flight."""

    def on_request(self, now: float) -> None:
        """A request has come that is no retry of another."""
        second = int(now)
        if second != self._second:
            self._advance(second)
        self._requests[second % WINDOW] += 1
        self._requests_sum += 1

    def try_acquire(self, now: float) -> bool:
        """May one more retry be sent? When True, `release` must follow once it has ended."""
        if self.max_concurrent is not None:
            allowed = self.active < self.max_concurrent
        else:
            second = int(now)
            if second != self._second:
                self._advance(second)
            allowed = self._retries_sum + 1 <= self._share * self._requests_sum or self._take_floor(now)
            if allowed:
                self._retries[second % WINDOW] += 1
                self._retries_sum += 1
        if allowed:
            self.active += 1
        return allowed

    def release(self) -> None:
        """A retry that `try_acquire` allowed has ended."""
        self.active -= 1

    def _take_floor(self, now: float) -> bool:
        rate = self._min_per_second
        if rate <= 0:
            return False
        self._floor = min(max(rate, 1.0), self._floor + (now - self._floor_at) * rate)
        self._floor_at = now
        if self._floor < 1.0:
            return False
        self._floor -= 1.0
        return True

    def _advance(self, second: int) -> None:
        for passed in range(max(self._second + 1, second - WINDOW + 1), second + 1):
            slot = passed % WINDOW
            self._requests_sum -= self._requests[slot]
            self._retries_sum -= self._retries[slot]
            self._requests[slot] = self._retries[slot] = 0
        self._second = second

    def __repr__(self) -> str:
        return f"<RetryBudget requests={self._requests_sum} retries={self._retries_sum} active={self.active}>"
