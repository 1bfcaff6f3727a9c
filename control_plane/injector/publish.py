"""Tells the cluster what it must trust: the root in a ConfigMap, and in the webhook's configuration.

The app runs it beside the webhook. Every replica does it; all write the same, because they share the root.
Writes only what differs.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable
from contextlib import suppress

from control_plane.injector.sidecar_container import ROOT_CONFIG_MAP, ROOT_KEY
from control_plane.kube.client import KubeClient, KubeError, Object

WEBHOOK_CONFIGURATION = "pilotfish-injector"
"""Name of the MutatingWebhookConfiguration of `deploy/k8s`."""
INTERVAL = 15.0
"""Seconds between two looks: the manifests are applied after we started, or anew."""
RETRY = 5.0

_WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
_JSON_PATCH = "application/json-patch+json"
_MERGE_PATCH = "application/merge-patch+json"

log = logging.getLogger(__name__)


async def keep_published(
    client: KubeClient,
    namespace: str,
    root_pem: str,
    renew: Callable[[], bool],
    stop: asyncio.Event,
) -> None:
    """Publishes until `stop` is set; calls `renew` (the webhook's own certificate) on the way."""
    while not stop.is_set():
        pause = INTERVAL
        try:
            await publish_root(client, namespace, root_pem)
            await publish_ca_bundle(client, root_pem)
        except KubeError as error:
            log.warning("the mesh's root was not published: %s; trying again", error)
            pause = RETRY
        try:
            if renew():
                log.info("the webhook's certificate was renewed")
        except Exception:
            # The old certificate serves for the other half of its life.
            log.exception("the webhook's certificate was not renewed; trying again")
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)


async def publish_root(client: KubeClient, namespace: str, root_pem: str) -> bool:
    """Keeps the ConfigMap `pilotfish-root`; True when it was written. Raises KubeError."""
    folder = f"/api/v1/namespaces/{namespace}/configmaps"
    path = f"{folder}/{ROOT_CONFIG_MAP}"
    data = {ROOT_KEY: root_pem}
    try:
        found = await client.request("GET", path)
    except KubeError as error:
        if error.status != 404:
            raise
        return await _create(client, folder, data)
    if (found.get("data") or {}).get(ROOT_KEY) == root_pem:
        return False
    await client.request("PATCH", path, {"data": data}, content_type=_MERGE_PATCH)
    log.info("published the root in ConfigMap %s/%s", namespace, ROOT_CONFIG_MAP)
    return True


async def _create(client: KubeClient, folder: str, data: Object) -> bool:
    labels = {"app.kubernetes.io/part-of": "pilotfish", "app.kubernetes.io/managed-by": "pilotfish"}
    metadata = {"name": ROOT_CONFIG_MAP, "labels": labels}
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    try:
        await client.request("POST", folder, config_map)
    except KubeError as error:
        if error.status != 409:  # another replica was first
            raise
        return False
    log.info("published the root in a new ConfigMap %s", ROOT_CONFIG_MAP)
    return True


async def publish_ca_bundle(client: KubeClient, root_pem: str) -> bool:
    """Tells the API server by which root it knows the webhook; True when it was written. Raises KubeError."""
    path = f"{_WEBHOOKS}/{WEBHOOK_CONFIGURATION}"
    try:
        configuration = await client.request("GET", path)
    except KubeError as error:
        if error.status == 404:
            log.debug("no MutatingWebhookConfiguration %s: no pod is injected", WEBHOOK_CONFIGURATION)
            return False
        raise
    bundle = base64.b64encode(root_pem.encode()).decode()
    webhooks = configuration.get("webhooks") or []
    patch: list[Object] = []
    for number, webhook in enumerate(webhooks):
        if (webhook.get("clientConfig") or {}).get("caBundle") != bundle:
            # The test makes the patch fail when the list was changed meanwhile.
            patch += (
                {"op": "test", "path": f"/webhooks/{number}/name", "value": webhook.get("name")},
                {"op": "add", "path": f"/webhooks/{number}/clientConfig/caBundle", "value": bundle},
            )
    if not patch:
        return False
    await client.request("PATCH", path, patch, content_type=_JSON_PATCH)
    log.info("published the webhook's CA in MutatingWebhookConfiguration %s", WEBHOOK_CONFIGURATION)
    return True
