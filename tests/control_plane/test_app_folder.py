"""From a saved YAML file to a running client: the whole control plane as a process, with a gRPC client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from control_plane.app import issue_token

CLIENT = """
import sys, grpc
channel = grpc.insecure_channel("xds:///greeter.shop:50051")
call = channel.unary_unary("/greeter/Hello")
for line in sys.stdin:
    try:
        print(call(b"hi", timeout=10, wait_for_ready=True).decode(), flush=True)
    except grpc.RpcError as error:
        print("error", error.code(), error.details(), flush=True)
"""

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: greeter, namespace: shop}
spec:
  ports: [{name: grpc, port: 50051, appProtocol: kubernetes.io/h2c}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: greeter-1
  namespace: shop
  labels: {kubernetes.io/service-name: greeter}
addressType: IPv4
ports: [{name: grpc, port: PORT}]
endpoints: [{addresses: [127.0.0.1]}]
"""


@pytest.fixture
def greeters() -> Iterator[list[int]]:
    """Ports of two servers, which answer `0` and `1`."""
    servers, ports = [], []
    for number in range(2):
        server = grpc.server(ThreadPoolExecutor(2))

        def hello(_request: bytes, _context: Any, number: int = number) -> bytes:
            return str(number).encode()

        method = grpc.unary_unary_rpc_method_handler(hello)
        handler = grpc.method_handlers_generic_handler("greeter", {"Hello": method})
        server.add_generic_rpc_handlers((handler,))
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        servers.append(server)
    yield ports
    for server in servers:
        server.stop(0).wait()


async def start(directory: Path) -> tuple[asyncio.subprocess.Process, int, str]:
    """A control plane process, its xDS port and the address of its status port, from its first log line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "control_plane",
        "--config-dir", str(directory / "mesh"), "--ca-dir", str(directory / "ca"),
        "--listen", "127.0.0.1:0", "--status", "127.0.0.1:0",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    while True:
        line = (await process.stderr.readline()).decode()
        assert line, "the control plane ended"
        if "control plane started" in line:
            fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
            return process, int(fields["xds_port"]), fields["status"]


def environment(directory: Path, port: int) -> dict[str, str]:
    token = directory / "token"
    token.write_text(issue_token(directory / "ca", "shop", "users", timedelta(minutes=10)))
    server = {
        "server_uri": f"localhost:{port}",
        "channel_creds": [
            {"type": "tls", "config": {"ca_certificate_file": str(directory / "ca" / "root.pem")}}
        ],
        "call_creds": [{"type": "jwt_token_file", "config": {"jwt_token_file": str(token)}}],
        "server_features": ["xds_v3"],
    }
    return {
        **os.environ,
        "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps({"xds_servers": [server], "node": {"id": "proxyless"}}),
        "GRPC_EXPERIMENTAL_XDS_BOOTSTRAP_CALL_CREDS": "true",
    }


def test_saving_a_file_reroutes_within_a_second_and_a_bad_one_changes_nothing(
    tmp_path: Path, greeters: list[int]
) -> None:
    mesh = tmp_path / "mesh"
    mesh.mkdir()
    (mesh / "greeter.yaml").write_text(SERVICE.replace("PORT", str(greeters[0])))

    async def scenario() -> None:
        plane, port, status = await start(tmp_path)
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, env=environment(tmp_path, port),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip

        async def call() -> str:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"\n")
            return (await client.stdout.readline()).decode().strip()

        try:
            assert await call() == "0"
            (mesh / "greeter.yaml").write_text(SERVICE.replace("PORT", str(greeters[1])))
            async with asyncio.timeout(20):
                while (answer := await call()) != "1":
                    assert answer == "0"

            (mesh / "greeter.yaml").write_text("kind: [")
            state: dict[str, Any] = {"problems": [], "clients": []}
            async with aiohttp.ClientSession() as http, asyncio.timeout(20):
                while not state["problems"] or [c["in_step"] for c in state["clients"]] != [True]:
                    async with http.get(f"{status}/status.json") as response:
                        state = await response.json()
            [problem] = state["problems"]
            assert (problem["severity"], problem["file"]) == ("error", "greeter.yaml")
            assert await call() == "1"
        finally:
            if client.stdin is not None:
                client.stdin.close()
            await client.wait()
            plane.send_signal(signal.SIGTERM)
            await plane.communicate()
        assert plane.returncode == 0

    asyncio.run(asyncio.wait_for(scenario(), 60))
