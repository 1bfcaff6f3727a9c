"""The definition of TrafficPolicy: what an API server takes and refuses, and that a folder does the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from control_plane.sources.fields import FieldError
from control_plane.sources.kube_objects import POLICIES
from control_plane.sources.objects import parse
from tests.support.definitions import definitions, mistakes, nodes, schema_of
from tests.support.kubernetes import parent, policy
from tests.support.manifests import ROOT, check_schema

PAGE = ROOT / "docs/traffic-policy.md"
SCHEMA = schema_of("TrafficPolicy", "v1alpha1")
DURATIONS = (
    "connections.connectTimeout",
    "outlierDetection.baseEjectionTime",
    "outlierDetection.maxEjectionTime",
)
BOUNDS = {
    "connections.maxConnections": (1, 2**32 - 1),
    "connections.maxPendingRequests": (1, 2**32 - 1),
    "connections.maxRequests": (1, 2**32 - 1),
    "outlierDetection.consecutiveFailures": (1, 2**32 - 1),
    "outlierDetection.maxEjectionPercent": (0, 100),
    "retryBudget.percent": (0, 100),
    "retryBudget.minRetriesPerSecond": (0, 2**32 - 1),
}

TOO_SHORT = (
    "spec.outlierDetection: maxEjectionTime must not be shorter than baseEjectionTime (1s if not given)"
)


def refused_by_a_folder(value: dict[str, Any]) -> bool:
    try:
        parse(value)
    except FieldError:
        return True
    return False


def written(field: str, value: object) -> dict[str, Any]:
    section, name = field.split(".")
    return policy("p", **{section: {name: value}})


# --- the definition itself ---


def test_the_control_plane_watches_what_is_defined() -> None:
    [definition] = definitions()
    spec, [version] = definition["spec"], definition["spec"]["versions"]
    assert definition["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"
    assert POLICIES.plural == spec["names"]["plural"]
    assert POLICIES.kind == spec["names"]["kind"]
    assert POLICIES.versions == (f"{spec['group']}/{version['name']}",)
    assert POLICIES.optional
    assert version["subresources"] == {"status": {}}
    assert [column["name"] for column in version["additionalPrinterColumns"]] == ["Target", "Accepted", "Age"]
    assert spec["names"]["shortNames"] == ["tp"]
    assert definition["metadata"]["labels"]["gateway.networking.k8s.io/policy"] == "Direct"


def test_the_schema_is_structural_and_bounded() -> None:
    """What an API server asks of a schema, and what keeps the estimated cost of the rules in its budget."""
    assert SCHEMA["properties"]["metadata"] == {"type": "object"}
    for path, node in nodes(SCHEMA):
        assert node["type"] in ("object", "array", "string", "integer", "boolean"), path
        assert not {"$ref", "additionalProperties", "oneOf", "anyOf", "not", "default"} & set(node), path
        assert ("items" in node) is (node["type"] == "array"), path
        assert {"minimum"} <= set(node) or node["type"] != "integer" or path.endswith("ancestorRef.port"), (
            path
        )
        if path.startswith("spec") and node["type"] == "array":
            assert node["maxItems"] <= 16, path
        if path.startswith("spec") and node["type"] == "string":
            assert {"maxLength", "enum"} & set(node), path
        if path and not path.endswith(("[]", "metadata")):
            assert node["description"].endswith("."), path
        for rule in node.get("x-kubernetes-validations", ()):
            assert set(rule) == {"rule", "message"}, path


# --- what it takes ---


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.+?)```", PAGE.read_text(), re.DOTALL))
def test_the_examples_of_the_page_are_taken(text: str) -> None:
    value = yaml.safe_load(text)
    assert mistakes(value) == []
    assert parse(value)


@pytest.mark.parametrize(
    "spec",
    [
        {"loadBalancer": {"type": "PeakEwma"}},
        {"loadBalancer": {"type": "LeastRequest"}},
        {"loadBalancer": {"type": "RoundRobin"}},
        {"connections": {"connectTimeout": "1h1m1s1ms"}},
        {"outlierDetection": {"disabled": True}},
        {"outlierDetection": {"disabled": False, "consecutiveFailures": 1}},
        {"outlierDetection": {"maxEjectionTime": "1s"}},
        {"outlierDetection": {"baseEjectionTime": "500ms", "maxEjectionTime": "500ms"}},
        {"outlierDetection": {"baseEjectionTime": "2h"}},
        {"retryBudget": {"percent": 0, "minRetriesPerSecond": 0}},
    ],
)
def test_good_ones_are_taken(spec: dict[str, Any]) -> None:
    value = policy("p", **spec)
    assert mistakes(value) == []
    assert not refused_by_a_folder(value)


@pytest.mark.parametrize("field", BOUNDS)
def test_numbers_have_bounds(field: str) -> None:
    low, high = BOUNDS[field]
    for number in (low, high):
        value = written(field, number)
        assert (mistakes(value), refused_by_a_folder(value)) == ([], False)
    for wrong in (low - 1, high + 1, "5", True, 1.5):
        value = written(field, wrong)
        assert (len(mistakes(value)), refused_by_a_folder(value)) == (1, True), wrong


@pytest.mark.parametrize("field", DURATIONS)
def test_durations_have_the_form_of_gateway_api_and_are_more_than_zero(field: str) -> None:
    """GEP-2257."""
    for text in ("1ms", "10s", "99999h99999m", "0h1s"):
        value = written(field, text)
        if text == "1ms" and field.endswith("maxEjectionTime"):
            value["spec"]["outlierDetection"]["baseEjectionTime"] = "1ms"
        assert (mistakes(value), refused_by_a_folder(value)) == ([], False), text
    for text in ("", "1", "s", "1.5s", "-1s", "1d", "100000s", "1s1s1s1s1s", "0s", "0h0ms", 1):
        value = written(field, text)
        assert (bool(mistakes(value)), refused_by_a_folder(value)) == (True, True), text


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, "spec: give one of loadBalancer, connections, outlierDetection and retryBudget"),
        ({"loadBalancer": {}}, "spec.loadBalancer: 'type' is a required property"),
        (
            {"loadBalancer": {"type": "Random"}},
            "spec.loadBalancer.type: 'Random' is not one of ['PeakEwma', 'LeastRequest', 'RoundRobin']",
        ),
        ({"connections": {}}, "spec.connections: {} should be non-empty"),
        ({"retryBudget": {}}, "spec.retryBudget: {} should be non-empty"),
        ({"outlierDetection": {}}, "spec.outlierDetection: {} should be non-empty"),
        (
            {"outlierDetection": {"interval": "10s"}},
            "spec.outlierDetection: Additional properties are not allowed ('interval' was unexpected)",
        ),
        (
            {"outlierDetection": {"disabled": True, "consecutiveFailures": 3}},
            "spec.outlierDetection: nothing else has an effect beside disabled",
        ),
        (
            {"outlierDetection": {"maxEjectionTime": "999ms"}},
            TOO_SHORT,
        ),
        (
            {"outlierDetection": {"baseEjectionTime": "1m1s", "maxEjectionTime": "1m"}},
            TOO_SHORT,
        ),
        ({"connections": {"connectTimeout": "0s"}}, "spec.connections.connectTimeout: must be more than 0s"),
    ],
)
def test_bad_ones_are_refused_with_a_reason(spec: dict[str, Any], expected: str) -> None:
    value = policy("p")
    value["spec"] = {"targetRefs": [parent("users")], **spec}
    assert mistakes(value) == [expected]
    assert refused_by_a_folder(value)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([], "spec.targetRefs: [] should be non-empty"),
        ([parent("users", kind="Pod")], "spec.targetRefs[0].kind: 'Pod' is not one of ['Service']"),
        (
            [parent("users", group="apps")],
            "spec.targetRefs[0].group: 'apps' is not one of ['']",
        ),
        ([{"group": "", "name": "users"}], "spec.targetRefs[0]: 'kind' is a required property"),
        ([{"kind": "Service", "name": "users"}], "spec.targetRefs[0]: 'group' is a required property"),
        ([parent("")], "spec.targetRefs[0].name: '' should be non-empty"),
        (
            [parent("users", sectionName="Web")],
            "spec.targetRefs[0].sectionName: 'Web' does not match '^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'",
        ),
        (
            [parent("users"), parent("orders"), parent("users")],
            "spec.targetRefs: every Service, or port of one, is named once",
        ),
        (
            [parent("users", sectionName="http"), parent("users", sectionName="http")],
            "spec.targetRefs: every Service, or port of one, is named once",
        ),
    ],
)
def test_targets_are_services_or_their_ports_each_once(targets: list[dict[str, Any]], expected: str) -> None:
    value = policy("p", targets)
    assert mistakes(value) == [expected]
    assert refused_by_a_folder(value)


def test_sixteen_targets_are_taken_and_ports_of_one_service_are_several() -> None:
    ports = [parent("users"), *(parent("users", sectionName=f"p{n}") for n in range(15))]
    assert mistakes(policy("p", ports)) == []
    assert len(mistakes(policy("p", [*ports, parent("orders")]))) == 1
    long = parent("users", sectionName="a" * 64)
    assert len(mistakes(policy("p", [long]))) == 1
    assert refused_by_a_folder(policy("p", [long]))


def test_a_policy_names_a_target() -> None:
    value = policy("p")
    del value["spec"]["targetRefs"]
    assert mistakes(value) == ["spec: 'targetRefs' is a required property"]
    assert refused_by_a_folder(value)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_the_definition_is_one(version: str) -> None:
    """As every manifest; here that the schemas know definitions at all."""
    [definition] = definitions()
    check_schema(definition, version)
    definition["spec"]["scope"] = 1
    with pytest.raises(Exception, match="scope"):
        check_schema(definition, version)
