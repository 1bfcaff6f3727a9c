"""TrafficPolicy objects to the model, every mistake with its place, and which of several policies holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.model.policy import (
    DEFAULT_SETTINGS,
    Connections,
    LoadBalancer,
    OutlierDetection,
    PolicyTarget,
    RetryBudget,
    TrafficPolicy,
    TrafficSettings,
    settings_of,
)
from control_plane.model.problem import Severity
from control_plane.model.service import ServiceKey
from control_plane.registry import MeshIndex
from control_plane.sources.fields import FieldError
from control_plane.sources.load import load
from control_plane.sources.objects import parse
from tests.support.kubernetes import mesh, parent, policy, service

USERS = ServiceKey("shop", "users")
PORTS = ({"name": "http", "port": 80}, {"name": "admin", "port": 81})
OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-02T00:00:00Z"


def parsed(value: dict[str, Any]) -> TrafficPolicy:
    [found] = parse(value)
    assert isinstance(found, TrafficPolicy)
    return found


def test_every_field_is_read() -> None:
    value = policy(
        "p",
        [parent("users"), parent("orders", sectionName="http")],
        created=OLD,
        loadBalancer={"type": "LeastRequest"},
        connections={
            "connectTimeout": "1s500ms",
            "maxConnections": 1,
            "maxPendingRequests": 2,
            "maxRequests": 4294967295,
        },
        outlierDetection={
            "consecutiveFailures": 3,
            "baseEjectionTime": "10s",
            "maxEjectionTime": "1h30m",
            "maxEjectionPercent": 0,
        },
        retryBudget={"percent": 0, "minRetriesPerSecond": 0},
    )
    assert parsed(value) == TrafficPolicy(
        "shop",
        "p",
        (PolicyTarget("users"), PolicyTarget("orders", "http")),
        TrafficSettings(
            LoadBalancer.LEAST_REQUEST,
            Connections(1.5, 1, 2, 4294967295),
            OutlierDetection(3, 10.0, 5400.0, 0),
            RetryBudget(0, 0),
        ),
        OLD,
    )


def test_what_is_left_out_is_the_meshs_default() -> None:
    found = parsed(policy("p", loadBalancer={"type": "PeakEwma"}))
    assert (found.settings, found.created) == (DEFAULT_SETTINGS, "")


def test_ejection_can_be_off() -> None:
    assert parsed(policy("p", outlierDetection={"disabled": True})).settings.outlier_detection is None
    one = {"disabled": False, "consecutiveFailures": 1}
    assert parsed(policy("p", outlierDetection=one)).settings.outlier_detection == OutlierDetection(1)


def test_the_longest_ejection_is_at_least_the_first() -> None:
    found = parsed(policy("p", outlierDetection={"baseEjectionTime": "5m"})).settings.outlier_detection
    assert found == OutlierDetection(base_ejection_time=300.0, max_ejection_time=300.0)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"loadBalancer": None},
            ": says nothing but what it is for; give one of connections, loadBalancer, "
            "outlierDetection, retryBudget",
        ),
        ({"loadBalancing": {}}, "loadBalancing: unknown field; did you mean 'loadBalancer'?"),
        (
            {"loadBalancer": {"type": "Random"}},
            "loadBalancer.type: is 'Random'; expected one of PeakEwma, LeastRequest, RoundRobin",
        ),
        (
            {"loadBalancer": {}},
            "loadBalancer.type: is required: one of PeakEwma, LeastRequest, RoundRobin",
        ),
        (
            {"connections": {}},
            "connections: is empty; give one of connectTimeout, maxConnections, maxPendingRequests, "
            "maxRequests",
        ),
        (
            {"connections": {"connectTimeout": "1.5s"}},
            "connections.connectTimeout: is '1.5s'; expected a duration such as 500ms, 10s or 1h30m",
        ),
        (
            {"connections": {"connectTimeout": "0s"}},
            "connections.connectTimeout: is 0; expected more than that",
        ),
        (
            {"connections": {"maxRequests": 0}},
            "connections.maxRequests: is 0; expected a number from 1 to 4294967295",
        ),
        (
            {"connections": {"maxRequests": "5"}},
            "connections.maxRequests: expected a number from 1 to 4294967295, found a text",
        ),
        (
            {"outlierDetection": {"interval": "10s"}},
            "outlierDetection.interval: unknown field; known here: baseEjectionTime, "
            "consecutiveFailures, disabled, maxEjectionPercent, maxEjectionTime",
        ),
        (
            {"outlierDetection": {"disabled": True, "maxEjectionPercent": 10}},
            "outlierDetection.maxEjectionPercent: has no effect beside disabled: true; remove one of the two",
        ),
        (
            {"outlierDetection": {"maxEjectionTime": "500ms"}},
            "outlierDetection.maxEjectionTime: is shorter than baseEjectionTime, which is 1s",
        ),
        (
            {"outlierDetection": {"maxEjectionPercent": 101}},
            "outlierDetection.maxEjectionPercent: is 101; expected a number from 0 to 100",
        ),
        (
            {"retryBudget": {"percent": 2.5}},
            "retryBudget.percent: expected a number from 0 to 100, found a number",
        ),
    ],
)
def test_a_mistake_is_said_where_it_stands(spec: dict[str, Any], expected: str) -> None:
    value = policy("p")
    value["spec"] = {"targetRefs": [parent("users")], **spec}
    with pytest.raises(FieldError) as caught:
        parse(value)
    assert str(caught.value) == f"spec.{expected}".replace(".:", ":")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([], ": has 0 entries; expected from 1 to 16 Services"),
        ([parent(f"s{n}") for n in range(17)], ": has 17 entries; expected from 1 to 16 Services"),
        (
            [{"kind": "Service", "name": "users"}],
            '[0].group: a Service is in the core group: write group: ""',
        ),
        ([parent("users", kind="Pod")], "[0].kind: is 'Pod'; expected one of Service"),
        ([parent("users", namespace="other")], "[0].namespace: unknown field; did you mean 'name'?"),
        (
            [parent("users", sectionName="Web")],
            "[0].sectionName: is 'Web'; expected the name of one of the Service's ports: at most "
            "63 lower-case letters, digits and '-'",
        ),
        (
            [parent("users", sectionName="a"), parent("users"), parent("users", sectionName="a")],
            "[2]: says the same as targetRefs[0]; remove one of the two",
        ),
    ],
)
def test_a_target_is_a_service_of_the_policys_namespace_and_named_once(
    targets: list[dict[str, Any]], expected: str
) -> None:
    with pytest.raises(FieldError) as caught:
        parse(policy("p", targets))
    assert str(caught.value) == f"spec.targetRefs{expected}"


# --- which one holds ---


def requests(*policies: dict[str, Any], port: str = "http") -> int | None:
    """`maxRequests` of the policy that holds."""
    found = MeshIndex.of(mesh(service("users", *PORTS), *policies)).views[USERS]
    assert found.settings(found.service.ports[0]) == settings_of(found.policies, USERS, "http")
    return settings_of(found.policies, USERS, port).connections.max_requests


def limit(name: str, number: int, section: str = "", **more: Any) -> dict[str, Any]:
    to = [parent("users", **({"sectionName": section} if section else {}))]
    return policy(name, to, connections={"maxRequests": number}, **more)


def test_the_oldest_holds_then_the_first_by_name() -> None:
    assert requests(limit("a", 1, created=NEW), limit("b", 2, created=OLD)) == 2
    assert requests(limit("b", 2), limit("a", 1)) == 1
    assert requests(limit("a", 1), limit("b", 2, created=NEW)) == 2  # a file's that says no time is newest
    assert requests(limit("b", 2, created=OLD), limit("a", 1, created=OLD)) == 1


def test_one_for_the_port_goes_before_an_older_one_for_the_service_and_they_are_not_merged() -> None:
    whole = policy("whole", created=OLD, loadBalancer={"type": "RoundRobin"}, connections={"maxRequests": 1})
    of_port = limit("port", 2, "admin", created=NEW)
    assert (requests(whole, of_port), requests(whole, of_port, port="admin")) == (1, 2)
    found = MeshIndex.of(mesh(service("users", *PORTS), whole, of_port)).views[USERS]
    assert found.settings(found.service.ports[1]).load_balancer is LoadBalancer.PEAK_EWMA


def test_a_policy_of_another_namespace_or_service_says_nothing() -> None:
    assert requests(limit("p", 1, namespace="other")) is None
    assert requests(policy("p", "orders", connections={"maxRequests": 1})) is None


# --- in a folder ---


def problems(folder: Path, *objects: dict[str, Any]) -> list[tuple[str, str]]:
    (folder / "a.yaml").write_text(yaml.safe_dump_all(objects))
    loaded = load(folder)
    failed = any(problem.severity is Severity.ERROR for problem in loaded.problems)
    assert failed is (loaded.mesh is None)
    return [
        (problem.severity.value, str(problem).partition(") ")[2] or str(problem))
        for problem in loaded.problems
    ]


def located(folder: Path, *objects: dict[str, Any]) -> list[str]:
    return [
        f"{severity} {text.partition('TrafficPolicy ')[2]}" for severity, text in problems(folder, *objects)
    ]


def test_a_folder_with_a_good_policy_has_no_problems(tmp_path: Path) -> None:
    assert problems(tmp_path, service("users"), policy("p", [parent("users", sectionName="http")])) == []


def test_a_target_that_is_not_there_refuses_the_folder(tmp_path: Path) -> None:
    away = service("away")
    away["spec"] = {"type": "ExternalName", "externalName": "example.org"}
    targets = [parent("gone"), parent("users", sectionName="grpc"), parent("away")]
    assert located(tmp_path, service("users", *PORTS), away, policy("p", targets)) == [
        "error shop/p: spec.targetRefs[0].name: Service shop/gone does not exist; add it or "
        "correct the reference",
        "error shop/p: spec.targetRefs[1].sectionName: Service shop/users has no port named 'grpc'; "
        "it has 80 (http), 81 (admin)",
        "error shop/p: spec.targetRefs[2].name: Service shop/away is of type ExternalName: calls to it "
        "are calls to what it names",
    ]


def test_a_younger_policy_for_the_same_is_a_warning(tmp_path: Path) -> None:
    assert located(tmp_path, service("users"), policy("old", created=OLD), policy("new")) == [
        "warning shop/new: spec.targetRefs[0]: TrafficPolicy shop/old is older and holds for "
        "Service shop/users; remove one of the two, or what both name"
    ]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            ["admin"],
            "calls to Service shop/users follow the policy, but for ports with one of their own: admin",
        ),
        (
            ["http", "admin"],
            "every port of Service shop/users has a policy of its own, so that this one has no effect",
        ),
    ],
)
def test_where_policies_of_ports_go_before_one_of_the_service_is_noted(
    tmp_path: Path, sections: list[str], expected: str
) -> None:
    of_ports = [limit(f"of-{section}", 1, section) for section in sections]
    found = located(tmp_path, service("users", *PORTS), policy("whole"), *of_ports)
    assert found == [f"note shop/whole: spec.targetRefs[0]: {expected}"]


def test_a_problem_has_its_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "apiVersion: mesh.pilotfish.dev/v1alpha1\n"
        "kind: TrafficPolicy\n"
        "metadata: {name: p, namespace: shop}\n"
        "spec:\n"
        "  targetRefs: [{group: '', kind: Service, name: users}]\n"
        "  retryBudget:\n"
        "    percent: 20%\n"
    )
    [problem] = load(tmp_path).problems
    assert str(problem) == (
        "p.yaml:7 (document 1): TrafficPolicy shop/p: spec.retryBudget.percent: expected a number "
        "from 0 to 100, found a text"
    )


def test_another_version_is_said(tmp_path: Path) -> None:
    value = {**policy("p"), "apiVersion": "mesh.pilotfish.dev/v1"}
    assert located(tmp_path, service("users"), value) == [
        "error shop/p: apiVersion: is 'mesh.pilotfish.dev/v1'; write "
        "'mesh.pilotfish.dev/v1alpha1' for a TrafficPolicy"
    ]
