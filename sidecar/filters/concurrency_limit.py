"""How many requests an application is given at once, learnt from its latency: the arithmetic, without clocks.

Used by `adaptive_concurrency.py`, which tells it the time. Must never lower the limit of an application that
is not overloaded, not even to measure: the baseline is what latency was in the quieter intervals of the last
minutes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil, fsum, inf, sqrt

from sidecar.config.resources import AdaptiveConcurrency

QUANTILES = (0.1, 0.5, 0.9)
"""A queue delays all of them by the wait in it; two of three must say so. A single one moves when the mix of
fast and slow requests does, and the lowest stays when some requests need no worker of the application."""
CORE = 0.95
"""The share of lowest latencies whose mean tells how long the queue is: a few very long ones are other
work."""
BASELINE_SECONDS = 300.0
"""How long a low latency is remembered. Work that became slower for good is no overload after that."""
LOWEST_SHARE = 0.4
"""The baseline is the highest of this share of lowest intervals: the first answers after a start are the
fast ones, so single low intervals say little."""
SLACK = 0.015
"""Seconds of waiting that do not begin an overload: on a busy machine the scheduler alone delays answers that
take a fraction of a millisecond by that much."""
NOISE = 0.002
"""The same while the application is overloaded and the limit decides how long its queue is."""
WAITING = 1.0
"""Seconds: an application whose answers take longer waits for events (long polls) rather than works, and is
never limited."""
PATIENCE = 3
"""Slow intervals in a row that make an overload; fewer are a burst, or a machine busy for a moment."""
FALLING = 0.9
"""With less in flight than this share of what was in the interval before, a queue goes away by itself."""
ALERT_SECONDS = 30.0
"""After an overload the next queue behind a limit that is reached counts at once."""
STEEPEST = 0.5
"""What the first cut leaves at least. It is a trial: the next one may go all the way."""
TELLING = 0.8
"""A cut to this share or less shows whether it helped."""
DRIFT = 0.25
"""A baseline that a cut has shown to be wrong by less goes half the way: it comes from more requests."""
PROBE_SECONDS = 20.0
"""While the application is overloaded, so often the limit is lowered for an interval to see whether the
baseline is still right."""
PROBE = 0.7
"""What a probe leaves of the limit."""
REFUSED_SHARE = 0.1
"""Refused requests, for each that was answered, that allow a probe."""
HASTE = 4
"""Steps by which the limit grows at most, after as many intervals without a queue."""

Latencies = tuple[float, ...]
"""Seconds: one for each of QUANTILES, and the mean of the CORE."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """What was so before the limit was lowered."""

    limit: int
    in_flight: int
    throughput: float


@dataclass(frozen=True, slots=True)
class _Interval:
    """What was seen since the last update. Seconds, and answers a second."""

    latencies: Latencies
    in_flight: int
    throughput: float
    reached: bool
    overloaded: bool


class ConcurrencyLimit:
    """`acquire` a place for every request, `release` it with the time its answer took.

    A queue in the application makes every answer late by the wait in it, `latency - baseline`. By Little's
    law `in flight * wait / mean latency` requests are in the queue, whatever the mix of requests. The limit
    goes to what is in flight without the queue, and a little of its square root for uneven arrivals. It
    begins to once the queue has been longer than the work itself for a while.

    A cut that takes throughput along has shown that nothing had queued: the application became slower. It is
    undone, and the baseline starts anew from what was seen.
    """

    __slots__ = (
        "_alert_until",
        "_baseline",
        "_begun",
        "_config",
        "_cut",
        "_helped",
        "_in_flight_before",
        "_interval_end",
        "_intervals",
        "_most_in_flight",
        "_probe_at",
        "_quiet",
        "_refused_before",
        "_samples",
        "_skip",
        "_slow",
        "in_flight",
        "limit",
        "refused",
    )

    def __init__(self, config: AdaptiveConcurrency) -> None:
        self._config = config
        self.limit = config.max_limit
        self.in_flight = 0
        self.refused = 0
        self._samples: list[float] = []
        self._most_in_flight = 0
        self._in_flight_before = 0
        self._begun = -inf
        self._interval_end = 0.0
        self._intervals: deque[tuple[float, Latencies]] = deque()
        """When each ended."""
        self._baseline: Latencies = ()
        self._slow = 0
        self._quiet = 0
        self._alert_until = 0.0
        self._cut: _Cut | None = None
        self._skip = 0
        self._helped = False
        self._probe_at = 0.0
        self._refused_before = 0

    def acquire(self) -> bool:
        """Count a request in; False when the limit is reached."""
        if self.in_flight >= self.limit:
            self.refused += 1
            return False
        self.in_flight += 1
        if self.in_flight > self._most_in_flight:
            self._most_in_flight = self.in_flight
        return True

    def release(self, now: float, latency: float | None) -> None:
        """Count it out; `latency` in seconds until the response head, None when that says nothing."""
        self.in_flight -= 1
        if self._skip:
            self._skip -= 1
            if not self._skip:
                self._begin(now)
            return
        if latency is None:
            return
        self._samples.append(latency)
        if now >= self._interval_end and len(self._samples) >= self._config.min_samples:
            self._update(now)

    def _update(self, now: float) -> None:
        samples = self._samples
        samples.sort()
        interval = self._interval(now)
        if interval.reached and self._cut is not None:
            self._judge(self._cut, now, interval)
        self._measure(now, interval)
        queued = self._queued(now, interval)
        if queued is not None:
            self._move(now, interval, queued)
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._samples.clear()
        self._most_in_flight = self.in_flight
        self._refused_before = self.refused
        self._begun = now
        self._interval_end = now + self._config.update_interval

    def _interval(self, now: float) -> _Interval:
        samples = self._samples
        used = min(self.limit, self._most_in_flight)
        core = samples[: ceil(len(samples) * CORE)]
        mean = max(fsum(core) / len(core), 1e-6)
        return _Interval(
            latencies=(*(samples[int(len(samples) * share)] for share in QUANTILES), mean),
            in_flight=used,
            throughput=len(samples) / (now - self._begun),
            reached=used == self.limit,
            overloaded=used == self.limit
            and self.refused - self._refused_before > REFUSED_SHARE * len(samples),
        )

    def _judge(self, cut: _Cut, now: float, interval: _Interval) -> None:
        """Did less at once take throughput along?"""
        share = interval.in_flight / cut.in_flight
        if share > TELLING:
            return
        self._cut = None
        self._helped = interval.throughput >= cut.throughput * (1 + share) / 2
        if not self._helped:
            self.limit = max(self.limit, cut.limit)
        drift = interval.latencies[-1] / self._baseline[-1] - 1
        if not self._helped or drift < 0:
            self._correct(now, interval.latencies, abs(drift) > DRIFT)
        # A baseline that was too high may still be.
        self._probe_at = now if self._helped and drift < -DRIFT / 2 else now + PROBE_SECONDS

    def _correct(self, now: float, latencies: Latencies, wrong: bool) -> None:
        """Latencies without a queue, or with less of one than the baseline."""
        if wrong:
            self._intervals.clear()
            self._intervals.append((now, latencies))
            self._baseline = latencies
        else:
            self._baseline = tuple((a + b) / 2 for a, b in zip(self._baseline, latencies, strict=True))

    def _measure(self, now: float, interval: _Interval) -> None:
        """The baseline. An interval at the limit tells nothing of an idle application, and its time does not
        count: an overload may last for hours."""
        intervals = self._intervals
        if interval.reached and intervals:
            return
        intervals.append((now, interval.latencies))
        while intervals[0][0] < now - BASELINE_SECONDS:
            intervals.popleft()
        place = int(len(intervals) * LOWEST_SHARE)
        columns = zip(*(latencies for _, latencies in intervals), strict=True)
        self._baseline = tuple(sorted(column)[place] for column in columns)

    def _queued(self, now: float, interval: _Interval) -> float | None:
        """How many requests wait in the application; None when it is not clear yet."""
        if self._baseline[-1] > WAITING:
            return 0.0
        *rises, rise = [late - base for late, base in zip(interval.latencies, self._baseline, strict=True)]
        wait = sorted(rises)[1]
        work = interval.latencies[-1] - wait
        falling = interval.in_flight < FALLING * self._in_flight_before
        self._in_flight_before = interval.in_flight
        slow = wait > max((self._config.tolerance - 1) * work, SLACK) and not falling
        self._slow = self._slow + 1 if slow else 0
        if self._slow >= PATIENCE or (interval.reached and now < self._alert_until):
            return interval.in_flight * max(0.0, rise - NOISE) / interval.latencies[-1]
        return None if slow else 0.0

    def _move(self, now: float, interval: _Interval, queued: float) -> None:
        used = interval.in_flight
        room = sqrt(used) / 4
        if interval.overloaded and now >= self._probe_at and PROBE * used >= self._config.min_limit:
            self._probe_at = now + PROBE_SECONDS
            self._lower(now, interval, min(PROBE * used, used - queued + room))
        elif queued > room:
            self._lower(now, interval, used - queued + room)
        else:
            self._cut = None
            self._helped = False
            self._quiet = min(self._quiet + 1, HASTE)
            # Reached or not: in an overload one update brings it down to what is in flight.
            step = max(1, int(self._quiet * sqrt(self.limit) / 4))
            self.limit = min(self.limit + step, self._config.max_limit)

    def _lower(self, now: float, interval: _Interval, limit: float) -> None:
        if self._cut is None or limit <= TELLING * interval.in_flight:
            self._cut = _Cut(self.limit, interval.in_flight, interval.throughput)
        least = 0.0 if self._helped else STEEPEST * interval.in_flight
        self.limit = max(round(max(limit, least)), self._config.min_limit)
        self._quiet = 0
        # What is in flight now has come under the old limit; then there is room for a look at the new one.
        self._skip = self.in_flight
        self._alert_until = now + ALERT_SECONDS

    def __repr__(self) -> str:
        return (
            f"<ConcurrencyLimit {self.in_flight}/{self.limit} baseline={self._baseline} "
            f"refused={self.refused}>"
        )
