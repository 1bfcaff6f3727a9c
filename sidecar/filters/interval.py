"""What a concurrency limit saw of an application between two updates."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, fsum, sqrt

QUANTILES = (0.1, 0.5, 0.9)
"""A queue delays all of them by the wait in it; two of three must say so. A single one moves when the mix of
fast and slow requests does, and the lowest stays when some requests need no worker of the application."""
CORE = 0.95
"""The share of lowest latencies whose mean tells how long the queue is: a few very long ones are other
work."""

Latencies = tuple[float, ...]
"""Seconds: one for each of QUANTILES, and the mean of the CORE."""
SLACK = 0.015
"""Seconds of waiting that do not begin an overload: on a busy machine the scheduler alone delays answers that
take a fraction of a millisecond by that much."""


def summary(samples: list[float]) -> tuple[Latencies, float]:
    """Of samples in order, and the standard error of the last: where work differs, few samples say little."""
    core = samples[: ceil(len(samples) * CORE)]
    mean = max(fsum(core) / len(core), 1e-6)
    variance = fsum((each - mean) ** 2 for each in core) / len(core)
    return (*(samples[int(len(samples) * share)] for share in QUANTILES), mean), sqrt(variance / len(core))


@dataclass(frozen=True, slots=True)
class Interval:
    latencies: Latencies
    error: float
    """The standard error of their mean, in seconds."""
    in_flight: float
    """The limit if it was reached, else the mean of when it began and when it ended."""
    arrivals: float
    """Requests a second, with those that were refused."""
    throughput: float
    """Answers a second, without those for which nobody waited any more."""
    luck: float
    """The share of it by which it may be wrong by chance (standard error)."""
    abandoned: bool
    """Callers gave up: the application may still work on their requests."""
    draining: bool
    """Clearly fewer were in flight at its end than when it began."""
    reached: bool
    """The limit was reached."""
    overloaded: bool
    """And so many were refused that it may be lowered to look."""

    def wait(self, baseline: Latencies) -> float:
        """Seconds in a queue, if `baseline` is the time of the work."""
        *rises, _ = [late - base for late, base in zip(self.latencies, baseline, strict=True)]
        return sorted(rises)[1]

    def is_late(self, baseline: Latencies, tolerance: float) -> bool:
        """Answers took `tolerance` times as long as their work."""
        wait = self.wait(baseline)
        work = self.latencies[-1] - wait
        return wait > max((tolerance - 1) * work, SLACK)
