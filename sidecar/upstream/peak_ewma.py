"""Peak EWMA: of two random endpoints the one where a request is expected to finish sooner.

The expected time is the endpoint's recent latency times the requests that it would then have in flight.
Latency is an exponentially weighted moving average with a peak rule: a slower answer than expected counts
at once, a faster one slowly. Called by `cluster.py` (`observe`) and `locality.py` (`pick`). Sans-IO:
clock and randomness are arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp

from sidecar.upstream.host import Host
from sidecar.upstream.load_balancer import H, PowerOfTwo

DECAY = 3.0
"""Seconds in which what is remembered of a latency falls to 1/e. A first answer is often ten times slower
than the rest (caches, imports): with the usual ten seconds a new replica would idle for half a minute."""
INITIAL = 0.030
"""Seconds assumed of an endpoint that has work in flight and has not answered yet."""
FAILURE_FACTOR = 4.0
"""A failure counts as an answer that took this many times the latency so far, and INITIAL at least."""
MAXIMUM = 10.0
"""Seconds that repeated failures add up to at most."""


class PeakEwma(PowerOfTwo[H]):
    """An endpoint that was never measured and is idle goes first: one request finds out what it can do,
    and it neither waits for minutes until others have decayed below INITIAL, nor is flooded."""

    def __init__(self, random: Callable[[], float], now: Callable[[], float]) -> None:
        super().__init__(random)
        self._now = now

    def better(self, first: H, second: H) -> H:
        a = first.latency_ewma
        b = second.latency_ewma
        if not a or not b:
            now = self._now()
            return first if expected_time(first, now) <= expected_time(second, now) else second
        now = self._now()
        # Written out: two calls of expected_time cost as much as all the rest of a pick.
        a *= exp((first.latency_at - now) / DECAY) * (first.active * first.share + 1.0)
        b *= exp((second.latency_at - now) / DECAY) * (second.active * second.share + 1.0)
        return first if a <= b else second


def latency(host: Host, now: float) -> float:
    """What is expected of an idle endpoint, in seconds; decays while nothing is measured."""
    return host.latency_ewma * exp((host.latency_at - now) / DECAY)


def expected_time(host: Host, now: float) -> float:
    """Seconds that one more request is expected to take."""
    if host.latency_ewma:
        return latency(host, now) * (host.active * host.share + 1.0)
    return INITIAL * (host.active * host.share + 1.0) if host.active else 0.0


def observe(host: Host, seconds: float | None, failed: bool, now: float) -> None:
    """One request has ended: `seconds` from its start to its response head, None when none came. One that
    did not fail and has no answer (the caller left) says nothing."""
    if failed:
        # Failing fast must not look like being fast.
        worse = max(seconds or 0.0, INITIAL, FAILURE_FACTOR * latency(host, now))
        host.latency_ewma = min(worse, MAXIMUM)
        host.latency_at = now
        return
    if seconds is None:
        return
    remembered = exp((host.latency_at - now) / DECAY)
    expected = host.latency_ewma * remembered
    host.latency_at = now
    # 0.0 means never measured, so an answer within the clock's resolution counts as a microsecond.
    host.latency_ewma = max(seconds, 1e-6) if seconds >= expected else expected + seconds * (1.0 - remembered)
