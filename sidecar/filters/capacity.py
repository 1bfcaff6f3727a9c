"""What an application can answer at most, learnt from how throughput follows what is in flight."""

from __future__ import annotations

from math import sqrt

from sidecar.filters.interval import Interval
from sidecar.filters.latency_baseline import BASELINE_SECONDS

EXCESS = 1.2
"""By this factor more must arrive than was ever answered before it shows what an application can do."""


class Capacity:
    """Remembers the interval with the best throughput, of the last minutes, for what was in flight."""

    __slots__ = ("_at", "_tolerance", "best")

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self.best: Interval | None = None
        self._at = 0.0

    def measure(self, now: float, interval: Interval) -> None:
        if (
            self.best is None
            or now >= self._at + BASELINE_SECONDS
            or self._surpasses(interval, interval.throughput, self.best)
        ):
            self.restart(now, interval)

    def restart(self, now: float, interval: Interval) -> None:
        self.best = interval
        self._at = now

    def is_exhausted(self, interval: Interval) -> bool:
        """More arrives than was ever answered, and it makes answers late instead of throughput higher."""
        best = self.best
        return (
            best is not None
            and not self._surpasses(interval, interval.throughput * (1 + interval.luck), best)
            and interval.is_late(best.latencies, self._tolerance)
            and interval.arrivals > EXCESS * max(best.throughput, interval.throughput)
        )

    def _surpasses(self, interval: Interval, throughput: float, best: Interval) -> bool:
        more = throughput > EXCESS * best.throughput
        late = interval.is_late(best.latencies, self._tolerance)
        return (more or not late) and throughput >= best.throughput * follows(interval, best.in_flight)


def follows(interval: Interval, in_flight: float) -> float:
    """The share of throughput that half follows what is in flight, which was `in_flight` before: less has
    not grown along with it, or has fallen along."""
    return sqrt(interval.in_flight / in_flight)
