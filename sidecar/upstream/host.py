"""What load balancing and outlier detection know of one endpoint: plain state, no connections.

`Endpoint` extends it; the balancers and the detector read and write these attributes and nothing else, so
they are tested without sockets or clocks. Nothing here may do I/O.
"""

from __future__ import annotations

from enum import IntEnum

from sidecar.config.resources import Health


class Ejection(IntEnum):
    """IN is falsy: in use. PROBING: the ejection time is over and one request at a time finds out."""

    IN = 0
    EJECTED = 1
    PROBING = 2


class Rank(IntEnum):
    """How willingly an endpoint is used; a worse rank only when no better one is left."""

    USABLE = 0
    DRAINING = 1
    EJECTED = 2
    UNHEALTHY = 3


class Host:
    """`weight` is at least 1. Times are seconds of the loop's clock, latencies seconds."""

    __slots__ = (
        "__weakref__",
        "active",
        "consecutive_failures",
        "ejected_at",
        "ejected_until",
        "ejection",
        "ejections",
        "healthy_since",
        "latency_at",
        "latency_ewma",
        "next_probe",
        "notable",
        "priority",
        "share",
        "weight",
    )

    def __init__(self, weight: int = 1, priority: int = 0) -> None:
        self.weight = weight
        self.priority = priority
        self.share = 1.0
        """Mean weight of the balanced group over this one's: scales load so that weights compare."""
        self.active = 0
        self.latency_ewma = 0.0
        """Peak EWMA at `latency_at`; 0.0: never measured."""
        self.latency_at = 0.0
        self.consecutive_failures = 0
        self.ejection = Ejection.IN
        self.ejections = 0
        """How often it was ejected of late; decays while it does well."""
        self.ejected_at = 0.0
        self.ejected_until = 0.0
        self.healthy_since = 0.0
        self.next_probe = 0.0
        self.notable = False
        """A success would change something for outlier detection (spares the call when not)."""

    @property
    def health(self) -> Health:
        """What discovery says of it."""
        return Health.HEALTHY

    @property
    def rank(self) -> Rank:
        health = self.health
        if health is Health.UNHEALTHY:
            return Rank.UNHEALTHY
        if self.ejection:
            return Rank.EJECTED
        return Rank.DRAINING if health is Health.DRAINING else Rank.USABLE

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.rank.name} active={self.active} weight={self.weight}>"
