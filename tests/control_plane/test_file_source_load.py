"""A folder to a mesh or to a list of problems: all or nothing, each problem with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.model.problem import Severity
from control_plane.model.service import ServiceKey
from control_plane.sources.load import load
from tests.support.kubernetes import (
    account,
    backend,
    endpoint_slice,
    grant,
    parent,
    route,
    service,
)

GOOD = [service("users"), account("users"), endpoint_slice("users-a", "127.0.1.1", runs_as="users")]


def write(folder: Path, name: str, *objects: dict[str, Any]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump_all(objects, sort_keys=False))


def problems(folder: Path, severity: Severity = Severity.ERROR) -> list[str]:
    loaded = load(folder)
    if severity is Severity.ERROR:
        assert loaded.mesh is None
    else:
        assert loaded.mesh is not None
    return [str(problem) for problem in loaded.problems if problem.severity is severity]


def test_files_of_every_kind_in_every_subfolder_make_one_mesh(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", *GOOD)
    write(tmp_path, "deep/er/b.yml", service("orders"))
    (tmp_path / "c.json").write_text(json.dumps(service("greeter"), indent="\t"))
    (tmp_path / "list.yaml").write_text(
        yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [service("one"), service("two")]})
    )
    (tmp_path / "notes.txt").write_text("not: [yaml")
    (tmp_path / ".hidden.yaml").write_text("not: [yaml")
    (tmp_path / "empty.yaml").write_text("# nothing yet\n---\n")
    loaded = load(tmp_path)
    assert loaded.problems == ()
    assert loaded.mesh is not None
    assert sorted(loaded.mesh.services) == [
        ServiceKey("shop", name) for name in ("greeter", "one", "orders", "two", "users")
    ]


def test_an_empty_folder_is_an_empty_mesh(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.mesh is not None
    assert (dict(loaded.mesh.services), loaded.problems) == ({}, ())


def test_an_object_without_a_namespace_is_in_default(tmp_path: Path) -> None:
    value = service("users")
    del value["metadata"]["namespace"]
    write(tmp_path, "a.yaml", value)
    loaded = load(tmp_path)
    assert loaded.mesh is not None
    assert list(loaded.mesh.services) == [ServiceKey("default", "users")]


def test_kinds_without_use_are_noted_and_ignored(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "users"}})
    assert problems(tmp_path, Severity.NOTE) == [
        "a.yaml:2 (document 1): Deployment default/users: kind: the mesh has no use for this kind; ignored"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a: 1\n---\nb: [1\nc: 2\n",
            "bad.yaml:4 (document 2): not YAML: while parsing a flow sequence, did not"
            " find expected ',' or ']'",
        ),
        (
            "kind: Service\nkind: Service\n",
            "bad.yaml:2 (document 1): the key 'kind' is there twice in one mapping; remove one",
        ),
        ("just text\n", "bad.yaml:1 (document 1): expected a mapping, found a text"),
        ("a: &x [*x]\n", "bad.yaml:1 (document 1): kind: is required: a text"),
        (
            "? {a: 1}\n: b\n",
            "bad.yaml:1 (document 1): not YAML: while constructing a mapping, found unhashable key",
        ),
        ("a: !!python/object:os.system x\n", None),
    ],
)
def test_text_that_is_no_configuration_is_an_error_at_its_line(
    tmp_path: Path, text: str, expected: str | None
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    [found] = problems(tmp_path)
    assert found == expected or (expected is None and found.startswith("bad.yaml:1 (document 1): not YAML:"))


def test_bad_json_and_bad_encodings_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"kind": \n}')
    (tmp_path / "b.yaml").write_bytes(b"kind: \xff\xfe")
    assert problems(tmp_path) == [
        "a.json:2: not JSON: Expecting value",
        "b.yaml: not UTF-8 at byte 6; save the file as UTF-8",
    ]


def test_times_stay_texts_as_they_do_in_kubernetes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n"
        "metadata: {name: r, namespace: shop, creationTimestamp: 2026-01-02T03:04:05Z}\nspec: {}\n"
    )
    loaded = load(tmp_path)
    assert loaded.mesh is not None
    assert loaded.mesh.routes[0].created == "2026-01-02T03:04:05Z"


def test_a_field_error_names_file_line_document_object_and_field(tmp_path: Path) -> None:
    write(
        tmp_path, "shop/users.yaml", service("users"), route("users", {"backendRefs": [backend("users", 0)]})
    )
    assert problems(tmp_path) == [
        "shop/users.yaml:25 (document 2): HTTPRoute shop/users: spec.rules[0].backendRefs[0].port:"
        " is 0; expected a number from 1 to 65535"
    ]
    assert "port: 0" in (tmp_path / "shop/users.yaml").read_text().splitlines()[24]


def test_every_object_that_is_wrong_is_reported_at_once(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", service("Users"), service("orders", {"port": -1}))
    write(tmp_path, "b.yaml", route("r", {"backendRefs": [{"port": 1}]}))
    assert [line.split(" ")[0] for line in problems(tmp_path)] == ["a.yaml:4", "a.yaml:19", "b.yaml:13"]


def test_a_duplicate_names_both_places(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", account("users"), service("users"))
    write(tmp_path, "b.yaml", service("users"))
    assert problems(tmp_path) == [
        "b.yaml:4 (document 1): Service shop/users: metadata.name: is defined in a.yaml:8"
        " too; remove one of the two"
    ]


def reference_problems(tmp_path: Path, *objects: dict[str, Any]) -> list[str]:
    """Errors, without their places in the file."""
    write(tmp_path, "mesh.yaml", *objects)
    return [line.partition("): ")[2] for line in problems(tmp_path)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            route("r", to="user"),
            "HTTPRoute shop/r: spec.parentRefs[0].name: Service shop/user does not exist;"
            " add it or correct the"
            " reference",
        ),
        (
            route("r", to=[parent("users", port=81)]),
            "HTTPRoute shop/r: spec.parentRefs[0].port: Service shop/users has no port 81; it has 80 (http)",
        ),
        (
            route("r", to=[parent("users", sectionName="web")]),
            "HTTPRoute shop/r: spec.parentRefs[0].sectionName: Service shop/users has no"
            " port named 'web'; it has"
            " 80 (http)",
        ),
        (
            route("r", {}, {"backendRefs": [backend("users"), backend("gone")]}),
            "HTTPRoute shop/r: spec.rules[1].backendRefs[1].name: Service shop/gone does"
            " not exist; add it or correct"
            " the reference",
        ),
        (
            route("r", {"backendRefs": [backend("users", 8080)]}),
            "HTTPRoute shop/r: spec.rules[0].backendRefs[0].port: Service shop/users has no port 8080; it has"
            " 80 (http)",
        ),
        (
            route("r", {"backendRefs": [backend("stock", namespace="back")]}),
            "HTTPRoute shop/r: spec.rules[0].backendRefs[0].namespace: Service back/stock"
            " is in another namespace;"
            " add a ReferenceGrant to back that lets HTTPRoute of shop name it",
        ),
        (
            route("r", {"backendRefs": [{"kind": "Deployment", "name": "users"}]}),
            "HTTPRoute shop/r: spec.rules[0].backendRefs[0].kind: is a core/Deployment; only Services can be"
            " backends",
        ),
        (
            route("r", {"backendRefs": [backend("away")]}),
            "HTTPRoute shop/r: spec.rules[0].backendRefs[0].port: Service shop/away is of type ExternalName,"
            " to which no route can lead",
        ),
        (
            endpoint_slice("users-b", "127.0.1.1", runs_as="users", capture="enabled"),
            "EndpointSlice shop/users-b: metadata.annotations: 127.0.1.1 is annotated otherwise in"
            " EndpointSlice shop/users-a: capture, inbound, opaque-ports and skip-inbound-ports are of a"
            " whole workload",
        ),
        (
            endpoint_slice("users-b", "127.0.1.2", runs_as="user"),
            "EndpointSlice shop/users-b:"
            " metadata.annotations['mesh.pilotfish.dev/service-account']: ServiceAccount"
            " shop/user does not exist; add it or correct the annotation",
        ),
        (
            endpoint_slice("users-b", "127.0.1.1", runs_as="default"),
            "EndpointSlice shop/users-b: ports[0].port: 127.0.1.1:8080 runs as"
            " shop/default here and as shop/users in"
            " EndpointSlice shop/users-a; a workload has one account",
        ),
        (
            endpoint_slice("users-b", "127.0.1.1", runs_as="users", ports=[{"name": "http", "port": 18080}]),
            "EndpointSlice shop/users-a: ports[0].port: the sidecar takes traffic for port"
            " 8080 at 18080, where the"
            " application itself listens at 127.0.1.1; move one of the ports",
        ),
        (
            endpoint_slice(
                "users-b",
                "127.0.1.9",
                runs_as="users",
                ports=[{"name": "http", "port": 40000}, {"name": "b", "port": 60000}],
            ),
            "EndpointSlice shop/users-b: ports[1].port: the sidecar takes traffic for port"
            " 60000 at 50000, which port"
            " 40000 of 127.0.1.9 needs too; move one of the ports",
        ),
    ],
)
def test_what_leads_nowhere_or_collides_is_an_error_at_its_field(
    tmp_path: Path, value: dict[str, Any], expected: str
) -> None:
    stock = service("stock", namespace="back")
    away = service("away", type="ExternalName", externalName="example.com")
    assert reference_problems(tmp_path, *GOOD, stock, away, value) == [expected]


def test_a_grant_and_a_consumers_own_parent_allow_other_namespaces(tmp_path: Path) -> None:
    stock = service("stock", namespace="back")
    cross = route("r", {"backendRefs": [backend("stock", namespace="back")]})
    consumer = route(
        "c",
        {"backendRefs": [backend("stock", namespace="back")]},
        to=[parent("stock", namespace="back")],
    )
    write(tmp_path, "mesh.yaml", *GOOD, stock, cross, consumer, grant("back", "shop"))
    assert load(tmp_path).problems == ()


def test_a_grant_for_another_service_kind_or_namespace_allows_nothing(tmp_path: Path) -> None:
    cross = route("r", {"backendRefs": [backend("stock", namespace="back")]})
    for given in (
        grant("back", "shop", service_name="other"),
        grant("back", "shop", kind="GRPCRoute"),
        grant("back", "other"),
        grant("shop", "shop"),
    ):
        [found] = reference_problems(tmp_path, *GOOD, service("stock", namespace="back"), cross, given)
        assert "add a ReferenceGrant to back" in found


def test_a_backend_without_weight_may_lead_nowhere(tmp_path: Path) -> None:
    refs = [backend("users"), backend("gone", weight=0), backend("users", 81, weight=0)]
    write(tmp_path, "mesh.yaml", *GOOD, route("r", {"backendRefs": refs}))
    assert [line.partition("): ")[2] for line in problems(tmp_path, Severity.WARNING)] == [
        "HTTPRoute shop/r: spec.rules[0].backendRefs[1].name: Service shop/gone does not"
        " exist; add it or correct"
        " the reference",
        "HTTPRoute shop/r: spec.rules[0].backendRefs[2].port: Service shop/users has no"
        " port 81; it has 80 (http)",
    ]


def test_endpoints_that_no_service_takes_are_a_warning(tmp_path: Path) -> None:
    lost = endpoint_slice("lost-a", "127.0.1.5")
    misnamed = endpoint_slice("users-b", "127.0.1.6", runs_as="users", ports=[{"name": "web", "port": 8080}])
    write(tmp_path, "mesh.yaml", *GOOD, lost, misnamed)
    assert [line.partition("): ")[2] for line in problems(tmp_path, Severity.WARNING)] == [
        "EndpointSlice shop/lost-a: metadata.labels['kubernetes.io/service-name']: Service"
        " shop/lost does not exist;"
        " these endpoints get no traffic",
        "EndpointSlice shop/users-b: ports[0].name: no port of Service shop/users is named"
        " 'web' (it has 80 (http));"
        " the port gets no traffic",
    ]


def test_replicas_with_and_without_sidecar_in_one_service_are_nothing_to_warn_of(tmp_path: Path) -> None:
    """Every service is like that for a while on its way into the mesh."""
    write(tmp_path, "mesh.yaml", *GOOD, endpoint_slice("users-b", "127.0.1.6"))
    assert problems(tmp_path, Severity.WARNING) == []


A_USERS = {"path": {"value": "/users"}}


def test_two_routes_that_match_the_same_requests_are_in_conflict(tmp_path: Path) -> None:
    first = route(
        "old", {"matches": [A_USERS], "backendRefs": [backend("users")]}, created="2026-01-01T00:00:00Z"
    )
    second = route("a-new", {"matches": [{"method": "GET"}, A_USERS], "backendRefs": [backend("users")]})
    assert reference_problems(tmp_path, *GOOD, first, second) == [
        "HTTPRoute shop/a-new: spec.rules[0].matches[1]: conflicts with HTTPRoute"
        " shop/old: both match the same"
        " requests to Service shop/users port 80; change or remove one"
    ]


def test_matches_that_are_written_differently_and_mean_the_same_are_in_conflict(tmp_path: Path) -> None:
    headers = [{"name": "a", "value": "1"}, {"name": "b", "value": "2"}]
    upper = [{"name": "B", "value": "2"}, {"name": "A", "value": "1"}]
    first = route("one", {"matches": [{"path": {"value": "/x/"}, "headers": headers}]})
    second = route("two", {"matches": [{"path": {"type": "PathPrefix", "value": "/x"}, "headers": upper}]})
    [found] = reference_problems(tmp_path, *GOOD, first, second)
    assert "conflicts with HTTPRoute shop/one" in found


def test_the_same_match_for_other_ports_or_another_audience_is_no_conflict(tmp_path: Path) -> None:
    two = service("users", {"name": "http", "port": 80}, {"name": "admin", "port": 81})
    rule = {"matches": [A_USERS], "backendRefs": [backend("users", namespace="shop")]}
    objects = [
        two,
        account("users"),
        route("a", rule, to=[parent("users", port=80)]),
        route("b", rule, to=[parent("users", sectionName="admin")]),
        route("c", rule, to=[parent("users", namespace="shop")], namespace="blog"),
    ]
    write(tmp_path, "mesh.yaml", *objects)
    assert load(tmp_path).problems == ()


def test_two_tcp_routes_on_one_port_are_in_conflict(tmp_path: Path) -> None:
    rule = {"backendRefs": [backend("users")]}
    routes = [route(name, rule, kind="TCPRoute") for name in ("a", "b")]
    assert reference_problems(tmp_path, *GOOD, *routes) == [
        "TCPRoute shop/b: spec.parentRefs[0]: TCPRoute shop/a has Service shop/users port 80 already, and"
        " connections follow one; remove one of the two"
    ]


def test_http_and_grpc_routes_on_one_port_are_in_conflict(tmp_path: Path) -> None:
    http = route("a", {"backendRefs": [backend("users")]})
    grpc = route("b", {"backendRefs": [backend("users")]}, kind="GRPCRoute")
    assert reference_problems(tmp_path, *GOOD, http, grpc) == [
        "HTTPRoute shop/a: spec.parentRefs[0]: GRPCRoute shop/b has Service shop/users"
        " port 80 already, and only"
        " one kind of route can; remove one of the two"
    ]


def test_two_services_cannot_share_a_cluster_ip(tmp_path: Path) -> None:
    one, two = service("one", clusterIP="10.0.0.1"), service("two", clusterIP="10.0.0.1")
    assert reference_problems(tmp_path, one, two) == [
        "Service shop/two: spec.clusterIP: 10.0.0.1 is the cluster IP of Service shop/one too; change one"
    ]
