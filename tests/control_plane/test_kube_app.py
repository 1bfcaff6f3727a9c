"""The control plane as a process in front of a cluster: replicas, identities, discovery, and its end."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.app import injection_settings
from control_plane.ca.service import SERVICE
from control_plane.injector.sidecar_container import InjectionSettings
from control_plane.settings import parse_arguments
from control_plane.xds.types import ENDPOINTS
from mesh_api import ca_pb2
from tests.support.kube_api import KubeApi, endpoint, pod
from tests.support.kubernetes import account, backend, endpoint_slice, route, service
from tests.support.processes import loopback
from tests.support.xds_source import ADS

USERS = "users.shop.svc.cluster.local:80"


class Replica:
    """A process, and its ports as it logged them."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[str] = []
        self.port = self.status_port = 0

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode())
            if found := re.search(r"xds_port=(\d+) status=http://127.0.0.1:(\d+)", self.log[-1]):
                self.port, self.status_port = int(found[1]), int(found[2])

    async def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.status_port}{path}"
        async with aiohttp.ClientSession() as client, client.get(url) as response:
            return response.status, await response.text()

    async def ready(self) -> None:
        async with asyncio.timeout(30):
            while not self.port or (await self.get("/ready"))[0] != 200:
                await asyncio.sleep(0.02)
                assert self.process.returncode is None, "".join(self.log)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


AS_A_MODULE = ("-m", "control_plane")
REVIEWS_EACH_TIME = (
    "-c",
    "import sys; from control_plane import __main__; from control_plane.ca import token_review;"
    "token_review.FRESH = 0.0; sys.exit(__main__.main())",
)
"""A control plane to which every answer is an old one."""


@asynccontextmanager
async def replica(api: KubeApi, *more: str, program: Sequence[str] = AS_A_MODULE) -> AsyncIterator[Replica]:
    arguments = ["--kubeconfig", str(api.kubeconfig()), "--listen", "127.0.0.1:0", "--status", "127.0.0.1:0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program, *arguments, *more, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HOME": "/nonexistent"},
    )  # fmt: skip
    made = Replica(process)
    async with asyncio.TaskGroup() as group:
        group.create_task(made.read())
        try:
            yield made
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                await process.wait()
    assert process.returncode == 0, "".join(made.log)
    assert "Traceback" not in "".join(made.log)


def run(tmp_path: Path, scenario: Callable[[KubeApi], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), KubeApi(tmp_path) as api:
            api.put(service("users"), account("users"), pod("users-a"), pod("users-b"))
            api.put(
                endpoint_slice("users-1", endpoint("10.0.0.1", "users-a"), endpoint("10.0.0.2", "users-b"))
            )
            await scenario(api)

    asyncio.run(main())


def token(api: KubeApi, name: str = "users") -> str:
    made = jwt.encode({"exp": time.time() + 600, "name": name}, "k" * 32, algorithm="HS256")
    user = {"username": f"system:serviceaccount:shop:{name}"}
    api.tokens[made] = {"authenticated": True, "audiences": ["mesh-ca"], "user": user}
    return made


class Client:
    """An ADS stream that asks for the endpoints of users when `health` is first called: one that is to be
    refused sends nothing, because grpc.aio calls a refusal during a write INTERNAL."""

    def __init__(self, api: KubeApi, to: Replica, bearer: str) -> None:
        root = base64.b64decode(api.get("Secret", "pilotfish-ca", "mesh")["data"]["root.pem"])
        self.subscribed = False
        self.channel = grpc.aio.secure_channel(f"localhost:{to.port}", grpc.ssl_channel_credentials(root))
        method = self.channel.stream_stream(
            f"{ADS}/DeltaAggregatedResources",
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )
        self.stream: Any = method(metadata=[("authorization", f"Bearer {bearer}")])

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stream.cancel()
        await self.channel.close()

    async def health(self) -> dict[str, int]:
        """Address to health of the next push: 1 healthy, 3 draining."""
        request = discovery_pb2.DeltaDiscoveryRequest
        if not self.subscribed:
            self.subscribed = True
            node = {"id": "n", "user_agent_name": "pilotfish"}
            await self.stream.write(request(node=node, type_url=ENDPOINTS, resource_names_subscribe=[USERS]))
        async with asyncio.timeout(10):
            response = await self.stream.read()
        if response is grpc.aio.EOF:
            raise AssertionError(await self.stream.code(), await self.stream.details())
        await self.stream.write(request(type_url=ENDPOINTS, response_nonce=response.nonce))
        found = ClusterLoadAssignment.FromString(response.resources[0].resource.value)
        return {
            item.endpoint.address.socket_address.address: item.health_status
            for locality in found.endpoints
            for item in locality.lb_endpoints
        }


async def sign(client: Client, bearer: str) -> int:
    """How many certificates the chain has that a workload is given."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = csr.public_bytes(serialization.Encoding.PEM).decode()
    call = client.channel.unary_unary(
        f"/{SERVICE}/CreateCertificate",
        request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
        response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
    )
    request = ca_pb2.IstioCertificateRequest(csr=pem, validity_duration=3600)
    return len((await call(request, metadata=[("authorization", f"Bearer {bearer}")])).cert_chain)


def test_replicas_share_a_root_and_one_of_them_writes_status(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        api.put(route("r", {"backendRefs": [backend("users")]}))
        async with replica(api) as first, replica(api) as second:
            await asyncio.gather(first.ready(), second.ready())
            await until(lambda: api.get("HTTPRoute", "r").get("status"))
            for each in (first, second):
                async with Client(api, each, token(api)) as client:
                    assert await client.health() == {"10.0.0.1": 1, "10.0.0.2": 1}
            leaders = lambda: [line for each in (first, second) for line in each.log if " leads\n" in line]  # noqa: E731
            await until(leaders)
            assert len(leaders()) == 1
            assert len(api.seen("PATCH", "/status")) == 1
        assert api.get("Lease", "pilotfish-control-plane", "mesh")["spec"]["holderIdentity"] == ""

    run(tmp_path, scenario)


def test_a_pod_that_leaves_drains_at_once(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        async with replica(api, "--push-quiet", "10ms") as plane:
            await plane.ready()
            async with Client(api, plane, token(api)) as client:
                assert await client.health() == {"10.0.0.1": 1, "10.0.0.2": 1}
                api.put(pod("users-b", leaving=True))
                assert await client.health() == {"10.0.0.1": 1, "10.0.0.2": 3}

    run(tmp_path, scenario)


async def reviewed(api: KubeApi, host: str, spec: dict[str, Any]) -> dict[str, Any]:
    """What the webhook changes in a pod, by path."""
    key = ("configmaps", "pilotfish-system", "pilotfish-root")
    await until(lambda: key in api.objects)
    context = ssl.create_default_context(cadata=api.objects[key]["data"]["root.pem"])
    review = {"apiVersion": "admission.k8s.io/v1", "request": {"uid": "1", "object": {"spec": spec}}}
    name = "pilotfish-injector.pilotfish-system.svc"
    url = f"https://{host}:15017/inject"
    async with (
        aiohttp.ClientSession() as client,
        client.post(url, json=review, ssl=context, server_hostname=name) as response,
    ):
        answer = await response.json()
    return {each["path"]: each["value"] for each in json.loads(base64.b64decode(answer["response"]["patch"]))}


def test_the_webhook_knows_where_the_services_are_that_sidecars_call(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        host = loopback()
        api.put(service("pilotfish-control-plane", namespace="pilotfish-system", clusterIP="10.96.14.3"))
        options = ["--namespace", "pilotfish-system", "--injector", f"{host}:15017", "--sidecar-image", "x:1"]
        options += ["--sidecar-control-plane", "pilotfish-control-plane.pilotfish-system.svc:15010"]
        async with replica(api, *options) as one:
            await one.ready()
            spec = {"containers": [{"name": "app"}], "dnsPolicy": "Default"}
            [alias] = (await reviewed(api, host, spec))["/spec/hostAliases"]
            assert alias == {
                "ip": "10.96.14.3",
                "hostnames": ["pilotfish-control-plane.pilotfish-system.svc"],
            }

    run(tmp_path, scenario)


def test_without_the_api_server_what_was_read_serves_and_new_tokens_wait(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        async with replica(api) as plane:
            await plane.ready()
            known, new = token(api), token(api, "carts")
            async with Client(api, plane, known) as client:
                await client.health()
            await api.down()
            async with Client(api, plane, known) as client:
                assert await client.health() == {"10.0.0.1": 1, "10.0.0.2": 1}
            async with Client(api, plane, new) as client:
                assert await client.stream.code() is grpc.StatusCode.UNAVAILABLE
            async with Client(api, plane, "forged") as client:
                assert await client.stream.code() is grpc.StatusCode.UNAVAILABLE
            assert (await plane.get("/ready"))[0] == 200
            await api.up()
            async with Client(api, plane, new) as client:
                assert await client.health() == {"10.0.0.1": 1, "10.0.0.2": 1}
            async with Client(api, plane, "forged") as client:
                assert await client.stream.code() is grpc.StatusCode.UNAUTHENTICATED

    run(tmp_path, scenario)


def test_streams_that_end_of_age_without_the_api_server_are_followed_by_others(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        async with replica(api, "--max-connection-age", "500ms", program=REVIEWS_EACH_TIME) as plane:
            await plane.ready()
            bearer = token(api)
            async with Client(api, plane, bearer) as client:
                await client.health()
                await api.down()
                assert await client.stream.details() == "max connection age"
            async with Client(api, plane, bearer) as client:
                assert await client.health() == {"10.0.0.1": 1, "10.0.0.2": 1}
                assert await sign(client, bearer) == 2
            assert "pilotfish_control_plane_token_reviews_stale_total 2\n" in (await plane.get("/metrics"))[1]
            await until(lambda: any("tokens cannot be reviewed" in line for line in plane.log))

    run(tmp_path, scenario)


def test_a_control_plane_that_waits_for_the_api_server_can_be_stopped(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        await api.down()
        async with replica(api) as plane:
            await until(lambda: any("trying again" in line for line in plane.log))

    run(tmp_path, scenario)


@pytest.mark.parametrize("arguments", [[], ["--kubernetes", "--config-dir", "x"]])
def test_one_source_must_be_chosen(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(arguments)
    assert "give one of --config-dir and --kubernetes" in capsys.readouterr().err


def test_injected_sidecars_are_as_the_command_line_says() -> None:
    injector = ["--injector=*:15017", "--sidecar-image=s:1", "--sidecar-control-plane=plane.mesh.svc:15010"]
    more = ["--init-image=i:1", "--no-capture", "--trust-domain=example.org", "--sidecar-otlp=jaeger:4318"]
    settings = parse_arguments(["--kubernetes", *injector, *more, "--tracing-sampling=2.5"])
    assert injection_settings(settings, native=False) == InjectionSettings(
        image="s:1",
        init_image="i:1",
        capture=False,
        control_plane="plane.mesh.svc:15010",
        trust_domain="example.org",
        otlp="jaeger:4318",
        trace_sampling="2.5",
        native=False,
    )


def test_the_own_namespace_comes_from_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAMESPACE", "mesh-system")
    assert parse_arguments(["--kubernetes"]).namespace == "mesh-system"
    assert parse_arguments(["--kubernetes", "--namespace", "other"]).namespace == "other"
