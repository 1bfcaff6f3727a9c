"""The Kubernetes objects of the soak's mesh: one service of several replicas, and who calls it."""

from __future__ import annotations

from enum import Enum

from mesh_api.names import SERVICE_ACCOUNT_ANNOTATION

NAMESPACE = "soak"
AUTHORITY = f"files.{NAMESPACE}.svc.cluster.local"
APPLICATION_PORT = 8080


class State(Enum):
    """Of a Pod, by the conditions of its endpoint."""

    ABSENT = None
    NOT_READY = {"ready": False, "serving": False, "terminating": False}
    READY = {"ready": True, "serving": True, "terminating": False}
    TERMINATING = {"ready": False, "serving": True, "terminating": True}


def account(name: str) -> dict[str, object]:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def service() -> dict[str, object]:
    port = {
        "name": "http",
        "port": 80,
        "targetPort": APPLICATION_PORT,
        "appProtocol": "kubernetes.io/h2c",
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "files", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "files"}, "ports": [port]},
    }


def endpoint_slice(endpoints: list[dict[str, object]]) -> dict[str, object]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "files-loopback",
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": "files"},
            "annotations": {SERVICE_ACCOUNT_ANNOTATION: "files"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": APPLICATION_PORT}],
        "endpoints": endpoints,
    }


def route(number: int) -> dict[str, object]:
    header = {"name": "x-revision", "value": str(number)}
    rule = {
        "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [header]}}],
        "timeouts": {"request": "15s"},
        "backendRefs": [{"name": "files", "port": 80}],
    }
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "files", "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "files", "port": 80}],
            "rules": [rule],
        },
    }
