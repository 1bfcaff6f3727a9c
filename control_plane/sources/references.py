"""What must hold between objects: references lead somewhere, routes do not contradict each other, ports fit.

Every source calls `check` on a whole Mesh before it may be published; policies are looked at in
`policy_admission`. Nothing here changes the mesh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from control_plane.model.mesh import Mesh
from control_plane.model.problem import Severity
from control_plane.model.route import BackendRef, ParentRef, Route, RouteKind, RouteMatch
from control_plane.model.service import AppProtocol, EndpointSlice, Service, ServiceKey
from control_plane.sources.fields import Path
from control_plane.sources.objects import ObjectRef
from mesh_api.names import SERVICE_ACCOUNT_ANNOTATION, inbound_port


@dataclass(frozen=True, slots=True)
class Finding:
    object: ObjectRef
    path: Path
    message: str
    severity: Severity = Severity.ERROR
    reason: str = ""
    """Gateway API's word for it, where a route's status has one."""


def check(mesh: Mesh) -> list[Finding]:
    """All findings, in a stable order; none of severity ERROR means that the mesh may serve."""
    return [
        *check_services(mesh),
        *(finding for route in mesh.routes for finding in check_route(mesh, route)),
        *check_conflicts(mesh),
    ]


def check_services(mesh: Mesh) -> list[Finding]:
    """Everything but routes."""
    return [
        *_cluster_ips(mesh),
        *(finding for item in mesh.slices for finding in _slice(mesh, item)),
        *_workload_settings(mesh),
        *_workload_ports(mesh),
    ]


def ports_text(service: Service) -> str:
    return (
        ", ".join(f"{port.port} ({port.name})" if port.name else str(port.port) for port in service.ports)
        or "none"
    )


def _cluster_ips(mesh: Mesh) -> Iterator[Finding]:
    owners: dict[str, ServiceKey] = {}
    for service in mesh.services.values():
        for address in service.cluster_ips:
            owner = owners.setdefault(address, service.key)
            if owner != service.key:
                ref = ObjectRef("Service", *service.key)
                yield Finding(
                    ref,
                    ("spec", "clusterIP"),
                    f"{address} is the cluster IP of Service {owner} too; change one",
                )


def _slice(mesh: Mesh, item: EndpointSlice) -> Iterator[Finding]:
    ref = ObjectRef("EndpointSlice", item.namespace, item.name)
    account = item.service_account
    if account not in ("", "default") and (item.namespace, account) not in mesh.service_accounts:
        path: Path = ("metadata", "annotations", SERVICE_ACCOUNT_ANNOTATION)
        message = (
            f"ServiceAccount {item.namespace}/{account} does not exist; add it or correct the annotation"
        )
        yield Finding(ref, path, message)
    service = mesh.services.get(item.service_key)
    if service is None:
        path = ("metadata", "labels", "kubernetes.io/service-name")
        message = f"Service {item.service_key} does not exist; these endpoints get no traffic"
        yield Finding(ref, path, message, Severity.WARNING)
        return
    names = {port.name for port in service.ports}
    for index, port in enumerate(item.ports):
        if port.name not in names:
            message = (
                f"no port of Service {service.key} is named {port.name!r} (it has {ports_text(service)})"
            )
            yield Finding(
                ref, ("ports", index, "name"), message + "; the port gets no traffic", Severity.WARNING
            )


def _workload_settings(mesh: Mesh) -> Iterator[Finding]:
    """Slices of several Services say the same of how a workload is reached."""
    first: dict[str, EndpointSlice] = {}
    for item in mesh.slices:
        for endpoint in item.endpoints:
            other = first.setdefault(endpoint.address, item)
            if other.settings != item.settings:
                message = (
                    f"{endpoint.address} is annotated otherwise in EndpointSlice"
                    f" {other.namespace}/{other.name}: capture, inbound, opaque-ports and"
                    " skip-inbound-ports are of a whole workload"
                )
                ref = ObjectRef("EndpointSlice", item.namespace, item.name)
                yield Finding(ref, ("metadata", "annotations"), message)


def _workload_ports(mesh: Mesh) -> Iterator[Finding]:
    """A workload has one account; and where a sidecar listens beside its application, their ports must not
    meet."""
    owners: dict[tuple[str, int], tuple[str, EndpointSlice]] = {}
    meshed = [item for item in mesh.slices if item.service_account]
    for item in meshed:
        identity = f"{item.namespace}/{item.service_account}"
        for endpoint in item.endpoints:
            for index, port in enumerate(item.ports):
                owner, where = owners.setdefault((endpoint.address, port.port), (identity, item))
                if owner != identity:
                    message = (
                        f"{endpoint.address}:{port.port} runs as {identity} here and as {owner} in"
                        f" EndpointSlice {where.namespace}/{where.name}; a workload has one account"
                    )
                    yield Finding(
                        ObjectRef("EndpointSlice", item.namespace, item.name),
                        ("ports", index, "port"),
                        message,
                    )
    taken: dict[tuple[str, int], int] = {}
    for (address, number), (_, item) in owners.items():
        if item.settings.captured or not item.takes_mtls(number):
            continue
        inbound = inbound_port(number)
        clash = taken.setdefault((address, inbound), number)
        if (address, inbound) in owners:
            what = f"where the application itself listens at {address}"
        elif clash != number:
            what = f"which port {clash} of {address} needs too"
        else:
            continue
        message = f"the sidecar takes traffic for port {number} at {inbound}, {what}; move one of the ports"
        path: Path = ("ports", next(i for i, p in enumerate(item.ports) if p.port == number), "port")
        yield Finding(ObjectRef("EndpointSlice", item.namespace, item.name), path, message)


def check_route(mesh: Mesh, route: Route) -> Iterator[Finding]:
    """One route's references. The path of a finding about a reference leads into it."""
    ref = ObjectRef(route.kind.value, route.namespace, route.name)
    if not route.parents:
        message = "no parent is a Service, so the mesh does not use this route"
        yield Finding(ref, ("spec", "parentRefs"), message, Severity.NOTE)
    for parent in route.parents:
        yield from _parent(mesh, ref, parent, route.kind is RouteKind.TCP)
    for rule in route.rules:
        for backend in rule.backends:
            yield from _backend(mesh, ref, route, backend)


def _parent(mesh: Mesh, ref: ObjectRef, parent: ParentRef, is_tcp: bool) -> Iterator[Finding]:
    service = mesh.services.get(parent.service)
    if service is None:
        message = f"Service {parent.service} does not exist; add it or correct the reference"
        yield Finding(ref, (*parent.path, "name"), message, reason="NoMatchingParent")
        return
    if service.external_name:
        message = f"Service {parent.service} is of type ExternalName: calls to it are calls to what it names"
        yield Finding(ref, (*parent.path, "name"), message, reason="NoMatchingParent")
        return
    covered = [port for port in service.ports if parent.covers(port.port, port.name)]
    explicit = parent.port is not None or parent.section_name
    if not covered and explicit:
        name = "sectionName" if parent.section_name else "port"
        asked = f"named {parent.section_name!r}" if parent.section_name else str(parent.port)
        if parent.section_name and parent.port is not None:
            asked += f" with number {parent.port}"
        message = f"Service {parent.service} has no port {asked}; it has {ports_text(service)}"
        yield Finding(ref, (*parent.path, name), message, reason="NoMatchingParent")
    elif explicit and not is_tcp and all(port.protocol is AppProtocol.TCP for port in covered):
        message = (
            f"the port carries opaque TCP (appProtocol or name of Service {parent.service}); without effect:"
            " use a TCPRoute"
        )
        yield Finding(ref, parent.path, message, Severity.WARNING)


def _backend(mesh: Mesh, ref: ObjectRef, route: Route, backend: BackendRef) -> Iterator[Finding]:
    # A backend without weight gets no traffic; Gateway API tolerates one that does not exist.
    severity = Severity.ERROR if backend.weight else Severity.WARNING
    if backend.kind:
        message = f"is a {backend.kind}; only Services can be backends"
        yield Finding(ref, (*backend.path, "kind"), message, severity, "InvalidKind")
        return
    service = mesh.services.get(backend.service)
    if service is None:
        message = f"Service {backend.service} does not exist; add it or correct the reference"
        yield Finding(ref, (*backend.path, "name"), message, severity, "BackendNotFound")
        return
    if service.port(backend.port) is None:
        message = f"Service {backend.service} has no port {backend.port}; it has {ports_text(service)}"
        if service.external_name:
            message = f"Service {backend.service} is of type ExternalName, to which no route can lead"
        yield Finding(ref, (*backend.path, "port"), message, severity, "BackendNotFound")
    # A route for calls to a Service may send them there: the caller could have done so without the route.
    granted = (
        backend.namespace == route.namespace
        or any(parent.service == backend.service for parent in route.parents)
        or any(grant.allows(route.kind.value, route.namespace, backend.service) for grant in mesh.grants)
    )
    if not granted:
        message = (
            f"Service {backend.service} is in another namespace; add a ReferenceGrant to {backend.namespace}"
            f" that lets {route.kind.value} of {route.namespace} name it"
        )
        yield Finding(ref, (*backend.path, "namespace"), message, severity, "RefNotPermitted")


def check_conflicts(mesh: Mesh) -> Iterator[Finding]:
    """Two routes of one audience that claim the same requests, and kinds that cannot share a port."""
    matches: dict[tuple[ServiceKey, int, str, RouteMatch], Route] = {}
    kinds: dict[tuple[ServiceKey, int, str], Route] = {}
    precedence = list(RouteKind)
    for route in sorted(mesh.routes, key=lambda route: (precedence.index(route.kind), route.age_rank)):
        ref = ObjectRef(route.kind.value, route.namespace, route.name)
        for parent in route.parents:
            service = mesh.services.get(parent.service)
            for port in service.ports if service else ():
                if not parent.covers(port.port, port.name):
                    continue
                at = f"Service {parent.service} port {port.port}"
                scope = (parent.service, port.port, route.namespace)
                first = kinds.setdefault(scope, route)
                if first.kind is not route.kind:
                    message = (
                        f"{first} has {at} already, and only one kind of route can; remove one of the two"
                    )
                    yield Finding(ref, parent.path, message, reason="Conflicted")
                    continue
                if route.kind is RouteKind.TCP and first is not route:
                    message = f"{first} has {at} already, and connections follow one; remove one of the two"
                    yield Finding(ref, parent.path, message, reason="Conflicted")
                    continue
                yield from _same_matches(ref, route, scope, at, matches)


def _same_matches(
    ref: ObjectRef,
    route: Route,
    scope: tuple[ServiceKey, int, str],
    at: str,
    matches: dict[tuple[ServiceKey, int, str, RouteMatch], Route],
) -> Iterator[Finding]:
    for index, rule in enumerate(route.rules):
        for position, match in enumerate(rule.matches):
            other = matches.setdefault((*scope, match), route)
            if other is not route:
                message = (
                    f"conflicts with {other}: both match the same requests to {at}; change or remove one"
                )
                yield Finding(ref, ("spec", "rules", index, "matches", position), message)
