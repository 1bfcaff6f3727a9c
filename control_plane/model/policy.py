"""TrafficPolicy: how callers balance and limit calls to a Service, for what Gateway API has no field.

Attached to Services of its own namespace (GEP-713, direct attachment). Nothing here may know YAML or
protobuf. Times are seconds as float. Policies are never merged: one alone holds for a port, and what it
leaves out is the mesh's default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from control_plane.model.service import ServiceKey


class LoadBalancer(Enum):
    PEAK_EWMA = "PeakEwma"
    """Of two replicas at random the one whose latency, with the requests in flight, is lower."""
    LEAST_REQUEST = "LeastRequest"
    """Of two replicas at random the one with fewer requests in flight."""
    ROUND_ROBIN = "RoundRobin"


@dataclass(frozen=True, slots=True)
class Connections:
    """Limits that each caller's sidecar keeps by itself; None: no limit. There are none by default: a cap
    that nobody chose would fail healthy traffic."""

    connect_timeout: float = 1.0
    max_connections: int | None = None
    max_pending_requests: int | None = None
    """That wait for a connection."""
    max_requests: int | None = None
    """In flight."""


@dataclass(frozen=True, slots=True)
class OutlierDetection:
    """By default a replica that fails five times in a row rests for a second, longer each time; never more
    than half of them at once."""

    consecutive_failures: int = 5
    base_ejection_time: float = 1.0
    max_ejection_time: float = 60.0
    max_ejection_percent: int = 50


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Retries may be this share of requests, and at least so many a second. Retries are always limited."""

    percent: int = 20
    min_retries_per_second: int = 10


@dataclass(frozen=True, slots=True)
class TrafficSettings:
    """How a port of a Service is reached; without arguments what the mesh does by default."""

    load_balancer: LoadBalancer = LoadBalancer.PEAK_EWMA
    connections: Connections = Connections()
    outlier_detection: OutlierDetection | None = OutlierDetection()
    """None: no replica is ever ejected."""
    retry_budget: RetryBudget = RetryBudget()


DEFAULT_SETTINGS = TrafficSettings()


@dataclass(frozen=True, slots=True)
class PolicyTarget:
    """A Service of the policy's namespace, or one port of it."""

    name: str
    section_name: str = ""
    """Name of a port; empty: every port."""
    path: tuple[str | int, ...] = field(default=(), compare=False)
    """Where it stands in its object, for messages."""


@dataclass(frozen=True, slots=True)
class TrafficPolicy:
    namespace: str
    name: str
    targets: tuple[PolicyTarget, ...]
    settings: TrafficSettings = DEFAULT_SETTINGS
    created: str = ""
    """RFC 3339 time in UTC; empty where a file says none, which ranks as newest."""

    def __str__(self) -> str:
        return f"TrafficPolicy {self.namespace}/{self.name}"

    @property
    def age_rank(self) -> tuple[bool, str, str, str]:
        """Sorts oldest first, then by namespace and name, as Gateway API breaks ties."""
        return (not self.created, self.created, self.namespace, self.name)

    def names(self, service: ServiceKey, section_name: str) -> bool:
        """Whether it is attached to the port of that name, or, if that is empty, to the whole Service."""
        return self.namespace == service.namespace and any(
            (target.name, target.section_name) == (service.name, section_name) for target in self.targets
        )


def settings_of(policies: Iterable[TrafficPolicy], service: ServiceKey, port_name: str) -> TrafficSettings:
    """Of a port. A policy for the port counts before one for the whole Service, and of several the oldest;
    `policies` are sorted by age."""
    listed = tuple(policies)
    for section_name in dict.fromkeys((port_name, "")):
        for policy in listed:
            if policy.names(service, section_name):
                return policy.settings
    return DEFAULT_SETTINGS
