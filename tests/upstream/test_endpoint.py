"""What an endpoint is spoken to in: its cluster's protocol, its own, and HTTP/2 for gRPC in any case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.config.resources import ClusterConfig, EndpointConfig, Http2Options, SocketAddress, TlsConfig
from sidecar.net.tls import TlsParameters
from sidecar.upstream.context import ConnectionLimits
from sidecar.upstream.endpoint import Endpoint, identity
from tests.support.fake_upstream import FakeNetwork, Waiter, make_context, scenario, settle
from tests.support.virtual_clock import VirtualClock

H1 = ClusterConfig("c")
H2 = ClusterConfig("c", http2=Http2Options())
MESH = ClusterConfig("c", http2=Http2Options(), tls=TlsConfig())
ADDRESS = SocketAddress("10.0.0.1", 8080)
PLAIN = EndpointConfig(ADDRESS, plaintext=True)
PLAIN_H1 = replace(PLAIN, http1=True)
WITH_SIDECAR = EndpointConfig(ADDRESS, tunnel_authority="10.0.0.1:8080")


class SomeTls:
    def client(self, config: TlsConfig) -> TlsParameters:
        return TLS


TLS = TlsParameters.__new__(TlsParameters)


class Rig:
    def __init__(self, cluster: ClusterConfig, config: EndpointConfig) -> None:
        self.clock = VirtualClock()
        self.network = FakeNetwork(self.clock)
        self.context = replace(make_context(self.clock, self.network), tls=SomeTls())
        self.limits = ConnectionLimits(100, 100)
        metrics = self.context.metrics
        self.endpoint = Endpoint(
            self.context, cluster, config, self.limits, metrics.cluster("c"), metrics.endpoint("c", "e")
        )

    def spoken(self) -> list[str]:
        """Of each connection so far; the fake HTTP/2 takes many streams, the fake HTTP/1.1 one."""
        protocols = [
            "HTTP/2" if self.network.codec(i).max_streams > 1 else "HTTP/1.1"
            for i in range(len(self.network.connections))
        ]
        secured = ["TLS " if tls is not None else "" for tls in self.network.secured_with]
        return [a + b for a, b in zip(secured, protocols, strict=True)]

    async def calls(self, *kinds: str) -> list[Waiter]:
        waiters = [Waiter() for _ in kinds]
        for kind, waiter in zip(kinds, waiters, strict=True):
            (self.endpoint.acquire_grpc if kind == "grpc" else self.endpoint.acquire)(waiter)
            await settle()
        assert all(waiter.stream is not None for waiter in waiters)
        return waiters


@pytest.mark.parametrize(
    ("cluster", "config", "http", "grpc"),
    [
        (H1, PLAIN, "HTTP/1.1", "HTTP/2"),
        (H2, PLAIN, "HTTP/2", "HTTP/2"),
        (H2, PLAIN_H1, "HTTP/1.1", "HTTP/2"),
        (MESH, WITH_SIDECAR, "TLS HTTP/2", "TLS HTTP/2"),
        (MESH, PLAIN, "HTTP/2", "HTTP/2"),
        (MESH, PLAIN_H1, "HTTP/1.1", "HTTP/2"),
        (replace(MESH, http2=None), WITH_SIDECAR, "TLS HTTP/1.1", "TLS HTTP/1.1"),
    ],
)
def test_what_is_spoken(cluster: ClusterConfig, config: EndpointConfig, http: str, grpc: str) -> None:
    for kind, expected in (("http", http), ("grpc", grpc)):

        @scenario
        async def run(kind: str = kind, expected: str = expected) -> None:
            rig = Rig(cluster, config)
            await rig.calls(kind)
            assert rig.spoken() == [expected]

        run()


@scenario
async def test_both_kinds_of_calls_have_connections_of_their_own_under_the_same_limits() -> None:
    rig = Rig(MESH, PLAIN_H1)
    await rig.calls("grpc", "http", "grpc", "http")
    assert rig.spoken() == ["HTTP/2", "HTTP/1.1", "HTTP/1.1"]
    assert rig.endpoint.connections == rig.limits.connections == 3


@scenario
async def test_an_endpoint_out_of_use_closes_the_connections_of_both_kinds() -> None:
    rig = Rig(MESH, PLAIN_H1)
    for waiter in await rig.calls("grpc", "http"):
        waiter.end()
    rig.endpoint.drain()
    await settle()
    assert [connection.ended for connection in rig.network.connections] == ["closed", "closed"]


@scenario
async def test_a_first_call_after_that_is_served_and_its_connection_not_kept() -> None:
    """A retry that knows the old configuration."""
    rig = Rig(MESH, PLAIN_H1)
    rig.endpoint.drain()
    [waiter] = await rig.calls("grpc")
    waiter.end()
    assert rig.network.connections[0].ended == "closed"


@scenario
async def test_a_call_that_waits_can_be_cancelled_and_is_told_of_the_end() -> None:
    rig = Rig(MESH, PLAIN_H1)
    rig.network.hold.add(ADDRESS.host)
    left, stayed = Waiter(), Waiter()
    for waiter in (left, stayed):
        rig.endpoint.acquire_grpc(waiter)
    await settle()
    rig.endpoint.cancel(left)
    assert rig.endpoint.describe(0.0)["pending"] == 1
    rig.endpoint.abort()
    assert left.failures == []
    assert stayed.failures == [("no connection to 10.0.0.1:8080: this side is shutting down", False)]


@scenario
async def test_calls_of_both_kinds_follow_the_name() -> None:
    rig = Rig(MESH, PLAIN_H1)
    moved = SocketAddress("10.0.0.2", 8080)
    await rig.calls("grpc")
    rig.endpoint.resolve_to(moved)
    rig.endpoint.pool.drain()
    await rig.calls("http")
    assert rig.network.attempts == [ADDRESS, moved]
    late = Rig(MESH, PLAIN_H1)
    late.endpoint.resolve_to(moved)
    await late.calls("grpc")
    assert late.network.attempts == [moved]


def test_another_protocol_makes_another_endpoint() -> None:
    assert identity(PLAIN) != identity(PLAIN_H1)


def test_its_description_says_what_it_is_spoken_to_in() -> None:
    assert [Rig(MESH, each).endpoint.describe(0.0)["protocol"] for each in (PLAIN_H1, WITH_SIDECAR)] == [
        "HTTP/1.1",
        "HTTP/2",
    ]
