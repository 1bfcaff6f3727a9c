"""The mesh as it is now, indexed by service, and what each replacement of it changed.

Sources call `replace`; the pipeline reads `index` and subscribes to changes. A registry holds one
immutable index at a time, so that a reader never sees half a change. Nothing here knows protobuf or xDS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from control_plane.model.mesh import Mesh
from control_plane.model.route import Route
from control_plane.model.service import EndpointSlice, Service, ServiceKey, WorkloadPort


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A Service with all that is attached to it."""

    service: Service
    slices: tuple[EndpointSlice, ...] = ()
    """Sorted by name."""
    routes: tuple[Route, ...] = ()
    """Those that name it as a parent, oldest first; of every namespace."""

    @property
    def hinted(self) -> bool:
        """Whether some replicas are meant for some zones."""
        return any(endpoint.hints for item in self.slices for endpoint in item.endpoints)

    @property
    def accounts(self) -> frozenset[str]:
        """Accounts that its replicas run as; the empty one when some are outside the mesh."""
        return frozenset(item.service_account for item in self.slices)


@dataclass(frozen=True, slots=True)
class MeshIndex:
    """One state of the mesh. Immutable: equal parts of two states are equal values."""

    views: Mapping[ServiceKey, ServiceView] = field(default_factory=dict)
    cluster_ips: Mapping[str, ServiceKey] = field(default_factory=dict)
    workloads: Mapping[str, tuple[WorkloadPort, ...]] = field(default_factory=dict)
    """By address: the application ports of workloads with a sidecar, in ascending order."""
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
        return cls(
            views={
                key: ServiceView(service, tuple(slices[key]), tuple(routes[key]))
                for key, service in sorted(mesh.services.items())
            },
            cluster_ips={
                address: key for key, service in mesh.services.items() for address in service.cluster_ips
            },
            workloads=_workloads(mesh),
            zones={
                endpoint.address: endpoint.zone
                for item in mesh.slices
                if item.service_account
                for endpoint in item.endpoints
                if endpoint.zone
            },
        )


def _workloads(mesh: Mesh) -> dict[str, tuple[WorkloadPort, ...]]:
    found: defaultdict[str, dict[int, WorkloadPort]] = defaultdict(dict)
    for item in sorted(mesh.slices, key=lambda item: (item.service_key, item.name)):
        if not item.service_account:
            continue
        service = mesh.services.get(item.service_key)
        declared = {port.name: port.protocol for port in service.ports} if service else {}
        for endpoint in item.endpoints:
            for port in item.ports:
                protocol = declared.get(port.name, port.protocol)
                workload = WorkloadPort(
                    endpoint.address, port.port, protocol, item.namespace, item.service_account
                )
                # Services that share a workload's port agree on its protocol or the first one decides.
                found[endpoint.address].setdefault(port.port, workload)
    return {address: tuple(ports[number] for number in sorted(ports)) for address, ports in found.items()}


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
    workloads: frozenset[str] = frozenset()
    """Addresses whose own ports changed."""

    def __bool__(self) -> bool:
        return bool(self.services or self.routes or self.endpoints or self.accounts or self.workloads)


Key = TypeVar("Key", ServiceKey, str)


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
        workloads=_differing(
            {*before.workloads, *after.workloads}, before.workloads.get, after.workloads.get
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
