"""What a TrafficPolicy makes of a cluster: the message, and what the sidecar that reads it will do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from google.protobuf.json_format import MessageToDict

from control_plane.model.discovery import Dialect
from control_plane.registry import MeshIndex
from control_plane.sources.policies import MAX_TARGETS
from control_plane.translate.clusters import service_cluster
from sidecar.config.decode import decode_cluster
from sidecar.config.resources import ClusterConfig, LbPolicy
from tests.support.kubernetes import endpoint_slice, mesh, policy, service

ROOT = Path(__file__).parents[2]
DEFINITION = ROOT / "deploy/k8s/base/crds/trafficpolicies.yaml"
USERS = "users.shop.svc.cluster.local:80"
MOST = 2**32 - 1


def cluster(dialect: Dialect = Dialect.PILOTFISH, **spec: Any) -> Cluster:
    """Of Service users under one policy; without `spec` under none."""
    policies = [policy("p", **spec)] if spec else []
    replicas = endpoint_slice("users-a", "127.0.1.1", runs_as="users")
    [view] = MeshIndex.of(mesh(service("users"), replicas, *policies)).views.values()
    [port] = view.service.ports
    return service_cluster(
        USERS, view.service, port, view.slices, dialect, "cluster.local", view.settings(port)
    )


def message(dialect: Dialect = Dialect.PILOTFISH, **spec: Any) -> dict[str, Any]:
    """Without the balancers: the schema of peak EWMA is not at hand."""
    found = cluster(dialect, **spec)
    found.ClearField("load_balancing_policy")
    made: dict[str, Any] = MessageToDict(found)
    return made


def config(**spec: Any) -> ClusterConfig:
    return decode_cluster(cluster(**spec).SerializeToString())


def test_a_policy_changes_what_it_names_and_nothing_else() -> None:
    expected = message()
    expected["connectTimeout"] = "0.250s"
    expected["circuitBreakers"] = {
        "thresholds": [
            {
                "maxConnections": 7,
                "maxPendingRequests": 8,
                "maxRequests": 9,
                "retryBudget": {"budgetPercent": {"value": 5.0}, "minRetryConcurrency": 3},
            }
        ]
    }
    expected["outlierDetection"] = {
        "consecutive5xx": 2,
        "baseEjectionTime": "30s",
        "maxEjectionTime": "3600s",
        "maxEjectionPercent": 100,
    }
    found = message(
        connections={
            "connectTimeout": "250ms",
            "maxConnections": 7,
            "maxPendingRequests": 8,
            "maxRequests": 9,
        },
        retryBudget={"percent": 5, "minRetriesPerSecond": 3},
        outlierDetection={
            "consecutiveFailures": 2,
            "baseEjectionTime": "30s",
            "maxEjectionTime": "1h",
            "maxEjectionPercent": 100,
        },
    )
    assert found == expected


def test_a_policy_that_asks_for_the_defaults_changes_nothing() -> None:
    assert cluster(loadBalancer={"type": "PeakEwma"}) == cluster()


@pytest.mark.parametrize(
    ("kind", "listed"),
    [
        ("PeakEwma", ["peak_ewma", "least_request", "wrr_locality"]),
        ("LeastRequest", ["least_request", "wrr_locality"]),
        ("RoundRobin", ["wrr_locality"]),
    ],
)
@pytest.mark.parametrize("dialect", [Dialect.PILOTFISH, Dialect.GRPC])
def test_the_list_of_balancers_begins_with_the_one_that_is_wanted(
    kind: str, listed: list[str], dialect: Dialect
) -> None:
    """It ends with the one that proxyless gRPC knows."""
    policies = cluster(dialect, loadBalancer={"type": kind}).load_balancing_policy.policies
    assert [each.typed_extension_config.name.rpartition(".")[2] for each in policies] == listed


def test_proxyless_grpc_gets_no_detector_whatever_the_policy_says() -> None:
    asked = {"outlierDetection": {"consecutiveFailures": 1}, "connections": {"maxRequests": 3}}
    found = message(Dialect.GRPC, **asked)
    assert "outlierDetection" not in found
    assert found["circuitBreakers"]["thresholds"][0]["maxRequests"] == 3


# --- in the sidecar ---

EFFECTS: dict[str, list[tuple[object, str, object]]] = {
    "loadBalancer.type": [
        ("LeastRequest", "lb_policy", LbPolicy.LEAST_REQUEST),
        ("RoundRobin", "lb_policy", LbPolicy.ROUND_ROBIN),
        ("PeakEwma", "lb_policy", LbPolicy.PEAK_EWMA),
    ],
    "connections.connectTimeout": [("2s500ms", "connect_timeout", 2.5)],
    "connections.maxConnections": [(1, "circuit_breakers.max_connections", 1)],
    "connections.maxPendingRequests": [(2, "circuit_breakers.max_pending_requests", 2)],
    "connections.maxRequests": [(MOST, "circuit_breakers.max_requests", MOST)],
    "outlierDetection.disabled": [(True, "outlier_detection", None)],
    "outlierDetection.consecutiveFailures": [(1, "outlier_detection.consecutive_5xx", 1)],
    "outlierDetection.baseEjectionTime": [
        ("5s", "outlier_detection.base_ejection_time", 5.0),
        ("5m", "outlier_detection.max_ejection_time", 300.0),
    ],
    "outlierDetection.maxEjectionTime": [("99999h", "outlier_detection.max_ejection_time", 359996400.0)],
    "outlierDetection.maxEjectionPercent": [(0, "outlier_detection.max_ejection_percent", 0)],
    "retryBudget.percent": [(0, "circuit_breakers.retry_budget_percent", 0.0)],
    "retryBudget.minRetriesPerSecond": [(0, "circuit_breakers.min_retries_per_second", 0.0)],
}
"""Field of the spec: what is written, and which setting of the sidecar's cluster becomes what."""


@pytest.mark.parametrize(
    ("field", "written", "setting", "expected"),
    [(field, *row) for field, rows in EFFECTS.items() for row in rows],
)
def test_every_field_arrives_in_the_sidecar(
    field: str, written: object, setting: str, expected: object
) -> None:
    section, name = field.split(".")
    found: Any = config(**{section: {name: written}})
    for part in setting.split("."):
        found = getattr(found, part)
    assert found == expected


def schema() -> dict[str, Any]:
    [version] = yaml.safe_load(DEFINITION.read_text())["spec"]["versions"]
    spec: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def leaves(found: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, part in found["properties"].items():
        if part["type"] == "object":
            yield from leaves(part, f"{path}{name}.")
        elif part["type"] != "array":
            yield path + name


def test_the_definition_has_no_field_without_an_effect() -> None:
    assert set(leaves(schema())) == set(EFFECTS)
    assert schema()["properties"]["targetRefs"]["maxItems"] == MAX_TARGETS
