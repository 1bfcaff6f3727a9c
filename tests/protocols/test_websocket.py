"""WebSocket: an HTTP/1.1 upgrade at both ends, extended CONNECT (RFC 8441) between the sidecars."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve

from sidecar.protocol.h1_wire import websocket_accept
from tests.support.clients import H2Client
from tests.support.h2_app import start_h2_app
from tests.support.pairs import Peer, RawApp, World
from tests.support.processes import eventually, loopback, stopping
from tests.support.sidecars import (
    APP,
    OUTBOUND,
    Sidecar,
    address,
    bootstrap,
    cluster,
    http_filter,
    listener,
    route,
)

SECRET = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""Key and answer of RFC 6455 section 1.3."""


def _first(_: ServerConnection, offered: Sequence[Any]) -> Any:
    return offered[0] if offered else None


def switch(peer: Peer, head: bytes) -> None:
    """Accept an upgrade."""
    line = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
    accept = websocket_accept(line.partition(b":")[2].strip())
    peer.send(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


class Sockets:
    """The application: echoes, and does what some texts say."""

    def __init__(self, world: World) -> None:
        self.requests: list[dict[str, str]] = []
        self.closed: list[tuple[int, str]] = []
        self.server: Server = serve(
            self.handle, world.host, 8082, select_subprotocol=_first, max_size=2**24, ping_interval=None
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def handle(self, peer: ServerConnection) -> None:
        assert peer.request is not None
        self.requests.append({name.lower(): value for name, value in peer.request.headers.raw_items()})
        try:
            for message in peer:
                if message == "count down":
                    for i in (3, 2, 1):
                        peer.send(str(i))
                        time.sleep(0.05)
                elif message == "leave":
                    peer.close(4321, "as you wish")
                elif message == "die":
                    peer.socket.close()
                    return
                else:
                    peer.send(message)
        finally:
            self.closed.append((peer.close_code or 0, peer.close_reason or ""))


@pytest.fixture(scope="module")
def sockets(world: World) -> Iterator[Sockets]:
    made = Sockets(world)
    yield made
    made.server.shutdown()


@pytest.fixture
def socket_(world: World, sockets: Sockets) -> Iterator[ClientConnection]:
    with open_socket(world) as made:
        yield made


def open_socket(world: World, **options: object) -> ClientConnection:
    """As a client does that is pointed at the sidecar instead of the service."""
    peer = world.dial().sock
    return connect(
        "ws://sockets:8082/room?id=1",
        sock=peer,
        proxy=None,
        max_size=2**24,
        ping_interval=None,
        **options,  # type: ignore[arg-type]
    )


def upgrade(path: str, *fields: str, host: str = "sockets:8082") -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Key: {SECRET.decode()}", "Sec-WebSocket-Version: 13", *fields, "", ""]
    return "\r\n".join(lines).encode()


def test_text_and_binary_messages_pass_both_ways(socket_: ClientConnection) -> None:
    socket_.send("grüße")
    assert socket_.recv(10) == "grüße"
    large = os.urandom(3_000_000)
    socket_.send(large)
    assert socket_.recv(10) == large


def test_the_server_may_speak_on_its_own(socket_: ClientConnection) -> None:
    socket_.send("count down")
    assert [socket_.recv(10) for _ in range(3)] == ["3", "2", "1"]


def test_ping_and_pong_are_the_applications(socket_: ClientConnection) -> None:
    assert socket_.ping(b"there?").wait(10)


def test_the_handshake_of_each_hop_is_its_own(world: World, sockets: Sockets) -> None:
    """RFC 8441 section 5: key and accept stay on an HTTP/1.1 hop; the rest travels."""
    with world.dial() as peer:
        peer.send(upgrade("/room?id=2", "Origin: http://site", "Sec-WebSocket-Protocol: chat.v2"))
        head = peer.head()
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"\r\nsec-websocket-accept: " + ACCEPT + b"\r\n" in head
        assert b"\r\nsec-websocket-protocol: chat.v2\r\n" in head
        # The server answers before it tells us.
        eventually(lambda: any("origin" in each for each in sockets.requests), "the request")
    [seen] = [each for each in sockets.requests if "origin" in each]
    assert seen["origin"] == "http://site"
    assert (seen["upgrade"], seen["connection"]) == ("websocket", "upgrade")
    assert len(base64.b64decode(seen["sec-websocket-key"])) == 16
    assert seen["sec-websocket-key"].encode() != SECRET


def test_it_travels_between_the_sidecars_as_extended_connect(world: World, sockets: Sockets) -> None:
    with open_socket(world) as made:
        made.send("x")
        made.recv(10)
    for side, protocol in ((world.caller, "HTTP/1.1"), (world.backend, "HTTP/2")):
        line = side.logged(method="CONNECT", path="/room?id=1", protocol=protocol)
        assert line["status"] == 200


def test_the_close_handshake_passes_with_code_and_reason(socket_: ClientConnection, sockets: Sockets) -> None:
    socket_.send("leave")
    with pytest.raises(ConnectionClosedError) as closed:
        socket_.recv(10)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "as you wish")


def test_a_caller_that_vanishes_is_missed_at_the_application(world: World, sockets: Sockets) -> None:
    def lost() -> int:
        return [code for code, _ in sockets.closed].count(1006)

    before = lost()
    with world.dial() as peer:
        peer.send(upgrade("/room"))
        peer.head()
    eventually(lambda: lost() == before + 1, "the application to lose the caller", 10)


def test_an_application_that_vanishes_is_missed_at_the_caller(socket_: ClientConnection) -> None:
    socket_.send("die")
    with pytest.raises(ConnectionClosedError) as closed:
        socket_.recv(10)
    assert closed.value.rcvd is None


def test_a_refusal_of_the_application_is_an_ordinary_response(world: World, web: RawApp) -> None:
    web.on("/no", b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic\r\ncontent-length: 3\r\n\r\nno\n")
    with world.dial() as peer, pytest.raises(InvalidStatus) as refused:
        connect("ws://web/no", sock=peer.sock, proxy=None)
    assert refused.value.response.status_code == 401
    assert refused.value.response.body == b"no\n"
    assert refused.value.response.headers["www-authenticate"] == "Basic"


def test_an_application_that_ignores_the_upgrade_is_no_websocket(client: Peer, web: RawApp) -> None:
    """An HTTP/1 caller would read the page as an ordinary response, but between sidecars a 200 to an
    extended CONNECT says that the tunnel is open."""
    web.on("/page", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\npage\n")
    client.send(upgrade("/page", host="web"))
    head, body = client.answer()
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"200 instead of 101" in body


def test_frames_sent_ahead_of_the_answer_wait_for_it(client: Peer, web: RawApp) -> None:
    got = []

    def script(peer: Peer, head: bytes) -> None:
        got.append(peer.silent(0.2))
        switch(peer, head)
        got.append(peer.exactly(5))
        peer.send(b"there")
        peer.sock.close()

    web.on("/ahead", script)
    client.send(upgrade("/ahead", host="web") + b"ahead")
    assert client.head().startswith(b"HTTP/1.1 101 ")
    assert client.exactly(5) == b"there"
    assert got == [True, b"ahead"]


def test_a_caller_of_http_2_uses_extended_connect_itself(world: World, web: RawApp) -> None:
    def script(peer: Peer, head: bytes) -> None:
        switch(peer, head)
        peer.send(peer.exactly(4))
        peer.sock.close()

    web.on("/h2", script)
    with H2Client(world.proxy) as client:
        while not client.h2.remote_settings.enable_connect_protocol:
            assert client.pump()
        extended = [(":protocol", "websocket"), ("sec-websocket-version", "13")]
        stream = client.send("/h2", "CONNECT", "web", extended, end=False)
        assert client.wait_head(stream).status == 200
        client.data(stream, b"ping")
        assert client.wait(stream).body == b"ping"


def test_a_key_that_a_caller_of_http_2_sends_is_not_the_hops(world: World, web: RawApp) -> None:
    """RFC 8441 section 5 does not process it; RFC 6455 section 4.1 allows the application one."""
    heads = web.on("/key", switch)
    with H2Client(world.proxy) as client:
        while not client.h2.remote_settings.enable_connect_protocol:
            assert client.pump()
        extended = [(":protocol", "websocket"), ("sec-websocket-key", SECRET.decode())]
        stream = client.send("/key", "CONNECT", "web", extended, end=False)
        assert client.wait_head(stream).status == 200
    (head,) = heads
    assert head.count(b"sec-websocket-key: ") == 1
    assert SECRET not in head


def test_other_protocols_of_extended_connect_are_501(world: World) -> None:
    with H2Client(world.proxy) as client:
        while not client.h2.remote_settings.enable_connect_protocol:
            assert client.pump()
        stream = client.send("/h2", "CONNECT", "web", [(":protocol", "connect-udp")], end=False)
        assert client.wait_head(stream).status == 501


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Sidecar]]:
    """One sidecar of a static bootstrap before an HTTP/2 application that offers no extended CONNECT:
    port 15001 names websocket, 15002 does not."""
    directory = tmp_path_factory.mktemp("static")
    host = loopback()
    named = http_filter([route()], upgrade_configs=[{"upgrade_type": "websocket"}])
    listeners = [
        listener("named", address(host, OUTBOUND), named),
        listener("unnamed", address(host, 15002), http_filter([route()])),
    ]
    app = start_h2_app(host, APP, "old", directory)
    sidecar = Sidecar("static", bootstrap(host, listeners, [cluster("peer", [(host, APP)], True)]), directory)
    with stopping(app, sidecar):
        yield host, sidecar.ready()


def test_a_listener_that_does_not_name_websocket_says_so(static: tuple[str, Sidecar]) -> None:
    """As Envoy, which answers 403."""
    host, _ = static
    with Peer(socket.create_connection((host, 15002))) as peer:
        peer.send(upgrade("/"))
        head, body = peer.answer()
        assert head.startswith(b"HTTP/1.1 403 ")
        assert body == b"upgrade to websocket is not enabled here; name it in upgrade_configs\n"


def test_a_peer_without_extended_connect_is_named(static: tuple[str, Sidecar]) -> None:
    host, _ = static
    with Peer(socket.create_connection((host, OUTBOUND))) as peer:
        peer.send(upgrade("/"))
        head, body = peer.answer()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"the peer does not offer extended CONNECT (RFC 8441)" in body


@pytest.mark.parametrize("port", [OUTBOUND, 15002])
def test_extended_connect_is_offered_only_with_allow_connect(static: tuple[str, Sidecar], port: int) -> None:
    with H2Client((static[0], port)) as client:
        assert client.fetch("/").status == 200
        assert client.h2.remote_settings.enable_connect_protocol == 0
