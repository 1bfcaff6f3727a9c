"""How long answers take without a queue in the application, learnt from intervals of traffic."""

from __future__ import annotations

from collections import deque

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

    def drift(self, latencies: Latencies) -> float:
        """By what share of it these are above it."""
        return latencies[-1] / self.mean - 1

    def correct(self, now: float, latencies: Latencies) -> None:
        """These were measured without a queue, or with less of one than the baseline."""
        if abs(self.drift(latencies)) > DRIFT:
            self.restart(now, latencies)
        else:
            self.latencies = tuple((a + b) / 2 for a, b in zip(self.latencies, latencies, strict=True))

    def restart(self, now: float, latencies: Latencies) -> None:
        self._intervals.clear()
        self._intervals.append((now, latencies))
        self.latencies = latencies
