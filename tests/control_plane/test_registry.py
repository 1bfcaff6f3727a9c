"""What changed between two meshes, and who hears of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from control_plane.model.service import (
    AppProtocol,
    EndpointPort,
    ServiceKey,
    Workload,
    WorkloadPort,
    WorkloadSettings,
)
from control_plane.registry import MeshChange, MeshIndex, PodName, Registry
from tests.support.kubernetes import backend, endpoint_slice, mesh, parent, route, service

USERS, ORDERS = ServiceKey("shop", "users"), ServiceKey("shop", "orders")
BASE = [
    service("users", clusterIP="10.0.0.1"),
    service("orders"),
    endpoint_slice("users-a", "127.0.1.1", runs_as="users"),
    endpoint_slice("orders-a", "127.0.1.11", runs_as="orders"),
    route("users", {"backendRefs": [backend("users")]}),
]


def change(*objects: dict[str, Any]) -> MeshChange:
    """From BASE to `objects`."""
    registry = Registry()
    registry.replace(mesh(*BASE))
    return registry.replace(mesh(*objects))


def aspects(found: MeshChange) -> dict[str, set[Any]]:
    names = ("services", "routes", "endpoints", "accounts", "workloads", "pod_names")
    return {name: set(getattr(found, name)) for name in names if getattr(found, name)}


def test_an_index_finds_services_routes_and_workloads() -> None:
    registry = Registry()
    registry.replace(mesh(*BASE))
    view = registry.index.views[USERS]
    assert [item.name for item in view.slices] == ["users-a"]
    assert [found.name for found in view.routes] == ["users"]
    assert view.accounts == {("http", "users")}
    assert registry.index.cluster_ips == {"10.0.0.1": USERS}
    assert registry.index.workloads["127.0.1.1"] == (
        WorkloadPort(
            "127.0.1.1", 8080, AppProtocol.HTTP, "shop", "users", True, hostname="endpoint-127-0-1-1"
        ),
    )
    assert repr(registry) == "Registry(version=1, services=2, workloads=2)"


def test_an_equal_mesh_changes_nothing_and_tells_nobody() -> None:
    registry = Registry()
    heard: list[MeshChange] = []
    registry.subscribe(heard.append)
    registry.replace(mesh(*BASE))
    assert not registry.replace(mesh(*BASE))
    assert not registry.replace(mesh(*reversed(BASE)))
    assert (registry.version, len(heard)) == (1, 1)


def test_subscribers_are_told_when_the_new_index_is_in_force() -> None:
    registry = Registry()
    seen: list[bool] = []
    registry.subscribe(lambda told: seen.append(registry.index is told.after))
    registry.replace(mesh(*BASE))
    assert seen == [True]


def test_another_replica_touches_its_services_endpoints_and_its_own_ports() -> None:
    more = endpoint_slice("users-a", "127.0.1.1", "127.0.1.2", runs_as="users")
    assert aspects(change(*BASE[:2], more, *BASE[3:])) == {"endpoints": {USERS}, "workloads": {"127.0.1.2"}}


def test_a_replicas_health_touches_endpoints_alone() -> None:
    entry = {"addresses": ["127.0.1.1"], "conditions": {"ready": False}}
    unready = endpoint_slice("users-a", entry, runs_as="users")
    assert aspects(change(*BASE[:2], unready, *BASE[3:])) == {"endpoints": {USERS}}


def test_another_account_touches_whom_callers_trust() -> None:
    moved = endpoint_slice("users-a", "127.0.1.1", runs_as="other")
    assert aspects(change(*BASE[:2], moved, *BASE[3:])) == {
        "endpoints": {USERS},
        "accounts": {USERS},
        "workloads": {"127.0.1.1"},
    }


def test_a_route_touches_its_parents_routes_before_and_after() -> None:
    edited = route("users", {"backendRefs": [backend("orders")]})
    assert aspects(change(*BASE[:4], edited)) == {"routes": {USERS}}
    moved = route("users", {"backendRefs": [backend("users")]}, to=[parent("orders")])
    assert aspects(change(*BASE[:4], moved)) == {"routes": {USERS, ORDERS}}


def test_a_reordered_field_of_a_reference_is_no_change() -> None:
    twice = route("users", {"backendRefs": [backend("users")]}, to=[{"name": "gateway"}, parent("users")])
    assert aspects(change(*BASE[:4], twice)) == {}


def test_a_service_that_comes_or_goes_touches_all_that_is_made_of_it() -> None:
    assert aspects(change(*BASE[1:])) == {
        "services": {USERS},
        "routes": {USERS},
        "endpoints": {USERS},
        "accounts": {USERS},
    }


def test_a_services_protocol_reaches_its_workloads() -> None:
    opaque = service("users", {"name": "http", "port": 80, "appProtocol": "tcp"}, clusterIP="10.0.0.1")
    assert aspects(change(opaque, *BASE[1:])) == {"services": {USERS}, "workloads": {"127.0.1.1"}}


def test_two_services_on_one_workload_share_its_ports() -> None:
    registry = Registry()
    admin = service("admin", {"name": "http", "port": 80, "appProtocol": "kubernetes.io/h2c"})
    registry.replace(mesh(*BASE, admin, endpoint_slice("admin-a", "127.0.1.1", runs_as="users")))
    assert registry.index.workloads["127.0.1.1"] == (
        WorkloadPort(
            "127.0.1.1", 8080, AppProtocol.HTTP2, "shop", "users", True, hostname="endpoint-127-0-1-1"
        ),
    )


def test_replicas_without_an_account_have_no_sidecar() -> None:
    registry = Registry()
    registry.replace(mesh(service("users"), endpoint_slice("users-a", "127.0.1.1")))
    assert [port.takes_mtls for port in registry.index.workloads["127.0.1.1"]] == [False]
    assert registry.index.views[USERS].accounts == {("http", "")}


# --- Pods, replicas by name, settings ---

CAPTURED = WorkloadSettings(captured=True)


def index(*objects: dict[str, Any], workloads: tuple[Workload, ...] = ()) -> MeshIndex:
    return MeshIndex.of(replace(mesh(*objects), workloads=workloads))


def container_port(number: int, name: str = "") -> EndpointPort:
    return EndpointPort(name, number, AppProtocol.HTTP, bool(name))


def test_a_pod_behind_no_service_has_the_ports_of_its_containers_at_all_its_addresses() -> None:
    lone = Workload(
        "shop", "lone-1", "lone", ("10.1.0.1", "fd00::1"), (container_port(9000, "http"),), CAPTURED, "zone-a"
    )
    found = index(workloads=(lone,))
    for address in lone.addresses:
        assert found.workloads[address] == (
            WorkloadPort(
                address, 9000, AppProtocol.HTTP, "shop", "lone", True, False, "lone-1", CAPTURED, False
            ),
        )
        assert [port.address for port in found.own_ports(address)] == ["10.1.0.1", "fd00::1"]
        assert found.zones[address] == "zone-a"
    assert list(found.own_ports("10.1.0.9")) == []


def test_what_a_service_says_of_a_port_counts_more_than_what_the_pod_declares() -> None:
    users = service("users", {"name": "db", "port": 80, "appProtocol": "tcp"})
    item = endpoint_slice("users-a", "10.1.0.1", runs_as="users", ports=[{"name": "db", "port": 8080}])
    pod = Workload("shop", "users-1", "users", ("10.1.0.1", "fd00::1"), (container_port(8080, "http"),))
    found = index(users, item, workloads=(pod,))
    for address in pod.addresses:
        [port] = found.workloads[address]
        assert (port.port, port.protocol, port.declared) == (8080, AppProtocol.TCP, True)


def test_a_sidecar_beside_its_application_takes_no_port_that_the_application_has() -> None:
    ports = (container_port(8080), container_port(18080), container_port(9000))
    beside = Workload("shop", "a", "a", ("10.1.0.1",), ports)
    instead = Workload("shop", "b", "b", ("10.1.0.2",), ports, CAPTURED)
    found = index(workloads=(beside, instead))
    assert [port.port for port in found.workloads["10.1.0.1"]] == [9000, 18080]
    assert [port.port for port in found.workloads["10.1.0.2"]] == [8080, 9000, 18080]


def test_ports_that_a_workload_calls_opaque_are_opaque_at_its_service_too() -> None:
    item = endpoint_slice("users-a", "10.1.0.1", runs_as="users", opaque_ports="8080")
    found = index(service("users"), item)
    [port] = found.views[USERS].service.ports
    [workload] = found.workloads["10.1.0.1"]
    assert (port.protocol, port.declared) == (workload.protocol, workload.declared) == (AppProtocol.TCP, True)
    elsewhere = index(service("users"), endpoint_slice("users-a", "10.1.0.1", opaque_ports="80"))
    assert elsewhere.views[USERS].service.ports[0].protocol is AppProtocol.HTTP


def test_a_port_that_the_sidecar_skips_has_no_account_to_trust() -> None:
    two = [{"name": "http", "port": 8080}, {"name": "metrics", "port": 9090}]
    item = endpoint_slice("users-a", "10.1.0.1", runs_as="users", ports=two, skip_inbound_ports="9090")
    found = index(service("users"), item)
    assert found.views[USERS].accounts == {("http", "users"), ("metrics", "")}
    assert [port.takes_mtls for port in found.workloads["10.1.0.1"]] == [True, False]


def test_a_workload_that_is_captured_now_touches_endpoints_and_its_own_ports() -> None:
    captured = endpoint_slice("users-a", "127.0.1.1", runs_as="users", capture="enabled")
    assert aspects(change(*BASE[:2], captured, *BASE[3:])) == {
        "endpoints": {USERS},
        "workloads": {"127.0.1.1"},
    }


def test_a_workload_leaves_when_one_of_its_endpoints_or_its_pod_does() -> None:
    entry = {"addresses": ["10.1.0.1"], "conditions": {"ready": False, "terminating": True}}
    pod = Workload("shop", "lone", "lone", ("10.1.0.2",), (container_port(80),), terminating=True)
    found = index(
        service("users"),
        service("admin"),
        endpoint_slice("users-a", "10.1.0.1", runs_as="users"),
        endpoint_slice("admin-a", entry, runs_as="users", ports=[{"name": "http", "port": 81}]),
        workloads=(pod,),
    )
    leaving = {
        (port.address, port.port): port.terminating for each in found.workloads.values() for port in each
    }
    assert leaving == {("10.1.0.1", 81): True, ("10.1.0.1", 8080): True, ("10.1.0.2", 80): True}


def stateful(*numbers: int, headless: bool = True) -> list[dict[str, Any]]:
    spec = {"clusterIP": "None"} if headless else {}
    entries = [{"addresses": [f"10.2.0.{number}"], "hostname": f"db-{number}"} for number in numbers]
    return [service("db", **spec), endpoint_slice("db-a", *entries, runs_as="db")]


def test_replicas_of_a_headless_service_have_names_of_their_own() -> None:
    found = index(*stateful(0, 1))
    db = ServiceKey("shop", "db")
    # 8080 is the application's port, 80 the Service's in front of it.
    assert found.pod_names == {
        PodName(db, f"db-{number}"): {80: (f"10.2.0.{number}", 8080), 8080: (f"10.2.0.{number}", 8080)}
        for number in (0, 1)
    }
    assert index(*stateful(0, 1, headless=False)).pod_names == {}


def test_a_replica_that_moves_touches_its_own_name_alone() -> None:
    before = index(*stateful(0, 1))
    moved = stateful(0, 1)
    moved[1]["endpoints"][1]["addresses"] = ["10.2.0.9"]
    registry = Registry()
    registry.index = before
    found = registry.replace(mesh(*moved))
    db = ServiceKey("shop", "db")
    assert aspects(found) == {
        "endpoints": {db},
        "workloads": {"10.2.0.1", "10.2.0.9"},
        "pod_names": {PodName(db, "db-1")},
    }
