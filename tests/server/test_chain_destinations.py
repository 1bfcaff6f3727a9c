"""Requests that begin with the same octets on connections that mean something else by them: other
destinations of captured connections, other callers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import ClientCert, HttpConnectionManagerConfig, WeightedCluster
from sidecar.net.connection import Connection
from sidecar.net.peer import PeerInfo
from sidecar.protocol import h2_frames as frames
from sidecar.protocol.events import ConnectionHandler, ResponseHead
from sidecar.protocol.h2 import H2Codec
from sidecar.protocol.h2_sender import H2Options
from sidecar.protocol.sniff import Protocol
from sidecar.server.chain import HttpChain
from sidecar.telemetry.metrics import ListenerStats
from tests.support.exchange_rig import RecordingCluster, RecordingRoutes, Rig, route, table

BLOCK = b"\x82\x86\x84\x01\x05users"
"""GET http://users/, nothing of it in a dynamic table."""
SPIFFE = "spiffe://mesh/ns/shop/sa/"


def table_to(cluster: str) -> CompiledRoutes:
    return table(route(clusters=(WeightedCluster(cluster, 1),)))


class FakeConnection:
    def __init__(self, account: str = "", certificate: str = "") -> None:
        uris = (SPIFFE + account,) if account else ()
        self.peer = PeerInfo(("10.0.0.1", 1), ("10.0.0.2", 2), bool(uris), "h2", uris, certificate)
        self.local_identity = SPIFFE + "server"
        self.codec: H2Codec
        self.streams = 0

    def set_codec(self, codec: H2Codec) -> None:
        self.codec = codec
        codec.start()
        codec.receive(frames.PREFACE + frames.settings({}))

    def request(self) -> None:
        number = 2 * self.streams + 1
        self.streams += 1
        header = len(BLOCK).to_bytes(3, "big") + bytes((frames.HEADERS, 5)) + number.to_bytes(4, "big")
        self.codec.receive(header + BLOCK)
        self.codec.take_output()


class SharedRig(Rig):
    """With a chain, and a cluster for each destination."""

    def __init__(self, client_cert: ClientCert = ClientCert.SANITIZE) -> None:
        super().__init__()
        self.context.config = HttpConnectionManagerConfig(
            "rig", client_cert=client_cert, client_cert_uri=True
        )
        self.destinations = {name: RecordingCluster(1) for name in ("a", "b", "users")}
        self.clusters.update(self.destinations)
        self.tables = {name: table_to(name) for name in self.destinations}
        self.chain = HttpChain(self.context, ListenerStats(), self.make_h2, None)

    def make_h2(self, client: bool, handler: ConnectionHandler, options: H2Options) -> H2Codec:
        return H2Codec(client, handler, options)

    def connect(self, conn: FakeConnection, destination: str | None = None) -> FakeConnection:
        """With a `destination`, one of its own; without, as the listener's other connections."""
        context = None
        if destination is not None:
            context = replace(self.context, routes=cast(Any, RecordingRoutes(self.tables[destination])))
        self.chain.serve(cast(Connection, conn), Protocol.HTTP2, context)
        return conn

    def answered(self, destination: str) -> list[Any]:
        """The heads that went there."""
        streams = self.destinations[destination].endpoints[0].streams
        for stream in streams:
            if not stream.dead and stream.ended and "answered" not in vars(stream):
                vars(stream)["answered"] = True
                stream.handler.on_response(ResponseHead(204), True)
        return [stream.heads[0] for stream in streams]


def test_captured_connections_go_each_to_its_own_destination() -> None:
    rig = SharedRig()
    first, second = rig.connect(FakeConnection(), "a"), rig.connect(FakeConnection(), "b")
    for count in range(1, 6):
        for conn, destination in ((first, "a"), (second, "b")):
            conn.request()
            assert len(rig.answered(destination)) == count
    assert rig.answered("users") == []


def test_a_route_table_that_has_changed_is_used_by_connections_that_come_later() -> None:
    rig = SharedRig()
    before = rig.connect(FakeConnection())
    for destination in ("a", "b"):
        rig.routes.table = rig.tables[destination]
        for _ in range(2):
            rig.connect(FakeConnection()).request()
            before.request()
    assert (len(rig.answered("a")), len(rig.answered("b"))) == (4, 4)


def test_the_application_is_told_of_each_caller_who_it_is() -> None:
    rig = SharedRig(ClientCert.SANITIZE_SET)
    callers = [("a", "11"), ("a", "22"), ("b", "33"), ("", "")]
    conns = [rig.connect(FakeConnection(*caller)) for caller in callers for _ in range(2)]
    for _ in range(3):
        for conn in conns:
            conn.request()
    told = [dict(head.fields).get(b"x-forwarded-client-cert", b"") for head in rig.answered("users")]
    wanted = [
        f"By={SPIFFE}server;Hash={certificate};URI={SPIFFE}{account}".encode() if account else b""
        for account, certificate in callers
        for _ in range(2)
    ]
    assert told == wanted * 3
