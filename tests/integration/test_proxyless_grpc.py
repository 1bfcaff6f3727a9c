"""A real proxyless gRPC client on what the pipeline makes: routes, mTLS to the inbound port, identities."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from control_plane.model.discovery import Identity
from control_plane.model.mesh import MeshSettings
from control_plane.pipeline import Pipeline
from control_plane.registry import Registry
from control_plane.xds.server import DiscoveryOptions, DiscoveryServer
from tests.support.certs import make_ca
from tests.support.kubernetes import Object, backend, endpoint_slice, mesh, route, service

CLIENT = """
import sys, grpc
credentials = grpc.xds_channel_credentials(grpc.ssl_channel_credentials())
channel = grpc.secure_channel("xds:///greeter.shop:50051", credentials)
for line in sys.stdin:
    try:
        call = channel.unary_unary(line.strip())
        print(call(b"", timeout=15, wait_for_ready=False).decode(), flush=True)
    except grpc.RpcError as error:
        print(error.code().name, flush=True)
"""
SPIFFE = "spiffe://cluster.local/ns/shop/sa/"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the client and of two servers that run as `greeter` and as `canary`."""
    directory = tmp_path_factory.mktemp("certificates")
    ca = make_ca()
    for account in ("users", "greeter", "canary"):
        ca.write_files(directory, SPIFFE + account, name=account)
    return directory


@pytest.fixture(scope="module")
def ports(certificates: Path) -> Iterator[dict[str, int]]:
    """Where servers listen that want the mesh's certificates and answer with their account's name."""
    servers, found = [], {}
    for account in ("greeter", "canary"):
        server = grpc.server(ThreadPoolExecutor(2))

        def hello(_request: bytes, _context: Any, account: str = account) -> bytes:
            return account.encode()

        method = grpc.unary_unary_rpc_method_handler(hello)
        handler = grpc.method_handlers_generic_handler("shop.Greeter", {"Hello": method, "Bye": method})
        server.add_generic_rpc_handlers((handler,))
        chain = [(certificates / f"{account}.{kind}").read_bytes() for kind in ("key", "crt")]
        credentials = grpc.ssl_server_credentials(
            [(chain[0], chain[1])], (certificates / "ca.crt").read_bytes(), require_client_auth=True
        )
        found[account] = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        servers.append(server)
    yield found
    for server in servers:
        server.stop(0).wait()


def bootstrap(port: int, certificates: Path) -> dict[str, str]:
    server = {
        "server_uri": f"127.0.0.1:{port}",
        "channel_creds": [{"type": "insecure"}],
        "server_features": ["xds_v3"],
    }
    files = {
        "certificate_file": str(certificates / "users.crt"),
        "private_key_file": str(certificates / "users.key"),
        "ca_certificate_file": str(certificates / "ca.crt"),
        "refresh_interval": "60s",
    }
    config = {
        "xds_servers": [server],
        "node": {"id": "proxyless"},
        "certificate_providers": {"mesh": {"plugin_name": "file_watcher", "config": files}},
    }
    return {**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(config)}


def replicas(name: str, inbound: int, runs_as: str) -> Object:
    """`inbound` is where the sidecar would listen; the application's port is 10,000 below."""
    port = {"name": "grpc", "port": inbound - 10000}
    return endpoint_slice(name, "127.0.0.1", runs_as=runs_as, ports=[port])


def test_calls_are_routed_over_mtls_to_proven_identities_alone(
    certificates: Path, ports: dict[str, int]
) -> None:
    grpc_port = {"name": "grpc", "port": 50051, "appProtocol": "kubernetes.io/h2c"}
    services = [service("greeter", grpc_port), service("canary", grpc_port)]
    canary = replicas("canary-a", ports["canary"], "canary")
    honest = [*services, replicas("greeter-a", ports["greeter"], "greeter"), canary]
    routed = route(
        "r",
        {
            "matches": [{"method": {"service": "shop.Greeter", "method": "Bye"}}],
            "backendRefs": [backend("canary", 50051)],
        },
        {
            "matches": [{"method": {"service": "shop.Greeter"}}],
            "backendRefs": [backend("greeter", 50051)],
        },
        to="greeter",
        kind="GRPCRoute",
    )
    impostor = [*services, replicas("greeter-a", ports["greeter"], "someone-else"), canary]

    async def authenticate(_context: Any) -> Identity:
        return Identity("shop", "users")

    async def scenario() -> None:
        registry = Registry()
        pipeline = Pipeline(registry, MeshSettings())
        discovery = DiscoveryServer(pipeline, authenticate, DiscoveryOptions(0.01, 0.1))
        registry.replace(mesh(*honest))
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((discovery.handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, env=bootstrap(port, certificates),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert client.stdin is not None
        assert client.stdout is not None
        stdin, stdout = client.stdin, client.stdout

        async def call(method: str) -> str:
            stdin.write(f"/shop.Greeter/{method}\n".encode())
            return (await stdout.readline()).decode().strip()

        async def becomes(method: str, answer: str) -> None:
            async with asyncio.timeout(30):
                while await call(method) != answer:
                    pass

        try:
            assert [await call("Hello"), await call("Bye")] == ["greeter", "greeter"]
            registry.replace(mesh(*honest, routed))
            await becomes("Bye", "canary")
            assert await call("Hello") == "greeter"
            registry.replace(mesh(*impostor, routed))
            await becomes("Hello", "UNAVAILABLE")
            assert await call("Bye") == "canary"
            [status] = discovery.clients()
            assert (status.node.dialect.value, status.nacks) == ("grpc", ())
        finally:
            stdin.close()
            await client.wait()
            discovery.stop()
            await server.stop(1)

    asyncio.run(asyncio.wait_for(scenario(), 60))
