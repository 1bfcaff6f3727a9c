"""What each client is answered, what is kept, and what a change touches."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from control_plane import pipeline as module
from control_plane.model.discovery import Change, Dialect, NodeInfo
from control_plane.model.mesh import MeshSettings, TracingSettings
from control_plane.model.service import (
    AppProtocol,
    EndpointPort,
    Workload,
    WorkloadSettings,
)
from control_plane.pipeline import Pipeline
from control_plane.registry import Registry
from control_plane.translate.names import CLUSTER, LISTENER, LOAD_ASSIGNMENT, ROUTE_CONFIGURATION
from tests.support.kubernetes import backend, endpoint_slice, mesh, node, parent, policy, route, service

USERS = "users.shop.svc.cluster.local:80"
ORDERS = "orders.shop.svc.cluster.local:80"
BASE = [
    service("users", clusterIP="10.0.0.1", clusterIPs=["10.0.0.1", "fd00::1"]),
    service("orders"),
    endpoint_slice("users-a", "127.0.1.1", "127.0.1.2", runs_as="users"),
    endpoint_slice("orders-a", "127.0.1.11", runs_as="orders"),
    endpoint_slice("orders-b", "127.0.1.12"),
]
ALL_NAMES = [USERS, "users:80", "users.shop:80", "users.shop.svc:80", "10.0.0.1:80", "[fd00::1]:80"]


class Control:
    """A pipeline with its registry, and the changes that it published."""

    def __init__(self, *objects: dict[str, Any], settings: MeshSettings | None = None) -> None:
        self.registry = Registry()
        self.pipeline = Pipeline(self.registry, settings or MeshSettings())
        self.changes: list[Change] = []
        self.pipeline.subscribe(self.changes.append)
        self.serve(*(objects or BASE))

    def serve(self, *objects: dict[str, Any], workloads: tuple[Workload, ...] = ()) -> None:
        self.registry.replace(replace(mesh(*objects), workloads=workloads))

    def bodies(self, type_url: str, *names: str, to: NodeInfo | None = None) -> dict[str, bytes]:
        found = self.pipeline.resources(to or node(), type_url, frozenset(names))
        return {name: resource.body for name, resource in found.items()}


def routes_of(listener: bytes) -> str:
    """The route configuration that an API listener names."""
    manager = HttpConnectionManager()
    assert Listener.FromString(listener).api_listener.api_listener.Unpack(manager)
    name: str = manager.rds.route_config_name
    return name


def first_cluster(routes: bytes) -> str:
    cluster: str = RouteConfiguration.FromString(routes).virtual_hosts[0].routes[-1].route.cluster
    return cluster


def test_every_name_of_a_service_leads_to_its_canonical_one() -> None:
    found = Control().bodies(LISTENER, *ALL_NAMES)
    assert {name: routes_of(body) for name, body in found.items()} == dict.fromkeys(ALL_NAMES, USERS)
    assert all(Listener.FromString(body).name == name for name, body in found.items())


def test_full_names_end_in_the_domain_of_the_cluster() -> None:
    full = "users.shop.svc.corp.example:80"
    alias = service("people", type="ExternalName", externalName="users.shop.svc.corp.example")
    control = Control(*BASE, alias, settings=MeshSettings(cluster_domain="corp.example"))
    found = control.bodies(LISTENER, full, "users:80", "people:80", USERS)
    assert {name: routes_of(body) for name, body in found.items()} == dict.fromkeys(
        (full, "users:80", "people:80"), full
    )
    for type_url in (CLUSTER, LOAD_ASSIGNMENT, ROUTE_CONFIGURATION):
        assert set(control.bodies(type_url, full, USERS)) == {full}


def test_a_short_name_means_the_callers_own_namespace() -> None:
    control = Control(*BASE, service("users", namespace="blog"))
    assert routes_of(control.bodies(LISTENER, "users:80")["users:80"]) == USERS
    blog = node(namespace="blog")
    assert routes_of(control.bodies(LISTENER, "users:80", to=blog)["users:80"]) == (
        "users.blog.svc.cluster.local:80"
    )


def test_what_does_not_exist_is_absent() -> None:
    control = Control()
    for type_url, name in (
        (LISTENER, "users:81"),
        (LISTENER, "nobody:80"),
        (LISTENER, "users.blog:80"),
        (LISTENER, "10.0.0.2:80"),
        (LISTENER, "10.0.0.1:81"),
        (LISTENER, "nonsense"),
        (CLUSTER, "users:80"),
        (CLUSTER, "users.shop.svc.cluster.local:81"),
        (ROUTE_CONFIGURATION, "nobody.shop.svc.cluster.local:80"),
        (LOAD_ASSIGNMENT, "*"),
        ("type.googleapis.com/unknown.Type", USERS),
    ):
        assert control.bodies(type_url, name) == {}
    assert repr(control.pipeline) == "Pipeline(cached=0, translations=0, failed=0)"


def test_a_wildcard_is_the_sidecars_own_ports_and_nothing_else() -> None:
    pipeline = Control().pipeline
    assert set(pipeline.resources(node(address="127.0.1.1"), LISTENER, None)) == {"inbound|127.0.1.1|8080"}
    assert set(pipeline.resources(node(address="127.0.1.1"), CLUSTER, None)) == {"inbound|8080|127.0.1.1"}
    assert pipeline.resources(node(address="127.0.1.1"), ROUTE_CONFIGURATION, None) == {}


@pytest.mark.parametrize(
    "client",
    [
        node("orders", "127.0.1.1"),
        node("users", "127.0.1.1", namespace="blog"),
        node("users", ""),
        node("users", "127.0.1.9"),
        node("", "127.0.1.12"),
        node("users", "127.0.1.1", Dialect.GRPC),
    ],
    ids=["account", "namespace", "no address", "unknown address", "no sidecar", "no sidecar's dialect"],
)
def test_inbound_resources_are_for_the_workloads_own_account_alone(client: NodeInfo) -> None:
    pipeline = Control().pipeline
    for type_url, name in ((LISTENER, "inbound|127.0.1.1|8080"), (CLUSTER, "inbound|8080|127.0.1.1")):
        assert pipeline.resources(client, type_url, None) == {}
        assert pipeline.resources(client, type_url, frozenset([name])) == {}


def test_an_envoy_gets_nothing_yet() -> None:
    assert Control().bodies(CLUSTER, USERS, to=node(dialect=Dialect.ENVOY)) == {}


def test_dialects_are_kept_apart() -> None:
    control = Control()
    for type_url, name in ((CLUSTER, USERS), (ROUTE_CONFIGURATION, USERS), (LOAD_ASSIGNMENT, ORDERS)):
        sidecar = control.bodies(type_url, name)
        assert sidecar != control.bodies(type_url, name, to=node(dialect=Dialect.GRPC))
        assert sidecar == control.bodies(type_url, name)


def test_a_resource_is_translated_once_for_all_who_ask() -> None:
    control = Control()
    for account in ("users", "orders", "greeter"):
        control.pipeline.resources(node(account), CLUSTER, frozenset([USERS]))
        control.pipeline.resources(node(account), LISTENER, frozenset(["users.shop:80"]))
    assert control.pipeline.translations == 2


def test_traces_are_named_after_the_account_that_makes_them() -> None:
    control = Control(settings=MeshSettings(tracing=TracingSettings(100.0, "otlp")))
    first = control.bodies(LISTENER, "users:80", to=node("orders"))
    assert first != control.bodies(LISTENER, "users:80", to=node("greeter"))
    assert first == control.bodies(LISTENER, "users:80", to=node("orders"))


def test_the_version_is_a_hash_of_the_bytes() -> None:
    first, second = Control(), Control(*reversed(BASE))
    for type_url in (CLUSTER, LOAD_ASSIGNMENT, ROUTE_CONFIGURATION):
        one = first.pipeline.resources(node(), type_url, frozenset([USERS, ORDERS]))
        assert one == second.pipeline.resources(node(), type_url, frozenset([USERS, ORDERS]))
        assert len({resource.version for resource in one.values()}) == 2


def test_one_more_replica_touches_its_clusters_endpoints_and_its_own_listener_alone() -> None:
    control = Control()
    control.changes.clear()
    before = control.pipeline.resources(node(), CLUSTER, frozenset([USERS]))
    assert len(ClusterLoadAssignment.FromString(control.bodies(LOAD_ASSIGNMENT, USERS)[USERS]).endpoints) == 1
    more = endpoint_slice("users-a", "127.0.1.1", "127.0.1.2", "127.0.1.3", runs_as="users")
    control.serve(*BASE[:2], more, *BASE[3:])
    assert control.changes == [
        Change(
            {
                LOAD_ASSIGNMENT: frozenset([USERS, "127.0.1.3:8080"]),
                LISTENER: frozenset(["inbound|127.0.1.3|8080", "127.0.1.3:8080"]),
                CLUSTER: frozenset(["inbound|8080|127.0.1.3", "127.0.1.3:8080"]),
                ROUTE_CONFIGURATION: frozenset(["127.0.1.3:8080"]),
            }
        )
    ]
    translated = control.pipeline.translations
    assert control.pipeline.resources(node(), CLUSTER, frozenset([USERS])) == before
    assert control.pipeline.translations == translated
    [locality] = ClusterLoadAssignment.FromString(control.bodies(LOAD_ASSIGNMENT, USERS)[USERS]).endpoints
    assert len(locality.lb_endpoints) == 3


def test_a_route_touches_routes_alone() -> None:
    control = Control()
    control.changes.clear()
    assert first_cluster(control.bodies(ROUTE_CONFIGURATION, USERS)[USERS]) == USERS
    control.serve(*BASE, route("users", {"backendRefs": [backend("orders")]}))
    assert control.changes == [Change({ROUTE_CONFIGURATION: frozenset([USERS])})]
    assert first_cluster(control.bodies(ROUTE_CONFIGURATION, USERS)[USERS]) == ORDERS


def test_a_policy_touches_the_clusters_of_its_service_alone() -> None:
    control = Control()
    before = control.bodies(CLUSTER, USERS, ORDERS)
    control.serve(*BASE, policy("p"))
    assert control.changes[-1] == Change(names={CLUSTER: frozenset({USERS})})
    after = control.bodies(CLUSTER, USERS, ORDERS)
    assert [name for name in before if before[name] != after[name]] == [USERS]
    [balancer] = Cluster.FromString(after[USERS]).load_balancing_policy.policies
    assert balancer.typed_extension_config.name == "envoy.load_balancing_policies.wrr_locality"
    control.serve(*BASE)
    assert control.bodies(CLUSTER, USERS, ORDERS) == before


def test_a_policy_holds_for_callers_of_every_namespace_and_for_the_ports_that_it_names() -> None:
    ports = ({"name": "http", "port": 80}, {"name": "admin", "port": 81})
    to_admin = [parent("users", sectionName="admin")]
    control = Control(service("users", *ports), policy("p", to_admin))
    for client in (node(), node(namespace="blog")):
        names = [USERS, USERS.replace(":80", ":81")]
        found = control.bodies(CLUSTER, *names, to=client)
        assert [len(Cluster.FromString(found[n]).load_balancing_policy.policies) for n in names] == [3, 1]


def test_a_service_that_goes_is_absent_and_forgotten() -> None:
    control = Control()
    for type_url in (CLUSTER, ROUTE_CONFIGURATION, LOAD_ASSIGNMENT):
        control.bodies(type_url, USERS)
    control.bodies(LISTENER, *ALL_NAMES)
    control.changes.clear()
    control.serve(*BASE[1:])
    [change] = control.changes
    assert dict(change.names) == {
        LISTENER: frozenset(ALL_NAMES),
        CLUSTER: frozenset([USERS]),
        ROUTE_CONFIGURATION: frozenset([USERS]),
        LOAD_ASSIGNMENT: frozenset([USERS]),
    }
    assert control.bodies(LISTENER, *ALL_NAMES) == {}
    assert control.bodies(CLUSTER, USERS) == {}
    assert repr(control.pipeline).startswith("Pipeline(cached=0,")


def test_a_replica_that_goes_takes_its_inbound_resources_along() -> None:
    control = Control()
    own = node(address="127.0.1.2")
    assert len(control.pipeline.resources(own, LISTENER, None)) == 1
    control.changes.clear()
    control.serve(*BASE[:2], endpoint_slice("users-a", "127.0.1.1", runs_as="users"), *BASE[3:])
    assert control.changes[0].names[LISTENER] == {"inbound|127.0.1.2|8080", "127.0.1.2:8080"}
    assert control.pipeline.resources(own, LISTENER, None) == {}
    assert repr(control.pipeline).startswith("Pipeline(cached=0,")


def test_a_cluster_ip_that_changes_moves_its_name() -> None:
    control = Control()
    moved = service("users", clusterIP="10.0.0.9")
    control.changes.clear()
    control.serve(moved, *BASE[1:])
    assert {"10.0.0.1:80", "10.0.0.9:80", "users:80"} <= set(control.changes[0].names[LISTENER] or ())
    assert set(control.bodies(LISTENER, "10.0.0.1:80", "10.0.0.9:80")) == {"10.0.0.9:80"}


def test_consumer_routes_are_for_their_namespace_and_replace_the_producers() -> None:
    consumer = route(
        "mine",
        {"backendRefs": [backend("orders", namespace="shop")]},
        to=[parent("users", namespace="shop")],
        namespace="blog",
    )
    control = Control(*BASE, route("theirs", {"backendRefs": [backend("users")]}), consumer)
    for namespace, expected in (("shop", USERS), ("other", USERS), ("blog", ORDERS)):
        body = control.bodies(ROUTE_CONFIGURATION, USERS, to=node(namespace=namespace))[USERS]
        assert first_cluster(body) == expected
    assert control.pipeline.translations == 2


def test_a_route_for_one_port_leaves_the_others_alone() -> None:
    two = service("users", {"name": "http", "port": 80}, {"name": "admin", "port": 81})
    admin = "users.shop.svc.cluster.local:81"
    for ref in (parent("users", port=81), parent("users", sectionName="admin")):
        control = Control(two, BASE[1], route("r", {"backendRefs": [backend("orders")]}, to=[ref]))
        found = control.bodies(ROUTE_CONFIGURATION, USERS, admin)
        assert (first_cluster(found[USERS]), first_cluster(found[admin])) == (USERS, ORDERS)


@pytest.mark.parametrize("first", [BASE[0], service("users", clusterIP="10.0.0.9", clusterIPs=["10.0.0.9"])])
def test_a_resource_that_cannot_be_translated_is_a_problem_and_its_last_version_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: dict[str, Any]
) -> None:
    """`first`: the Service itself, the same as before or changed."""
    control = Control()
    good = control.bodies(CLUSTER, USERS, ORDERS)
    fine = module.service_cluster

    def faulty(name: str, *rest: Any) -> Any:
        if name == USERS:
            raise ValueError("no such thing")
        return fine(name, *rest)

    monkeypatch.setattr(module, "service_cluster", faulty)
    other = endpoint_slice("users-a", "127.0.1.1", runs_as="other")
    control.serve(first, BASE[1], other, *BASE[3:])
    for _ in range(2):
        assert control.bodies(CLUSTER, USERS, ORDERS) == good
    assert [str(problem) for problem in control.pipeline.problems] == [
        f"Cluster {USERS}: cannot be translated to xDS (ValueError: no such thing); its last good version"
        " stays in use"
    ]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert control.bodies(CLUSTER, USERS, to=node(dialect=Dialect.GRPC)) == {}

    monkeypatch.undo()
    control.serve(*BASE[:2], endpoint_slice("users-a", "127.0.1.1", runs_as="third"), *BASE[3:])
    assert control.bodies(CLUSTER, USERS) != {USERS: good[USERS]}
    assert control.pipeline.problems == ()


def test_clients_in_different_zones_get_the_replicas_that_are_meant_for_them() -> None:
    def entry(address: str, zone: str) -> dict[str, Any]:
        return {"addresses": [address], "zone": zone, "hints": {"forZones": [{"name": zone}]}}

    control = Control(
        service("users"),
        endpoint_slice("users-a", entry("127.0.1.1", "a"), entry("127.0.1.2", "b"), runs_as="users"),
    )

    def first(address: str) -> str:
        body = control.bodies(LOAD_ASSIGNMENT, USERS, to=node(address=address))[USERS]
        [locality] = [part for part in ClusterLoadAssignment.FromString(body).endpoints if not part.priority]
        return str(locality.locality.zone)

    assert (first("127.0.1.1"), first("127.0.1.2")) == ("a", "b")


# --- single workloads, replicas by name, other names ---

TYPES = (LISTENER, ROUTE_CONFIGURATION, CLUSTER, LOAD_ASSIGNMENT)


def addresses_of(assignment: bytes) -> list[str]:
    return [
        item.endpoint.address.socket_address.address
        for locality in ClusterLoadAssignment.FromString(assignment).endpoints
        for item in locality.lb_endpoints
    ]


@pytest.mark.parametrize("address", ["127.0.1.1", "127.0.1.12"], ids=["sidecar", "no sidecar"])
def test_every_workload_is_a_destination_by_its_address(address: str) -> None:
    control, name = Control(), f"{address}:8080"
    found = {type_url: control.bodies(type_url, name)[name] for type_url in TYPES}
    assert routes_of(found[LISTENER]) == name
    assert first_cluster(found[ROUTE_CONFIGURATION]) == name
    assert Cluster.FromString(found[CLUSTER]).name == name
    assert Cluster.FromString(found[CLUSTER]).HasField("transport_socket") == (address == "127.0.1.1")
    assert addresses_of(found[LOAD_ASSIGNMENT]) == [address]


def test_a_port_that_a_workload_does_not_have_is_no_destination() -> None:
    control = Control()
    for type_url in TYPES:
        assert control.bodies(type_url, "127.0.1.1:80", "127.0.1.99:8080", "[::1]:8080") == {}


def test_nothing_is_made_of_workloads_that_nobody_asks_for_and_a_change_remakes_its_own_alone() -> None:
    control = Control()
    first, other = "127.0.1.1:8080", "127.0.1.11:8080"
    assert control.pipeline.translations == 0
    for type_url in TYPES:
        control.bodies(type_url, first, other)
    made = control.pipeline.translations
    captured = endpoint_slice("users-a", "127.0.1.1", "127.0.1.2", runs_as="users", capture="enabled")
    control.serve(*BASE[:2], captured, *BASE[3:])
    for type_url in TYPES:
        assert other not in (control.changes[-1].names[type_url] or ())
        assert first in (control.changes[-1].names[type_url] or ())
        control.bodies(type_url, first, other)
    assert control.pipeline.translations == made + len(TYPES)


def test_a_pod_behind_no_service_is_served_and_is_a_destination() -> None:
    control = Control()
    settings = WorkloadSettings(captured=True)
    port = EndpointPort("", 9000, AppProtocol.HTTP)
    lone = Workload("shop", "lone", "jobs", ("10.1.0.1", "fd00::1"), (port,), settings)
    control.changes.clear()
    control.serve(*BASE, workloads=(lone,))
    own = node("jobs", "10.1.0.1")
    assert set(control.pipeline.resources(own, LISTENER, None)) == {
        "inbound|10.1.0.1|9000",
        "inbound|fd00::1|9000",
    }
    assert set(control.pipeline.resources(own, CLUSTER, None)) == {
        "inbound|9000|10.1.0.1",
        "inbound|9000|fd00::1",
    }
    assert control.pipeline.resources(node("users", "10.1.0.1"), LISTENER, None) == {}
    names = {"10.1.0.1:9000", "[fd00::1]:9000"}
    assert set(control.bodies(LOAD_ASSIGNMENT, *names)) == names
    assert names <= set(control.changes[0].names[LISTENER] or ())
    control.serve(*BASE)
    assert control.bodies(LISTENER, *names) == {}
    assert control.pipeline.resources(own, LISTENER, None) == {}


def test_a_skipped_port_has_no_inbound_listener_and_stays_a_destination() -> None:
    skipping = endpoint_slice("users-a", "127.0.1.1", runs_as="users", skip_inbound_ports="8080")
    control = Control(*BASE[:2], skipping)
    assert control.pipeline.resources(node(address="127.0.1.1"), LISTENER, None) == {}
    assert set(control.bodies(LISTENER, "127.0.1.1:8080")) == {"127.0.1.1:8080"}


DB = [
    service("db", clusterIP="None"),
    endpoint_slice(
        "db-a",
        {"addresses": ["10.2.0.1"], "hostname": "db-0"},
        {"addresses": ["10.2.0.2"], "hostname": "db-1"},
        runs_as="db",
    ),
]
DB_NAMES = ["db-1.db", "db-1.db.shop", "db-1.db.shop.svc", "db-1.db.shop.svc.cluster.local"]


def test_a_headless_service_is_all_its_replicas_and_each_by_its_own_name() -> None:
    control = Control(*DB)
    whole = "db.shop.svc.cluster.local:80"
    assert addresses_of(control.bodies(LOAD_ASSIGNMENT, whole)[whole]) == ["10.2.0.1", "10.2.0.2"]
    for port in (80, 8080):
        found = control.bodies(LISTENER, *(f"{name}:{port}" for name in DB_NAMES))
        assert len(found) == 4
        assert {routes_of(body) for body in found.values()} == {"10.2.0.2:8080"}
    assert control.bodies(LISTENER, "db-1.db:81", "db-2.db:80", "db-1.db.blog:80") == {}


def test_a_replicas_name_goes_where_the_replica_goes() -> None:
    control = Control(*DB)
    asked = [f"{name}:80" for name in DB_NAMES]
    control.bodies(LISTENER, *asked)
    control.changes.clear()
    moved = endpoint_slice("db-a", {"addresses": ["10.2.0.7"], "hostname": "db-1"}, runs_as="db")
    control.serve(DB[0], moved)
    told = control.changes[0].names[LISTENER] or frozenset()
    assert {*asked, "db-0.db:80", "10.2.0.2:8080", "10.2.0.7:8080"} <= told
    assert {routes_of(body) for body in control.bodies(LISTENER, *asked).values()} == {"10.2.0.7:8080"}
    assert control.bodies(LISTENER, "db-0.db:80") == {}


def test_a_replica_of_the_callers_namespace_comes_before_a_service_of_another() -> None:
    # A Pod's resolver tries `db-1.db.shop.svc.cluster.local` before `db-1.db.svc.cluster.local`.
    control = Control(*DB, service("db-1", namespace="db"))
    name = "db-1.db:80"
    assert routes_of(control.bodies(LISTENER, name)[name]) == "10.2.0.2:8080"
    elsewhere = node(namespace="blog")
    assert routes_of(control.bodies(LISTENER, name, to=elsewhere)[name]) == "db-1.db.svc.cluster.local:80"


def away(target: str, name: str = "away", namespace: str = "blog") -> dict[str, Any]:
    return service(name, namespace=namespace, type="ExternalName", externalName=target)


def test_an_external_name_for_a_service_leads_to_it_under_every_name() -> None:
    control = Control(*BASE, away("users.shop.svc.cluster.local"))
    names = ["away:80", "away.blog:80", "away.blog.svc:80", "away.blog.svc.cluster.local:80"]
    found = control.bodies(LISTENER, *names, "away:81", to=node(namespace="blog"))
    assert {name: routes_of(body) for name, body in found.items()} == dict.fromkeys(names, USERS)


@pytest.mark.parametrize(
    "target", ["example.com", "nobody.shop.svc.cluster.local", "away.blog.svc.cluster.local", "users.shop"]
)
def test_an_external_name_for_anything_else_is_left_to_the_callers_resolver(target: str) -> None:
    control = Control(*BASE, away(target))
    assert control.bodies(LISTENER, "away.blog:80", "away.blog:443") == {}
    assert control.bodies(CLUSTER, "away.blog.svc.cluster.local:80") == {}


def test_who_asked_for_an_external_name_hears_when_what_it_names_changes() -> None:
    alias = [away("other.blog.svc.cluster.local"), away("users.shop.svc.cluster.local", "other")]
    control = Control(*BASE[1:], *alias)
    assert control.bodies(LISTENER, "away.blog:80") == {}
    for served, expected in ((BASE, True), (BASE[1:], False)):
        control.changes.clear()
        control.serve(*served, *alias)
        assert {"away.blog:80", "other.blog:80"} <= set(control.changes[0].names[LISTENER] or ())
        assert bool(control.bodies(LISTENER, "away.blog:80")) == expected
    control.serve(*BASE, *alias)
    control.bodies(LISTENER, "away.blog:80")
    control.changes.clear()
    control.serve(*BASE, alias[0], away("orders.shop.svc.cluster.local", "other"))
    assert "away.blog:80" in (control.changes[0].names[LISTENER] or ())
    assert routes_of(control.bodies(LISTENER, "away.blog:80")["away.blog:80"]) == ORDERS
