"""What docs/gateway-api.md says of kinds and fields is what the code does, and nothing that Gateway API
defines is left out."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import yaml

from control_plane.model.route import Route, RouteKind
from control_plane.sources.fields import FieldError
from control_plane.sources.kubernetes import ClusterState
from control_plane.sources.objects import is_known, parse
from tests.support.kubernetes import Object, backend, parent, route
from tests.support.manifests import GATEWAY_API
from tests.support.processes import ROOT

GROUP = "gateway.networking.k8s.io"
KINDS = [kind.value for kind in RouteKind]
PAGE = (ROOT / "docs" / "gateway-api.md").read_text()
MODIFIER = {"set": [{"name": "x-a", "value": "1"}]}
MIRROR = {"backendRef": {"name": "orders", "port": 80}}
SAMPLES: dict[str, Any] = {
    "parentRefs[]": parent("orders"),
    "parentRefs[].namespace": "other",
    "parentRefs[].port": 80,
    "parentRefs[].sectionName": "http",
    "hostnames": ["users.example"],
    "useDefaultGateways": "All",
    "rules[].name": "first",
    "rules[].matches[].path": {"type": "Exact", "value": "/a"},
    "rules[].matches[].method": {"HTTPRoute": "GET", "GRPCRoute": {"service": "a.B"}},
    "rules[].matches[].headers": [{"name": "x-a", "value": "1"}],
    "rules[].matches[].queryParams": [{"name": "a", "value": "1"}],
    "requestHeaderModifier": MODIFIER,
    "responseHeaderModifier": MODIFIER,
    "requestRedirect": {"hostname": "elsewhere.example"},
    "urlRewrite": {"hostname": "elsewhere.example"},
    "requestMirror": MIRROR,
    "cors": {"allowOrigins": ["https://a.example"]},
    "extensionRef": {"group": "example.org", "kind": "Filter", "name": "f"},
    "externalAuth": {"protocol": "HTTP", "backendRef": {"name": "orders", "port": 80}},
    "rules[].timeouts": {"request": "1s"},
    "rules[].retry": {"attempts": 3},
    "rules[].sessionPersistence": {"type": "Cookie"},
    "rules[].backendRefs[]": backend("orders"),
    "rules[].backendRefs[].namespace": "other",
    "rules[].backendRefs[].weight": 7,
}
TYPES = {
    "requestHeaderModifier": "RequestHeaderModifier",
    "responseHeaderModifier": "ResponseHeaderModifier",
    "requestRedirect": "RequestRedirect",
    "urlRewrite": "URLRewrite",
    "requestMirror": "RequestMirror",
    "cors": "CORS",
    "extensionRef": "ExtensionRef",
    "externalAuth": "ExternalAuth",
}


def rows(heading: str) -> list[list[str]]:
    """Cells of the one table below a heading of the page, without its head."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


FIELDS = {
    (row[0].strip("`"), kind): (row[1 + i], row[4].startswith("experimental"))
    for row in rows("Fields")
    for i, kind in enumerate(("HTTPRoute", "GRPCRoute", "TCPRoute"))
}


def definition(kind: str) -> dict[str, Any]:
    """The schema of the spec in the newest version."""
    file = GATEWAY_API / f"{kind.lower()}s.yaml"
    if not file.exists():
        pytest.skip(f"{file} is not there: Gateway API's definitions are not part of this repository")
    [schema] = [
        version["schema"]["openAPIV3Schema"]
        for version in yaml.safe_load(file.read_text())["spec"]["versions"]
        if version["name"] == "v1"
    ]
    found: dict[str, Any] = schema["properties"]["spec"]
    return found


def leaves(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    if schema.get("type") == "array":
        schema, path = schema["items"], f"{path}[]"
    if "properties" not in schema:
        yield path
    for name, inner in schema.get("properties", {}).items():
        yield from leaves(inner, f"{path}.{name}" if path else name)


def place(spec: Any, path: str, value: Any) -> None:
    """Sets a field; `[]` is the first item, made where there is none."""
    parts = re.findall(r"\[\]|[^.\[]+", path)
    last = parts[-1]
    for name, following in pairwise(parts):
        if name == "[]":
            if not spec:
                spec.append({})
            spec = spec[0]
        else:
            spec = spec.setdefault(name, [] if following == "[]" else {})
    if last == "[]":
        spec[:] = [value]
    else:
        spec[last] = value


def base(kind: str) -> Object:
    return route("r", {"backendRefs": [backend("users")]}, kind=kind)


def with_field(kind: str, field: str) -> Object:
    item = copy.deepcopy(base(kind))
    owner, _, last = field.rpartition("[].")
    if owner.endswith("filters"):
        place(item["spec"], f"{owner}[]", {"type": TYPES[last], last: SAMPLES[last]})
        if last == "requestRedirect" and owner == "rules[].filters":
            del item["spec"]["rules"][0]["backendRefs"]  # the two exclude each other
        return item
    value = SAMPLES[field]
    place(item["spec"], field, value[kind] if isinstance(value, dict) and kind in value else value)
    return item


def parsed(item: Object) -> Route:
    [found] = parse(item)
    assert isinstance(found, Route)
    return found


@pytest.mark.parametrize(
    ("kind", "field", "said"),
    [(kind, field, said) for (field, kind), (said, _) in FIELDS.items() if said],
)
def test_a_field_does_what_the_page_says(kind: str, field: str, said: str) -> None:
    item = with_field(kind, field)
    if said == "refused":
        with pytest.raises(FieldError):
            parsed(item)
        return
    assert said in ("yes", "ignored")
    assert (parsed(item) != parsed(base(kind))) == (said == "yes")


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_has_every_field_of_the_definition_and_no_other(kind: str) -> None:
    found = set(leaves(definition(kind)))
    listed = {field for (field, of), (said, _) in FIELDS.items() if of == kind and said}
    structure = {"rules[].filters[].type", "rules[].backendRefs[].filters[].type"}
    assert [
        path for path in sorted(found - structure) if not any(path.startswith(field) for field in listed)
    ] == []
    standard = {field for field in listed if not FIELDS[field, kind][1]}
    assert [field for field in sorted(standard) if not any(path.startswith(field) for path in found)] == []
    absent = {field for (field, of), (said, _) in FIELDS.items() if of == kind and not said}
    assert [field for field in sorted(absent) if any(path.startswith(field) for path in found)] == []


def test_the_kinds_that_are_read_are_those_of_the_page() -> None:
    read = {kind: versions.split(", ") for kind, versions, _ in rows("Kinds") if versions}
    watched = {
        store.resource.kind: [version.rpartition("/")[2] for version in store.resource.versions]
        for store in ClusterState(lambda: None).stores
        if store.resource.versions[0].startswith(GROUP)
    }
    assert read == watched
    for kind, versions, _ in rows("Kinds"):
        for version in versions.split(", ") if versions else ["v1"]:
            assert is_known({"apiVersion": f"{GROUP}/{version}", "kind": kind}) == bool(versions)


def test_every_kind_that_is_defined_is_on_the_page() -> None:
    if not GATEWAY_API.exists():
        pytest.skip(f"{GATEWAY_API} is not there: Gateway API's definitions are not part of this repository")
    defined = {
        yaml.safe_load(file.read_text())["spec"]["names"]["kind"] for file in GATEWAY_API.glob("*.yaml")
    }
    assert defined <= {row[0] for row in rows("Kinds")}
