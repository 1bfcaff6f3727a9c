"""Rights as roles grant them and as requests need them, to hold the one against the other."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from tests.support.manifests import Object

Right = tuple[str, str, str, str]
"""Namespace (empty: of the cluster), group, verb, resource with its subresource."""


def granted(objects: Iterable[Object]) -> dict[Right, set[str] | None]:
    """By the roles among `objects`, to the names that each right holds for; None: all."""
    rights: dict[Right, set[str] | None] = {}
    for item in objects:
        if item["kind"] not in ("Role", "ClusterRole"):
            continue
        namespace = item["metadata"].get("namespace", "")
        for rule in item["rules"]:
            names = set(rule["resourceNames"]) if "resourceNames" in rule else None
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        assert (namespace, group, verb, resource) not in rights
                        rights[namespace, group, verb, resource] = names
    return rights


def asked(request: web.Request, namespace: str = "") -> tuple[Right, str] | None:
    """As the API server takes it apart, with the object's name; None for what everybody may ask. Rights in
    `namespace` are those of a Role, all others those of a ClusterRole."""
    parts = request.path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1] if len(parts) > 1 else "", parts[3:])
    if not rest:
        return None  # discovery
    where = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        where, rest = rest[1], rest[2:]
    resource, name, sub = (*rest, "", "")[:3]
    verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(request.method)
    if verb is None:
        verb = "get" if name else "watch" if "watch" in request.query else "list"
    of_role = where if where == namespace else ""
    return (of_role, group, verb, f"{resource}/{sub}" if sub else resource), name
