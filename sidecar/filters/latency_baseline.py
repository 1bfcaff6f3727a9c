"""How long answers take without a queue in the application, learnt from intervals of traffic."""

from __future__ import annotations

from collections import deque
from math import copysign

from sidecar.filters.interval import Interval, Latencies

BASELINE_SECONDS = 300.0
"""How long a low latency is remembered. Work that became slower for good is no overload after that."""
LOWEST_SHARE = 0.4
"""The baseline is the highest of this share of lowest intervals: the first answers after a start are the
fast ones, so single low intervals say little."""
DRIFT = 0.25
"""A baseline that a cut has shown to be wrong by less goes half the way: it comes from more requests."""


class LatencyBaseline:
    """What latency was in the quieter intervals of the last minutes."""

    __slots__ = ("_intervals", "latencies")

    def __init__(self) -> None:
        self.latencies: Latencies = ()
        self._intervals: deque[tuple[float, Latencies]] = deque()
        """When each ended."""

    @property
    def mean(self) -> float:
        return self.latencies[-1]

    def measure(self, now: float, interval: Interval) -> None:
        """An interval at the limit tells nothing of an idle application, and its time does not count: an
        overload may last for hours."""
        intervals = self._intervals
        if interval.reached and intervals:
            return
        intervals.append((now, interval.latencies))
        while intervals[0][0] < now - BASELINE_SECONDS:
            intervals.popleft()
        place = int(len(intervals) * LOWEST_SHARE)
        columns = zip(*(latencies for _, latencies in intervals), strict=True)
        self.latencies = tuple(sorted(column)[place] for column in columns)

    def drift(self, interval: Interval) -> float:
        """By what share of it answers took longer, beyond chance."""
        rise = interval.latencies[-1] - self.mean
        return copysign(max(0.0, abs(rise) - interval.error), rise) / self.mean

    def correct(self, now: float, interval: Interval) -> None:
        """It was measured without a queue, or with less of one than the baseline."""
        if abs(self.drift(interval)) > DRIFT:
            self.restart(now, interval.latencies)
        else:
            pairs = zip(self.latencies, interval.latencies, strict=True)
            self.latencies = tuple((a + b) / 2 for a, b in pairs)

    def restart(self, now: float, latencies: Latencies) -> None:
        self._intervals.clear()
        self._intervals.append((now, latencies))
        self.latencies = latencies
