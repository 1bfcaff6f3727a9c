"""Facts about injection: the webhook's configuration, whether it works, and which pods it has missed.

Called by `check`. The webhook is tried as it is used: by making a pod, as a dry run.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import ssl
from collections import defaultdict
from collections.abc import Iterator

from control_plane.injector.patch import InjectionError, skip_reason
from mesh_api.names import INJECTED_LABEL, SIDECAR_CONTAINER
from pilotfish.operator.api import Answer, Object
from pilotfish.operator.facts import Fact, failed, logs, ok, some, warning
from pilotfish.operator.kinds import INJECT, PODS, missing_right
from pilotfish.operator.world import World, is_meshed

_LINK = "docs/troubleshooting.md#pods-have-no-sidecar"
_WEBHOOK = "docs/troubleshooting.md#the-webhook-fails"


def webhook(world: World) -> Iterator[Fact]:
    found = world.webhook
    if found is None:
        yield failed(
            "webhook",
            "there is no MutatingWebhookConfiguration pilotfish-injector: no pod gets a sidecar",
            "kubectl apply -k deploy/k8s",
            "docs/kubernetes.md#install",
        )
        return
    hooks = found["webhooks"]
    policies = ", ".join(sorted({hook.get("failurePolicy", "Fail") for hook in hooks}))
    yield ok("webhook", f"the webhook is configured (failure policy {policies})")
    roots = {replica.status["certificates"].get("root_sha256") for replica in world.answering}
    bundles = {bundle_print(hook["clientConfig"].get("caBundle", "")) for hook in hooks}
    if not roots or None in roots:
        return
    if bundles == roots:
        yield ok("webhook-ca", "the webhook's caBundle is the mesh's root")
    else:
        state = "empty" if bundles == {""} else "not the mesh's root"
        yield failed(
            "webhook-ca",
            f"the webhook's caBundle is {state}: the API server will not trust the webhook",
            "the control plane sets it within a minute; else "
            f"{logs(f'{world.system}/deployment/pilotfish-control-plane')}",
            _WEBHOOK,
        )


def bundle_print(bundle: str) -> str:
    """SHA-256 of a caBundle's certificate; empty when there is none, `?` when it is none."""
    try:
        pem = base64.b64decode(bundle, validate=True).decode()
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() if pem else ""
    except (binascii.Error, ValueError):
        return "?"


def namespaces(world: World) -> Iterator[Fact]:
    if world.labelled:
        yield ok("namespaces", f"namespaces with injection: {some(world.labelled)}")
    else:
        which = world.namespace or "NAMESPACE"
        yield warning(
            "namespaces",
            f"no namespace is labelled {INJECT}=enabled",
            f"kubectl label namespace {which} {INJECT}=enabled",
            "docs/kubernetes.md#put-workloads-into-the-mesh",
        )


def dry_run(world: World) -> Iterator[Fact]:
    """Whether a new pod would get its sidecar."""
    if world.webhook is None or not world.labelled:
        return
    namespace = world.labelled[0]
    answer = world.api.ask("POST", PODS.path(namespace), {"dryRun": "All"}, probe_pod())
    yield dry_run_fact(namespace, answer)


def probe_pod() -> Object:
    """A pod that the strictest namespace takes; it is never made."""
    container = {
        "name": "probe",
        "image": "probe",
        "resources": {
            "requests": {"cpu": "1m", "memory": "1Mi"},
            "limits": {"cpu": "1m", "memory": "1Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "pilotfish-check-"},
        "spec": {"containers": [container]},
    }


def dry_run_fact(namespace: str, answer: Answer) -> Fact:
    status = answer.status_object() or {}
    message = str(status.get("message") or answer.text())[:500]
    if answer.status == 201:
        return _admitted_fact(namespace, json.loads(answer.body))
    if "webhook" in message:
        hint = "the words behind the last colon say why: x509 is the caBundle, timeout a firewall"
        return failed(
            "webhook-works", f"no pod can be made in namespace {namespace}: {message}", hint, _WEBHOOK
        )
    if "PodSecurity" in message:
        return failed(
            "webhook-works",
            f"a pod with a sidecar is refused in namespace {namespace}: {message}",
            "capture needs NET_ADMIN in an init container: let the namespace have it, "
            "or annotate pods with mesh.pilotfish.dev/capture: disabled",
            _LINK,
        )
    if answer.status == 403 and "cannot create" in message:
        hint = missing_right("create", PODS, namespace)
        return warning(
            "webhook-works", "whether the webhook works was not tried: you may not create pods", hint, _LINK
        )
    text = f"a dry run of a pod in namespace {namespace} was answered with {answer.status}: {message}"
    return warning("webhook-works", text, "a policy or quota of the cluster, perhaps", _LINK)


def _admitted_fact(namespace: str, pod: Object) -> Fact:
    """Of a pod as it would be stored."""
    if (pod["metadata"].get("labels") or {}).get(INJECTED_LABEL) != "true":
        return failed(
            "webhook-works",
            f"a new pod in namespace {namespace} would get no sidecar (dry run): the webhook did not answer",
            "can the API server reach port 15017 of the control plane's pods? Is caBundle right?",
            _WEBHOOK,
        )
    initial = {container["name"]: container for container in pod["spec"].get("initContainers") or ()}
    sidecar = initial.get(SIDECAR_CONTAINER)
    if sidecar is not None and sidecar.get("restartPolicy") != "Always":
        return failed(
            "webhook-works",
            f"a new pod in namespace {namespace} would never start (dry run): the API server takes away what "
            "lets its sidecar run on (restartPolicy of an init container)",
            "give the control plane --native-sidecars=off",
            "docs/kubernetes.md#without-native-sidecars",
        )
    return ok("webhook-works", f"a new pod in namespace {namespace} would get its sidecar (dry run)")


def missed_pods(world: World) -> Iterator[Fact]:
    """Pods of labelled namespaces that were made before the label, or while the webhook did not answer."""
    missed: dict[str, list[str]] = defaultdict(list)
    for pod in world.pods:
        metadata = pod["metadata"]
        if metadata["namespace"] in world.labelled and not metadata.get("deletionTimestamp") and _missed(pod):
            missed[metadata["namespace"]].append(metadata["name"])
    for namespace, names in sorted(missed.items()):
        yield warning(
            "pods-without-sidecar",
            f"pods without a sidecar in namespace {namespace}: {some(names)}",
            f"kubectl -n {namespace} rollout restart deployment  (or what else made them)",
            _LINK,
        )
    if world.labelled and not missed:
        yield ok("pods-without-sidecar", "no pod of these namespaces lacks its sidecar")


def _missed(pod: Object) -> bool:
    if is_meshed(pod):
        return False
    try:
        return not skip_reason(pod["metadata"], pod["spec"])
    except InjectionError:
        return False
