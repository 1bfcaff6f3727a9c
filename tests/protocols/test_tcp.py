"""Opaque TCP through both sidecars: by ports of named upstreams, and by CONNECT tunnels whose protocol is
declared or detected."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.pairs import Peer, RawApp, TcpApp, World, ok
from tests.support.processes import eventually

DECLARED = 9102
"""The port of the caller's sidecar that leads to the service of that name."""
SILENCE = 0.1
WAYS = pytest.mark.parametrize("way", ["upstream", "connect"])


@contextmanager
def app(world: World, port: int, serve: Callable[[Peer], None]) -> Iterator[TcpApp]:
    made = world.tcp(port, serve)
    try:
        yield made
    finally:
        made.stop()


def dial(world: World, way: str) -> Peer:
    """To service `declared`."""
    return world.dial(DECLARED) if way == "upstream" else world.tunnel("declared:7102")


def echo(peer: Peer) -> None:
    while data := peer.sock.recv(65536):
        peer.send(data)
    peer.end()


@WAYS
def test_each_direction_ends_on_its_own(world: World, way: str) -> None:
    def serve(peer: Peer) -> None:
        digest = hashlib.sha256(peer.rest()).hexdigest()  # all, up to the caller's FIN
        time.sleep(0.1)
        peer.send(digest.encode())

    data = os.urandom(1_000_000)
    with app(world, 7102, serve), dial(world, way) as peer:
        peer.send(data)
        peer.end()
        assert peer.rest() == hashlib.sha256(data).hexdigest().encode()


@WAYS
def test_the_server_may_end_first_and_go_on_reading(world: World, way: str) -> None:
    got = []

    def serve(peer: Peer) -> None:
        peer.send(b"that is all")
        peer.end()
        got.append(peer.rest())

    with app(world, 7102, serve), dial(world, way) as peer:
        assert peer.rest() == b"that is all"
        peer.send(b"thank you")
        peer.end()
        eventually(lambda: got == [b"thank you"], "the application to read on", 5)


def test_bytes_behind_a_pipelined_connect_reach_the_server(world: World, web: RawApp) -> None:
    """All in one packet: the CONNECT is begun when the response before it is complete."""
    web.on("/before", ok())
    with app(world, 7102, echo), world.dial() as peer:
        peer.send(
            b"GET /before HTTP/1.1\r\nHost: web\r\n\r\n"
            b"CONNECT declared:7102 HTTP/1.1\r\nHost: declared:7102\r\n\r\nearly bytes"
        )
        peer.answer()
        assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        assert peer.exactly(11) == b"early bytes"
        peer.send(b", late bytes")
        peer.end()
        assert peer.rest() == b", late bytes"


@WAYS
def test_both_directions_carry_at_once(world: World, way: str) -> None:
    sent = os.urandom(5_000_000)
    with app(world, 7102, echo), dial(world, way) as peer:
        writer = threading.Thread(target=lambda: (peer.send(sent), peer.end()))
        writer.start()
        assert peer.rest() == sent
        writer.join()


@WAYS
def test_a_reader_that_stops_stops_the_writer(world: World, way: str) -> None:
    """Between the two there may be buffers, but not 64 MB of them."""
    go_on = threading.Event()

    def serve(peer: Peer) -> None:
        go_on.wait(20)
        peer.send(b"%d" % len(peer.rest()))

    total = 64_000_000
    with app(world, 7102, serve), dial(world, way) as peer:
        peer.sock.settimeout(1.0)
        sent = 0
        piece = bytes(65536)
        with contextlib.suppress(TimeoutError):
            while sent < total:
                sent += peer.sock.send(piece)
        assert sent < total / 2
        go_on.set()
        peer.sock.settimeout(20)
        peer.send(b"!")
        peer.end()
        assert peer.rest() == b"%d" % (sent + 1)


@WAYS
def test_a_reset_is_a_reset_at_the_other_side(world: World, way: str) -> None:
    ended = []

    def serve(peer: Peer) -> None:
        try:
            ended.append(peer.rest())
        except ConnectionResetError:
            ended.append(b"reset")

    with app(world, 7102, serve):
        with dial(world, way) as peer:
            peer.send(b"x")
            time.sleep(0.1)
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        eventually(lambda: ended, "the end", 5)
    assert ended == [b"reset"]


@WAYS
def test_a_cut_by_the_server_is_a_cut_for_the_caller(world: World, way: str) -> None:
    def serve(peer: Peer) -> None:
        peer.until(b"x")
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with app(world, 7102, serve), dial(world, way) as peer:
        peer.send(b"x")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            peer.rest()


def test_a_hundred_sessions_share_a_connection_between_the_sidecars(world: World) -> None:
    with app(world, 7102, echo) as server:
        peers = [world.dial(DECLARED) for _ in range(100)]
        for i, peer in enumerate(peers):
            peer.send(b"%03d" % i)
        assert [peer.exactly(3) for peer in peers] == [b"%03d" % i for i in range(100)]
        assert server.connections == 100
        inbound = f"inbound|{world.host}|7102"
        opened = world.backend.stats("listeners", listener=inbound)["connections_opened"]
        assert opened < 10
        for peer in peers:
            peer.sock.close()


# --- what a tunnel carries ---------------------------------------------------------------------------


def counted(world: World, before: dict[str, int]) -> dict[str, int]:
    after = world.detected()
    return {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}


def greet(peer: Peer) -> None:
    peer.send(b"220 mail.test ESMTP\r\n")
    peer.until(b"quit\r\n")
    peer.send(b"221 bye\r\n")


def test_a_server_that_speaks_first_waits_for_nobody(world: World) -> None:
    """Its first bytes decide, before the client's silence could."""
    before = world.detected()
    with app(world, 7101, greet), world.tunnel("greets:7101") as peer:
        started = time.monotonic()
        assert peer.until(b"\r\n") == b"220 mail.test ESMTP\r\n"
        waited = time.monotonic() - started
        peer.send(b"quit\r\n")
        assert peer.rest() == b"221 bye\r\n"
    assert counted(world, before) == {"http1": 1, "tcp": 1}  # the CONNECT itself, then its content
    assert waited < 5 * SILENCE


def test_a_port_that_is_declared_opaque_is_not_looked_at(world: World) -> None:
    """Even what looks like HTTP is none, and a silent client is joined at once."""
    before = world.detected()
    with app(world, 7102, echo) as server, world.tunnel("declared:7102") as peer:
        eventually(lambda: server.connections == 1, "the connection", 5)
        peer.send(b"GET / HTTP/1.1\r\n\r\n")
        assert peer.exactly(18) == b"GET / HTTP/1.1\r\n\r\n"
    assert counted(world, before) == {"http1": 1, "tcp": 1}


def test_a_port_number_that_is_known_to_be_opaque_is_not_looked_at(world: World) -> None:
    before = world.detected()
    with app(world, 3306, echo) as server, world.tunnel("database:3306") as peer:
        eventually(lambda: server.connections == 1, "the connection", 5)
        peer.send(b"GET / HTTP/1.1\r\n\r\n")
        assert peer.exactly(18) == b"GET / HTTP/1.1\r\n\r\n"
    assert counted(world, before) == {"http1": 1, "tcp": 1}


def test_a_port_that_is_declared_http_is_waited_for(world: World, web: object) -> None:
    """A client that opens its tunnel ahead of need keeps its retries, metrics and traces."""
    before = world.detected()
    web.on("/late", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")  # type: ignore[attr-defined]
    with world.tunnel("web:80") as peer:
        time.sleep(3 * SILENCE)
        peer.send(b"GET /late HTTP/1.1\r\nHost: web\r\n\r\n")
        assert peer.answer()[1] == b"ok"
    assert counted(world, before) == {"http1": 2}


def test_what_says_nothing_is_judged_by_its_first_bytes(world: World) -> None:
    before = world.detected()
    with app(world, 7100, echo), world.tunnel("guess:7100") as peer:
        peer.send(b"\x00\x01opaque")
        assert peer.exactly(8) == b"\x00\x01opaque"
    assert counted(world, before) == {"http1": 1, "tcp": 1}


def test_http_on_a_port_that_says_nothing_is_routed_as_http(world: World) -> None:
    def serve(peer: Peer) -> None:
        assert b"\r\nx-forwarded-client-cert: " in peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    before = world.detected()
    with app(world, 7100, serve), world.tunnel("guess:7100") as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost: guess:7100\r\n\r\n")
        assert peer.answer()[1] == b"ok"
    assert counted(world, before) == {"http1": 2}


def test_a_silent_client_of_an_unknown_port_is_joined_after_a_short_wait(world: World) -> None:
    before = world.detected()
    with app(world, 7100, echo) as server, world.tunnel("guess:7100") as peer:
        eventually(lambda: server.connections == 1, "the connection, dialled meanwhile", 5)
        eventually(lambda: counted(world, before) == {"http1": 1, "tcp": 1, "timeouts": 1}, "the time-out", 5)
        peer.send(b"GET / HTTP/1.1\r\n\r\n")  # too late to be HTTP
        assert peer.exactly(18) == b"GET / HTTP/1.1\r\n\r\n"


def test_a_client_that_only_listens_hears_the_server(world: World) -> None:
    """FIN at once, as `nc host port </dev/null` sends it."""

    def serve(peer: Peer) -> None:
        time.sleep(0.3)
        peer.send(b"the time is now\r\n")

    with app(world, 7100, serve), world.tunnel("guess:7100") as peer:
        peer.end()
        assert peer.rest() == b"the time is now\r\n"


def test_nobody_there_is_an_end_for_opaque_clients_and_503_for_those_of_http(world: World) -> None:
    with world.tunnel("nobody:7199") as peer:
        peer.send(b"\x00opaque")
        with pytest.raises(ConnectionResetError):
            peer.rest()
    with world.tunnel("nobody:7199") as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost: nobody:7199\r\n\r\n")
        assert peer.head().startswith(b"HTTP/1.1 503 ")
