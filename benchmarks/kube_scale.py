"""How long a control plane takes to serve a large cluster, and what it needs for it.

`python -m benchmarks.kube_scale` runs a control plane in front of an API server of the tests' own, with
objects of the size that they have in a cluster, and prints: seconds from the start of the process to ready
and to the first answer to a client, resident memory then and at its peak, and how fast and at what cost
endpoints that change reach a client.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import grpc
import jwt
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.xds.types import ENDPOINTS
from tests.support import kube_api
from tests.support.kube_api import KubeApi, endpoint, pod
from tests.support.kubernetes import account, backend, endpoint_slice, route, service

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
POD_BYTES = 8000
"""What a Pod has beside what the mesh reads: managedFields, volumes, conditions."""


def fill(api: KubeApi, services: int, pods: int, endpoints: int) -> None:
    """Each pod is an endpoint of `endpoints / pods` services."""
    for number in range(20):
        api.put(kube_api.node(f"node-{number}", f"zone-{number % 3}"))
    for number in range(services):
        api.put(service(f"s{number}", clusterIP=_address(10, number)), account(f"s{number}"))
        api.put(route(f"s{number}", {"backendRefs": [backend(f"s{number}")]}, to=f"s{number}"))
    for number in range(pods):
        runs_as = f"s{number % services}"
        ports = ({"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090})
        address, node = _address(172, number), f"node-{number % 20}"
        api.put(pod(f"p{number}", runs_as, node=node, padding=POD_BYTES, addresses=(address,), ports=ports))
    each = endpoints // services
    for number in range(services):
        # Its own pods, and those of its neighbour: two Services that share pods.
        owners = (number, number ^ 1)
        members = [
            (owner + turn * services) % pods for owner in owners for turn in range(each // len(owners))
        ]
        api.put(slice_of(number, members))


def slice_of(number: int, members: list[int], ready: bool = True) -> dict[str, Any]:
    listed = [
        endpoint(
            _address(172, member), f"p{member}", nodeName=f"node-{member % 20}", conditions={"ready": ready}
        )
        for member in members
    ]
    return endpoint_slice(f"s{number}-abcde", *listed, of=f"s{number}")


def _address(first: int, number: int) -> str:
    return f"{first}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


class Plane:
    """The control plane's process."""

    def __init__(self) -> None:
        self.port = self.status_port = 0
        self.pid = 0

    async def run(self, kubeconfig: Path) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "control_plane", "--kubeconfig", str(kubeconfig)),
            *("--listen", "127.0.0.1:0", "--status", "127.0.0.1:0", "--push-quiet", "100ms"),
            stderr=asyncio.subprocess.PIPE,
        )
        self.pid = process.pid
        return process

    async def follow(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode().rstrip()
            if found := re.search(r"xds_port=(\d+) status=http://127.0.0.1:(\d+)", text):
                self.port, self.status_port = int(found[1]), int(found[2])
            if not re.search("xds_port|certificate signed|pushed|stream", text):
                print(f"  {text}")

    async def ready(self, process: asyncio.subprocess.Process) -> None:
        async with aiohttp.ClientSession() as client:
            while True:
                if self.status_port:
                    async with client.get(f"http://127.0.0.1:{self.status_port}/ready") as response:
                        if response.status == 200:
                            return
                if process.returncode is not None:
                    raise RuntimeError(f"the control plane ended with status {process.returncode}")
                await asyncio.sleep(0.02)

    def memory(self) -> tuple[float, float]:
        """Resident now and at the peak, in MB."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        now, peak = (re.search(rf"{name}:\s+(\d+)", text) for name in ("VmRSS", "VmHWM"))
        assert now is not None
        assert peak is not None
        return int(now[1]) / 1024, int(peak[1]) / 1024

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client:
    """A sidecar's stream, as far as it matters here."""

    def __init__(self, api: KubeApi, port: int) -> None:
        token = jwt.encode({"exp": time.time() + 3600}, "k" * 32, algorithm="HS256")
        user = {"username": "system:serviceaccount:shop:s0"}
        api.tokens[token] = {"authenticated": True, "audiences": ["mesh-ca"], "user": user}
        root = base64.b64decode(api.get("Secret", "pilotfish-ca", "mesh")["data"]["root.pem"])
        self.channel = grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(root))
        method = self.channel.stream_stream(
            ADS,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )
        self.stream: Any = method(metadata=[("authorization", f"Bearer {token}")])

    async def subscribe(self, services: int) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(
            node={"id": "n", "user_agent_name": "pilotfish"},
            type_url=ENDPOINTS,
            resource_names_subscribe=[f"s{n}.shop.svc.cluster.local:80" for n in range(services)],
        )
        await self.stream.write(request)

    async def push(self) -> list[str]:
        """The names in the next one."""
        response = await self.stream.read()
        await self.stream.write(
            discovery_pb2.DeltaDiscoveryRequest(type_url=ENDPOINTS, response_nonce=response.nonce)
        )
        return [resource.name for resource in response.resources]


async def churn(api: KubeApi, plane: Plane, client: Client, services: int) -> None:
    """One service a time, then many at once."""
    delays = []
    for turn in range(20):
        began = time.perf_counter()
        api.put(slice_of(turn, [turn], ready=bool(turn % 2)))
        await client.push()
        delays.append(time.perf_counter() - began)
    print(
        f"one endpoint to a client      {median(delays) * 1000:6.0f} ms median of 20 (100 ms of it debounce)"
    )
    before, began = plane.cpu(), time.perf_counter()

    async def changes() -> None:
        for number in range(1000):
            api.put(slice_of(100 + number % max(1, services - 100), [number], ready=bool(number % 2)))
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(changes())
        while not task.done():
            try:
                async with asyncio.timeout(1.0):
                    await client.push()
            except TimeoutError:
                break
    used = plane.cpu() - before
    print(f"100 changes a second          {used / (time.perf_counter() - began) * 100:6.0f} % of one core")


async def measure(services: int, pods: int, endpoints: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        api = KubeApi(Path(folder))
        fill(api, services, pods, endpoints)
        total = sum(len(item.get("endpoints", ())) for item in api.objects.values())
        print(f"{services} Services and routes, {pods} Pods of {POD_BYTES} bytes and more, {total} endpoints")
        async with api:
            plane = Plane()
            began = time.perf_counter()
            process = await plane.run(api.kubeconfig())
            async with asyncio.TaskGroup() as group:
                group.create_task(plane.follow(process))
                await plane.ready(process)
                print(f"ready after                   {time.perf_counter() - began:6.2f} s")
                client = Client(api, plane.port)
                await client.subscribe(services)
                names = await client.push()
                assert len(names) == services
                print(f"first push after              {time.perf_counter() - began:6.2f} s")
                print("resident memory now, peak     {:6.0f} MB {:.0f} MB".format(*plane.memory()))
                while api.watches < 8 or len(api.seen("PATCH", "/status")) < services:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                print(f"status of all routes after    {time.perf_counter() - began:6.2f} s")
                await churn(api, plane, client, services)
                print("resident memory now, peak     {:6.0f} MB {:.0f} MB".format(*plane.memory()))
                client.stream.cancel()
                await client.channel.close()
                process.terminate()
                await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--endpoints", type=int, default=10000)
    given = parser.parse_args()
    asyncio.run(measure(given.services, given.pods, given.endpoints))


if __name__ == "__main__":
    main()
