"""The whole mesh as one immutable value, and the operator's settings for all of it.

A source makes a `Mesh` from everything it reads; the registry replaces the last one with it. Nothing
here may know where configuration comes from or how it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from control_plane.model.policy import TrafficPolicy
from control_plane.model.route import Route
from control_plane.model.service import EndpointSlice, Service, ServiceKey, Workload
from mesh_api.names import CLUSTER_DOMAIN, DEFAULT_TRUST_DOMAIN


@dataclass(frozen=True, slots=True)
class ReferenceGrant:
    """Allows routes of `from_kind` in `from_namespace` to name Services in `namespace` as backends."""

    namespace: str
    from_kind: str
    from_namespace: str
    service: str = ""
    """Empty: any Service of the namespace."""

    def allows(self, kind: str, namespace: str, service: ServiceKey) -> bool:
        return (self.namespace, self.from_kind, self.from_namespace) == (
            service.namespace,
            kind,
            namespace,
        ) and (self.service in ("", service.name))


@dataclass(frozen=True, slots=True)
class Mesh:
    services: Mapping[ServiceKey, Service] = field(default_factory=lambda: MappingProxyType({}))
    slices: tuple[EndpointSlice, ...] = ()
    workloads: tuple[Workload, ...] = ()
    """Where Pods are known: those with a sidecar, behind a Service or not."""
    routes: tuple[Route, ...] = ()
    grants: tuple[ReferenceGrant, ...] = ()
    policies: tuple[TrafficPolicy, ...] = ()
    service_accounts: frozenset[tuple[str, str]] = frozenset()
    """Namespace and name. Every namespace has `default`, listed or not."""


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Where sidecars send spans. `cluster` is a static cluster of each sidecar's bootstrap."""

    sampling: float = 100.0
    """Share of new traces that are recorded, in percent."""
    cluster: str = ""
    """Empty: trace context is passed on and nothing is exported."""
    uri: str = "http://otlp/v1/traces"
    timeout: float = 10.0
    """Of one export, in seconds."""


@dataclass(frozen=True, slots=True)
class MeshSettings:
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    cluster_domain: str = CLUSTER_DOMAIN
    tracing: TracingSettings | None = None
    access_log: bool = True
    overload_protection: bool = True
