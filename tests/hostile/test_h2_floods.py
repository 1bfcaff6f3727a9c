"""HTTP/2 peers that make work without end: frames that cost the receiver more than the sender."""

from __future__ import annotations

import struct
import time

import pytest

from tests.support import h2_frames as f
from tests.support.hostile import CALM, Target, request
from tests.support.raw import RawH2

GET = f.block(request("/sleep?s=1"))
POST = f.block(request("/sleep?s=1", "POST"))
KINDS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "mtls"])
"""Of listener."""


def opening(peer: RawH2, block: bytes = POST, end: bool = False) -> bytes:
    return f.frame(f.HEADERS, f.END_HEADERS | end, peer.new_id(), block)


@KINDS
def test_rapid_reset(target: Target, tls: bool) -> None:
    """CVE-2023-44487."""
    peer = target.h2(tls=tls)

    def many() -> bytes:
        return b"".join(
            f.frame(f.HEADERS, 5, i, GET) + f.rst_stream(i, 8) for i in (peer.new_id() for _ in range(100))
        )

    with target.under_attack(), peer:
        assert peer.flood(many) == CALM


@KINDS
def test_rapid_reset_a_frame_at_a_time(target: Target, tls: bool) -> None:
    """Each is read by itself."""
    peer = target.h2(tls=tls)
    with target.under_attack(cpu=3.0), peer:
        for n in range(3000):
            i = peer.new_id()
            peer.send(f.frame(f.HEADERS, 5, i, GET))
            time.sleep(0.0002)
            peer.send(f.rst_stream(i, 8))
            time.sleep(0.0002)
            if n % 100 == 99 and not peer.read():
                break
        assert peer.goaway() == CALM
        assert n < 2500


MADE_YOU_RESET = {
    "window update of 0": lambda i: f.frame(f.HEADERS, 5, i, GET) + f.window_update(i, 0),
    "window overflow": lambda i: f.frame(f.HEADERS, 5, i, GET) + f.window_update(i, 2**31 - 1),
    "DATA after END_STREAM": lambda i: f.frame(f.HEADERS, 5, i, GET) + f.data(i, b"x"),
    "HEADERS after END_STREAM": lambda i: f.frame(f.HEADERS, 5, i, GET) * 2,
    "short PRIORITY": lambda i: f.frame(f.HEADERS, 5, i, GET) + f.priority(i, b"\0\0\0\0"),
    "trailers without END_STREAM": lambda i: f.frame(f.HEADERS, 4, i, POST) + f.headers(i, [(b"a", b"b")]),
    "malformed request": lambda i: f.headers(i, [(b":method", b"GET")], True),
}


@pytest.mark.parametrize("name", MADE_YOU_RESET)
def test_made_you_reset(target: Target, name: str) -> None:
    """CVE-2025-8671: the sidecar resets the streams, because of what the client says on them."""
    peer = target.h2()
    make = MADE_YOU_RESET[name]
    with target.under_attack(), peer:
        code = peer.flood(lambda: b"".join(make(peer.new_id()) for _ in range(100)), 1 << 20)
        assert code == CALM
        assert len(peer.of(f.RST_STREAM)) < 1100


@KINDS
def test_continuation_flood(target: Target, tls: bool) -> None:
    """CVE-2024-27316."""
    peer = target.h2(tls=tls)
    field = b"\0\x01x\x7f\x81\x3f" + b"v" * 8192
    with target.under_attack(), peer:
        peer.send(f.frame(f.HEADERS, 0, 1, f.block(request())))
        assert peer.flood(f.frame(f.CONTINUATION, 0, 1, field)) == CALM


@KINDS
def test_flood_of_empty_continuations(target: Target, tls: bool) -> None:
    peer = target.h2(tls=tls)
    with target.under_attack(), peer:
        peer.send(f.frame(f.HEADERS, 0, 1, f.block(request())))
        assert peer.flood(f.frame(f.CONTINUATION, 0, 1) * 100) == CALM


FLOODS = {
    "SETTINGS": f.settings({4: 65535}) * 100,
    "SETTINGS ACK": f.frame(f.SETTINGS, f.ACK) * 100,
    "PING": f.ping() * 100,
    "PING ACK": f.ping(flags=f.ACK) * 100,
    "empty DATA": f.data(1, b"") * 100,
    "padding alone": f.padded(1, b"", 255) * 100,
    "PRIORITY": f.priority(1) * 100,
    "WINDOW_UPDATE of a stream": f.window_update(1, 1) * 100,
    "WINDOW_UPDATE of the connection": f.window_update(0, 1) * 100,
    "unknown type": f.frame(0xF0, 0, 1, b"x" * 8) * 100,
    "GOAWAY": f.goaway(0) * 100,
    "RST_STREAM of an ended stream": f.rst_stream(3, 8) * 100,
}


@KINDS
@pytest.mark.parametrize("name", FLOODS)
def test_flood_of_frames(target: Target, name: str, tls: bool) -> None:
    peer = target.h2(tls=tls)
    with target.under_attack(), peer:
        peer.send(opening(peer) + f.frame(f.HEADERS, 5, peer.new_id(), f.block(request())))
        assert peer.flood(FLOODS[name]) == CALM


def test_flood_of_empty_requests_past_the_stream_limit(target: Target) -> None:
    peer = target.h2()
    with target.under_attack(cpu=4.0, memory=32), peer:
        code = peer.flood(lambda: b"".join(opening(peer) for _ in range(100)))
        assert code == CALM
        assert any(frame.code == 7 for frame in peer.of(f.RST_STREAM))


def test_settings_that_move_a_thousand_windows_again_and_again(target: Target) -> None:
    peer = target.h2()
    changes = b"".join(struct.pack(">HI", 4, 65535 + i % 2) for i in range(2700))
    with target.under_attack(cpu=3.0, memory=32), peer:
        peer.send(b"".join(opening(peer) for _ in range(1000)))
        peer.read_until(lambda: peer.of(f.SETTINGS))
        assert peer.flood(f.frame(f.SETTINGS, 0, 0, changes)) == CALM


@KINDS
def test_pings_whose_answers_are_never_read(target: Target, tls: bool) -> None:
    """One at a time, so that no flood is seen; but the answers pile up."""
    peer = target.h2(tls=tls)
    with target.under_attack(cpu=5.0, memory=8), peer:
        for _ in range(100_000):
            if not peer.send(f.ping()):
                break
        assert peer.goaway() in (CALM, 0, -1)


def test_a_window_opened_byte_by_byte(target: Target) -> None:
    """Every WINDOW_UPDATE of 1 draws a DATA frame of 1 byte."""
    peer = target.h2({4: 0})
    with target.under_attack(cpu=4.0), peer:
        peer.send(f.headers(1, request("/bytes?n=1000000"), True))
        peer.read_until(lambda: peer.of(f.HEADERS))
        time.sleep(0.1)
        assert peer.flood(f.window_update(1, 1) * 500) == CALM
    assert len(peer.of(f.DATA)) < 2000


@KINDS
def test_reads_full_of_requests_do_not_hold_up_others(target: Target, tls: bool) -> None:
    """Requests of 13 octets, legal and answered: 5,000 of them in every 64 KiB."""
    again = b"\x82\x86\xbf\xbe"
    with target.under_attack(cpu=15.0) as witness, target.h2(tls=tls) as peer:
        first = b"\x82\x86\x41\x04test\x44\x07/direct"
        peer.send(f.frame(f.HEADERS, 5, peer.new_id(), first))
        before = witness.count
        for _ in range(6):
            ids = [peer.new_id() for _ in range(5000)]
            peer.received.clear()
            peer.send(b"".join(f.frame(f.HEADERS, 5, i, again) for i in ids))
            last = b"\x01\x05" + ids[-1].to_bytes(4, "big")
            peer.read_until(lambda last=last: last in peer.received, 20.0)
        assert witness.count - before > 6 * 6  # it is served several times in each read, not once between two


def test_data_in_pieces_of_one_byte_does_not_hold_up_others(target: Target) -> None:
    with target.under_attack(cpu=10.0), target.h2() as peer:
        peer.send(f.headers(1, request("/headers", "POST")))
        for _ in range(15):
            assert peer.send(f.data(1, b"x") * 6500)
            peer.read()
        peer.send(f.data(1, b"", True))
        peer.read_until(lambda: peer.of(f.DATA), 20.0)
        assert b'"size": 97500' in b"".join(frame.payload for frame in peer.of(f.DATA))
