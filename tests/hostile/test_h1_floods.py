"""HTTP/1 peers that make work without end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from tests.support.hostile import Target
from tests.support.raw import RawH1

POST = b"POST /headers HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"

ENDLESS: dict[str, tuple[bytes, bytes, int]] = {
    "header lines": (b"GET / HTTP/1.1\r\nhost: a\r\n", b"x-field: value\r\n" * 64, 431),
    "a header line": (b"GET / HTTP/1.1\r\nhost: a\r\nx: ", b"v" * 1024, 431),
    "a request line": (b"GET /", b"a" * 1024, 431),
    "a method": (b"", b"A" * 1024, 431),
    "bytes that are no HTTP": (b"", b"\x00\x01\x02\x03" * 256, 400),
    "a chunk extension": (POST + b"1;", b"e" * 1024, 400),
    "chunk extensions": (POST, (b"1;" + b"e" * 500 + b"\r\nx\r\n") * 2, 400),
    "a chunk size": (POST, b"0" * 1024, 400),
    "trailers": (POST + b"1\r\nx\r\n0\r\n", b"x-field: value\r\n" * 64, 431),
}


def flood(peer: RawH1, piece: bytes, most: int = 1 << 22) -> None:
    for _ in range(most // len(piece)):
        if not peer.send(piece) or not peer.read():
            return
    raise AssertionError("taken without complaint")


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_refused(target: Target, name: str) -> None:
    begin, piece, status = ENDLESS[name]
    with target.under_attack(), target.h1() as peer:
        peer.send(begin)
        flood(peer, piece)
        peer.read_end()
        assert peer.status == status


def test_chunks_of_one_byte(target: Target) -> None:
    """Legal, so they are passed on; nobody else waits for them."""
    with target.under_attack(cpu=10.0), target.h1() as peer:
        peer.send(POST)
        end = time.monotonic() + 0.5
        sent = 0
        while time.monotonic() < end:
            assert peer.send(b"1\r\nx\r\n" * 10_000)
            sent += 10_000
        peer.send(b"0\r\n\r\n")
        peer.read_until(lambda: peer.status == 200 and b'"trailers"' in peer.received, 20.0)
        assert b'"size": %d,' % sent in peer.received


def pipelined(target: Target, path: bytes) -> Callable[[RawH1], int]:
    octets = b"GET " + path + b" HTTP/1.1\r\nhost: a\r\n\r\n"

    def send(peer: RawH1) -> int:
        """Requests written before writing took longer than half a second."""
        peer.sock.settimeout(0.5)
        for n in range(0, 200_000, 500):
            if not peer.send(octets * 500):
                return n
        return 200_000

    return send


@pytest.mark.parametrize("path", [b"/direct", b"/status/204"])
def test_pipelined_requests_whose_answers_are_never_read(target: Target, path: bytes) -> None:
    """The sidecar stops answering, then reading: the client's own writes stall."""
    with target.under_attack(memory=24.0, cpu=10.0), RawH1(target.connect(receive_buffer=4096)) as peer:
        assert pipelined(target, path)(peer) < 200_000


def test_pipelined_requests_are_answered_in_order_and_other_peers_too(target: Target) -> None:
    with target.under_attack(cpu=10.0), target.h1() as peer:
        for n in range(20):
            peer.send(
                b"".join(b"GET /status/%d HTTP/1.1\r\nhost: a\r\n\r\n" % (300 + i % 2) for i in range(50))
            )
            peer.read_until(lambda n=n: peer.received.count(b"HTTP/1.1 30") == 50 * (n + 1))
        statuses = [int(part[:3]) for part in bytes(peer.received).split(b"HTTP/1.1 ")[1:]]
        assert statuses == [300, 301] * 500


def test_what_was_pipelined_before_the_end_of_the_input_is_answered(target: Target) -> None:
    """Over several turns, which the end must not cut short."""
    with target.under_attack(), target.h1() as peer:
        peer.send(b"GET /direct HTTP/1.1\r\nhost: a\r\n\r\n" * 1500)
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.read_end().count(b"HTTP/1.1 200 ") == 1500


def test_a_body_that_nobody_wants_is_not_read_for_ever(target: Target) -> None:
    with target.under_attack(), target.h1() as peer:
        peer.send(b"POST /direct HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        flood(peer, b"400\r\n" + b"x" * 1024 + b"\r\n")
        peer.read_end()
        assert peer.status == 200
