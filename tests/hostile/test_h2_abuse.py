"""HTTP/2 peers that break its rules about streams, header compression and sizes."""

from __future__ import annotations

import pytest

from tests.support import h2_frames as f
from tests.support.clients import fetch
from tests.support.hostile import CALM, Target, request
from tests.support.sidecars import APP

PROTOCOL, FLOW_CONTROL, FRAME_SIZE, REFUSED, COMPRESSION = 1, 3, 6, 7, 9
GET = f.block(request())
WAITING = f.block(request("/wait?past=1"))


def test_header_bomb_by_indexed_fields(target: Target) -> None:
    """A field of 4 KB in the table, referred to by one octet each: 64 KB become 256 MB."""
    with target.under_attack(memory=24.0), target.h2() as peer:
        peer.send(f.frame(f.HEADERS, 5, 1, GET + b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000))
        peer.send(f.frame(f.HEADERS, 1, 3, GET + b"\xbe" * 16000))
        for _ in range(7):
            peer.send(f.frame(f.CONTINUATION, 0, 3, b"\xbe" * 16000))
        peer.send(f.frame(f.CONTINUATION, f.END_HEADERS, 3, b"\xbe"))
        assert peer.goaway() == CALM


def test_header_bombs_just_below_the_limit_of_a_bomb(target: Target) -> None:
    """Each is answered 431, at the price of decoding it; many in a row end the connection."""
    with target.under_attack(cpu=4.0, memory=24.0), target.h2() as peer:
        peer.send(f.frame(f.HEADERS, 5, peer.new_id(), GET + b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000))
        code = peer.flood(
            lambda: b"".join(f.frame(f.HEADERS, 5, peer.new_id(), GET + b"\xbe" * 200) for _ in range(50))
        )
        assert code == CALM


def test_large_huffman_strings_cost_what_they_weigh(target: Target) -> None:
    """Nothing is dearer to decode; 25 KB of it a request is legal."""
    string = b"\0\x01x\xff\x81\x7c" + b"\x1f" * 16000
    with target.under_attack(cpu=4.0), target.h2() as peer:
        for _ in range(100):
            i = peer.new_id()
            peer.send(f.frame(f.HEADERS, 1, i, GET + string[:10000]))
            peer.send(f.frame(f.CONTINUATION, f.END_HEADERS, i, string[10000:]))
        peer.read_until(lambda: len(peer.of(f.HEADERS)) == 100)


def test_ever_new_fields_do_not_fill_memory(target: Target) -> None:
    """30 MB of names and values that never come again."""
    with target.under_attack(cpu=8.0, memory=12.0), target.h2() as peer:
        for n in range(600):
            block = GET + b"".join(
                b"\x40\x08" + (b"%08d" % (n * 50 + i)) + b"\x7f\xe9\x06" + b"%0*d" % (1000, i)
                for i in range(50)
            )
            peer.send(f.frame(f.HEADERS, 1, peer.new_id(), block[:16000]))
            for start in range(16000, len(block), 16000):
                last = f.END_HEADERS if start + 16000 >= len(block) else 0
                peer.send(f.frame(f.CONTINUATION, last, peer.next_id - 2, block[start : start + 16000]))
            peer.read()
        peer.read_until(lambda: len(peer.of(f.HEADERS)) >= 600)


TABLES = {
    "larger than the setting": (b"\x3f\xe2\x1f", COMPRESSION),
    "of four gigabytes": (b"\x3f\xe1\xff\xff\xff\x0f", COMPRESSION),
    "an index that is not there": (b"\xff\x00", COMPRESSION),
    "an integer without end": (b"\xff" * 200, COMPRESSION),
    "a string longer than the block": (b"\0\x01x\x7f\xff\xff\x7f", COMPRESSION),
}


@pytest.mark.parametrize("name", TABLES)
def test_compression_errors_end_the_connection(target: Target, name: str) -> None:
    octets, code = TABLES[name]
    with target.under_attack(), target.h2() as peer:
        peer.send(f.frame(f.HEADERS, 5, 1, octets + GET if "a" in name[:2] else octets))
        assert peer.goaway() == code


def test_huge_tables_that_the_peer_offers_are_not_used(target: Target) -> None:
    with target.under_attack(memory=8.0), target.h2({1: 2**32 - 1, 6: 2**32 - 1}) as peer:
        for _ in range(10):
            i = peer.new_id()
            peer.send(f.headers(i, request("/bytes?n=1"), True))
            peer.read_until(lambda i=i: any(x.stream_id == i for x in peer.of(f.DATA)))


STREAM_IDS = {
    "even": (f.headers(2, request(), True), PROTOCOL),
    "zero": (f.headers(0, request(), True), PROTOCOL),
    "going back": (f.headers(9, request(), True) + f.headers(7, request(), True), PROTOCOL),
    "DATA on an idle stream": (f.data(5, b"x"), PROTOCOL),
    "WINDOW_UPDATE on an idle stream": (f.window_update(5, 1), PROTOCOL),
    "RST_STREAM on an idle stream": (f.rst_stream(5, 8), PROTOCOL),
    "PUSH_PROMISE": (f.frame(f.PUSH_PROMISE, 4, 1, b"\0\0\0\2" + GET), PROTOCOL),
    "interrupted header block": (f.frame(f.HEADERS, 1, 1, GET) + f.ping(), PROTOCOL),
    "frame of 16 MB": (b"\xff\xff\xff\0\0\0\0\0\1", FRAME_SIZE),
    "connection window overflow": (f.window_update(0, 2**31 - 1), FLOW_CONTROL),
    "initial window overflow": (f.settings({4: 2**31}), FLOW_CONTROL),
    "stream window overrun": (
        f.headers(1, request("/stall", "POST")) + f.data(1, bytes(16384)) * 64 * 20,
        FLOW_CONTROL,
    ),
}


@pytest.mark.parametrize("name", STREAM_IDS)
def test_abuse_of_streams_ends_the_connection(target: Target, name: str) -> None:
    octets, code = STREAM_IDS[name]
    with target.under_attack(), target.h2() as peer:
        peer.read_until(lambda: len(peer.of(f.SETTINGS)) == 2)
        peer.send(octets)
        if name == "stream window overrun":
            peer.read_until(lambda: peer.of(f.RST_STREAM))
            assert peer.of(f.RST_STREAM)[0].code == code
        else:
            assert peer.goaway() == code


def test_streams_past_the_limit_are_refused_and_the_rest_are_answered(target: Target) -> None:
    with target.under_attack(memory=40.0, cpu=4.0), target.h2() as peer:
        ids = [peer.new_id() for _ in range(1100)]
        peer.send(b"".join(f.frame(f.HEADERS, 5, i, WAITING) for i in ids))
        peer.read_until(lambda: len(peer.of(f.RST_STREAM)) == 76)
        assert [(x.stream_id, x.code) for x in peer.of(f.RST_STREAM)] == [(i, REFUSED) for i in ids[1024:]]
        fetch((target.host, APP), "/release?past=1")
        peer.read_until(lambda: len(peer.of(f.HEADERS)) == 1024)
        statuses = peer.statuses()
        assert set(statuses) == set(ids[:1024])
        assert 200 in statuses.values()  # a busy machine answers some past `stream_idle_timeout`: 504


def test_uploads_that_the_application_never_reads_cost_one_window_each(target: Target) -> None:
    with target.under_attack(memory=40.0, cpu=4.0), target.h2() as peer:
        ids = [peer.new_id() for _ in range(100)]
        for i in ids:
            peer.send(f.headers(i, request("/stall", "POST")))
        for _ in range(4):
            for i in ids:
                peer.send(f.data(i, bytes(16000)))
            peer.read()
        peer.read_until(lambda: len(peer.of(f.HEADERS)) == 100)
        assert peer.statuses() == dict.fromkeys(ids, 504)
