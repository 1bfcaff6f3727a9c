"""A cluster with a healthy mesh as objects, for the tests of the operator's commands."""

from __future__ import annotations

import base64
import copy
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from control_plane.status import fingerprint
from tests.support.certs import make_ca
from tests.support.kube_api import KubeApi, Object

SYSTEM = "pilotfish-system"
ROOT_PEM = make_ca("mesh").certificate.public_bytes(Encoding.PEM).decode()
REPLICAS = ("cp-a", "cp-b")
VERSION = version("pilotfish")


def at(**ahead: float) -> str:
    """A time from now, as pages write it."""
    return f"{datetime.now(UTC) + timedelta(**ahead):%Y-%m-%dT%H:%M:%SZ}"


def page(*clients: Object, issued: tuple[Object, ...] = (), **more: Any) -> Object:
    """`/status.json` of a healthy replica."""
    return {
        "version": VERSION,
        "time": at(),
        "not_ready": None,
        "problems": [],
        "clients": list(clients),
        "certificates": {
            "root_days_left": 3649,
            "root_sha256": fingerprint(ROOT_PEM),
            "serving_not_after": at(hours=23, minutes=30),
            "webhook_not_after": at(hours=23, minutes=30),
            "signed": 2,
            "refused": 0,
            "issued": list(issued),
        },
        **more,
    }


def client(name: str, account: str = "users", host: str = "10.0.0.1", **more: Any) -> Object:
    return {
        "node": f"{name}.shop",
        "version": VERSION,
        "identity": f"shop/{account}",
        "peer": f"ipv4:{host}:4711",
        "connected_at": at(),
        "in_step": True,
        "types": [],
        **more,
    }


def refusing(name: str, text: str) -> Object:
    refused = {"version": "7", "names": ["users"], "text": text, "time": "2026-01-01T00:00:00Z"}
    state = {"type": "CDS", "in_step": False, "state": "refused", "refused": refused}
    return client(name, in_step=False, types=[state])


def issued(account: str = "users", host: str = "10.0.0.1", **ahead: float) -> Object:
    """A certificate that a replica remembers."""
    return {"identity": f"shop/{account}", "host": f"ipv4:{host}", "not_after": at(**ahead)}


def running(name: str, namespace: str = "shop", *, ready: bool = True, **labels: str) -> Object:
    """A pod with a sidecar and rules of capture, both as they should be."""
    sidecar = {"name": "pilotfish-sidecar", "ready": ready, "state": {"running": {}}}
    init = {"name": "pilotfish-init", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"mesh.pilotfish.dev/injected": "true", **labels},
        },
        "spec": {
            "nodeName": f"node-{name[-1]}",
            "initContainers": [{"name": "pilotfish-init"}, {"name": "pilotfish-sidecar"}],
            "containers": [{"name": "app"}],
        },
        "status": {"phase": "Running", "initContainerStatuses": [init, sidecar]},
    }


def not_pulled(name: str) -> Object:
    """A pod whose sidecar's image is not there."""
    pod = running(name, ready=False)
    pod["status"]["initContainerStatuses"][1]["state"] = {"waiting": {"reason": "ImagePullBackOff"}}
    return pod


def plain(name: str, namespace: str = "shop", **labels: str) -> Object:
    """A pod without a sidecar."""
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    spec = {"containers": [{"name": "app"}]}
    return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Running"}}


def lease(node: str, **ahead: float) -> Object:
    """As a node renews it whose clock is ahead."""
    metadata = {"name": node, "namespace": "kube-node-lease"}
    return {
        "kind": "Lease",
        "metadata": metadata,
        "spec": {"leaseDurationSeconds": 40, "renewTime": at(**ahead)},
    }


def show_certificate(api: KubeApi, pod: str, **ahead: float) -> None:
    """What a sidecar says of its certificate, whose clock is ahead."""
    left = timedelta(hours=12)
    entry = {
        "not_after": at(seconds=(left + timedelta(**ahead)).total_seconds()),
        "seconds_left": left.total_seconds(),
    }
    api.documents[f"/api/v1/namespaces/shop/pods/{pod}:15000/proxy/certs"] = {"mesh": entry}


def labelled(name: str) -> Object:
    """A namespace whose new pods get sidecars."""
    return {
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"mesh.pilotfish.dev/inject": "enabled"}},
    }


def show_page(api: KubeApi, replica: str, body: Object) -> None:
    """What the status page of a replica says."""
    api.documents[f"/api/v1/namespaces/{SYSTEM}/pods/{replica}:15014/proxy/status.json"] = body


def route(name: str, generation: int = 1, **conditions: str) -> Object:
    """An HTTPRoute with the verdict of the control plane: `Accepted="True"`, or the reason why not."""
    listed = [
        {
            "type": kind,
            "status": "True" if value == "True" else "False",
            "reason": value,
            "message": "so it is",
            "observedGeneration": 1,
        }
        for kind, value in conditions.items()
    ]
    ours = {"controllerName": "mesh.pilotfish.dev/controller", "conditions": listed}
    return {
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "shop", "generation": generation},
        "spec": {"parentRefs": [{"kind": "Service", "group": "", "name": "users"}]},
        "status": {"parents": [ours]},
    }


def policy(name: str, accepted: str) -> Object:
    """A TrafficPolicy with the verdict of the control plane: `"True"`, or the reason why not."""
    made = route(name, Accepted=accepted)
    spec = {"targetRefs": [{"group": "", "kind": "Service", "name": "users"}]}
    status = {"ancestors": made["status"]["parents"]}
    return {**made, "kind": "TrafficPolicy", "spec": spec, "status": status}


def install(api: KubeApi) -> None:
    """A mesh where nothing is wrong: two replicas, two sidecars, one route, one policy."""
    api.documents["/version"] = {"gitVersion": "v1.33.1"}
    resources = [{"name": "httproutes"}, {"name": "grpcroutes"}, {"name": "tcproutes"}]
    api.documents["/apis/gateway.networking.k8s.io/v1"] = {"resources": resources}
    api.documents["/apis/mesh.pilotfish.dev/v1alpha1"] = {"resources": [{"name": "trafficpolicies"}]}
    api.put(*_cluster(), *_control_plane(), route("r", Accepted="True", ResolvedRefs="True"))
    api.put(policy("p", "True"))
    for replica, name in zip(REPLICAS, ("users-1", "users-2"), strict=True):
        host = f"10.0.0.{name[-1]}"
        api.put(plain(replica, SYSTEM, **{"app.kubernetes.io/name": "pilotfish-control-plane"}))
        api.put(running(name))
        show_certificate(api, name)
        # Signed by the one, connected to the other.
        other = f"10.0.0.{3 - int(name[-1])}"
        show_page(
            api, replica, page(client(name, host=host), issued=(issued(host=other, hours=23, minutes=30),))
        )
    api.admit = injected


def injected(item: Object) -> Object:
    """What the webhook makes of a pod, as far as anybody looks; it is asked of pods alone."""
    made = copy.deepcopy(item)
    if made["kind"] == "Pod":
        made["metadata"]["labels"] = {"mesh.pilotfish.dev/injected": "true"}
    return made


def _cluster() -> list[Object]:
    annotations = {"gateway.networking.k8s.io/bundle-version": "v1.3.0"}
    definition = {"name": "httproutes.gateway.networking.k8s.io", "annotations": annotations}
    info = {
        "nodeInfo": {"kubeletVersion": "v1.33.1"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    return [
        {"kind": "CustomResourceDefinition", "metadata": definition},
        {"kind": "CustomResourceDefinition", "metadata": {"name": "trafficpolicies.mesh.pilotfish.dev"}},
        {"kind": "Node", "metadata": {"name": "node-1"}, "status": info},
        lease("node-1"),
        labelled("shop"),
        {"kind": "Namespace", "metadata": {"name": SYSTEM}},
    ]


def _control_plane() -> list[Object]:
    bundle = base64.b64encode(ROOT_PEM.encode()).decode()
    hook = {
        "name": "inject.mesh.pilotfish.dev",
        "failurePolicy": "Ignore",
        "clientConfig": {"caBundle": bundle},
    }
    found: list[Object] = [
        {
            "kind": "Deployment",
            "metadata": {"name": "pilotfish-control-plane", "namespace": SYSTEM},
            "spec": {"replicas": 2, "template": {"spec": {"containers": [{"args": ["control-plane"]}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 2},
        },
        {
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "pilotfish-injector"},
            "webhooks": [hook],
        },
    ]
    for name in ("pilotfish-control-plane", "pilotfish-injector"):
        metadata = {"name": name, "namespace": SYSTEM}
        labels = {"kubernetes.io/service-name": name}
        endpoints = [{"addresses": ["10.0.1.1"], "conditions": {"ready": True}}]
        found += [
            {"kind": "Service", "metadata": metadata, "spec": {}},
            {
                "kind": "EndpointSlice",
                "metadata": {"name": f"{name}-x", "namespace": SYSTEM, "labels": labels},
                "endpoints": endpoints * 2,
            },
        ]
    return found
