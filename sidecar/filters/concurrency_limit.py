"""How many requests an application is given at once, learnt from its latency: the arithmetic, without clocks.

Used by `adaptive_concurrency.py`, which tells it the time. Counts, and gathers what each interval has shown;
`limit_controller.py` decides.
"""

from __future__ import annotations

from math import inf, sqrt

from sidecar.config.resources import AdaptiveConcurrency
from sidecar.filters.interval import Interval, summary
from sidecar.filters.limit_controller import LimitController

FEWEST = 10
"""Answers that are enough when so many more requests than before wait for theirs that together there are as
many as an update needs, and the queue is plain."""
FALLING = 0.9
"""With less in flight than this share of what was when an interval began, a queue goes away by itself."""
NOTABLE = 0.1
"""The share of requests whose callers gave up, or for each that was answered of those that were refused, that
counts."""


class ConcurrencyLimit:
    """`acquire` a place for every request, `release` it with the time its answer took."""

    __slots__ = (
        "_begun",
        "_config",
        "_controller",
        "_given_up",
        "_given_up_before",
        "_in_flight_before",
        "_interval_end",
        "_latest",
        "_longest",
        "_most_in_flight",
        "_refused_before",
        "_samples",
        "_seconds",
        "_skip",
        "in_flight",
        "limit",
        "refused",
    )

    def __init__(self, config: AdaptiveConcurrency) -> None:
        self._config = config
        self._controller = LimitController(config)
        self.limit = config.max_limit
        self.in_flight = 0
        self.refused = 0
        self._samples: list[float] = []
        self._given_up = 0
        self._given_up_before = 0
        """Of those, before the interval began."""
        self._in_flight_before = 0
        self._most_in_flight = 0
        self._refused_before = 0
        self._begun = 0.0
        self._seconds = config.update_interval
        self._longest = inf
        self._latest = inf
        self._interval_end = 0.0
        self._skip = 1
        """Answers until an interval begins; the first begins with the first."""

    def acquire(self) -> bool:
        """Count a request in; False when the limit is reached."""
        if self.in_flight >= self.limit:
            self.refused += 1
            return False
        self.in_flight += 1
        if self.in_flight > self._most_in_flight:
            self._most_in_flight = self.in_flight
        return True

    def release(self, now: float, latency: float | None, answered: bool = True) -> None:
        """Count it out; `latency` in seconds until the response head, None when that says nothing.

        A caller who gave up before there was one has waited for so long at least.
        """
        self.in_flight -= 1
        if not answered:
            self._given_up += 1
        if self._skip:
            self._skip -= 1
            if not self._skip:
                self._given_up_before = self._given_up
                self._begin(now)
            return
        if latency is None:
            return
        self._samples.append(latency)
        if now >= self._interval_end:
            self._look(now)

    def _look(self, now: float) -> None:
        answers = len(self._samples)
        enough = self._config.min_samples
        waiting = max(0, self.in_flight - self._in_flight_before)
        if now < self._latest and (answers < FEWEST or answers + waiting < enough):
            return
        interval = self._interval(now)
        if now < self._latest and answers < enough and not self._controller.is_clear(interval):
            self._interval_end = now + self._config.update_interval
            return
        lowered = self._controller.update(now, interval)
        self.limit = self._controller.limit
        self._given_up = self._given_up_before = 0
        self._seconds = self._config.update_interval
        self._longest = inf
        if lowered:
            # As long as answers take, then until there are enough, or it is plain that they do not come.
            self._seconds = max(self._seconds, interval.latencies[-2])
            self._longest = max(self._seconds, 2 * enough / max(interval.throughput, 1e-3))
            # What is in flight now has come under the old limit: it goes first.
            self._skip = self.in_flight
        if not self._skip:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._samples.clear()
        self._in_flight_before = self._most_in_flight = self.in_flight
        self._refused_before = self.refused
        self._begun = now
        self._interval_end = now + self._seconds
        self._latest = now + self._longest

    def _interval(self, now: float) -> Interval:
        samples = self._samples
        samples.sort()
        latencies, error = summary(samples)
        seconds = now - self._begun
        refused = self.refused - self._refused_before
        reached = self._most_in_flight >= self.limit
        return Interval(
            latencies=latencies,
            error=error,
            in_flight=self.limit if reached else max(1.0, (self._in_flight_before + self.in_flight) / 2),
            arrivals=(len(samples) + refused + self.in_flight - self._in_flight_before) / seconds,
            throughput=(len(samples) - self._given_up + self._given_up_before) / seconds,
            luck=1 / sqrt(len(samples)),
            abandoned=self._given_up > NOTABLE * len(samples),
            draining=self.in_flight < FALLING * self._in_flight_before,
            reached=reached,
            overloaded=reached and refused > NOTABLE * len(samples),
        )

    def __repr__(self) -> str:
        baseline = self._controller.baseline.latencies
        return f"<ConcurrencyLimit {self.in_flight}/{self.limit} baseline={baseline} refused={self.refused}>"
