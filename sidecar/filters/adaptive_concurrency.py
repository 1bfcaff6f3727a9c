"""Overload protection: how many requests the application is given at once, learnt from its latency.

An HTTP filter (Envoy `AdaptiveConcurrency`), put by the control plane before the router of inbound listeners.
What is over the limit is answered 503 at once: a queue would only make every answer late. Health checks
always pass. Nothing is ever slowed down to measure: the baseline is what latency was at its lowest in
the last minutes.

What is looked at is the fastest answer of each interval, as CoDel does (RFC 8289 section 3.2): in an
overload the queue stands and even the fastest has waited; when the machine stalls for a moment the queue
drains, and mean latency would call that an overload.
"""

from __future__ import annotations

from collections import deque
from math import inf, sqrt
from typing import TYPE_CHECKING

from sidecar.config.resources import AdaptiveConcurrency
from sidecar.http.local_reply import LocalReply

if TYPE_CHECKING:
    from sidecar.http.exchange import Exchange

BASELINE_SECONDS = 300.0
"""How long a low latency is remembered. Work that became slower for good is no overload after that."""
LOWEST_SHARE = 0.05
"""The baseline is the highest of this share of lowest intervals: the first answers after a start are the
fast ones, so single low intervals say little."""
SLACK = 0.015
"""Seconds over the baseline that are never called an overload: on a busy machine the scheduler alone delays
answers that take a fraction of a millisecond by that much."""
WAITING = 1.0
"""Seconds: an application whose fastest answers take longer waits for events (long polls) rather than works,
and is never limited."""
PATIENCE = 3
"""Slow intervals in a row that make an overload; fewer are a machine that is busy for a moment."""
ALERT_SECONDS = 30.0
"""After an overload the next slow interval counts at once, so that the limit does not swing."""
STEEPEST = 0.5
"""The limit at most halves in one update."""

GRPC_RESOURCE_EXHAUSTED = 8
_HEALTH_PATH = b"/grpc.health.v1.Health/"
_PROBE = b"kube-probe/"


class ConcurrencyLimit:
    """The arithmetic, without clocks: `acquire` and `release` are told the time.

    With `n` in flight an application of fixed concurrency answers after `baseline * max(1, n / capacity)`.
    The limit moves towards `limit * tolerance * baseline / latency` plus some head room, so it settles a
    little above the application's capacity.
    """

    __slots__ = (
        "_alert_until",
        "_baseline",
        "_config",
        "_count",
        "_fastest",
        "_interval_end",
        "_intervals",
        "_most_in_flight",
        "_slow",
        "in_flight",
        "limit",
        "refused",
    )

    def __init__(self, config: AdaptiveConcurrency) -> None:
        self._config = config
        self.limit = float(config.max_limit)
        self.in_flight = 0
        self.refused = 0
        self._fastest = inf
        self._count = 0
        self._slow = 0
        self._alert_until = 0.0
        self._most_in_flight = 0
        self._interval_end = 0.0
        self._intervals: deque[tuple[float, float]] = deque()
        """When each ended, and the latency of its fastest answer."""
        self._baseline = inf

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
        if latency is None:
            return
        if latency < self._fastest:
            self._fastest = latency
        self._count += 1
        if now >= self._interval_end and self._count >= self._config.min_samples:
            self._update(now, self._fastest)
            self._fastest = inf
            self._count = 0
            self._most_in_flight = self.in_flight
            self._interval_end = now + self._config.update_interval

    def _update(self, now: float, fastest: float) -> None:
        intervals = self._intervals
        intervals.append((now, fastest))
        while intervals[0][0] < now - BASELINE_SECONDS:
            intervals.popleft()
        lowest = sorted(latency for _, latency in intervals)
        self._baseline = lowest[int(len(lowest) * LOWEST_SHARE)]
        config = self._config
        used = self._most_in_flight
        good = max(config.tolerance * self._baseline, self._baseline + SLACK)
        gradient = min(1.0, good / fastest) if self._baseline <= WAITING else 1.0
        self._slow = self._slow + 1 if gradient < 1.0 else 0
        if gradient < 1.0:
            if self._slow < PATIENCE and now >= self._alert_until:
                return
            self._alert_until = now + ALERT_SECONDS
            # From what was really in flight: a limit far above it would take many steps to matter.
            wanted = min(self.limit, float(used)) * max(STEEPEST, gradient) + sqrt(used) / 4
            self.limit = min(self.limit, wanted)
        else:
            # Reached or not: in an overload one update brings it down to what is in flight.
            self.limit += max(1.0, sqrt(self.limit) / 2)
        self.limit = min(max(self.limit, float(config.min_limit)), float(config.max_limit))

    def __repr__(self) -> str:
        return (
            f"<ConcurrencyLimit {self.in_flight}/{self.limit:.0f} baseline={self._baseline * 1000:.1f} ms "
            f"refused={self.refused}>"
        )


class AdaptiveConcurrencyFilter:
    """The filter; one for each listener, so for each port of the application."""

    def __init__(self, config: AdaptiveConcurrency) -> None:
        self.limit = ConcurrencyLimit(config)

    def on_request(self, exchange: Exchange) -> LocalReply | None:
        if is_health_check(exchange) or self.limit.acquire():
            return None
        limit = self.limit
        return LocalReply(
            503,
            "UO",
            f"the application is overloaded: {limit.in_flight} requests are in flight, as many as it "
            "answers in good time (adaptive concurrency); try again later",
            GRPC_RESOURCE_EXHAUSTED,
            ((b"retry-after", b"1"),),
        )

    def on_response(self, exchange: Exchange) -> None:
        if not is_health_check(exchange):
            attempt = exchange.router.attempt
            ok = attempt is not None and attempt.status < 500
            self.limit.release(
                exchange.context.now(), attempt.latency if attempt is not None and ok else None
            )

    def __repr__(self) -> str:
        return f"<AdaptiveConcurrencyFilter {self.limit!r}>"


def is_health_check(exchange: Exchange) -> bool:
    """The kubelet's probes and gRPC's health service."""
    head = exchange.head
    if head.path.startswith(_HEALTH_PATH):
        return True
    agent = head.get(b"user-agent")
    return agent is not None and agent.startswith(_PROBE)
