"""A limit that was lowered, and whether that has shown a queue."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.filters.capacity import follows
from sidecar.filters.interval import Interval

TELLING = 0.8
"""A cut to this share or less shows whether it helped; throughput above it has hardly fallen, whatever is in
flight."""
ABANDONED_SECONDS = 30.0
"""What a cut may take to bring answers in time where callers give up: the application may still work for
those who have."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What was so before."""

    at: float
    trial: bool
    """Until then the application was not known to be overloaded."""
    limit: int
    in_flight: float
    throughput: float

    def is_open(self, now: float, interval: Interval) -> bool:
        return interval.abandoned and now < self.at + ABANDONED_SECONDS

    def has_helped(self, now: float, interval: Interval) -> bool | None:
        """Did less at once leave throughput as it was? None when that is not clear yet."""
        share = min(follows(interval, self.in_flight), TELLING)
        helped = interval.throughput > 0 and interval.throughput >= self.throughput * share
        telling = interval.in_flight <= TELLING * self.in_flight
        if helped:
            return True if telling else None
        return False if (telling or self.trial) and not self.is_open(now, interval) else None
