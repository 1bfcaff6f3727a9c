"""When a concurrency limit is lowered and raised: decisions from one interval to the next, without clocks.

Used by `concurrency_limit.py`. Must never lower the limit of an application that is not overloaded, not even
to measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

from sidecar.config.resources import AdaptiveConcurrency
from sidecar.filters.interval import Interval, Latencies, waited
from sidecar.filters.latency_baseline import BASELINE_SECONDS, DRIFT, LatencyBaseline

SLACK = 0.015
"""Seconds of waiting that do not begin an overload: on a busy machine the scheduler alone delays answers that
take a fraction of a millisecond by that much."""
NOISE = 0.002
"""The same while the application is overloaded and the limit decides how long its queue is."""
WAITING = 1.0
"""Seconds: an application whose answers take longer waits for events (long polls) rather than works, unless
its throughput says otherwise."""
PATIENCE = 3
"""Slow intervals in a row that make an overload; fewer are a burst, or a machine busy for a moment."""
TRIAL_SECONDS = 30.0
"""What a cut may take to bring answers in time where callers give up: the application may still work on
requests of those who have."""
EXCESS = 1.2
"""By this factor more must arrive than was ever answered before it shows what an application can do."""
ALERT_SECONDS = 30.0
"""After an overload the next queue behind a limit that is reached counts at once."""
STEEPEST = 0.55
"""What the first cut leaves at least. It is a trial: the next one may go all the way."""
TELLING = 0.8
"""A cut to this share or less shows whether it helped."""
CERTAIN = 0.85
"""Throughput that falls to less has fallen, whatever is in flight."""
PAUSE_SECONDS = 60.0
"""After a trial that showed no overload there is none for so long, and after the next for twice as long."""
PROBE_SECONDS = 20.0
"""While the application is overloaded, so often the limit is lowered for an interval to see whether the
baseline is still right."""
PROBE = 0.7
"""What a probe leaves of the limit."""
HASTE = 4
"""Steps by which the limit grows at most, after as many intervals without a queue."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """What was so before the limit was lowered."""

    at: float
    trial: bool
    """Until then the application was not known to be overloaded."""
    limit: int
    in_flight: float
    throughput: float


class LimitController:
    """`update` with what was seen in each interval; `limit` is what follows from it.

    A queue in the application makes every answer late by the wait in it, `latency - baseline`. By Little's
    law `in flight * wait / mean latency` requests are in the queue, whatever the mix of requests. The limit
    goes to what is in flight without the queue, and a little of its square root for uneven arrivals. It
    begins to once the queue has been longer than the work itself for a while.

    A baseline measured in a queue hides it. Then throughput tells: more in flight brings more of it as long
    as nothing queues. When more arrives than the application ever answered, answers become late and
    throughput does not follow, it has reached what it can do, and the latency from before is the baseline.

    A cut that takes throughput along has shown that nothing had queued: the application became slower. It is
    undone, and the baseline starts anew from what was seen.
    """

    __slots__ = (
        "_alert_until",
        "_baseline",
        "_config",
        "_cut",
        "_helped",
        "_peak",
        "_peak_at",
        "_probe_at",
        "_quiet",
        "_slow",
        "_trial_at",
        "_pause",
        "limit",
    )

    def __init__(self, config: AdaptiveConcurrency) -> None:
        self._config = config
        self.limit = config.max_limit
        self._baseline = LatencyBaseline()
        self._peak: Interval | None = None
        """The one with the highest throughput for what was in flight."""
        self._peak_at = 0.0
        self._slow = 0
        self._quiet = 0
        self._alert_until = 0.0
        self._cut: _Cut | None = None
        self._helped = False
        self._pause = PAUSE_SECONDS
        self._trial_at = 0.0
        self._probe_at = 0.0

    def update(self, now: float, interval: Interval) -> bool:
        """True when the limit was lowered, so that what is in flight now says nothing of it."""
        if interval.reached and self._cut is not None and not self._judge(self._cut, now, interval):
            return False
        self._baseline.measure(now, interval)
        queued = self._queued(now, interval)
        if (
            self._peak is None
            or now >= self._peak_at + BASELINE_SECONDS
            or self._surpasses(interval, self._peak)
        ):
            self._peak = interval
            self._peak_at = now
        return queued is not None and self._move(now, interval, queued)

    def _judge(self, cut: _Cut, now: float, interval: Interval) -> bool:
        """Did less at once take throughput along? False when that ends a trial."""
        helped = _keeps_up(interval, cut, CERTAIN)
        telling = interval.in_flight <= TELLING * cut.in_flight
        if not telling and (helped or not cut.trial):
            return True
        if not helped and interval.abandoned and now < cut.at + TRIAL_SECONDS:
            return True
        self._cut = None
        self._helped = helped
        drift = self._baseline.drift(interval.latencies)
        if not helped or drift < 0:
            self._baseline.correct(now, interval.latencies)
            # One that was quite wrong may still be.
            wrong = drift < -DRIFT / 2 if helped else drift > DRIFT
            self._probe_at = now if wrong else now + PROBE_SECONDS
        if helped:
            self._pause = PAUSE_SECONDS
            return True
        self.limit = self._config.max_limit if cut.trial else max(self.limit, cut.limit)
        if cut.trial:
            self._alert_until = now
            self._trial_at = now + self._pause
            self._pause = min(2 * self._pause, BASELINE_SECONDS)
            self._peak = interval
            self._peak_at = now
        return not cut.trial

    def _queued(self, now: float, interval: Interval) -> float | None:
        """How many requests wait in the application; None when it is not clear yet."""
        if interval.reached and now < self._alert_until:
            self._slow = 0
            return self._surplus(interval)
        exhausted = self.exhausted(interval)
        slow = now >= self._trial_at and not interval.draining and (exhausted or self._is_slow(interval))
        self._slow = self._slow + 1 if slow else 0
        if self._slow < PATIENCE:
            return None if slow else 0.0
        if exhausted:
            assert self._peak is not None
            self._baseline.restart(now, self._peak.latencies)
            self._probe_at = now
        return self._surplus(interval)

    def _surplus(self, interval: Interval) -> float:
        """Little's law."""
        rise = interval.latencies[-1] - self._baseline.mean
        return interval.in_flight * max(0.0, rise - NOISE) / interval.latencies[-1]

    def _is_slow(self, interval: Interval) -> bool:
        baseline = self._baseline
        return baseline.mean <= WAITING and self._late(interval, baseline.latencies)

    def _late(self, interval: Interval, baseline: Latencies) -> bool:
        wait = waited(interval.latencies, baseline)
        work = interval.latencies[-1] - wait
        return wait > max((self._config.tolerance - 1) * work, SLACK)

    def is_clear(self, interval: Interval) -> bool:
        """An interval that need not have all the answers: the first one, or a queue that grows fast."""
        return self._peak is None or self.exhausted(interval)

    def exhausted(self, interval: Interval) -> bool:
        """More arrives than the application has ever answered, and only makes answers late."""
        peak = self._peak
        return (
            peak is not None
            and not self._surpasses(interval, peak)
            and self._late(interval, peak.latencies)
            and interval.arrivals > EXCESS * max(peak.throughput, interval.throughput)
        )

    def _surpasses(self, interval: Interval, peak: Interval) -> bool:
        """More throughput for what is in flight, and not by luck in a growing queue."""
        more = interval.throughput > EXCESS * peak.throughput
        return _keeps_up(interval, peak) and (more or not self._late(interval, peak.latencies))

    def _move(self, now: float, interval: Interval, queued: float) -> bool:
        used = interval.in_flight
        room = sqrt(used) / 4
        limit = used - queued + room
        if interval.overloaded and now >= max(self._probe_at, self._trial_at) and limit > PROBE * used >= self._config.min_limit:
            self._probe_at = now + PROBE_SECONDS
            self._lower(now, interval, PROBE * used)
            return True
        if limit < used > self._config.min_limit:
            self._lower(now, interval, limit)
            return True
        if interval.abandoned and self._cut is not None:
            return False
        if queued > room:
            self._baseline.correct(now, interval.latencies)
        if self._cut is not None and (not self._cut.trial or now >= self._alert_until):
            self._cut = None
        self._helped = False
        self._quiet = min(self._quiet + 1, HASTE)
        # Reached or not: in an overload one update brings it down to what is in flight.
        step = max(1, int(self._quiet * sqrt(self.limit) / 4))
        self.limit = min(self.limit + step, self._config.max_limit)
        return False

    def _lower(self, now: float, interval: Interval, limit: float) -> None:
        pending = self._cut is not None and (self._cut.trial or interval.abandoned)
        if self._cut is None or (limit <= TELLING * interval.in_flight and not pending):
            self._cut = _Cut(
                now, now >= self._alert_until, self.limit, interval.in_flight, interval.throughput
            )
        least = 0.0 if self._helped else STEEPEST * interval.in_flight
        self.limit = max(round(max(limit, least)), self._config.min_limit)
        self._quiet = 0
        self._alert_until = now + ALERT_SECONDS


def _keeps_up(interval: Interval, other: Interval | _Cut, certain: float = inf) -> bool:
    """Does throughput follow what is in flight, at least half of the way?"""
    share = sqrt(interval.in_flight / other.in_flight)
    return interval.throughput >= other.throughput * min(share, certain)
