"""What HTTP/1 messages are refused, and how: RFC 9112 sections 2.2, 3, 5, 6, 7.1 and 11.2."""

from __future__ import annotations

import pytest

from sidecar.protocol.events import RequestHead
from sidecar.protocol.h1 import H1ClientCodec, H1Options, H1ServerCodec
from tests.support.codec_events import ConnectionLog, Driver, StreamLog

POST = b"POST / HTTP/1.1\r\nHost: a\r\n"

HEADS = {
    # Two ways to read where the body ends.
    "two lengths that differ": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "two lengths that agree": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 5, 6\r\n\r\n",
    "a list of equal lengths": POST + b"Content-Length: 5, 5\r\n\r\n",
    "a signed length": POST + b"Content-Length: +5\r\n\r\n",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a hexadecimal length": POST + b"Content-Length: 0x5\r\n\r\n",
    "an empty length": POST + b"Content-Length:\r\n\r\n",
    "a length with an underscore": POST + b"Content-Length: 1_0\r\n\r\n",
    "a length with white space inside": POST + b"Content-Length: 1 0\r\n\r\n",
    "a length past 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    "length and chunked": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
    "chunked behind another coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
    "two transfer-encoding fields": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked and identity": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n",
    "a quoted coding": POST + b'Transfer-Encoding: "chunked"\r\n\r\n',
    "chunked with a parameter": POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n",
    "chunked behind a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n",
    "an empty coding": POST + b"Transfer-Encoding:\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "white space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n",
    "a tab before the colon": POST + b"Content-Length\t: 5\r\n\r\n",
    # Two ways to read where a line ends.
    "a folded line": POST + b"X-A: b\r\n c\r\n\r\n",
    "a line folded with a tab": POST + b"X-A: b\r\n\tc\r\n\r\n",
    "a first line that is folded": b"POST / HTTP/1.1\r\n Host: a\r\n\r\n",
    "bare LF ends a field": POST + b"X-A: b\nX-B: c\r\n\r\n",
    "bare LF everywhere": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare LF ends the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "bare CR in a value": POST + b"X-A: b\rc\r\n\r\n",
    "bare CR ends a field": POST + b"X-A: b\rTransfer-Encoding: chunked\r\n\r\n",
    "bare CR in the request line": b"GET / HTTP/1.1\rHost: a\r\n\r\n",
    "CR CR LF": POST + b"X-A: b\r\r\n\r\n",
    "NUL in a value": POST + b"X-A: b\x00c\r\n\r\n",
    "NUL in a name": POST + b"X\x00A: b\r\n\r\n",
    "a control character in a value": POST + b"X-A: b\x01c\r\n\r\n",
    "DEL in a value": POST + b"X-A: b\x7f\r\n\r\n",
    # Names.
    "an empty name": POST + b": b\r\n\r\n",
    "no colon": POST + b"X-A\r\n\r\n",
    "a space in a name": POST + b"X A: b\r\n\r\n",
    "a non-ASCII name": POST + b"X-\xe9: b\r\n\r\n",
    "a quote in a name": POST + b'X"A: b\r\n\r\n',
    "a bracket in a name": POST + b"X[A]: b\r\n\r\n",
    # Host and target.
    "no host": b"GET / HTTP/1.1\r\nX-A: b\r\n\r\n",
    "no fields": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two equal hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "two hosts in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    "an empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a host with user information": b"GET / HTTP/1.1\r\nHost: me@a\r\n\r\n",
    "a list of hosts": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "a host with white space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a host with a port that is none": b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
    "a non-ASCII host": b"GET / HTTP/1.1\r\nHost: \xe9\r\n\r\n",
    "a target without a slash": b"GET x HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target with a space": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a non-ASCII target": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a control character in the target": b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab in the target": b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment in the target": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "an empty target": b"GET  HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk without OPTIONS": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form without a host": b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form with user information": b"GET http://me@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form of another scheme": b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT without a port": b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT to a path": b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT to a URI": b"CONNECT http://a:1/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT with a body": b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
    # Request line.
    "no version": b"GET /\r\nHost: a\r\n\r\n",
    "a lower-case version": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "a version with more digits": b"GET / HTTP/1.10\r\nHost: a\r\n\r\n",
    "two spaces before the target": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces before the version": b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space behind the version": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "a space before the method": b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "an invalid character in the method": b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "two empty lines before the request": b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "bytes that are no HTTP": b"\x16\x03\x01\x02\x00",
}

BODIES = {
    "no size": b"\r\n\r\n",
    "a size that is no number": b"x\r\n",
    "a signed size": b"+5\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-5\r\n",
    "a prefixed size": b"0x5\r\nhello\r\n",
    "a size with an underscore": b"1_0\r\n",
    "a size past 60 bits": b"1000000000000000\r\n",
    "white space before a size": b" 5\r\nhello\r\n",
    "white space behind a size": b"5 \r\nhello\r\n0\r\n\r\n",
    "bare LF behind a size": b"5\nhello\r\n0\r\n\r\n",
    "bare CR behind a size": b"5\rhello\r\n0\r\n\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a\x00\r\nhello\r\n0\r\n\r\n",
    "an extension without end": b"5;" + b"a" * 2000,
    "a long extension": b"5;" + b"a" * 2000 + b"\r\nhello\r\n0\r\n\r\n",
    "many extensions": (b"1;" + b"a" * 1000 + b"\r\nx\r\n") * 20,
    "data longer than its size": b"5\r\nhello!\r\n0\r\n\r\n",
    "bare LF behind data": b"5\r\nhello\n0\r\n\r\n",
    "no CRLF behind data": b"5\r\nhello0\r\n\r\n",
    "a folded trailer": b"0\r\nX-A: b\r\n c\r\n\r\n",
    "white space before a trailer's colon": b"0\r\nX-A : b\r\n\r\n",
    "bare LF in a trailer": b"0\r\nX-A: b\nX-B: c\r\n\r\n",
    "a trailer without a name": b"0\r\n: b\r\n\r\n",
}


def refused(data: bytes, options: H1Options | None = None) -> tuple[H1ServerCodec, ConnectionLog, bytes]:
    log = ConnectionLog()
    codec = H1ServerCodec(log, options or H1Options())
    Driver(codec)
    codec.start()
    codec.receive(data)
    return codec, log, codec.take_output()


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS)
def test_a_request_that_can_be_read_in_two_ways_is_refused_before_it_is_passed_on(data: bytes) -> None:
    codec, log, output = refused(data + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    assert log.events == []
    assert output.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert codec.should_close
    head, body = output.split(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-length: %d\r\n" % len(body) in head
    assert body.count(b"\n") == 1
    assert body.decode().strip() == codec.error


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS)
def test_it_is_refused_the_same_when_it_comes_byte_by_byte(data: bytes) -> None:
    log = ConnectionLog()
    codec = H1ServerCodec(log, H1Options())
    for i in range(len(data)):
        codec.receive(data[i : i + 1])
    if not codec.should_close:
        codec.receive(b"\r\n\r\n")
    assert log.events == []
    assert codec.take_output().startswith(b"HTTP/1.1 400 ")
    assert codec.should_close


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_malformed_chunked_body_resets_its_stream_and_closes(body: bytes) -> None:
    codec, log, output = refused(POST + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert log.events[0][0] == "request"
    assert log.events[-1] == ("reset", codec.error, True, False)
    assert not any(event[0] == "data" and event[2] for event in log.events)
    assert output.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert codec.should_close


def test_another_version_is_not_supported() -> None:
    _, log, output = refused(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n")
    assert log.events == []
    assert output.startswith(b"HTTP/1.1 505 ")


@pytest.mark.parametrize(
    "method", [b"FROB", b"VERSION-CONTROL", b"DESCRIBE", b"GETX", b"get", b"PRI", b"!#$%&'*+-.^_`|~0"]
)
def test_any_token_is_a_method(method: bytes) -> None:
    """Also those that llhttp does not know, or knows of other protocols."""
    _, log, output = refused(method + POST[4:] + b"Content-Length: 2\r\nX-A: b\r\n\r\nhi")
    assert log.events == [
        ("request", method, b"a", b"/", ((b"content-length", b"2"), (b"x-a", b"b")), False),
        ("data", b"hi", True),
    ]
    assert output == b""


def test_the_fields_of_a_request_with_an_unknown_method_are_judged_as_any() -> None:
    _, log, output = refused(b"FROB / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
    assert log.events == []
    assert output.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"b" * 1000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"b" * 1000,
        b"GET /" + b"b" * 1000,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 10 + b"\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X-A: b\r\n" * 11 + b"\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: " + b"b" * 1000,
    ],
    ids=["long field", "endless field", "endless target", "many fields", "many trailers", "endless trailer"],
)
def test_a_header_section_past_the_limits_gets_431(data: bytes) -> None:
    codec, _, output = refused(data, H1Options(max_header_bytes=512, max_header_count=10))
    assert output.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert codec.should_close


def test_a_header_section_at_the_limits_passes() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 9 + b"\r\n"
    _, log, output = refused(head, H1Options(max_header_bytes=len(head), max_header_count=10))
    assert [event[0] for event in log.events] == ["request"]
    assert output == b""


def test_nothing_is_read_after_a_refusal() -> None:
    codec, log, _ = refused(b"GET / HTTP/1.1\r\n\r\n")
    codec.receive(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert log.events == []
    assert codec.take_output() == b""


OK = b"HTTP/1.1 200 OK\r\n"
RESPONSES = {
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a list of lengths": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "a bad length": OK + b"Content-Length: 5x\r\n\r\nhello",
    "length and chunked": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
    "another coding": OK + b"Transfer-Encoding: gzip\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "white space before the colon": OK + b"X-A : b\r\n\r\n",
    "a folded line": OK + b"X-A: b\r\n c\r\n\r\n",
    "bare LF": OK + b"X-A: b\nX-B: c\r\n\r\n",
    "bare LF everywhere": b"HTTP/1.1 200 OK\n\n",
    "bare CR": OK + b"X-A: b\rc\r\n\r\n",
    "NUL": OK + b"X-A: b\x00\r\n\r\n",
    "an empty name": OK + b": b\r\n\r\n",
    "no colon": OK + b"X-A\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 OK\r\n\r\n",
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a control character in the reason": b"HTTP/1.1 200 O\x01K\r\n\r\n",
    "101 that nobody asked for": b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("data", RESPONSES.values(), ids=RESPONSES)
def test_a_malformed_response_resets_the_stream_and_closes(data: bytes) -> None:
    log, stream_log = ConnectionLog(), StreamLog()
    codec = H1ClientCodec(log, H1Options())
    codec.open_stream(stream_log).send_request(RequestHead(b"GET", b"http", b"a", b"/"), True)
    codec.take_output()
    codec.receive(data + b"\r\n\r\n")
    assert stream_log.events == [("reset", codec.error, True, False)]
    assert codec.error
    assert codec.should_close
    assert codec.available == 0
    assert log.events == [("goaway",)]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_malformed_chunked_response_body_resets_the_stream_and_closes(body: bytes) -> None:
    stream_log = StreamLog()
    codec = H1ClientCodec(ConnectionLog(), H1Options())
    codec.open_stream(stream_log).send_request(RequestHead(b"GET", b"http", b"a", b"/"), True)
    codec.take_output()
    codec.receive(OK + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert stream_log.events[0] == ("response", 200, (), False)
    assert stream_log.events[-1] == ("reset", codec.error, True, False)
    assert codec.should_close


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (OK + b"X-A: " + b"b" * 1000, "response header section larger than 512 bytes"),
        (OK + b"X-A: b\r\n" * 11 + b"\r\n", "more than 10 header fields"),
    ],
)
def test_a_response_header_section_past_the_limits_resets_with_a_reason(data: bytes, reason: str) -> None:
    stream_log = StreamLog()
    codec = H1ClientCodec(ConnectionLog(), H1Options(max_header_bytes=512, max_header_count=10))
    codec.open_stream(stream_log).send_request(RequestHead(b"GET", b"http", b"a", b"/"), True)
    codec.take_output()
    codec.receive(data)
    assert stream_log.events == [("reset", reason, True, False)]
    assert codec.should_close
