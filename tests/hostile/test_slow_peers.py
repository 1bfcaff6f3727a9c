"""Peers that take their time: heads that never end, bodies that stand still, readers that do not read."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support import h2_frames as f
from tests.support.hostile import (
    CALM,
    HEAD_TIMEOUT,
    STREAM_IDLE,
    Target,
    request,
)
from tests.support.processes import eventually
from tests.support.raw import Raw

LATE = 4 * HEAD_TIMEOUT + 0.5
"""Seconds by which a head that does not end has cost its connection."""

STALLED = 3 * STREAM_IDLE + 2
"""Seconds by which a stream that stands still is ended."""


def trickle(peer: Raw, octets: bytes, seconds: float) -> None:
    """An octet every 50 ms."""
    end = time.monotonic() + seconds
    for i in range(len(octets)):
        if time.monotonic() > end or not peer.send(octets[i : i + 1]) or not peer.read(0.05):
            return


def test_http1_heads_that_never_end_are_answered_408(target: Target) -> None:
    with target.under_attack():
        peers = [target.h1() for _ in range(100)]
        for peer in peers:
            peer.send(b"GET / HTTP/1.1\r\nhost: a\r\n")
        trickle(peers[0], b"x-a: " + b"v" * 1000, LATE)
        assert [peer.refused(LATE) for peer in peers] == [408] * 100


def test_http1_head_that_never_ends_after_a_request(target: Target) -> None:
    with target.under_attack(), target.h1() as peer:
        peer.send(b"GET /direct HTTP/1.1\r\nhost: a\r\n\r\nGET /")
        whole = peer.read_end(LATE)
        assert whole.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 408 " in whole


@pytest.mark.parametrize(
    ("said", "status"),
    [(b"", b""), (b"G", b"408"), (f.PREFACE[:-5], b"505")],
    ids=["nothing", "a letter", "preface"],
)
def test_connections_that_do_not_say_what_they_want_are_closed(
    target: Target, said: bytes, status: bytes
) -> None:
    with target.under_attack():
        peers = [Raw(target.connect()) for _ in range(50)]
        for peer in peers:
            peer.send(said)
        assert [peer.read_end(LATE)[9:12] for peer in peers] == [status] * 50


def test_an_idle_connection_that_was_used_stays(target: Target) -> None:
    with target.h1() as peer:
        peer.send(b"GET /direct HTTP/1.1\r\nhost: a\r\n\r\n")
        peer.read_until(lambda: peer.status == 200)
        time.sleep(2.5 * HEAD_TIMEOUT)
        peer.send(b"GET /direct HTTP/1.1\r\nhost: a\r\n\r\n")
        peer.read_until(lambda: peer.received.count(b"HTTP/1.1 200 ") == 2)


def test_http2_connections_without_preface_or_settings_are_ended(target: Target) -> None:
    with target.under_attack():
        peers = [Raw(target.connect_tls()) for _ in range(3)]
        peers[1].send(f.PREFACE[:10])
        peers[2].send(f.PREFACE)
        for peer in peers:
            octets = peer.read_end(LATE)
            assert f.parse_prefix(octets)[-1].code == CALM


@pytest.mark.parametrize("continued", [False, True])
def test_http2_header_sections_that_never_end(target: Target, continued: bool) -> None:
    block = f.block(request())
    with target.under_attack(), target.h2() as peer:
        if continued:
            peer.send(f.frame(f.HEADERS, 0, 1, block))
            trickle(peer, f.frame(f.CONTINUATION, 0, 1) * 100, LATE)
        else:
            trickle(peer, f.frame(f.HEADERS, 5, 1, block + b"\0\x01x\x64" + b"v" * 100), LATE)
        assert peer.goaway(LATE) == CALM


def test_http1_bodies_that_stop_end_with_the_stream_idle_timeout(target: Target) -> None:
    with target.under_attack():
        peers = [target.h1() for _ in range(50)]
        for peer in peers:
            peer.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nabc")
        for peer in peers:
            peer.read_end(STALLED)
            assert peer.status == 504


def test_http2_bodies_that_stop_end_with_the_stream_idle_timeout(target: Target) -> None:
    with target.under_attack(), target.h2() as peer:
        ids = [peer.new_id() for _ in range(100)]
        peer.send(b"".join(f.headers(i, request("/", "POST")) + f.data(i, b"abc") for i in ids))
        peer.read_until(lambda: len(peer.of(f.HEADERS)) == 100, STALLED)
        assert peer.statuses() == dict.fromkeys(ids, 504)


def test_readers_with_a_closed_window_cost_one_window_each(target: Target) -> None:
    """A hundred downloads of 100 MB, and no credit for any: 64 KiB wait for each, then the stream ends."""
    with target.under_attack(memory=40.0), target.h2({4: 0}) as peer:
        ids = [peer.new_id() for _ in range(100)]
        peer.send(b"".join(f.headers(i, request("/bytes?n=100000000"), True) for i in ids))
        peer.read_until(lambda: len(peer.of(f.RST_STREAM)) == 100, STALLED)


def test_http1_readers_that_do_not_read_cost_one_window_each(target: Target) -> None:
    before = target.descriptors()
    with target.under_attack(memory=120.0):  # two reads of 256 KiB each, and what the allocator keeps
        socks = []
        for _ in range(50):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(target.plain)
            sock.sendall(b"GET /bytes?n=100000000 HTTP/1.1\r\nhost: a\r\n\r\n")
            socks.append(sock)
        eventually(lambda: target.descriptors() > before + 90, "downloads to begin")
        eventually(lambda: target.descriptors() < before + 10, "stalled downloads to end", STALLED)
        for sock in socks:
            sock.close()


def test_resets_in_the_middle_of_bodies(target: Target) -> None:
    before = target.descriptors()
    with target.under_attack():
        for i in range(100):
            peer = target.h1()
            if i % 2:
                peer.send(b"POST /sleep?s=0 HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nabc")
            else:
                peer.send(b"GET /bytes?n=100000000 HTTP/1.1\r\nhost: a\r\n\r\n")
                peer.read_until(lambda peer=peer: peer.received)
            peer.vanish()
        for _ in range(20):
            with target.h2() as peer:
                ids = [peer.new_id() for _ in range(10)]
                peer.send(b"".join(f.headers(i, request("/bytes?n=1000000"), True) for i in ids))
                peer.read_until(lambda peer=peer: peer.of(f.DATA))
                peer.vanish()
    assert target.descriptors() < before + 60


def test_a_closed_window_is_no_reason_to_end_a_connection_that_has_no_streams(target: Target) -> None:
    with target.h2({4: 0}) as peer:
        time.sleep(2.5 * HEAD_TIMEOUT)
        peer.send(f.headers(1, request(), True))
        peer.read_until(lambda: peer.of(f.HEADERS))
        assert not peer.of(f.GOAWAY)
