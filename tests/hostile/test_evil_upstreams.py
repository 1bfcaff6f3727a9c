"""Applications that attack the sidecar in front of them."""

from __future__ import annotations

import http.client
import select
import socket
from collections.abc import Callable

import pytest

from tests.support import h2_frames as f
from tests.support.clients import Answer, fetch
from tests.support.hostile import EVIL_H1, EVIL_H2, EvilServer, Target, read_h2_request, read_head
from tests.support.processes import eventually

FOREVER = 1 << 24
"""Bytes after which an attack gives up; far more than any limit lets pass."""
OK = f.block([(b":status", b"200")])
HINT = f.block([(b":status", b"103"), (b"link", b"</a>")])


def endless(sock: socket.socket, begin: bytes, piece: bytes) -> None:
    sock.sendall(begin)
    for _ in range(FOREVER // len(piece)):
        sock.sendall(piece)
        while select.select([sock], [], [], 0)[0]:
            if not sock.recv(65536):
                raise ConnectionError("the sidecar closed")


def after_request(begin: bytes, piece: bytes = b"") -> Callable[[socket.socket], None]:
    def behave(sock: socket.socket) -> None:
        read_head(sock)
        if piece:
            endless(sock, begin, piece)
        else:
            sock.sendall(begin)
            sock.recv(1)

    return behave


def h2_after_request(
    begin: Callable[[int], bytes], piece: Callable[[int], bytes]
) -> Callable[[socket.socket], None]:
    def behave(sock: socket.socket) -> None:
        stream = read_h2_request(sock)
        endless(sock, begin(stream), piece(stream))

    return behave


def nothing(_: int) -> bytes:
    return b""


def ask(target: Target, path: str) -> Answer | None:
    """None when the connection was cut."""
    try:
        return fetch(target.plain, path)
    except (OSError, http.client.HTTPException):
        return None


TOO_LARGE = b"response header section larger than 65536 bytes"
H1 = {
    "header lines without end": (b"HTTP/1.1 200 OK\r\n", b"x-field: value\r\n" * 64, TOO_LARGE),
    "a status line without end": (b"HTTP/1.1 200 ", b"a" * 1024, TOO_LARGE),
    "ten thousand fields": (
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        b"",
        b"more than 100 header fields",
    ),
    "a field of 100 KB": (b"HTTP/1.1 200 OK\r\nx: " + b"v" * 100_000 + b"\r\n\r\n", b"", TOO_LARGE),
    "bytes that are no HTTP": (b"", b"\0\1\2\3" * 256, b"response head with a control character"),
}


@pytest.mark.parametrize("name", H1)
def test_http1_response_heads_that_cannot_be_are_502(target: Target, name: str) -> None:
    begin, piece, reason = H1[name]
    with target.under_attack(memory=24.0), EvilServer(target.host, EVIL_H1, after_request(begin, piece)):
        for _ in range(3):
            answer = ask(target, "/evil1")
            assert answer is not None
            assert answer.status == 502
            assert reason in answer.body


def test_informational_responses_without_end_are_cut_off(target: Target) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    floods = {
        EVIL_H1: ("/evil1", after_request(b"", hint * 64)),
        EVIL_H2: ("/evil2", h2_after_request(nothing, lambda i: f.frame(f.HEADERS, 4, i, HINT) * 100)),
    }
    for port, (path, behave) in floods.items():
        with target.under_attack(), EvilServer(target.host, port, behave), target.h1() as peer:
            peer.send(b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n" % path.encode())
            peer.read_until(lambda peer=peer: b"more than 256 informational responses" in peer.received)
            assert peer.received.count(b"HTTP/1.1 103 ") == 256
            assert peer.received.count(b"HTTP/1.1 502 ") == 1


BODIES = {
    "a body after its end": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"more than announced" * 50,
        b"ok",
    ),
    "a second response": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        b"ok",
    ),
    "a body for HEAD's like": (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b""),
}


@pytest.mark.parametrize("name", BODIES)
def test_what_follows_a_response_reaches_nobody(target: Target, name: str) -> None:
    begin, piece, body = BODIES[name]
    with target.under_attack(), EvilServer(target.host, EVIL_H1, after_request(begin + piece)) as server:
        for _ in range(10):
            answer = ask(target, "/evil1")
            assert answer is not None
            assert (answer.status, answer.body) == (int(begin[9:12]), body)
        assert server.accepted == 10


def test_bad_chunks_cut_the_response(target: Target) -> None:
    begin = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"
    with target.under_attack(), EvilServer(target.host, EVIL_H1, after_request(begin + b"1;" + b"e" * 2000)):
        assert ask(target, "/evil1") is None


CUT = 0
"""The response had begun."""
H2 = {
    "CONTINUATION without end": (
        lambda i: f.frame(f.HEADERS, 0, i, OK),
        lambda i: f.frame(f.CONTINUATION, 0, i, b"\0\1x\1y" * 1000),
        502,
    ),
    "a header bomb": (
        lambda i: f.frame(f.HEADERS, 4, i, OK + b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 10_000),
        lambda _: f.frame(f.HEADERS, 4, 1, OK + b"\xbe" * 10_000),
        502,
    ),
    "GOAWAY storm": (nothing, lambda _: f.goaway(2**31 - 1) * 100, 502),
    "PING flood": (nothing, lambda _: f.ping() * 100, 502),
    "SETTINGS flood": (nothing, lambda _: f.settings({3: 100}) * 100, 502),
    "empty DATA": (lambda i: f.frame(f.HEADERS, 4, i, OK), lambda i: f.data(i, b"") * 100, CUT),
    "DATA after the end": (lambda i: f.frame(f.HEADERS, 5, i, OK), lambda i: f.data(i, b"x") * 100, 200),
    "RST_STREAM of everything": (
        nothing,
        lambda i: b"".join(f.rst_stream(n, 2) for n in range(1, 200, 2)),
        503,
    ),
}


@pytest.mark.parametrize("name", H2)
def test_http2_upstreams_that_flood_lose_their_connection(target: Target, name: str) -> None:
    ended: list[bool] = []
    begin, piece, status = H2[name]
    behave = h2_after_request(begin, piece)

    def watched(sock: socket.socket) -> None:
        try:
            behave(sock)
        except OSError:
            ended.append(True)

    with target.under_attack(memory=24.0, cpu=3.0), EvilServer(target.host, EVIL_H2, watched) as server:
        answer = ask(target, "/evil2")
        assert (answer.status if answer is not None else CUT) == status
        eventually(lambda: ended, "the sidecar to have had enough", 5.0)
        assert server.accepted == 1


def silent(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


def test_a_server_that_never_sends_settings_is_no_connection(target: Target) -> None:
    """Its `connect_timeout` is 1 s."""
    with target.under_attack(), EvilServer(target.host, EVIL_H2, silent):
        answer = ask(target, "/evil2")
        assert answer is not None
        assert answer.status == 503
        assert b"no HTTP/2 SETTINGS came within 1 s" in answer.body


def test_a_server_that_never_opens_its_window_holds_one_window(target: Target) -> None:
    def behave(sock: socket.socket) -> None:
        read_h2_request(sock, {4: 0})
        silent(sock)

    with target.under_attack(memory=16.0), EvilServer(target.host, EVIL_H2, behave):
        peers = [target.h1() for _ in range(20)]
        for peer in peers:
            peer.sock.settimeout(0.2)
            peer.send(
                b"POST /evil2 HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n" + bytes(200_000)
            )
        for peer in peers:
            peer.read_end(12.0)
            assert peer.status == 504


def test_a_server_that_allows_no_streams_gets_one_connection(target: Target) -> None:
    def behave(sock: socket.socket) -> None:
        sock.sendall(f.settings({3: 0}))
        silent(sock)

    with target.under_attack(), EvilServer(target.host, EVIL_H2, behave) as server:
        peers = [target.h1() for _ in range(20)]
        for peer in peers:
            peer.send(b"GET /evil2 HTTP/1.1\r\nhost: a\r\n\r\n")
        for peer in peers:
            peer.read_until(lambda peer=peer: peer.status == 504, 12.0)
        assert server.accepted == 1


def test_a_server_that_goes_away_at_once_every_time(target: Target) -> None:
    def behave(sock: socket.socket) -> None:
        sock.sendall(f.settings() + f.goaway(0))
        silent(sock)

    with target.under_attack(), EvilServer(target.host, EVIL_H2, behave) as server:
        for _ in range(10):
            answer = ask(target, "/evil2")
            assert answer is not None
            assert answer.status == 503
        assert server.accepted == 10
