"""HTTP/2 as a server: a client that breaks RFC 9113 in one place is told the error that the section names,
and its next request on the same connection is answered when the error was the stream's alone."""

from __future__ import annotations

import pytest

from tests.support import h2_frames as f
from tests.support.h2_hop import HELD, Hop
from tests.support.hostile import request

PROTOCOL, FLOW_CONTROL, STREAM_CLOSED, FRAME_SIZE, COMPRESSION = 1, 3, 5, 6, 9
RST, AWAY = f.RST_STREAM, f.GOAWAY
GET = f.GET
BLOCK = f.block(GET)
CONNECT = (b":method", b"CONNECT")
POST = f.headers(1, HELD)
"""A request under way."""
SENT = f.headers(1, request("/app/held"), True)
"""A request that is complete, and its answer not there yet."""


def get(*fields: tuple[bytes, bytes]) -> bytes:
    return f.headers(1, [*GET, *fields], True)


def without(name: bytes) -> bytes:
    return f.headers(1, [field for field in GET if field[0] != name], True)


def path(value: bytes) -> bytes:
    return f.headers(1, [*GET[:3], (b":path", value)], True)


def post(*fields: tuple[bytes, bytes]) -> bytes:
    return f.headers(1, [*HELD, *fields])


def trailers(*fields: tuple[bytes, bytes]) -> bytes:
    return f.headers(1, [*fields], True)


WRONG: dict[str, tuple[bytes, int, int]] = {
    "3.4 acknowledgement with a payload": (f.frame(f.SETTINGS, f.ACK, 0, b"x"), AWAY, FRAME_SIZE),
    "4.2 frame above SETTINGS_MAX_FRAME_SIZE": (f.frame(f.DATA, 0, 1, bytes(16385)), AWAY, FRAME_SIZE),
    "4.2 DATA without its pad length": (POST + f.frame(f.DATA, f.PADDED, 1), AWAY, FRAME_SIZE),
    "4.3 field block that cannot be decoded": (f.frame(f.HEADERS, 5, 1, b"\xff\0"), AWAY, COMPRESSION),
    "4.3 table size update behind a field": (f.frame(f.HEADERS, 5, 1, BLOCK + b"\x20"), AWAY, COMPRESSION),
    "4.3 field block interrupted": (f.frame(f.HEADERS, 1, 1, BLOCK) + f.ping(), AWAY, PROTOCOL),
    "4.3 field block continued elsewhere": (
        f.frame(f.HEADERS, 1, 1, BLOCK) + f.frame(f.CONTINUATION, 4, 3),
        AWAY,
        PROTOCOL,
    ),
    "5.1 DATA on an idle stream": (f.data(5, b"x"), AWAY, PROTOCOL),
    "5.1 RST_STREAM on an idle stream": (f.rst_stream(5, 8), AWAY, PROTOCOL),
    "5.1 WINDOW_UPDATE on an idle stream": (f.window_update(5, 1), AWAY, PROTOCOL),
    "5.1 HEADERS on a stream that has ended": (f.headers(1, GET, True) * 2, AWAY, STREAM_CLOSED),
    "5.1 DATA after END_STREAM": (SENT + f.data(1, b"x"), RST, STREAM_CLOSED),
    "5.1 HEADERS after END_STREAM": (SENT + trailers((b"a", b"b")), RST, STREAM_CLOSED),
    "5.1 DATA after RST_STREAM": (POST + f.rst_stream(1, 8) + f.data(1, b"x"), RST, STREAM_CLOSED),
    "5.1 HEADERS after RST_STREAM": (POST + f.rst_stream(1, 8) + SENT, RST, STREAM_CLOSED),
    "5.1.1 even stream": (f.headers(2, GET, True), AWAY, PROTOCOL),
    "5.1.1 stream below the last": (f.headers(5, GET, True) + f.headers(3, GET, True), AWAY, PROTOCOL),
    "6.1 DATA on stream 0": (f.data(0, b"x"), AWAY, PROTOCOL),
    "6.1 padding as long as the frame": (
        f.headers(1, f.POST) + f.frame(f.DATA, f.PADDED, 1, b"\5abcd"),
        AWAY,
        PROTOCOL,
    ),
    "6.2 HEADERS on stream 0": (f.headers(0, GET, True), AWAY, PROTOCOL),
    "6.2 padding as long as the frame": (f.frame(f.HEADERS, 13, 1, b"\3ab"), AWAY, PROTOCOL),
    "6.2 padding into the priority": (f.frame(f.HEADERS, 45, 1, b"\3" + bytes(5)), AWAY, PROTOCOL),
    "6.2 no room for the priority": (f.frame(f.HEADERS, 37, 1, b"abc"), AWAY, FRAME_SIZE),
    "6.3 PRIORITY on stream 0": (f.priority(0), AWAY, PROTOCOL),
    "6.3 PRIORITY of four octets": (POST + f.priority(1, b"abcd"), RST, FRAME_SIZE),
    "6.3 PRIORITY of four octets on an idle stream": (f.priority(5, b"abcd"), AWAY, FRAME_SIZE),
    "6.4 RST_STREAM of three octets": (f.frame(f.RST_STREAM, 0, 1, b"abc"), AWAY, FRAME_SIZE),
    "6.4 RST_STREAM on stream 0": (f.rst_stream(0, 8), AWAY, PROTOCOL),
    "6.5 SETTINGS on a stream": (f.frame(f.SETTINGS, 0, 1), AWAY, PROTOCOL),
    "6.5 SETTINGS of five octets": (f.frame(f.SETTINGS, 0, 0, b"abcde"), AWAY, FRAME_SIZE),
    "6.5.2 ENABLE_PUSH of 2": (f.settings({2: 2}), AWAY, PROTOCOL),
    "6.5.2 initial window above 2^31-1": (f.settings({4: 2**31}), AWAY, FLOW_CONTROL),
    "6.5.2 frame size below 2^14": (f.settings({5: 16383}), AWAY, PROTOCOL),
    "6.5.2 frame size above 2^24-1": (f.settings({5: 2**24}), AWAY, PROTOCOL),
    "6.6 PUSH_PROMISE": (f.frame(f.PUSH_PROMISE, 4, 1, b"\0\0\0\2" + BLOCK), AWAY, PROTOCOL),
    "6.7 PING on a stream": (f.frame(f.PING, 0, 1, bytes(8)), AWAY, PROTOCOL),
    "6.7 PING of seven octets": (f.frame(f.PING, 0, 0, bytes(7)), AWAY, FRAME_SIZE),
    "6.8 GOAWAY on a stream": (f.frame(f.GOAWAY, 0, 1, bytes(8)), AWAY, PROTOCOL),
    "6.8 GOAWAY of seven octets": (f.frame(f.GOAWAY, 0, 0, bytes(7)), AWAY, FRAME_SIZE),
    "6.9 WINDOW_UPDATE of three octets": (f.frame(f.WINDOW_UPDATE, 0, 0, b"abc"), AWAY, FRAME_SIZE),
    "6.9 WINDOW_UPDATE of 0 on the connection": (f.window_update(0, 0), AWAY, PROTOCOL),
    "6.9 WINDOW_UPDATE of three octets on a stream": (
        POST + f.frame(f.WINDOW_UPDATE, 0, 1, b"abc"),
        AWAY,
        FRAME_SIZE,
    ),
    "6.9 WINDOW_UPDATE of 0 on a stream": (POST + f.window_update(1, 0), RST, PROTOCOL),
    "6.9.1 connection's window above 2^31-1": (f.window_update(0, 2**31 - 1), AWAY, FLOW_CONTROL),
    "6.9.1 stream's window above 2^31-1": (POST + f.window_update(1, 2**31 - 1), RST, FLOW_CONTROL),
    "6.9.2 SETTINGS that overflow a stream's window": (
        POST + f.window_update(1, 2**31 - 1 - 65535) + f.settings({4: 65536}),
        AWAY,
        FLOW_CONTROL,
    ),
    "6.10 CONTINUATION without HEADERS": (f.frame(f.CONTINUATION, 4, 1), AWAY, PROTOCOL),
    "8.1 trailers that do not end the stream": (POST + f.headers(1, [(b"a", b"b")]), RST, PROTOCOL),
    "8.1 trailers with a pseudo-header": (POST + trailers((b":status", b"200")), RST, PROTOCOL),
    "8.1 trailers with :path": (POST + trailers((b":path", b"/")), RST, PROTOCOL),
    "8.1.1 content-length without content": (get((b"content-length", b"5")), RST, PROTOCOL),
    "8.1.1 less content than content-length": (
        post((b"content-length", b"5")) + f.data(1, b"x", True),
        RST,
        PROTOCOL,
    ),
    "8.1.1 more content than content-length": (
        post((b"content-length", b"1")) + f.data(1, b"xx"),
        RST,
        PROTOCOL,
    ),
    "8.1.1 less content than content-length before trailers": (
        post((b"content-length", b"5")) + f.data(1, b"x") + trailers((b"a", b"b")),
        RST,
        PROTOCOL,
    ),
    "8.1.1 content-length that is no number": (get((b"content-length", b"+1")), RST, PROTOCOL),
    "8.1.1 two lengths": (get((b"content-length", b"0"), (b"content-length", b"0")), RST, PROTOCOL),
    "8.2.1 upper case": (get((b"X-Upper", b"1")), RST, PROTOCOL),
    "8.2.1 upper case in trailers": (POST + trailers((b"X-Upper", b"1")), RST, PROTOCOL),
    "8.2.1 empty name": (get((b"", b"1")), RST, PROTOCOL),
    "8.2.1 colon in a name": (get((b"x:a", b"1")), RST, PROTOCOL),
    "8.2.1 carriage return in a value": (get((b"x-a", b"1\rx")), RST, PROTOCOL),
    "8.2.1 white space around a value": (get((b"x-a", b"1 ")), RST, PROTOCOL),
    "8.2.2 connection": (get((b"connection", b"close")), RST, PROTOCOL),
    "8.2.2 connection in trailers": (POST + trailers((b"connection", b"close")), RST, PROTOCOL),
    "8.2.2 proxy-connection": (get((b"proxy-connection", b"close")), RST, PROTOCOL),
    "8.2.2 upgrade": (get((b"upgrade", b"h2c")), RST, PROTOCOL),
    "8.2.2 keep-alive": (get((b"keep-alive", b"1")), RST, PROTOCOL),
    "8.2.2 transfer-encoding": (get((b"transfer-encoding", b"chunked")), RST, PROTOCOL),
    "8.2.2 te other than trailers": (get((b"te", b"gzip")), RST, PROTOCOL),
    "8.3 pseudo-header behind a field": (f.headers(1, [GET[0], (b"a", b"b"), *GET[1:]], True), RST, PROTOCOL),
    "8.3 pseudo-header twice": (f.headers(1, [GET[0], *GET], True), RST, PROTOCOL),
    "8.3 pseudo-header of a response": (f.headers(1, [(b":status", b"200"), *GET], True), RST, PROTOCOL),
    "8.3 unknown pseudo-header": (f.headers(1, [(b":x", b"1"), *GET], True), RST, PROTOCOL),
    "8.3.1 no :method": (without(b":method"), RST, PROTOCOL),
    "8.3.1 no :scheme": (without(b":scheme"), RST, PROTOCOL),
    "8.3.1 no :path": (without(b":path"), RST, PROTOCOL),
    "8.3.1 empty :path": (path(b""), RST, PROTOCOL),
    "8.3.1 fragment in :path": (path(b"/a#b"), RST, PROTOCOL),
    "8.3.1 octet above 127 in :path": (path(b"/\xc3\xa9"), RST, PROTOCOL),
    "8.3.1 :path without a slash": (path(b"a"), RST, PROTOCOL),
    "8.3.1 :path of OPTIONS in a GET": (path(b"*"), RST, PROTOCOL),
    "8.3.1 host other than :authority": (get((b"host", b"b.example")), RST, PROTOCOL),
    "8.3.1 user information in :authority": (
        f.headers(1, [*GET[:2], (b":authority", b"me@a"), GET[3]], True),
        RST,
        PROTOCOL,
    ),
    "8.5 CONNECT with :scheme": (f.headers(1, [CONNECT, *GET[1:3]], True), RST, PROTOCOL),
    "8.5 CONNECT with :path": (f.headers(1, [CONNECT, *GET[2:]], True), RST, PROTOCOL),
    "8.5 CONNECT without :authority": (f.headers(1, [CONNECT, (b"host", b"a.example:80")]), RST, PROTOCOL),
    "8441 3 ENABLE_CONNECT_PROTOCOL of 2": (f.settings({8: 2}), AWAY, PROTOCOL),
    "8441 4 :protocol that was not offered": (
        f.headers(1, [CONNECT, (b":protocol", b"websocket"), *GET[1:]]),
        RST,
        PROTOCOL,
    ),
    "8441 4 :protocol in a GET": (f.headers(1, [(b":protocol", b"websocket"), *GET], True), RST, PROTOCOL),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_error_is_the_one_that_the_section_names(hop: Hop, name: str) -> None:
    octets, kind, code = WRONG[name]
    with hop.client() as peer:
        peer.send(octets)
        if kind == AWAY:
            assert peer.goaway() == code
            return
        peer.read_until(lambda: peer.of(RST))
        assert [(reset.stream_id, reset.code) for reset in peer.of(RST)] == [(1, code)]
        peer.send(f.headers(3, GET, True))
        peer.read_until(lambda: peer.of(f.HEADERS))
        assert [frame.stream_id for frame in peer.of(f.HEADERS)] == [3]
