"""CONNECT and WebSocket upgrades over HTTP/1.1 (RFC 9110 section 9.3.6, RFC 6455, RFC 8441 section 5)."""

from __future__ import annotations

import pytest

from sidecar.protocol.events import RequestHead, ResponseHead, Stream
from sidecar.protocol.h1 import H1ClientCodec, H1Options, H1ServerCodec
from tests.support.codec_events import ConnectionLog, Driver, StreamLog

CONNECT = b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n"
# The handshake of RFC 6455 section 1.3.
UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nX-A: b\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)
EXTENDED = RequestHead(
    b"CONNECT", b"http", b"a", b"/chat", ((b"sec-websocket-version", b"13"),), protocol=b"websocket"
)


def server() -> tuple[H1ServerCodec, ConnectionLog, Driver]:
    log = ConnectionLog()
    codec = H1ServerCodec(log, H1Options())
    return codec, log, Driver(codec)


def client() -> tuple[H1ClientCodec, ConnectionLog]:
    log = ConnectionLog()
    codec = H1ClientCodec(log, H1Options(random_bytes=lambda n: b"the sample nonce"[:n]))
    Driver(codec)
    return codec, log


def test_connect_becomes_a_stream_of_bytes_both_ways() -> None:
    codec, log, _ = server()
    codec.receive(CONNECT)
    assert log.take() == [("request", b"CONNECT", b"db:5432", b"", (), False)]
    stream = log.streams[0]
    stream.send_response(ResponseHead(200, ((b"content-length", b"0"), (b"x-a", b"b"))), False)
    assert codec.take_output() == b"HTTP/1.1 200 OK\r\nx-a: b\r\n\r\n"
    codec.receive(b"\x00\x01")
    codec.receive(b"GET / HTTP/1.1\r\n\r\n")
    assert log.take() == [("data", b"\x00\x01GET / HTTP/1.1\r\n\r\n", False)]
    assert stream.send_data(b"reply", False) == 5
    assert codec.take_output() == b"reply"


def test_a_pipelined_connect_handed_over_at_once_takes_its_bytes_along() -> None:
    """As where the response before it completes: no `receive` is under way that could go on with the rest."""
    leftover: list[bytes] = []

    def hand_over(stream: Stream, head: RequestHead) -> None:
        if head.method == b"CONNECT":
            stream.send_response(ResponseHead(200), False)
            codec.take_output()
            leftover.append(codec.take_leftover())

    log = ConnectionLog(hand_over)
    codec = H1ServerCodec(log, H1Options())
    Driver(codec)
    codec.receive(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + CONNECT + b"early bytes")
    log.streams[0].send_response(ResponseHead(204), True)
    assert leftover == [b"early bytes"]


def test_each_direction_of_a_tunnel_ends_on_its_own() -> None:
    codec, log, _ = server()
    codec.receive(CONNECT)
    stream = log.streams[0]
    stream.send_response(ResponseHead(200), False)
    codec.receive(b"in")
    log.take()
    stream.send_data(b"bye", True)
    assert codec.want_eof
    assert not codec.should_close
    codec.receive(b"more")
    codec.receive_eof()
    assert log.events == [("data", b"more", True)]
    assert codec.should_close


def test_a_client_of_a_tunnel_may_end_first() -> None:
    codec, log, _ = server()
    codec.receive(CONNECT)
    log.streams[0].send_response(ResponseHead(200), False)
    codec.receive(b"in")
    codec.receive_eof()
    assert log.events[-1] == ("data", b"in", True)
    assert not codec.should_close
    log.streams[0].send_data(b"out", True)
    assert codec.should_close
    assert codec.take_output() == b"HTTP/1.1 200 OK\r\n\r\nout"


def test_what_was_sent_ahead_goes_to_the_codec_that_takes_over() -> None:
    codec, log, _ = server()
    codec.receive(CONNECT + b"early")
    log.take()
    log.streams[0].send_response(ResponseHead(200), False)
    assert codec.take_output() == b"HTTP/1.1 200 OK\r\n\r\n"
    assert codec.take_leftover() == b"early"
    assert codec.take_leftover() == b""
    assert log.events == []


def test_what_was_sent_ahead_goes_to_the_stream_when_no_codec_takes_over() -> None:
    codec, log, driver = server()
    codec.receive(CONNECT + b"early")
    codec.receive_eof()
    log.take()
    log.streams[0].send_response(ResponseHead(200), False)
    driver.wakes = 0
    assert codec.take_output() == b"HTTP/1.1 200 OK\r\n\r\n"
    assert driver.wakes == 1
    assert codec.take_output() == b""
    assert log.events == [("data", b"early", True)]


def test_what_was_sent_ahead_of_a_refused_tunnel_is_never_a_request() -> None:
    codec, log, _ = server()
    codec.receive(CONNECT + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    log.take()
    log.streams[0].send_response(ResponseHead(403), True)
    assert log.events == []
    assert codec.should_close
    assert codec.take_output() == b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def test_an_upgrade_to_websocket_arrives_as_extended_connect() -> None:
    codec, log, _ = server()
    codec.receive(UPGRADE)
    assert log.take() == [
        (
            "request",
            b"CONNECT",
            b"a",
            b"/chat",
            b"websocket",
            ((b"sec-websocket-version", b"13"), (b"x-a", b"b")),
            False,
        )
    ]
    log.streams[0].send_response(ResponseHead(200, ((b"sec-websocket-protocol", b"chat"),)), False)
    assert codec.take_output() == SWITCHED + b"sec-websocket-protocol: chat\r\n\r\n"
    codec.receive(b"\x81\x00")
    assert log.events == [("data", b"\x81\x00", False)]


def test_a_refused_upgrade_is_an_ordinary_response() -> None:
    codec, log, _ = server()
    codec.receive(UPGRADE)
    log.streams[0].send_response(ResponseHead(401, ((b"content-length", b"2"),)), False)
    log.streams[0].send_data(b"no", True)
    assert codec.take_output() == b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno"
    assert not codec.should_close
    codec.receive(UPGRADE)
    assert len(log.heads) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Upgrade: WebSocket", b"Upgrade: h2c"),
        (b"Connection: keep-alive, Upgrade", b"Connection: keep-alive"),
        (b"Sec-WebSocket-Key: ", b"X-Key: "),
        (b"GET ", b"PUT "),
    ],
)
def test_an_upgrade_to_anything_else_is_an_ordinary_request(old: bytes, new: bytes) -> None:
    codec, log, _ = server()
    codec.receive(UPGRADE.replace(old, new))
    assert log.heads[0].protocol == b""
    assert log.heads[0].get(b"upgrade") is None
    assert log.events[0][-1] is True


def test_the_client_turns_extended_connect_into_an_upgrade() -> None:
    codec, log = client()
    stream_log = StreamLog()
    stream = codec.open_stream(stream_log)
    stream.send_request(EXTENDED, False)
    assert codec.take_output() == (
        b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    )
    assert stream.send_data(b"early", False) == 0
    assert codec.take_output() == b""
    codec.receive(SWITCHED + b"sec-websocket-protocol: chat\r\n\r\n\x81\x00")
    assert stream_log.events == [
        ("response", 200, ((b"sec-websocket-protocol", b"chat"),), False),
        ("sent", 5),
        ("data", b"\x81\x00", False),
    ]
    assert codec.take_output() == b"early"
    stream.send_data(b"", True)
    assert codec.want_eof
    codec.receive_eof()
    assert codec.should_close
    assert log.events == [("goaway",)]


STRAY = ((b"sec-websocket-key", b"AAAA"), (b"sec-websocket-accept", b"BBBB"))
"""Of HTTP/2 peers, where they mean nothing."""


@pytest.mark.parametrize("fresh", [False, True])
def test_the_handshake_of_a_hop_is_not_mixed_with_fields_of_http_2(fresh: bool) -> None:
    codec, _ = client()
    fields, literals = ((), STRAY) if fresh else (STRAY, ())
    head = RequestHead(b"CONNECT", b"http", b"a", b"/chat", fields, literals, b"websocket")
    codec.open_stream(StreamLog()).send_request(head, False)
    assert codec.take_output() == (
        b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    front, log, _ = server()
    front.receive(UPGRADE)
    log.streams[0].send_response(ResponseHead(200, fields, literals), False)
    assert front.take_output() == SWITCHED + b"\r\n"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", b"AAAA", "wrong sec-websocket-accept"),
        (b"sec-websocket-accept", b"x-accept", "wrong sec-websocket-accept"),
        (b"upgrade: websocket", b"upgrade: h2c", "101 without the upgrade that was asked for"),
    ],
)
def test_a_handshake_that_does_not_match_is_refused(old: bytes, new: bytes, reason: str) -> None:
    codec, _ = client()
    stream_log = StreamLog()
    codec.open_stream(stream_log).send_request(EXTENDED, False)
    codec.take_output()
    codec.receive(SWITCHED.replace(old, new) + b"\r\n")
    assert stream_log.events == [("reset", reason, True, False)]


def test_a_server_that_declines_the_upgrade_answers_as_usual() -> None:
    codec, log = client()
    stream_log = StreamLog()
    stream = codec.open_stream(stream_log)
    stream.send_request(EXTENDED, False)
    codec.take_output()
    stream.send_data(b"early", False)
    codec.receive(b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno")
    assert stream_log.events == [
        ("response", 426, ((b"content-length", b"2"),), False),
        ("data", b"no", True),
    ]
    assert codec.take_output() == b""
    assert codec.available == 1
    assert log.events == [("capacity",)]


def test_the_client_opens_a_tunnel_by_connect() -> None:
    codec, _ = client()
    stream_log = StreamLog()
    stream = codec.open_stream(stream_log)
    stream.send_request(RequestHead(b"CONNECT", b"http", b"db:5432", b""), False)
    assert codec.take_output() == b"CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n\r\n"
    codec.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n\x00raw")
    assert stream_log.events == [("response", 200, (), False), ("data", b"\x00raw", False)]
    assert stream.send_data(b"out", True) == 3
    assert codec.take_output() == b"out"
    assert codec.want_eof


def test_a_refused_tunnel_is_an_ordinary_response_and_the_last() -> None:
    codec, _ = client()
    stream_log = StreamLog()
    codec.open_stream(stream_log).send_request(RequestHead(b"CONNECT", b"http", b"db:1", b""), False)
    codec.take_output()
    codec.receive(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
    assert stream_log.events == [("response", 502, ((b"content-length", b"0"),), True)]
    assert codec.should_close


def test_an_upgrade_passes_from_a_server_codec_to_a_client_codec() -> None:
    front, log, _ = server()
    front.receive(UPGRADE)
    back, _ = client()
    stream_log = StreamLog()
    back.open_stream(stream_log).send_request(log.heads[0], False)
    inner, inner_log, _ = server()
    inner.receive(back.take_output())
    assert inner_log.events == log.events
