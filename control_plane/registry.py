"""The mesh as it is now, indexed by service, and what each replacement of it changed.

Sources call `replace`; the pipeline reads `index` and subscribes to changes. A registry holds one
immutable index at a time, so that a reader never sees half a change. Nothing here knows protobuf or xDS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from control_plane.model.mesh import Mesh
from control_plane.model.policy import TrafficPolicy, TrafficSettings, settings_of
from control_plane.model.route import Route
from control_plane.model.service import EndpointSlice, Service, ServiceKey, ServicePort, WorkloadPort
from control_plane.model.workload_index import index_workloads, with_opaque_ports


class PodName(NamedTuple):
    """A replica's own name under that of its headless Service."""

    service: ServiceKey
    label: str


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A Service with all that is attached to it."""

    service: Service
    """A port that its workloads call opaque is opaque here too."""
    slices: tuple[EndpointSlice, ...] = ()
    """Sorted by name."""
    routes: tuple[Route, ...] = ()
    """Those that name it as a parent, oldest first; of every namespace."""
    policies: tuple[TrafficPolicy, ...] = ()
    """Those that name it as a target, oldest first."""

    def settings(self, port: ServicePort) -> TrafficSettings:
        """How callers reach one of its ports."""
        return settings_of(self.policies, self.service.key, port.name)

    @property
    def hinted(self) -> bool:
        """Whether some replicas are meant for some zones."""
        return any(endpoint.hints for item in self.slices for endpoint in item.endpoints)

    @property
    def accounts(self) -> frozenset[tuple[str, str]]:
        """Accounts that its replicas run as behind each port, by the port's name; the empty one where some
        have no sidecar."""
        return frozenset(
            (port.name, item.service_account if item.takes_mtls(port.port) else "")
            for item in self.slices
            for port in item.ports
        )


@dataclass(frozen=True, slots=True)
class MeshIndex:
    """One state of the mesh. Immutable: equal parts of two states are equal values."""

    views: Mapping[ServiceKey, ServiceView] = field(default_factory=dict)
    external: tuple[ServiceKey, ...] = ()
    """Services that are another name for a host."""
    cluster_ips: Mapping[str, ServiceKey] = field(default_factory=dict)
    workloads: Mapping[str, tuple[WorkloadPort, ...]] = field(default_factory=dict)
    """By address: the application ports of workloads, in ascending order."""
    siblings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By address: all addresses of a workload that has several."""
    pod_names: Mapping[PodName, Mapping[int, tuple[str, int]]] = field(default_factory=dict)
    """What a port means under a replica's own name, as address and application port: a port of the
    application, or else one of the Service."""
    zones: Mapping[str, str] = field(default_factory=dict)
    """By address: where the workload with a sidecar runs, if that is known."""

    @classmethod
    def of(cls, mesh: Mesh) -> MeshIndex:
        slices: defaultdict[ServiceKey, list[EndpointSlice]] = defaultdict(list)
        for item in sorted(mesh.slices, key=lambda item: item.name):
            slices[item.service_key].append(item)
        routes: defaultdict[ServiceKey, list[Route]] = defaultdict(list)
        for route in sorted(mesh.routes, key=lambda route: route.age_rank):
            for key in {parent.service for parent in route.parents}:
                routes[key].append(route)
        policies: defaultdict[ServiceKey, list[TrafficPolicy]] = defaultdict(list)
        for policy in sorted(mesh.policies, key=lambda policy: policy.age_rank):
            for name in {target.name for target in policy.targets}:
                policies[ServiceKey(policy.namespace, name)].append(policy)
        services = {
            key: with_opaque_ports(service, slices.get(key, ()))
            for key, service in sorted(mesh.services.items())
        }
        workloads = index_workloads(mesh, services)
        return cls(
            views={
                key: ServiceView(
                    service,
                    tuple(slices.get(key, ())),
                    tuple(routes.get(key, ())),
                    tuple(policies.get(key, ())),
                )
                for key, service in services.items()
            },
            external=tuple(key for key, service in services.items() if service.external_name),
            cluster_ips={
                address: key for key, service in services.items() for address in service.cluster_ips
            },
            workloads=workloads,
            siblings={
                address: workload.addresses
                for workload in mesh.workloads
                if len(workload.addresses) > 1
                for address in workload.addresses
            },
            pod_names=_pod_names(services, slices, workloads),
            zones=_zones(mesh),
        )

    def workload_port(self, address: str, port: int) -> WorkloadPort | None:
        return next((found for found in self.workloads.get(address, ()) if found.port == port), None)

    def own_ports(self, address: str) -> Iterable[WorkloadPort]:
        """Application ports of the workload at `address`, at all its addresses."""
        for own in self.siblings.get(address, (address,)):
            yield from self.workloads.get(own, ())


def _pod_names(
    services: Mapping[ServiceKey, Service],
    slices: Mapping[ServiceKey, Iterable[EndpointSlice]],
    workloads: Mapping[str, tuple[WorkloadPort, ...]],
) -> dict[PodName, dict[int, tuple[str, int]]]:
    found: dict[PodName, dict[int, tuple[str, int]]] = {}
    for key, service in services.items():
        for item in slices.get(key, ()) if service.headless else ():
            targets = {
                port.port: target.port
                for port in service.ports
                if (target := item.port(port.name)) is not None
            }
            for endpoint in item.endpoints:
                if endpoint.dns_label:
                    targets |= {port.port: port.port for port in workloads.get(endpoint.address, ())}
                    found[PodName(key, endpoint.dns_label)] = {
                        asked: (endpoint.address, port) for asked, port in targets.items()
                    }
    return found


def _zones(mesh: Mesh) -> dict[str, str]:
    zones = {
        address: workload.zone
        for workload in mesh.workloads
        if workload.zone
        for address in workload.addresses
    }
    for item in mesh.slices:
        if item.service_account:
            zones.update((endpoint.address, endpoint.zone) for endpoint in item.endpoints if endpoint.zone)
    return zones


@dataclass(frozen=True, slots=True)
class MeshChange:
    """From one index to the next: for each aspect the services that differ in it, made and removed ones
    among them."""

    before: MeshIndex
    after: MeshIndex
    services: frozenset[ServiceKey] = frozenset()
    """Definitions: ports, cluster IPs."""
    routes: frozenset[ServiceKey] = frozenset()
    endpoints: frozenset[ServiceKey] = frozenset()
    accounts: frozenset[ServiceKey] = frozenset()
    """The set of accounts behind the service, which decides whom callers trust."""
    policies: frozenset[ServiceKey] = frozenset()
    workloads: frozenset[str] = frozenset()
    """Addresses whose own ports changed."""
    pod_names: frozenset[PodName] = frozenset()

    def __bool__(self) -> bool:
        return bool(
            self.services
            or self.routes
            or self.endpoints
            or self.accounts
            or self.policies
            or self.workloads
            or self.pod_names
        )


Key = TypeVar("Key", ServiceKey, str, PodName)


def _differing(
    keys: Iterable[Key], before: Callable[[Key], object], after: Callable[[Key], object]
) -> frozenset[Key]:
    return frozenset(key for key in keys if before(key) != after(key))


def difference(before: MeshIndex, after: MeshIndex) -> MeshChange:
    """What a client of `before` must be told to have `after`."""

    def aspect(read: Callable[[ServiceView], object]) -> frozenset[ServiceKey]:
        def of(index: MeshIndex) -> Callable[[ServiceKey], object]:
            return lambda key: read(view) if (view := index.views.get(key)) else None

        return _differing(keys, of(before), of(after))

    # A replaced mesh shares no objects with the last one, but most services are equal: look once.
    keys = _differing({*before.views, *after.views}, before.views.get, after.views.get)
    return MeshChange(
        before,
        after,
        services=aspect(lambda view: view.service),
        routes=aspect(lambda view: view.routes),
        endpoints=aspect(lambda view: view.slices),
        accounts=aspect(lambda view: view.accounts),
        policies=aspect(lambda view: view.policies),
        workloads=_differing(
            {*before.workloads, *after.workloads}, before.workloads.get, after.workloads.get
        ),
        pod_names=_differing(
            {*before.pod_names, *after.pod_names}, before.pod_names.get, after.pod_names.get
        ),
    )


class Registry:
    """Holds the current index and tells subscribers of each change."""

    def __init__(self) -> None:
        self.index = MeshIndex()
        self.version = 0
        """Number of changes so far."""
        self._subscribers: list[Callable[[MeshChange], None]] = []

    def __repr__(self) -> str:
        services, workloads = len(self.index.views), len(self.index.workloads)
        return f"Registry(version={self.version}, services={services}, workloads={workloads})"

    def subscribe(self, callback: Callable[[MeshChange], None]) -> None:
        """`callback` is called after each change, when `index` is the new one already."""
        self._subscribers.append(callback)

    def replace(self, mesh: Mesh) -> MeshChange:
        """Makes `mesh` the current one. An equal mesh is no change and tells nobody."""
        change = difference(self.index, MeshIndex.of(mesh))
        if change:
            self.index = change.after
            self.version += 1
            for callback in self._subscribers:
                callback(change)
        return change
