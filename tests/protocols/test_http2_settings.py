"""SETTINGS that change while a connection is in use (RFC 9113 sections 6.5 and 6.9, RFC 7541 section 4.2):
what the sidecar writes to clients and to applications keeps to the values in force, to the octet."""

from __future__ import annotations

import hpack
import pytest

from tests.support import h2_frames as f
from tests.support.h2_hop import Hop
from tests.support.hostile import request
from tests.support.pairs import ok
from tests.support.raw import RawH2

INITIAL_WINDOW, TABLE_SIZE, MAX_STREAMS, MAX_FRAME = 4, 1, 3, 5
MARK = b"a mark.."
SMALLER_THEN_LARGER = b"\x20\x3f\x45"
"""RFC 7541 section 4.2: the smallest size since the last block, 0, and the last one, 100."""


def settle(peer: RawH2, number: int) -> None:
    """What was sent before has been dealt with."""
    peer.send(f.ping(MARK))
    peer.read_until(lambda: len(peer.of(f.PING)) == number)


def narrow(peer: RawH2, content: bytes, stream: int) -> None:
    """The sender of `content` has an initial window of 1,000 octets there, and more to send than that."""
    peer.read_until(lambda: len(peer.content(stream)) == 1000)
    peer.send(f.settings({INITIAL_WINDOW: 0}) + f.window_update(stream, 1000))
    settle(peer, 1)
    assert len(peer.content(stream)) == 1000  # the window is 0 now, not -1,000 and not 1,000
    peer.send(f.window_update(stream, 7))
    settle(peer, 2)
    assert len(peer.content(stream)) == 1007
    peer.send(f.settings({INITIAL_WINDOW: 500}))
    settle(peer, 3)
    assert len(peer.content(stream)) == 1507
    peer.send(f.window_update(stream, 1 << 20) + f.window_update(0, 1 << 20))
    peer.read_until(lambda: peer.whole(stream))
    assert peer.content(stream) == content


def test_a_client_may_make_a_window_negative(hop: Hop) -> None:
    content = bytes(i % 251 for i in range(100_000))
    hop.app.on("/app/large", ok(content))
    with hop.client({INITIAL_WINDOW: 1000}) as peer:
        peer.send(f.headers(1, request("/app/large"), True))
        narrow(peer, content, 1)


def test_an_application_may_make_a_window_negative(hop: Hop) -> None:
    content = bytes(i % 251 for i in range(60_000))
    with hop.call(b"POST", content) as caller, hop.serving({INITIAL_WINDOW: 1000}) as app:
        stream = app.request()
        narrow(app, content, stream)
        app.send(f.headers(stream, f.OK, True))
        assert caller.answer()[0].startswith(b"HTTP/1.1 200 ")


def test_a_client_may_shrink_its_table_and_let_it_grow_again(hop: Hop) -> None:
    """The change is announced at the head of the next block, behind the acknowledgement."""
    hop.app.on("/app/fields", ok(b"", "x-a: b"))
    decoder = hpack.Decoder()
    with hop.client() as peer:
        for number, stream in enumerate((1, 3, 5)):
            if stream == 3:
                peer.send(f.settings({TABLE_SIZE: 0}) + f.settings({TABLE_SIZE: 100}))
            peer.send(f.headers(stream, request("/app/fields"), True))
            peer.read_until(lambda number=number: len(peer.of(f.HEADERS)) == number + 1)
        blocks = [x.payload for x in peer.of(f.HEADERS)]
        assert [block.startswith(SMALLER_THEN_LARGER) for block in blocks] == [False, True, False]
        kinds = [(x.type, x.stream_id) for x in peer.frames() if x.type in (f.SETTINGS, f.HEADERS)]
        assert kinds[-4:] == [(f.SETTINGS, 0), (f.SETTINGS, 0), (f.HEADERS, 3), (f.HEADERS, 5)]
        assert [(b"x-a", b"b") in decoder.decode(block, raw=True) for block in blocks] == [True] * 3


def test_an_application_may_shrink_its_table_and_let_it_grow_again(hop: Hop) -> None:
    decoder = hpack.Decoder()
    with hop.call() as caller, hop.serving() as app:
        for number in (1, 2, 3):
            stream = app.request(number)
            sizes = f.settings({TABLE_SIZE: 0}) + f.settings({TABLE_SIZE: 100}) if number == 1 else b""
            app.send(sizes + f.headers(stream, f.OK, True))
            assert caller.answer()[0].startswith(b"HTTP/1.1 200 ")
            if number < 3:
                caller.send(b"GET /frames HTTP/1.1\r\nhost: a\r\n\r\n")
        blocks = [x.payload for x in app.of(f.HEADERS)]
        assert [block.startswith(SMALLER_THEN_LARGER) for block in blocks] == [False, True, False]
        assert [(b":path", b"/frames") in decoder.decode(block, raw=True) for block in blocks] == [True] * 3


@pytest.mark.parametrize("limit", [16384, 20_000])
def test_no_frame_is_larger_than_the_peer_takes(hop: Hop, limit: int) -> None:
    """Heads go on in CONTINUATION (section 6.10), with nothing between the pieces."""
    field = "x-large: " + "v" * 30_000
    hop.app.on("/app/frames", ok(bytes(60_000), field))
    with hop.client({MAX_FRAME: limit, INITIAL_WINDOW: 1 << 20}) as peer:
        peer.send(f.window_update(0, 1 << 20) + f.headers(1, request("/app/frames"), True))
        peer.read_until(peer.whole)
        begin, *rest = [x for x in peer.frames() if x.stream_id]
        assert begin.type == f.HEADERS
        assert not begin.flags & f.END_HEADERS
        assert rest[0].type == f.CONTINUATION
        assert rest[0].flags & f.END_HEADERS
        assert max(len(x.payload) for x in peer.frames()) <= limit
        assert len(peer.content()) == 60_000


def test_no_more_streams_are_opened_than_an_application_allows(hop: Hop) -> None:
    """What is above that waits for one to end."""
    with hop.call() as first, hop.serving({MAX_STREAMS: 1}) as app:
        stream = app.request()
        with hop.call() as second:
            app.send(f.ping(MARK))
            app.read_until(lambda: app.of(f.PING))
            assert len(app.of(f.HEADERS)) == 1
            app.send(f.headers(stream, f.OK, True))
            app.send(f.headers(app.request(2), f.OK, True))
            assert [caller.answer()[0][:13] for caller in (first, second)] == [b"HTTP/1.1 200 "] * 2
