"""Two injected pods in network namespaces of their own: as the webhook made them, with plain curl.

Control plane, webhook and API server are real processes and real HTTP; nothing stands in for the sidecars.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.kube_api import KubeApi, endpoint, pod
from tests.support.kubernetes import account, endpoint_slice, service
from tests.support.manifests import ROOT
from tests.support.pod_network import PodNetwork, pod_network

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        not (shutil.which("ip") and shutil.which("curl")), reason="needs ip (iproute2) and curl"
    ),
]
INJECTOR = "pilotfish-injector.pilotfish-system.svc"
CONFIGURATION = {
    "kind": "MutatingWebhookConfiguration",
    "metadata": {"name": "pilotfish-injector", "namespace": ""},
    "webhooks": [{"name": "inject.mesh.pilotfish.dev", "clientConfig": {}}],
}
OWN = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
"""A proxy of this machine is none of a pod's."""


@asynccontextmanager
async def process(*command: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        *command, env={**OWN, **environment}, cwd=ROOT, stdout=-3, stderr=-3
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.terminate()
        async with asyncio.timeout(15):
            await started.wait()


async def output(*command: str, **environment: str) -> tuple[int, str]:
    started = await asyncio.create_subprocess_exec(
        *command, env={**OWN, **environment}, cwd=ROOT, stdout=-1, stderr=-2
    )
    async with asyncio.timeout(30):
        text, _ = await started.communicate()
    return started.returncode or 0, text.decode()


PROBED = {"name": "app", "readinessProbe": {"httpGet": {"path": "/users/1", "port": 8080}}}
AS_SIDECAR = (
    *("setpriv", "--reuid=15099", "--regid=15099", "--clear-groups"),
    # The interpreter of the tests may lie where only root can look.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


ipv4_and_ipv6 = pytest.mark.parametrize("version", [4, 6])


def host(address: str) -> str:
    """As URLs and `HOST:PORT` have it."""
    return f"[{address}]" if ":" in address else address


async def injected(api: KubeApi, address: str, **annotations: str) -> dict[str, Any]:
    """What the API server is told to change in a pod, by path."""
    async with asyncio.timeout(20):
        while ("configmaps", "pilotfish-system", "pilotfish-root") not in api.objects:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    root = api.get("ConfigMap", "pilotfish-root", "pilotfish-system")["data"]["root.pem"]
    named = {f"mesh.pilotfish.dev/{knob}": value for knob, value in annotations.items()}
    made = {"metadata": {"annotations": named}, "spec": {"containers": [PROBED]}}
    request = {"uid": "1", "namespace": "shop", "object": made}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"https://{address}/inject",
            json={"apiVersion": "admission.k8s.io/v1", "request": request},
            ssl=ssl.create_default_context(cadata=root),
            server_hostname=INJECTOR,
        ) as response,
    ):
        answer = await response.json()
    patch = json.loads(base64.b64decode(answer["response"]["patch"]))
    return {item["path"]: item["value"] for item in patch}


def variables(container: dict[str, Any], name: str, address: str, token: Path) -> dict[str, str]:
    """What the kubelet would make of the container's `env`."""
    given = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    fields = {
        "POD_NAME": f"{name}-1",
        "POD_NAMESPACE": "shop",
        "POD_IP": address,
        "POD_SERVICE_ACCOUNT": name,
        "PILOTFISH_TOKEN_FILE": str(token),
    }
    return given | fields


async def start(
    stack: AsyncExitStack, api: KubeApi, network: PodNetwork, directory: Path, **annotations: str
) -> dict[str, str]:
    """Control plane, both sidecars and the application; returns the variables of applications."""
    users = network.pods["users"]
    api.put(CONFIGURATION, account("users"), account("shopper"), service("users"))
    api.put(pod("users-1", "users", **annotations), pod("shopper-1", "shopper", **annotations))
    family = "IPv6" if ":" in users else "IPv4"
    api.put({**endpoint_slice("users-abc", endpoint(users, "users-1")), "addressType": family})
    command = [sys.executable, "-m", "pilotfish", "control-plane", "--kubeconfig", str(api.kubeconfig())]
    gateway = host(network.gateway)
    command += ["--namespace", "pilotfish-system", "--server-name", network.gateway]
    command += ["--listen", f"{gateway}:15010", "--status", f"{gateway}:15014"]
    command += ["--injector", f"{gateway}:15017", "--sidecar-image", "x:1", "--init-image", "y:1"]
    await stack.enter_async_context(process(*command, "--sidecar-control-plane", f"{gateway}:15010"))
    patch = await injected(api, f"{gateway}:15017", **annotations)
    *init, container = patch["/spec/initContainers"]
    for name, address in network.pods.items():
        token = directory / f"{name}.token"
        token.write_text(f"token of {name}")
        user = {"username": f"system:serviceaccount:shop:{name}"}
        api.tokens[token.read_text()] = {"authenticated": True, "audiences": ["mesh-ca"], "user": user}
        for each in init:
            rules = network.inside(name, sys.executable, "-m", "pilotfish", *each["args"])
            assert (await output(*rules))[0] == 0
        sidecar = network.inside(
            name, *(AS_SIDECAR if init else ()), sys.executable, "-m", "pilotfish", *container["args"]
        )
        environment = variables(container, name, address, token)
        await stack.enter_async_context(process(*sidecar, **environment))
    server = network.inside("users", sys.executable, "examples/shop/apps/users.py")
    await stack.enter_async_context(process(*server, ADDRESS=users, PORT="8080"))
    for name, address in network.pods.items():
        waiting = network.inside(name, sys.executable, "-m", "pilotfish", "wait", "--deadline", "20")
        assert await output(*waiting, POD_IP=address) == (0, "")
    application = patch.get("/spec/containers", [PROBED])[0]
    return {item["name"]: item["value"] for item in application.get("env", ())}


async def curl(network: PodNetwork, environment: dict[str, str], *arguments: str) -> str:
    """In the shopper's pod, as its application would call."""
    command = ["curl", "-g", "-sS", "--max-time", "10", *arguments]
    return (await output(*network.inside("shopper", *command), **environment))[1]


@ipv4_and_ipv6
def test_pods_that_the_webhook_made_talk_over_mutual_tls(tmp_path: Path, version: int) -> None:
    async def main(network: PodNetwork) -> None:
        async with KubeApi(tmp_path) as api, AsyncExitStack() as stack:
            application = await start(stack, api, network, tmp_path, capture="disabled")
            address = network.pods["users"]
            users = host(address)
            for name in ("users", "users.shop", "users.shop.svc.cluster.local"):
                answer = json.loads(await curl(network, application, f"http://{name}/users/1"))
                assert answer["name"] == "Ada"
            # The other sidecar saw who called, so it was mutual TLS.
            stats = json.loads(await curl(network, {}, f"http://{users}:15000/stats"))
            inbound = [route for route in stats["routes"] if route["direction"] == "inbound"]
            assert [route["peer"] for route in inbound] == ["spiffe://cluster.local/ns/shop/sa/shopper"]
            # Another pod can look, and neither drain the sidecar nor send with its identity.
            status = ["-o", "/dev/null", "-w", "%{http_code}"]
            assert await curl(network, {}, *status, "-X", "POST", f"http://{users}:15000/drain") == "403"
            refused = await curl(network, {}, *status, "-x", f"http://{users}:15001", "http://users/users/1")
            assert "onnect" in refused
            assert refused.endswith("000")
            # The end, as the kubelet begins it.
            drain = network.inside("users", sys.executable, "-m", "pilotfish", "drain", "--deadline", "10")
            assert await output(*drain, POD_IP=address) == (0, "")

    with pod_network("users", "shopper", version=version) as network:
        asyncio.run(main(network))


@pytest.mark.skipif(
    not (shutil.which("setpriv") and shutil.which("nft")), reason="needs setpriv (util-linux) and nftables"
)
@ipv4_and_ipv6
def test_captured_pods_talk_over_mutual_tls_without_variables_and_pass_probes_when_strict(
    tmp_path: Path, version: int
) -> None:
    async def main(network: PodNetwork) -> None:
        async with KubeApi(tmp_path) as api, AsyncExitStack() as stack:
            variables = await start(stack, api, network, tmp_path, capture="enabled", inbound="strict")
            assert variables == {}
            users = host(network.pods["users"])
            answer = json.loads(await curl(network, {}, f"http://{users}:8080/users/1"))
            assert answer["name"] == "Ada"
            stats = json.loads(await curl(network, {}, f"http://{users}:15000/stats"))
            inbound = [route for route in stats["routes"] if route["direction"] == "inbound"]
            assert [route["peer"] for route in inbound] == ["spiffe://cluster.local/ns/shop/sa/shopper"]
            # The kubelet is outside of the mesh: it reaches no application, and its probe does.
            code = ("curl", "-g", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5")
            assert (await output(*code, f"http://{users}:8080/users/1"))[1] == "000"
            probe = await output("curl", "-g", "-s", f"http://{users}:15000/app-health/app/readyz")
            assert probe == (0, f"GET http://{users}:8080/users/1 was answered with 200\n")

    with pod_network("users", "shopper", version=version) as network:
        asyncio.run(main(network))
