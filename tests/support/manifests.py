"""The repository's Kubernetes manifests for tests: files, kustomizations, and schemas to test them with."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
VERSIONS = ("1.30", "1.34", "1.37")
"""Kubernetes minor versions whose OpenAPI schemas the manifests are held against."""
GATEWAY_API = ROOT.parent / "shared" / "gateway-api"
"""Gateway API's definitions, which are no part of the repository."""
KUSTOMIZATIONS = (
    "deploy/k8s",
    "deploy/k8s/overlays/production",
    "deploy/k8s/overlays/demo",
    "deploy/k8s/overlays/observability",
    "examples/shop",
)
"""What users apply."""


def kustomization_files() -> list[Path]:
    folders = (ROOT / "deploy", ROOT / "examples")
    return sorted(
        path for folder in folders for path in folder.rglob("*") if path.stem.lower() == "kustomization"
    )


def patch_files(kustomization: Path) -> set[Path]:
    """Files that are parts of objects only."""
    patches = yaml.safe_load(kustomization.read_text()).get("patches") or []
    return {kustomization.parent / patch["path"] for patch in patches if "path" in patch}


def manifest_files() -> list[Path]:
    """Files with whole Kubernetes objects."""
    parts = {path for file in kustomization_files() for path in (file, *patch_files(file))}
    folders = (ROOT / "deploy/k8s", ROOT / "examples/shop")
    found = {path for folder in folders for path in folder.rglob("*.yaml")}
    return sorted(found - parts)


def documents(text: str) -> list[Object]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


@functools.cache
def build(kustomization: str) -> tuple[Object, ...]:
    """The objects that `kubectl apply -k` would send."""
    command = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    result = subprocess.run([*command, str(ROOT / kustomization)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return tuple(documents(result.stdout))


def can_build() -> bool:
    return bool(shutil.which("kubectl") or shutil.which("kustomize"))


def one(objects: tuple[Object, ...], kind: str, name: str) -> Object:
    [found] = [item for item in objects if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


def check_schema(item: Object, version: str) -> None:
    """Raises kubernetes_validate.ValidationError, also for fields that the schema does not have."""
    if "gateway.networking.k8s.io" not in item["apiVersion"]:
        kubernetes_validate.validate(item, version, strict=True)


def check_gateway_schema(item: Object) -> None:
    """Against the CustomResourceDefinitions of Gateway API. Raises jsonschema.ValidationError."""
    version = item["apiVersion"].partition("/")[2]
    for file in GATEWAY_API.glob("*.yaml"):
        definition = yaml.safe_load(file.read_text())
        if definition["spec"]["names"]["kind"] == item["kind"]:
            [schema] = [
                found["schema"]["openAPIV3Schema"]
                for found in definition["spec"]["versions"]
                if found["name"] == version
            ]
            jsonschema.Draft202012Validator(strict(schema)).validate(item)
            return
    raise AssertionError(f"no definition of {item['kind']}")


def strict(schema: Any) -> Any:
    """Objects with named properties take no others; `metadata` is the API server's."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    if "properties" in schema:
        parts = schema["properties"].items()
        result["properties"] = {key: part if key == "metadata" else strict(part) for key, part in parts}
        if schema.get("type") == "object":
            result.setdefault("additionalProperties", False)
    if "items" in schema:
        result["items"] = strict(schema["items"])
    return result


def pod_specs(item: Object) -> Iterator[Object]:
    if item["kind"] == "Deployment":
        yield item["spec"]["template"]["spec"]
