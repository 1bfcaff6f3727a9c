"""Kubernetes objects as dictionaries, and the mesh that they make, for tests of the control plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from control_plane.model.discovery import Dialect, Identity, NodeInfo
from control_plane.model.mesh import Mesh
from control_plane.sources.objects import assemble, parse

Object = dict[str, Any]


def service(name: str, *ports: Mapping[str, Any], namespace: str = "shop", **spec: Any) -> Object:
    """With port 80 named http unless `ports` says otherwise."""
    listed = [dict(port) for port in ports] or [{"name": "http", "port": 80, "targetPort": 8080}]
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": listed, **spec}}


def account(name: str, namespace: str = "shop") -> Object:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}


def endpoint_slice(
    name: str,
    *endpoints: str | Mapping[str, Any],
    of: str = "",
    runs_as: str = "",
    ports: Sequence[Mapping[str, Any]] = ({"name": "http", "port": 8080},),
    namespace: str = "shop",
    **annotations: str,
) -> Object:
    """`endpoints` are addresses or whole entries; `of` is the Service, by default the part of the name
    before its first `-`; `annotations` are those of the mesh's group, with `_` for `-`."""
    if runs_as:
        annotations["service-account"] = runs_as
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": of or name.partition("-")[0]},
            "annotations": mesh_annotations(annotations),
        },
        "addressType": "IPv4",
        "ports": [dict(port) for port in ports],
        "endpoints": [{"addresses": [item]} if isinstance(item, str) else dict(item) for item in endpoints],
    }


def mesh_annotations(values: Mapping[str, str]) -> dict[str, str]:
    return {f"mesh.pilotfish.dev/{name.replace('_', '-')}": value for name, value in values.items()}


def parent(name: str, **more: Any) -> Object:
    return {"group": "", "kind": "Service", "name": name, **more}


def backend(name: str, port: int = 80, **more: Any) -> Object:
    return {"name": name, "port": port, **more}


def route(
    name: str,
    *rules: Mapping[str, Any],
    to: str | Sequence[Mapping[str, Any]] = "users",
    kind: str = "HTTPRoute",
    namespace: str = "shop",
    created: str = "",
) -> Object:
    """`to` is the parent Service's name or the list of parentRefs."""
    metadata = {"name": name, "namespace": namespace, **({"creationTimestamp": created} if created else {})}
    parents = [parent(to)] if isinstance(to, str) else [dict(ref) for ref in to]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": metadata,
        "spec": {"parentRefs": parents, "rules": [dict(rule) for rule in rules]},
    }


def policy(
    name: str,
    to: str | Sequence[Mapping[str, Any]] = "users",
    *,
    namespace: str = "shop",
    created: str = "",
    **spec: Any,
) -> Object:
    """A TrafficPolicy; `to` is the Service's name or the list of targetRefs. Asks for RoundRobin unless
    `spec` says otherwise."""
    metadata = {"name": name, "namespace": namespace, **({"creationTimestamp": created} if created else {})}
    targets = [parent(to)] if isinstance(to, str) else [dict(ref) for ref in to]
    asked = spec or {"loadBalancer": {"type": "RoundRobin"}}
    return {
        "apiVersion": "mesh.pilotfish.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": metadata,
        "spec": {"targetRefs": targets, **asked},
    }


def grant(namespace: str, from_namespace: str, kind: str = "HTTPRoute", service_name: str = "") -> Object:
    to = {"group": "", "kind": "Service", **({"name": service_name} if service_name else {})}
    group = "gateway.networking.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ReferenceGrant",
        "metadata": {"name": "grant", "namespace": namespace},
        "spec": {"from": [{"group": group, "kind": kind, "namespace": from_namespace}], "to": [to]},
    }


def mesh(*objects: Object) -> Mesh:
    """Parsed and put together, references unchecked."""
    return assemble(item for value in objects for item in parse(value))


def node(
    service_account: str = "users",
    address: str = "",
    dialect: Dialect = Dialect.PILOTFISH,
    namespace: str = "shop",
) -> NodeInfo:
    return NodeInfo("node", "cluster", dialect, Identity(namespace, service_account), address)
