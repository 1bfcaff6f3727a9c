"""The application ports of every workload, by address: from the slices of Services and from Pods themselves.

Used by the registry for each state of the mesh. What a Service says of a port counts more than what its
Pods declare; the settings of a workload count more than both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from control_plane.model.mesh import Mesh
from control_plane.model.service import (
    AppProtocol,
    EndpointPort,
    EndpointSlice,
    Service,
    ServiceKey,
    Workload,
    WorkloadPort,
    WorkloadSettings,
)
from mesh_api.names import inbound_port

_Ports = dict[int, WorkloadPort]


def with_opaque_ports(service: Service, slices: Iterable[EndpointSlice]) -> Service:
    """The Service whose ports are opaque where one of its workloads says so of the port behind."""
    opaque = {
        port.name
        for item in slices
        if item.settings.opaque_ports
        for port in item.ports
        if port.port in item.settings.opaque_ports
    }
    if not opaque:
        return service
    ports = tuple(
        replace(port, protocol=AppProtocol.TCP, declared=True) if port.name in opaque else port
        for port in service.ports
    )
    return replace(service, ports=ports)


def index_workloads(
    mesh: Mesh, services: Mapping[ServiceKey, Service]
) -> dict[str, tuple[WorkloadPort, ...]]:
    """By address, ports ascending. `services` are those of the mesh `with_opaque_ports`."""
    found: defaultdict[str, _Ports] = defaultdict(dict)
    leaving = {e.address for item in mesh.slices for e in item.endpoints if e.terminating}
    # Services that share a workload's port agree on its protocol or the first one decides.
    order = sorted(mesh.slices, key=lambda item: (not item.service_account, item.service_key, item.name))
    for item in order:
        service = services.get(item.service_key)
        specs = list(_slice_ports(item, service))
        for endpoint in item.endpoints:
            ports, address = found[endpoint.address], endpoint.address
            for spec in specs:
                if spec.port not in ports:
                    ports[spec.port] = WorkloadPort(
                        address,
                        spec.port,
                        spec.protocol,
                        item.namespace,
                        item.service_account,
                        spec.declared,
                        spec.tls,
                        endpoint.hostname,
                        item.settings,
                        address in leaving,
                    )
    for workload in mesh.workloads:
        _add_pod(found, workload)
    return {
        address: tuple([ports[number] for number in sorted(ports)])
        for address, ports in found.items()
        if ports
    }


def _slice_ports(item: EndpointSlice, service: Service | None) -> Iterator[EndpointPort]:
    declared = {port.name: port for port in service.ports} if service else {}
    for port in item.ports:
        said = declared.get(port.name, port)
        yield _opaque(
            EndpointPort(port.name, port.port, said.protocol, said.declared, said.tls), item.settings
        )


def _opaque(port: EndpointPort, settings: WorkloadSettings) -> EndpointPort:
    if port.port not in settings.opaque_ports:
        return port
    return replace(port, protocol=AppProtocol.TCP, declared=True)


def _add_pod(found: defaultdict[str, _Ports], workload: Workload) -> None:
    """Adds what only the Pod knows: ports that no Service has, and its addresses of the other family."""
    # One after the other, and not as one comprehension: this runs for each Pod at each change.
    known = found[workload.addresses[0]]
    for address in workload.addresses[1:]:
        for number, port in found[address].items():
            if number not in known:
                known[number] = port._replace(address=workload.addresses[0])
    for spec in workload.ports:
        if spec.port not in known and _has_room(spec.port, known, workload):
            known[spec.port] = _of_pod(spec, workload)
    for address in workload.addresses[1:]:
        ports = found[address]
        for number, port in known.items():
            if number not in ports:
                ports[number] = port._replace(address=address)


def _has_room(port: int, known: _Ports, workload: Workload) -> bool:
    """A sidecar that captures nothing must not take a port that belongs to the application."""
    if workload.settings.captured:
        return True
    own = inbound_port(port)
    return own not in known and all(other.port != own for other in workload.ports)


def _of_pod(spec: EndpointPort, workload: Workload) -> WorkloadPort:
    spec = _opaque(spec, workload.settings)
    return WorkloadPort(
        workload.addresses[0],
        spec.port,
        spec.protocol,
        workload.namespace,
        workload.service_account,
        spec.declared,
        spec.tls,
        workload.name,
        workload.settings,
        workload.terminating,
    )
