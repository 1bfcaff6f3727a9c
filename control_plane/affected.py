"""Which xDS resources a change of the mesh touches, by name.

Called by the pipeline. It may name too much, never too little: a name that is missing here is a client
that keeps what is no longer true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from control_plane.destinations import follow_names
from control_plane.model.service import ServiceKey
from control_plane.registry import MeshChange, MeshIndex
from control_plane.translate.names import (
    CLUSTER,
    LISTENER,
    LOAD_ASSIGNMENT,
    ROUTE_CONFIGURATION,
    Target,
    address_name,
    canonical,
    inbound_cluster_name,
    listener_names,
    pod_listener_names,
)
from mesh_api.names import inbound_listener_name

_TYPES = (LISTENER, ROUTE_CONFIGURATION, CLUSTER, LOAD_ASSIGNMENT)


def touched(change: MeshChange, domain: str) -> Mapping[str, frozenset[str]]:
    """Names of the resources that the change may have made, changed or removed, by type URL; `domain` is
    the cluster's."""
    names: dict[str, set[str]] = {type_url: set() for type_url in _TYPES}
    for index in (change.before, change.after):
        _add_definitions(names, change, index, domain)
        names[ROUTE_CONFIGURATION] |= _canonical_names(index, change.routes, domain)
        names[CLUSTER] |= _canonical_names(index, change.accounts | change.policies, domain)
        names[LOAD_ASSIGNMENT] |= _canonical_names(index, change.endpoints, domain)
    return {type_url: frozenset(found) for type_url, found in names.items() if found}


def vanished(change: MeshChange, domain: str) -> Mapping[str, frozenset[str]]:
    """Names of the resources that existed before the change and do not after it."""
    gone: dict[str, set[str]] = {type_url: set() for type_url in _TYPES}
    still: dict[str, set[str]] = {type_url: set() for type_url in _TYPES}
    _add_definitions(gone, change, change.before, domain)
    _add_definitions(still, change, change.after, domain)
    return {type_url: frozenset(gone[type_url] - still[type_url]) for type_url in _TYPES}


def _add_definitions(
    names: Mapping[str, set[str]], change: MeshChange, index: MeshIndex, domain: str
) -> None:
    """Adds what exists in `index` because of the services and workloads that changed."""
    ports = _canonical_names(index, change.services, domain)
    for type_url in (ROUTE_CONFIGURATION, CLUSTER, LOAD_ASSIGNMENT):
        names[type_url].update(ports)
    for key in change.services:
        if (view := index.views.get(key)) is not None:
            for port in view.service.ports:
                names[LISTENER].update(listener_names(view.service, port.port, domain))
    for key in index.external if change.services else ():
        met, view = follow_names(index, key, domain)
        if view is not None and not change.services.isdisjoint(met):
            for port in view.service.ports:
                names[LISTENER].update(listener_names(index.views[key].service, port.port, domain))
    for address in change.workloads:
        for workload in index.workloads.get(address, ()):
            for type_url in _TYPES:
                names[type_url].add(address_name(address, workload.port))
            if workload.takes_mtls:
                names[LISTENER].add(inbound_listener_name(address, workload.port))
                names[CLUSTER].add(inbound_cluster_name(address, workload.port))
    for pod in change.pod_names:
        for number in index.pod_names.get(pod, ()):
            names[LISTENER].update(pod_listener_names(pod.service, pod.label, number, domain))


def _canonical_names(index: MeshIndex, keys: Iterable[ServiceKey], domain: str) -> set[str]:
    return {
        canonical(Target(key, port.port), domain)
        for key in keys
        if (view := index.views.get(key)) is not None
        for port in view.service.ports
    }
