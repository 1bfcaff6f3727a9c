"""Change → translate → publish: answers every xDS client from the registry's current index.

Implements `control_plane.xds.snapshot_cache.ResourceSource`. A resource is translated when somebody first
asks for it, kept encoded, and translated again only when a change touched it. A resource that cannot be
translated is a problem on the list and its last good version stays in use; nobody else notices.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import Message

from control_plane.affected import touched, vanished
from control_plane.destinations import by_canonical_name, by_listener_name
from control_plane.model.discovery import Change, Dialect, NodeInfo, Resource
from control_plane.model.mesh import MeshSettings
from control_plane.model.problem import Problem, Severity
from control_plane.model.route import Route
from control_plane.model.service import ServicePort, WorkloadPort
from control_plane.registry import MeshChange, Registry, ServiceView
from control_plane.translate.clusters import inbound_cluster, service_cluster
from control_plane.translate.endpoints import load_assignment
from control_plane.translate.listeners import api_listener, inbound_listener
from control_plane.translate.names import (
    CLUSTER,
    LISTENER,
    LOAD_ASSIGNMENT,
    ROUTE_CONFIGURATION,
    Target,
    address_name,
    canonical,
    inbound_cluster_name,
)
from control_plane.translate.routes import route_configuration
from control_plane.translate.workloads import workload_assignment, workload_cluster, workload_routes
from mesh_api.names import inbound_listener_name

_log = logging.getLogger(__name__)

_SERVED = (Dialect.PILOTFISH, Dialect.GRPC)
"""An Envoy needs socket listeners and secrets, which nothing here makes; it gets no resources."""


@dataclass(slots=True)
class _Entry:
    """The encoded forms of one resource name, by what else they depend on (dialect, audience)."""

    variants: dict[object, Resource] = field(default_factory=dict)
    stale: set[object] = field(default_factory=set)
    """Variants that a change touched since they were made."""


class Pipeline:
    """One for the whole control plane, on its event loop."""

    def __init__(self, registry: Registry, settings: MeshSettings) -> None:
        self.settings = settings
        self.translations = 0
        """How many resources were translated so far."""
        self._registry = registry
        self._cache: dict[tuple[str, str], _Entry] = {}
        self._failed: dict[tuple[str, str], Problem] = {}
        self._subscribers: list[Callable[[Change], None]] = []
        registry.subscribe(self._on_change)

    def __repr__(self) -> str:
        cached, failed = len(self._cache), len(self._failed)
        return f"Pipeline(cached={cached}, translations={self.translations}, failed={failed})"

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Resources that could not be translated in the configuration that is in force."""
        return tuple(self._failed.values())

    def subscribe(self, callback: Callable[[Change], None]) -> None:
        self._subscribers.append(callback)

    def resources(
        self, node: NodeInfo, type_url: str, names: frozenset[str] | None
    ) -> Mapping[str, Resource]:
        """Those of `names` that exist for `node`; None: its own inbound listeners and clusters."""
        if node.dialect not in _SERVED:
            return {}
        inbound = self._inbound_names(node, type_url)
        found: dict[str, Resource] = {}
        for name in inbound if names is None else names:
            if workload := inbound.get(name):
                resource = self._inbound(type_url, name, workload)
            elif (destination := self._destination(node, type_url, name)) is None:
                continue
            elif isinstance(destination, Target):
                resource = self._outbound(node, type_url, name, destination)
            else:
                resource = self._direct(node, type_url, name, destination)
            if resource is not None:
                found[name] = resource
        return found

    # --- who may have what ---

    def _inbound_names(self, node: NodeInfo, type_url: str) -> dict[str, WorkloadPort]:
        """A sidecar's own ports: of its addresses, and of the account that it proved."""
        if node.dialect is not Dialect.PILOTFISH or type_url not in (LISTENER, CLUSTER):
            return {}
        name_of = inbound_listener_name if type_url == LISTENER else inbound_cluster_name
        return {
            name_of(port.address, port.port): port
            for port in self._registry.index.own_ports(node.address)
            if port.takes_mtls
            and (port.namespace, port.service_account) == (node.namespace, node.service_account)
        }

    def _destination(self, node: NodeInfo, type_url: str, name: str) -> Target | WorkloadPort | None:
        """What a resource name means to `node`, if it means anything."""
        index, domain = self._registry.index, self.settings.cluster_domain
        if type_url == LISTENER:
            return by_listener_name(index, name, node.namespace, domain)
        if type_url in (ROUTE_CONFIGURATION, CLUSTER, LOAD_ASSIGNMENT):
            return by_canonical_name(index, name, domain)
        return None

    # --- making and keeping them ---

    def _inbound(self, type_url: str, name: str, workload: WorkloadPort) -> Resource | None:
        make: Callable[[], Message] = lambda: inbound_cluster(workload)  # noqa: E731
        if type_url == LISTENER:
            make = lambda: inbound_listener(workload, self.settings)  # noqa: E731
        return self._kept(type_url, name, workload, make)

    def _outbound(self, node: NodeInfo, type_url: str, name: str, target: Target) -> Resource | None:
        view = self._registry.index.views[target.service]
        port = view.service.port(target.port)
        if port is None:
            raise LookupError(f"{target} was looked up and is not in the index")
        dialect, settings = node.dialect, self.settings
        variant: tuple[object, ...] = (dialect,)
        make: Callable[[], Message]
        if type_url == LISTENER:
            return self._by_name(node, name, canonical(target, settings.cluster_domain))
        if type_url == ROUTE_CONFIGURATION:
            audience, attached = _routes_for(view, port, node.namespace)
            variant = (dialect, audience)
            make = lambda: route_configuration(name, port, attached, dialect, settings.cluster_domain)  # noqa: E731
        elif type_url == CLUSTER:
            domain, chosen = settings.trust_domain, view.settings(port)
            make = lambda: service_cluster(  # noqa: E731
                name, view.service, port, view.slices, dialect, domain, chosen
            )
        else:
            zone = self._registry.index.zones.get(node.address, "") if view.hinted else ""
            variant = (dialect, zone)
            make = lambda: load_assignment(name, port, view.slices, dialect, zone)  # noqa: E731
        return self._kept(type_url, name, variant, make)

    def _direct(self, node: NodeInfo, type_url: str, name: str, workload: WorkloadPort) -> Resource | None:
        """One workload as a destination."""
        dialect, settings = node.dialect, self.settings
        make: Callable[[], Message]
        if type_url == LISTENER:
            return self._by_name(node, name, address_name(workload.address, workload.port))
        if type_url == ROUTE_CONFIGURATION:
            make = lambda: workload_routes(name, workload, dialect, settings.cluster_domain)  # noqa: E731
        elif type_url == CLUSTER:
            make = lambda: workload_cluster(name, workload, dialect, settings.trust_domain)  # noqa: E731
        else:
            make = lambda: workload_assignment(name, workload, dialect)  # noqa: E731
        return self._kept(type_url, name, (dialect, "direct"), make)

    def _by_name(self, node: NodeInfo, name: str, routes: str) -> Resource | None:
        """The Listener of a destination, which says where its routes are."""
        dialect, settings = node.dialect, self.settings
        account = node.service_account if settings.tracing is not None else ""
        variant = (dialect, routes, account)
        return self._kept(
            LISTENER, name, variant, lambda: api_listener(name, routes, dialect, settings, account)
        )

    def _kept(
        self, type_url: str, name: str, variant: object, make: Callable[[], Message]
    ) -> Resource | None:
        """From the cache, or made now. None: it never could be made."""
        entry = self._cache.setdefault((type_url, name), _Entry())
        kept = entry.variants.get(variant)
        if kept is not None and variant not in entry.stale:
            return kept
        try:
            body = make().SerializeToString(deterministic=True)
        except Exception as error:  # one resource's fault must not take the others down
            self._fail(type_url, name, error)
            entry.stale.discard(variant)
            return kept
        self.translations += 1
        entry.stale.discard(variant)
        resource = Resource(hashlib.sha256(body).hexdigest()[:20], body)
        entry.variants[variant] = resource
        return resource

    def _fail(self, type_url: str, name: str, error: Exception) -> None:
        kind = type_url.rpartition(".")[2]
        cause = f"{type(error).__name__}: {error}"
        message = f"cannot be translated to xDS ({cause}); its last good version stays in use"
        if (type_url, name) not in self._failed:
            _log.error("%s %s %s", kind, name, message, exc_info=error)
        self._failed[type_url, name] = Problem(Severity.ERROR, message, object=f"{kind} {name}")

    # --- changes ---

    def _on_change(self, change: MeshChange) -> None:
        domain = self.settings.cluster_domain
        names = touched(change, domain)
        for type_url, listed in names.items():
            for name in listed:
                self._failed.pop((type_url, name), None)
                entry = self._cache.get((type_url, name))
                if entry is not None:
                    entry.stale.update(entry.variants)
        # What no longer exists will not be asked for again.
        for type_url, listed in vanished(change, domain).items():
            for name in listed:
                self._cache.pop((type_url, name), None)
        for callback in self._subscribers:
            callback(Change(names=names))


def _routes_for(view: ServiceView, port: ServicePort, namespace: str) -> tuple[str, tuple[Route, ...]]:
    """Routes for calls out of `namespace`, and whose they are: its own (consumer routes, GEP-1294) where
    it has some for this port, else those of the service's namespace."""
    attached = [
        route
        for route in view.routes
        if any(ref.service == view.service.key and ref.covers(port.port, port.name) for ref in route.parents)
    ]
    own = tuple(route for route in attached if route.namespace == namespace)
    if own:
        return namespace, own
    producer = view.service.namespace
    return producer, tuple(route for route in attached if route.namespace == producer)
