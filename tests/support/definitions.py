"""Our CustomResourceDefinitions for tests: what an API server would say of an object.

Structure by a JSON schema validator, the rules in x-kubernetes-validations by a real CEL evaluator. It is
not the API server's own: it does not estimate costs, and knows CEL's standard functions alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import celpy
import jsonschema
import yaml

from tests.support.manifests import ROOT, Object, strict

FOLDER = ROOT / "deploy/k8s/base/crds"


def definitions() -> list[Object]:
    files = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
    return [yaml.safe_load(path.read_text()) for path in files]


def schema_of(kind: str, version: str) -> Object:
    [definition] = [found for found in definitions() if found["spec"]["names"]["kind"] == kind]
    [found] = [found for found in definition["spec"]["versions"] if found["name"] == version]
    schema: Object = found["schema"]["openAPIV3Schema"]
    return schema


def mistakes(item: Object) -> list[str]:
    """`path: message`; the rules are asked only of what has the right structure, as the API server does."""
    schema = schema_of(item["kind"], item["apiVersion"].partition("/")[2])
    wrong = jsonschema.Draft202012Validator(strict(schema)).iter_errors(item)
    found = [f"{error.json_path.removeprefix('$.')}: {error.message}" for error in wrong]
    return sorted(found) if found else sorted(_broken_rules(schema, item, ""))


def nodes(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    """Every part of a schema with its path."""
    yield path, schema
    for name, part in (schema.get("properties") or {}).items():
        yield from nodes(part, f"{path}.{name}".removeprefix("."))
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def _broken_rules(schema: Object, value: Any, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations") or ():
        if not holds(rule["rule"], value):
            yield f"{path}: {rule['message']}"
    if isinstance(value, dict):
        for name, part in (schema.get("properties") or {}).items():
            if name in value:
                yield from _broken_rules(part, value[name], f"{path}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _broken_rules(schema["items"], part, f"{path}[{index}]")


def holds(rule: str, value: object) -> bool:
    """Raises celpy.CELEvalError where the API server would refuse the object for a rule that fails."""
    result = _program(rule).evaluate({"self": celpy.json_to_cel(value)})
    assert isinstance(result, celpy.celtypes.BoolType), rule
    return bool(result)


@functools.cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
