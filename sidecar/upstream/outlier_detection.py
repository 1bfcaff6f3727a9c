"""Outlier detection: an endpoint that fails several times in a row takes no requests for a while.

Called by `cluster.py` with each outcome; it rebuilds its balancer when a method answers True and sets a
timer for `next_return`. Sans-IO: time is an argument, in seconds of one monotonic clock.

IN → (enough consecutive failures, and the limits allow it) → EJECTED → (time is over) → PROBING →
(one success) → IN, or (one failure) → EJECTED for twice as long. A probing endpoint gets one request at a
time, so that finding out costs one request and not a share of all traffic. When one fails that must stay
because too many are out already, those are probed before their time.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from sidecar.config.resources import OutlierDetection
from sidecar.upstream.host import Ejection, Host

PROBE_INTERVAL = 1.0
"""Seconds after which another probe is sent though the last has no answer yet (it may be a long stream)."""

EARLY_PROBE_INTERVAL = 0.1
"""Seconds that an ejected endpoint rests at least, however badly the others do."""


class OutlierDetector:
    """Ejections of one cluster. `consecutive_5xx` 0 switches it off."""

    def __init__(self, config: OutlierDetection) -> None:
        self._config = config
        self._hosts: frozenset[Host] = frozenset()
        self._out: set[Host] = set()

    def update(self, hosts: Iterable[Host]) -> None:
        """These are the cluster's endpoints now; those that stay keep their state. What is reported of
        others (their last requests still run) has no effect."""
        self._hosts = frozenset(hosts)
        self._out &= self._hosts

    @property
    def out(self) -> int:
        """How many endpoints are ejected or being probed."""
        return len(self._out)

    @property
    def next_return(self) -> float:
        """When the next ejection ends; infinity when there is none."""
        return min(
            (host.ejected_until for host in self._out if host.ejection is Ejection.EJECTED), default=inf
        )

    def record_failure(self, host: Host, now: float, usable: int) -> bool:
        """True when this ejects it. `usable`: how many endpoints are in use now, this one included."""
        if host not in self._hosts:
            return False
        host.consecutive_failures += 1
        host.notable = True
        if host.ejection is Ejection.PROBING:
            return self._eject(host, now)
        threshold = self._config.consecutive_5xx
        if host.ejection or not threshold or host.consecutive_failures < threshold:
            return False
        allowed = max(1, len(self._hosts) * self._config.max_ejection_percent // 100)
        if usable <= 1 or len(self._out) >= allowed:
            return False
        return self._eject(host, now)

    def probe_early(self, failing: Host, now: float) -> bool:
        """`failing` has failed and was not ejected. When that is because the limits forbid it, an ejected
        endpoint can only be better: True when there are some to be probed now."""
        threshold = self._config.consecutive_5xx
        if failing not in self._hosts or failing.ejection:
            return False
        if not threshold or failing.consecutive_failures < threshold:
            return False
        rested = [
            host
            for host in self._out
            if host.ejection is Ejection.EJECTED and now - host.ejected_at >= EARLY_PROBE_INTERVAL
        ]
        self._probe(rested, now)
        return bool(rested)

    def record_success(self, host: Host, now: float) -> bool:
        """True when this brings a probed endpoint back. Needed only while `host.notable`."""
        if host.ejection is Ejection.EJECTED or host not in self._hosts:
            return False
        host.consecutive_failures = 0
        if host.ejection is Ejection.PROBING:
            host.ejection = Ejection.IN
            host.healthy_since = now
            self._out.discard(host)
            return True
        if host.ejections and now - host.healthy_since >= self._config.base_ejection_time:
            host.ejections -= 1
            host.healthy_since = now
        host.notable = host.ejections > 0
        return False

    def release_due(self, now: float) -> bool:
        """Let those whose time is over be probed; True when there were any."""
        due = [host for host in self._out if host.ejection is Ejection.EJECTED and host.ejected_until <= now]
        self._probe(due, now)
        return bool(due)

    @staticmethod
    def _probe(hosts: Iterable[Host], now: float) -> None:
        for host in hosts:
            host.ejection = Ejection.PROBING
            host.next_probe = now

    def _eject(self, host: Host, now: float) -> bool:
        config = self._config
        host.ejected_at = now
        if host.ejection is Ejection.PROBING and now < host.ejected_until:
            host.ejection = Ejection.EJECTED  # probed early: its time goes on
            return True
        # A long history must not overflow the power; 2**32 is past any maximum.
        duration = config.base_ejection_time * 2.0 ** min(host.ejections, 32)
        host.ejection = Ejection.EJECTED
        host.ejected_until = now + min(duration, max(config.max_ejection_time, config.base_ejection_time))
        host.ejections += 1
        self._out.add(host)
        return True

    def __repr__(self) -> str:
        return f"<OutlierDetector out={len(self._out)} of {len(self._hosts)}>"
