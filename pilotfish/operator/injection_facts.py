"""Facts about injection: the webhook's configuration, labelled namespaces, and which pods were missed.

Called by `check`. Whether the webhook works, `dry_run_facts` tries.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ssl
from collections import defaultdict
from collections.abc import Iterator

from control_plane.injector.patch import InjectionError, skip_reason
from pilotfish.operator.control_plane_facts import all_logs
from pilotfish.operator.errors import WEBHOOK_PAGE
from pilotfish.operator.facts import Fact, failed, ok, some, warning
from pilotfish.operator.kinds import INJECT
from pilotfish.operator.pods import is_meshed
from pilotfish.operator.transport import Object
from pilotfish.operator.world import World

_LINK = "docs/troubleshooting.md#pods-have-no-sidecar"


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
            f"the control plane sets it within a minute; else {all_logs(world.system)}",
            WEBHOOK_PAGE,
        )


def bundle_print(bundle: str) -> str:
    """SHA-256 of a caBundle's certificate; empty when there is none, `?` when it is none."""
    try:
        pem = base64.b64decode(bundle, validate=True).decode()
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() if pem else ""
    except (binascii.Error, ValueError):
        return "?"


def namespaces(world: World) -> Iterator[Fact]:
    if world.namespace and world.namespace not in (item["metadata"]["name"] for item in world.namespaces):
        text = f"there is no namespace {world.namespace}"
        yield failed("namespaces", text, "kubectl get namespaces", "docs/operations.md#check")
        return
    for name in world.labelled_in_vain:
        yield warning(
            "namespaces",
            f"the label of namespace {name} has no effect: its pods never get a sidecar",
            f"kubectl label namespace {name} {INJECT}-",
            "docs/kubernetes.md#install",
        )
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
