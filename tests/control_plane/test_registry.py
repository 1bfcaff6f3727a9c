"""What changed between two meshes, and who hears of it."""

from __future__ import annotations

from typing import Any

from control_plane.model.service import AppProtocol, ServiceKey, WorkloadPort
from control_plane.registry import MeshChange, Registry
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
    names = ("services", "routes", "endpoints", "accounts", "workloads")
    return {name: set(getattr(found, name)) for name in names if getattr(found, name)}


def test_an_index_finds_services_routes_and_workloads() -> None:
    registry = Registry()
    registry.replace(mesh(*BASE))
    view = registry.index.views[USERS]
    assert [item.name for item in view.slices] == ["users-a"]
    assert [found.name for found in view.routes] == ["users"]
    assert view.accounts == {"users"}
    assert registry.index.cluster_ips == {"10.0.0.1": USERS}
    assert registry.index.workloads["127.0.1.1"] == (
        WorkloadPort("127.0.1.1", 8080, AppProtocol.HTTP, "shop", "users"),
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
        WorkloadPort("127.0.1.1", 8080, AppProtocol.HTTP2, "shop", "users"),
    )


def test_replicas_without_an_account_have_no_sidecar() -> None:
    registry = Registry()
    registry.replace(mesh(service("users"), endpoint_slice("users-a", "127.0.1.1")))
    assert registry.index.workloads == {}
    assert registry.index.views[USERS].accounts == {""}
