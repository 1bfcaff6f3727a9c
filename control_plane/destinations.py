"""What the name of a resource means to a client: a port of a Service, or one port of one workload.

Used by the pipeline to answer, and by `affected` to find who must be told of a change. Names that mean
nothing here are outside the mesh, and a sidecar passes such calls through.
"""

from __future__ import annotations

from control_plane.model.service import ServiceKey, WorkloadPort
from control_plane.registry import MeshIndex, PodName, ServiceView
from control_plane.translate.names import (
    Target,
    address_of,
    parse_authority,
    parse_canonical,
    parse_pod_authority,
)


def by_listener_name(
    index: MeshIndex, name: str, namespace: str, domain: str
) -> Target | WorkloadPort | None:
    """What `host:port` means to a caller in `namespace`, as the resolver of a Pod would take it."""
    pod = parse_pod_authority(name, namespace, domain)
    # `a.b` is replica a of the caller's own b if there is such a one, before it is a in namespace b.
    if pod is not None and (ports := index.pod_names.get(PodName(pod.service, pod.label))) is not None:
        meant = ports.get(pod.port)
        return index.workload_port(*meant) if meant is not None else None
    target = parse_authority(name, namespace, domain)
    if target is None or target.service not in index.views:
        address = address_of(name)
        if address is None:
            return None
        key = index.cluster_ips.get(address[0])
        if key is None:
            return index.workload_port(*address)
        target = Target(key, address[1])
    return _existing(index, target, domain)


def by_canonical_name(index: MeshIndex, name: str, domain: str) -> Target | WorkloadPort | None:
    """Of a resource that a Listener or a route has led to."""
    target = parse_canonical(name, domain)
    if target is not None:
        return _existing(index, target, domain)
    address = address_of(name)
    return index.workload_port(*address) if address is not None else None


def _existing(index: MeshIndex, target: Target, domain: str) -> Target | None:
    _, view = follow_names(index, target.service, domain)
    if view is None or view.service.port(target.port) is None:
        return None
    return Target(view.service.key, target.port)


def follow_names(
    index: MeshIndex, key: ServiceKey, domain: str
) -> tuple[tuple[ServiceKey, ...], ServiceView | None]:
    """The Service, or the one that this ExternalName is another name for, and all that was met on the way.
    None: it does not exist, or the name leads out of the mesh."""
    met: list[ServiceKey] = []
    while key not in met and (view := index.views.get(key)) is not None:
        met.append(key)
        if not view.service.external_name:
            return tuple(met), view
        target = parse_canonical(f"{view.service.external_name}:1", domain)
        if target is None:
            break
        key = target.service
    return (*met, key), None
