"""When a concurrency limit is lowered and raised: decisions from one interval to the next, without clocks.

Used by `concurrency_limit.py`. Must never lower the limit of an application that is not overloaded in order
to measure: only when it looks overloaded, and then for a moment at most.
"""

from __future__ import annotations

from collections import deque
from math import sqrt
from statistics import fmean

from sidecar.config.resources import AdaptiveConcurrency
from sidecar.filters.capacity import Capacity
from sidecar.filters.cut import TELLING, Cut
from sidecar.filters.interval import Interval
from sidecar.filters.latency_baseline import BASELINE_SECONDS, DRIFT, LatencyBaseline

NOISE = 0.002
"""Seconds of waiting that are no queue while the limit decides how long that is."""
WAITING = 1.0
"""Seconds: an application whose answers take longer waits for events (long polls) rather than works, unless
its throughput says otherwise."""
PATIENCE = 3
"""Slow intervals in a row that make an overload; fewer are a burst, or a machine busy for a moment."""
ALERT_SECONDS = 30.0
"""After an overload the next queue behind a limit that is reached counts at once."""
STEEPEST = 0.55
"""What the first cut leaves at least. It is a trial: the next one may go all the way."""
PAUSE_SECONDS = 60.0
"""After a trial that showed no overload there is none for so long, and after the next for twice as long."""
PROBE_SECONDS = 20.0
"""While the application is overloaded, so often the limit is lowered for an interval to see whether the
baseline is still right."""
PROBE = 0.7
"""What a probe leaves of the limit."""
HASTE = 4
"""Steps by which the limit grows at most, after as many intervals without a queue."""


class LimitController:
    """`update` with what was seen in each interval; `limit` is what follows from it.

    A queue in the application makes every answer late by the wait in it, `latency - baseline`. By Little's
    law `in flight * wait / mean latency` requests are in the queue, whatever the mix of requests. The limit
    goes to what is in flight without the queue, and a little of its square root for uneven arrivals. It
    begins to once the queue has been longer than the work itself for a while.
    A baseline measured in a queue hides it. Then throughput tells (`capacity.py`): when it no longer follows
    what is in flight, the latency from before is the baseline.

    A cut that takes throughput along has shown that nothing had queued: the application became slower. It is
    undone, and the baseline starts anew from what was seen. The first cut is a trial: it leaves more than
    half, and when it has shown that there was no overload, none is made for a while. At the floor latency
    counts as that of the work: no limit makes it less.
    """

    __slots__ = (
        "_alert_until",
        "_capacity",
        "_config",
        "_cut",
        "_helped",
        "_pause",
        "_probe_at",
        "_quiet",
        "_slow",
        "_trial_at",
        "baseline",
        "limit",
    )

    def __init__(self, config: AdaptiveConcurrency) -> None:
        self._config = config
        self.limit = config.max_limit
        self.baseline = LatencyBaseline()
        self._capacity = Capacity(config.tolerance)
        self._slow: deque[float] = deque(maxlen=PATIENCE)
        """Throughput of slow intervals in a row."""
        self._quiet = 0
        self._alert_until = 0.0
        self._cut: Cut | None = None
        self._helped = False
        self._pause = PAUSE_SECONDS
        self._trial_at = 0.0
        self._probe_at = 0.0

    def update(self, now: float, interval: Interval) -> bool:
        """True when the limit was lowered, so that what is in flight now says nothing of it."""
        if interval.reached and self._cut is not None and not self._judge(self._cut, now, interval):
            return False
        self.baseline.measure(now, interval)
        queued = self._queued(now, interval)
        self._capacity.measure(now, interval)
        return queued is not None and self._move(now, interval, queued)

    def is_clear(self, interval: Interval) -> bool:
        """An interval that need not have all the answers: the first one, or a queue that grows fast."""
        return self._capacity.best is None or self._capacity.is_exhausted(interval)

    def _judge(self, cut: Cut, now: float, interval: Interval) -> bool:
        """Did less at once take throughput along? False when that ends a trial."""
        helped = cut.has_helped(now, interval)
        if helped is None:
            return True
        self._cut = None
        self._helped = helped
        drift = self.baseline.drift(interval)
        if not helped or drift < 0:
            self.baseline.correct(now, interval)
            # One that was quite wrong may still be.
            wrong = drift < -DRIFT / 2 if helped else drift > DRIFT
            self._probe_at = now if wrong else now + PROBE_SECONDS
        if helped:
            self._pause = PAUSE_SECONDS
            return True
        if not cut.trial:
            self.limit = max(self.limit, cut.limit)
            return True
        self.limit = self._config.max_limit
        self._alert_until = now
        self._trial_at = now + self._pause
        self._pause = min(2 * self._pause, BASELINE_SECONDS)
        self._capacity.restart(now, interval)
        return False

    def _queued(self, now: float, interval: Interval) -> float | None:
        """How many requests wait in the application; None when it is not clear yet."""
        if interval.reached and now < self._alert_until:
            self._slow.clear()
            return self._surplus(interval)
        exhausted = self._capacity.is_exhausted(interval)
        slow = now >= self._trial_at and not interval.draining and (exhausted or self._is_slow(interval))
        if not slow:
            self._slow.clear()
            return 0.0
        self._slow.append(interval.throughput)
        if len(self._slow) < PATIENCE:
            return None
        if exhausted and self._capacity.best is not None:
            self.baseline.restart(now, self._capacity.best.latencies)
            self._probe_at = now
        return self._surplus(interval)

    def _surplus(self, interval: Interval) -> float:
        """Little's law."""
        if interval.wait(self.baseline.latencies) <= 0:
            return 0.0  # the mix of requests has changed
        rise = interval.latencies[-1] - self.baseline.mean
        return interval.in_flight * max(0.0, rise - NOISE - interval.error) / interval.latencies[-1]

    def _is_slow(self, interval: Interval) -> bool:
        late = interval.is_late(self.baseline.latencies, self._config.tolerance)
        return late and self.baseline.mean <= WAITING

    def _move(self, now: float, interval: Interval, queued: float) -> bool:
        used = interval.in_flight
        room = sqrt(used) / 4
        limit = used - queued + room
        probe = PROBE * used
        due = interval.overloaded and now >= max(self._probe_at, self._trial_at)
        if due and limit > probe >= self._config.min_limit:
            self._probe_at = now + PROBE_SECONDS
            self._lower(now, interval, probe)
            return True
        if limit < used > self._config.min_limit:
            self._lower(now, interval, limit)
            return True
        cut = self._cut
        if cut is not None and cut.is_open(now, interval):
            return False
        if queued > room:
            self.baseline.correct(now, interval)
        if cut is not None and (not cut.trial or now >= self._alert_until):
            self._cut = None
        self._helped = False
        self._quiet = min(self._quiet + 1, HASTE)
        # Reached or not: in an overload one update brings it down to what is in flight.
        step = max(1, int(self._quiet * sqrt(self.limit) / 4))
        self.limit = min(self.limit + step, self._config.max_limit)
        return False

    def _lower(self, now: float, interval: Interval, limit: float) -> None:
        cut = self._cut
        pending = cut is not None and (cut.trial or cut.is_open(now, interval))
        if cut is None or (limit <= TELLING * interval.in_flight and not pending):
            trial = now >= self._alert_until
            throughput = fmean(self._slow or (interval.throughput,))
            self._cut = Cut(now, trial, self.limit, interval.in_flight, throughput)
        least = 0.0 if self._helped else STEEPEST * interval.in_flight
        self.limit = max(round(max(limit, least)), self._config.min_limit)
        self._quiet = 0
        self._alert_until = now + ALERT_SECONDS
