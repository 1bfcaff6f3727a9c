"""Sidecars of a large cluster, as far as a control plane sees them. Used by `kube_scale`."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import jwt
from envoy.service.discovery.v3 import discovery_pb2

from benchmarks.kube_scale_objects import pod_address
from control_plane.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTE
from tests.support.kube_api import KubeApi

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
CALLED = 10
"""Services that a sidecar's application calls."""
AT_ONCE = 50
"""Sidecars that are being connected at a time."""

Request = discovery_pb2.DeltaDiscoveryRequest


def canonical(number: int) -> str:
    return f"s{number}.shop.svc.cluster.local:80"


class Client:
    """The stream of the sidecar of one pod, on a connection of its own."""

    def __init__(self, api: KubeApi, port: int, pod: int, services: int) -> None:
        self.pod = pod
        token = jwt.encode({"exp": time.time() + 3600, "pod": pod}, "k" * 32, algorithm="HS256")
        user = {"username": f"system:serviceaccount:shop:s{pod % services}"}
        api.tokens[token] = {"authenticated": True, "audiences": ["mesh-ca"], "user": user}
        root = base64.b64decode(api.get("Secret", "pilotfish-ca", "mesh")["data"]["root.pem"])
        self.channel = grpc.aio.secure_channel(
            f"localhost:{port}",
            grpc.ssl_channel_credentials(root),
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
        method = self.channel.stream_stream(
            ADS,
            request_serializer=Request.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )
        self.stream: Any = method(metadata=[("authorization", f"Bearer {token}")])

    async def subscribe(self, type_url: str, names: Sequence[str]) -> None:
        node: dict[str, Any] = {"id": f"p{self.pod}.shop", "user_agent_name": "pilotfish"}
        node["metadata"] = {"WORKLOAD_IP": pod_address(self.pod)}
        await self.stream.write(Request(node=node, type_url=type_url, resource_names_subscribe=names))

    async def push(self) -> tuple[str, list[str]]:
        """Type and names of the next one."""
        response = await self.stream.read()
        if response is grpc.aio.EOF:
            raise RuntimeError(f"the stream ended: {await self.stream.details()}")
        await self.stream.write(Request(type_url=response.type_url, response_nonce=response.nonce))
        return response.type_url, [resource.name for resource in response.resources]

    async def subscribe_as_a_sidecar(self, services: int) -> None:
        """Its own ports, and all that it needs to call some services."""
        names = [canonical((self.pod + turn) % services) for turn in range(CALLED)]
        for type_url, asked in (
            (LISTENER, ["*", *names]),
            (CLUSTER, ["*", *names]),
            (ROUTE, names),
            (ENDPOINTS, names),
        ):
            await self.subscribe(type_url, asked)
        missing = {LISTENER: CALLED, CLUSTER: CALLED, ROUTE: CALLED, ENDPOINTS: CALLED}
        while any(number > 0 for number in missing.values()):
            type_url, found = await self.push()
            missing[type_url] -= len(found)

    async def close(self) -> None:
        self.stream.cancel()
        await self.channel.close()


@asynccontextmanager
async def connected(api: KubeApi, port: int, sidecars: int, services: int) -> AsyncIterator[list[Client]]:
    """So many, each with all that it asked for."""
    clients: list[Client] = []
    turns = asyncio.Semaphore(AT_ONCE)

    async def connect(pod: int) -> None:
        async with turns:
            client = Client(api, port, pod, services)
            clients.append(client)
            await client.subscribe_as_a_sidecar(services)

    try:
        async with asyncio.TaskGroup() as group:
            for pod in range(sidecars):
                group.create_task(connect(pod))
        yield clients
    finally:
        for client in clients:
            await client.close()
