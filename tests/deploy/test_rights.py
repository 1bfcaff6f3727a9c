"""The rights in rbac.yaml, held against what the control plane really asks of an API server: all of it is
allowed, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from control_plane import leader
from control_plane.app import cluster_trust
from control_plane.ca.authority import utc_now
from control_plane.cluster import Cluster
from control_plane.injector.namespaces import Namespaces
from control_plane.injector.publish import WEBHOOK_CONFIGURATION
from control_plane.injector.service import Injector
from control_plane.injector.sidecar_container import InjectionSettings
from control_plane.kube.access import from_kubeconfig
from control_plane.kube.client import KubeClient
from control_plane.settings import parse_arguments
from tests.support.kube_api import KubeApi
from tests.support.kubernetes import backend, policy, route, service
from tests.support.manifests import ROOT, documents
from tests.support.rights import Right, asked, granted

NAMESPACE = "pilotfish-system"
RBAC = documents((ROOT / "deploy/k8s/base/rbac.yaml").read_text())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def live(api: KubeApi) -> None:
    """All that a control plane does in a cluster, once."""
    settings = parse_arguments(["--kubernetes", "--namespace", NAMESPACE])
    client = KubeClient(from_kubeconfig(api.kubeconfig()))
    stop = asyncio.Event()
    try:
        trust = await cluster_trust(settings, client, NAMESPACE, stop)
        assert trust is not None
        api.tokens["token"] = {
            "authenticated": True,
            "audiences": ["mesh-ca"],
            "user": {"username": "system:serviceaccount:shop:users"},
        }
        await trust.attestor.attest("token")
        assert await Namespaces(client, lambda name: None).metadata("shop")
        cluster = Cluster(client, NAMESPACE, lambda mesh: None, Random(1))
        settings_of_sidecars = InjectionSettings(image="x")
        watched = (cluster.source.namespace, cluster.source.cluster_ips)
        injector = Injector(client, NAMESPACE, trust.authority, settings_of_sidecars, utc_now, *watched)
        async with asyncio.TaskGroup() as group:
            group.create_task(injector.run(stop))
            group.create_task(cluster.follow(stop))
            for kind in ("HTTPRoute", "GRPCRoute", "TCPRoute", "TrafficPolicy"):
                await until(lambda kind=kind: api.get(kind, "r").get("status"))
            bundle: Any = lambda: api.get("MutatingWebhookConfiguration", WEBHOOK_CONFIGURATION, "")  # noqa: E731
            await until(lambda: bundle()["webhooks"][0]["clientConfig"].get("caBundle"))
            key = ("configmaps", NAMESPACE, "pilotfish-root")
            root = {"root.pem": trust.authority.root_pem}
            await until(lambda: key in api.objects and api.objects[key]["data"] == root)
            await until(lambda: len(api.seen("PUT", "/pilotfish-control-plane")) > 0)
            stop.set()
    finally:
        await client.close()


def test_the_control_plane_has_the_rights_that_it_uses_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "RETRY", 0.05)
    used: set[Right] = set()

    async def main() -> None:
        async with asyncio.timeout(50), KubeApi(tmp_path) as api:
            api.put(
                {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop"}},
                service("users"),
                route("r", {"backendRefs": [backend("users")]}),
                route("r", {"backendRefs": [backend("users")]}, kind="GRPCRoute"),
                route("r", {"backendRefs": [backend("users")]}, kind="TCPRoute"),
                policy("r"),
                {
                    "kind": "MutatingWebhookConfiguration",
                    "apiVersion": "admissionregistration.k8s.io/v1",
                    "metadata": {"name": WEBHOOK_CONFIGURATION},
                    "webhooks": [{"name": "inject.mesh.pilotfish.dev", "clientConfig": {}}],
                },
            )
            await live(api)
            api.get("ConfigMap", "pilotfish-root", NAMESPACE)["data"]["root.pem"] = "another"
            await live(api)
            rights = granted(RBAC)
            for request in api.requests:
                found = asked(request, NAMESPACE)
                if found is None:
                    continue
                right, name = found
                assert right in rights, f"{request.method} {request.path} is not allowed"
                names = rights[right]
                assert names is None or name in names, f"{request.method} {request.path} is not allowed"
                used.add(right)

    asyncio.run(main())
    assert used == set(granted(RBAC))
