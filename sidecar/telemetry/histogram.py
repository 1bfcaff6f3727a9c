"""Latency histograms as plain lists of integers over fixed, log-spaced bounds in seconds.

`metrics.py` counts into the fine bins on the request path; quantiles are read from those, and
Prometheus gets every fourth bound, which keeps a scrape small. This module holds no state and must
never depend on what it measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0,
)  # fmt: skip
"""Upper bounds (inclusive, seconds) of the buckets that Prometheus sees; +Inf follows."""

STEPS = 4
"""Fine bins per bucket: neighbouring bounds are at most 1.26 apart, so quantiles are near that exact."""


def _fine_bounds() -> list[float]:
    bounds = [BUCKETS[0]]
    for low, high in pairwise(BUCKETS):
        bounds += [low * (high / low) ** (step / STEPS) for step in range(1, STEPS)]
        bounds.append(high)
    return bounds


BOUNDS: list[float] = _fine_bounds()
"""Upper bounds of the fine bins: `bins[bisect_left(BOUNDS, seconds)] += 1` records one."""

BINS = len(BOUNDS) + 1
"""Length of a list of fine bins; the last holds what lies above every bound."""


def cumulative(bins: Sequence[int]) -> list[int]:
    """Counts at or below each of `BUCKETS`, then the total (`le="+Inf"`)."""
    running = list(accumulate(bins))
    return [*running[: len(BOUNDS) : STEPS], running[-1]]


def quantile(bins: Sequence[int], q: float) -> float:
    """The `q`-quantile (0..1) in seconds, interpolated inside its bin; 0.0 when nothing was recorded.

    What lies above every bound counts as the highest bound, as in Prometheus' `histogram_quantile`.
    """
    total = sum(bins)
    if not total:
        return 0.0
    rank = q * total
    seen = 0
    for index, count in enumerate(bins):
        if count and seen + count >= rank:
            if index == len(BOUNDS):
                break
            low = BOUNDS[index - 1] if index else 0.0
            return low + (BOUNDS[index] - low) * max(0.0, rank - seen) / count
        seen += count
    return BOUNDS[-1]
