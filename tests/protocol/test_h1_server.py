"""The HTTP/1 server codec: messages in and out, and how long the connection lives (RFC 9112)."""

from __future__ import annotations

import pytest

from sidecar.protocol.events import ErrorCode, RequestHead, ResponseHead, Stream
from sidecar.protocol.h1 import H1Options, H1ServerCodec
from tests.support.codec_events import ConnectionLog, Driver, StreamLog, turn

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_EVENT = ("request", b"GET", b"a", b"/", (), True)
PLAIN = ResponseHead(200, ((b"content-length", b"2"),))
PLAIN_BYTES = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CLOSED_BYTES = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


def make(answer=None, **options) -> tuple[H1ServerCodec, ConnectionLog, Driver]:
    log = ConnectionLog(answer)
    codec = H1ServerCodec(log, H1Options(**options))
    driver = Driver(codec)
    codec.start()
    return codec, log, driver


def ok(stream: Stream, head: RequestHead | None = None) -> None:
    stream.send_response(PLAIN, False)
    stream.send_data(b"ok", True)


def answered(request: bytes, head: ResponseHead, body: bytes | None = None) -> tuple[H1ServerCodec, bytes]:
    """The codec and what it writes for one answer; None: the head ends the stream."""
    codec, log, _ = make()
    codec.receive(request)
    stream = log.streams[0]
    stream.send_response(head, body is None)
    if body is not None:
        stream.send_data(body, True)
    return codec, codec.take_output()


# --- request heads


@pytest.mark.parametrize(
    ("raw", "event"),
    [
        (GET, GET_EVENT),
        (b"\r\n" + GET, GET_EVENT),
        (
            b"GET /x?y=1 HTTP/1.1\r\nHOST: a:80\r\nUser-Agent:  curl/8 \t\r\nX-Empty:\r\n\r\n",
            ("request", b"GET", b"a:80", b"/x?y=1", ((b"user-agent", b"curl/8"), (b"x-empty", b"")), True),
        ),
        (
            b"GET http://b:81/x HTTP/1.1\r\nHost: a\r\n\r\n",
            ("request", b"GET", b"b:81", b"/x", (), True),
        ),
        (b"GET http://b HTTP/1.1\r\nHost: a\r\n\r\n", ("request", b"GET", b"b", b"/", (), True)),
        (b"GET http://b?q HTTP/1.1\r\nHost: a\r\n\r\n", ("request", b"GET", b"b", b"/?q", (), True)),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", ("request", b"OPTIONS", b"a", b"*", (), True)),
        (b"OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n", ("request", b"OPTIONS", b"b", b"*", (), True)),
        (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", ("request", b"GET", b"[::1]:80", b"/", (), True)),
        (b"GET / HTTP/1.0\r\n\r\n", ("request", b"GET", b"", b"/", (), True)),
        (
            b"GET /a|b{c} HTTP/1.1\r\nHost: a\r\nX-A: caf\xc3\xa9\r\n\r\n",
            ("request", b"GET", b"a", b"/a|b{c}", ((b"x-a", b"caf\xc3\xa9"),), True),
        ),
    ],
)
def test_a_request_head_arrives_in_the_common_form(raw: bytes, event: tuple) -> None:
    codec, log, _ = make()
    codec.receive(raw)
    assert log.events == [event]
    assert codec.active_streams == 1


def test_the_scheme_is_the_owners_unless_the_target_names_one() -> None:
    codec, log, _ = make(ok, scheme=b"https")
    codec.receive(GET + b"GET HTTP://b/ HTTP/1.1\r\nHost: a\r\n\r\n")
    assert [head.scheme for head in log.heads] == [b"https", b"http"]


def test_fields_of_this_hop_are_removed() -> None:
    codec, log, _ = make()
    codec.receive(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nX-End: 2\r\n\r\n"
    )
    assert log.events == [("request", b"GET", b"a", b"/", ((b"x-end", b"2"),), True)]


def test_connection_cannot_remove_what_frames_the_message() -> None:
    codec, log, _ = make()
    codec.receive(
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length, host\r\nContent-Length: 2\r\n\r\nhi"
    )
    assert log.events == [
        ("request", b"POST", b"a", b"/", ((b"content-length", b"2"),), False),
        ("data", b"hi", True),
    ]


@pytest.mark.parametrize(
    ("te", "kept"),
    [
        (b"trailers", ((b"te", b"trailers"),)),
        (b"gzip, Trailers", ((b"te", b"trailers"),)),
        (b"gzip", ()),
    ],
)
def test_of_te_only_trailers_is_passed_on(te: bytes, kept: tuple) -> None:
    codec, log, _ = make()
    codec.receive(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: " + te + b"\r\n\r\n")
    assert log.events == [("request", b"GET", b"a", b"/", kept, True)]


def test_a_head_that_comes_again_is_the_same_object() -> None:
    codec, log, _ = make(ok)
    codec.receive(GET)
    codec.receive(GET)
    first, second = log.heads
    assert first is second


def test_heads_that_differ_only_in_fresh_fields_share_fields_and_memo() -> None:
    codec, log, _ = make(ok)
    for n in (b"1", b"2"):
        codec.receive(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\nTraceparent: " + n + b"\r\nX-C: d\r\n\r\n")
    first, second = log.heads
    assert first.fields is second.fields
    assert first.memo is second.memo
    assert (first.fresh, second.fresh) == (((b"traceparent", b"1"),), ((b"traceparent", b"2"),))
    assert first.fields == ((b"x-a", b"b"), (b"x-c", b"d"))


# --- request bodies


def test_a_body_of_known_length_arrives_whole() -> None:
    codec, log, _ = make()
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe")
    codec.receive(b"llo")
    assert log.events == [
        ("request", b"POST", b"a", b"/", ((b"content-length", b"5"),), False),
        ("data", b"hello", True),
    ]


def test_a_length_of_zero_ends_the_request_with_its_head() -> None:
    codec, log, _ = make()
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    assert log.events == [("request", b"POST", b"a", b"/", ((b"content-length", b"0"),), True)]


def test_a_chunked_body_arrives_without_its_chunks() -> None:
    codec, log, _ = make()
    codec.receive(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b"5\r\nhello\r\n6;name=value\r\n world\r\n0\r\n\r\n"
    )
    assert log.events == [("request", b"POST", b"a", b"/", (), False), ("data", b"hello world", True)]


def test_trailers_end_a_chunked_body_without_what_has_no_place_in_them() -> None:
    codec, log, _ = make()
    codec.receive(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nhi\r\n0\r\nX-Sum: 1 \r\nContent-Length: 9\r\nHost: b\r\nTransfer-Encoding: gzip\r\n\r\n"
    )
    assert log.events[1:] == [("data", b"hi", False), ("trailers", ((b"x-sum", b"1"),))]


def test_expect_is_passed_on_and_100_comes_from_the_handler() -> None:
    codec, log, _ = make()
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert (b"expect", b"100-continue") in log.heads[0].fields
    assert codec.take_output() == b""
    log.streams[0].send_informational(ResponseHead(100))
    assert codec.take_output() == b"HTTP/1.1 100 Continue\r\n\r\n"
    codec.receive(b"hi")
    ok(log.streams[0])
    assert codec.take_output() == PLAIN_BYTES
    assert not codec.should_close


def test_a_final_answer_instead_of_100_closes_because_the_body_may_never_come() -> None:
    codec, log, _ = make()
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    ok(log.streams[0])
    assert codec.take_output() == CLOSED_BYTES
    assert codec.should_close


def test_informational_fields_are_written() -> None:
    codec, log, _ = make()
    codec.receive(GET)
    log.streams[0].send_informational(ResponseHead(103, ((b"link", b"</a>"),)))
    assert codec.take_output() == b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"


# --- responses


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        (PLAIN, b"ok", PLAIN_BYTES),
        (ResponseHead(200), None, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        (ResponseHead(200), b"", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        (
            ResponseHead(200, ((b"x-a", b"b"),)),
            b"hello",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-a: b\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        (ResponseHead(204, ((b"content-length", b"0"),)), None, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (
            ResponseHead(304, ((b"content-length", b"9"),)),
            None,
            b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
        ),
        (ResponseHead(299), None, b"HTTP/1.1 299 \r\ncontent-length: 0\r\n\r\n"),
        (
            ResponseHead(200, ((b"x-a", b"b"),), ((b"content-length", b"2"), (b"x-c", b"d"))),
            b"ok",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-a: b\r\nx-c: d\r\n\r\nok",
        ),
        (
            ResponseHead(200, ((b"connection", b"close"), (b"transfer-encoding", b"gzip"))),
            None,
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        ),
    ],
)
def test_a_response_is_framed_by_what_is_known_of_it(
    head: ResponseHead, body: bytes | None, expected: bytes
) -> None:
    codec, output = answered(GET, head, body)
    assert output == expected
    assert not codec.should_close
    assert codec.active_streams == 0


def test_a_response_to_head_has_its_length_and_no_body() -> None:
    codec, output = answered(
        b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", ResponseHead(200, ((b"content-length", b"9"),))
    )
    assert output == b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"
    codec, output = answered(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", ResponseHead(200), b"not sent")
    assert output == b"HTTP/1.1 200 OK\r\n\r\n"
    assert not codec.should_close


def test_response_trailers_are_written_behind_the_last_chunk() -> None:
    codec, log, _ = make()
    codec.receive(GET)
    stream = log.streams[0]
    stream.send_response(ResponseHead(200), False)
    assert stream.send_data(b"x" * 300, False) == 300
    assert stream.send_data(b"", False) == 0
    stream.send_trailers(((b"grpc-status", b"0"),))
    assert codec.take_output() == (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n12c\r\n" + b"x" * 300 + b"\r\n"
        b"0\r\ngrpc-status: 0\r\n\r\n"
    )
    assert codec.active_streams == 0


def test_trailers_behind_a_body_of_known_length_are_lost() -> None:
    codec, log, _ = make()
    codec.receive(GET)
    log.streams[0].send_response(PLAIN, False)
    log.streams[0].send_data(b"ok", False)
    log.streams[0].send_trailers(((b"x-a", b"b"),))
    assert codec.take_output() == PLAIN_BYTES
    assert not codec.should_close


@pytest.mark.parametrize("body", [b"o", b"oko"], ids=["short", "long"])
def test_a_body_that_belies_its_length_cuts_the_connection(body: bytes) -> None:
    codec, log, _ = make()
    codec.receive(GET)
    log.streams[0].send_response(PLAIN, False)
    log.streams[0].send_data(body, True)
    assert codec.should_close
    assert codec.abort
    assert b"oko" not in codec.take_output()
    word = "shorter" if len(body) < 2 else "longer"
    assert log.events[-1] == ("reset", f"body {word} than its content-length", True, False)


@pytest.mark.parametrize(
    "fields",
    [
        ((b"x-a", b"b\r\nset-cookie: c"),),
        ((b"x-a", b"b\nc"),),
        ((b"x-a", b"b\rc"),),
        ((b"x-a", b"b\x00"),),
        ((b"x-a\r\nx-b", b"c"),),
        ((b"x-a: b\r\nx-b", b"c"),),
        ((b"", b"b"),),
        ((b"x a", b"b"),),
        ((b"content-length", b"5"), (b"content-length", b"6")),
        ((b"content-length", b"+5"),),
    ],
)
def test_a_head_that_would_write_another_line_is_not_written(fields: tuple) -> None:
    codec, log, _ = make()
    codec.receive(GET)
    log.streams[0].send_response(ResponseHead(200, fields), False)
    output = codec.take_output()
    assert output.startswith(b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/plain\r\n")
    assert b"x-a" not in output
    assert codec.should_close
    assert log.events[-1][0] == "reset"


# --- how long the connection lives


@pytest.mark.parametrize(
    ("request_head", "expected", "closes"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", CLOSED_BYTES, True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\n", CLOSED_BYTES, True),
        (b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", CLOSED_BYTES, True),
        (
            b"GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nok",
            False,
        ),
    ],
)
def test_the_client_says_whether_the_connection_lives(
    request_head: bytes, expected: bytes, closes: bool
) -> None:
    codec, output = answered(request_head, PLAIN, b"ok")
    assert output == expected
    assert codec.should_close is closes


def test_a_body_of_unknown_length_ends_with_the_connection_for_an_http_1_0_client() -> None:
    for connection in (b"", b"Connection: keep-alive\r\n"):
        codec, output = answered(b"GET / HTTP/1.0\r\n" + connection + b"\r\n", ResponseHead(200), b"ok")
        assert output == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok"
        assert codec.should_close


def test_an_http_1_0_client_gets_no_informational_response() -> None:
    codec, log, _ = make()
    codec.receive(b"GET / HTTP/1.0\r\n\r\n")
    log.streams[0].send_informational(ResponseHead(103))
    assert codec.take_output() == b""


def test_pipelined_requests_are_answered_one_after_the_other() -> None:
    codec, log, driver = make()
    codec.receive(GET + b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi" + GET)
    assert log.take() == [GET_EVENT]
    ok(log.streams[0])
    assert [event[0] for event in log.take()] == ["request", "data"]
    assert codec.take_output() == PLAIN_BYTES
    ok(log.streams[1])
    assert log.take() == [GET_EVENT]
    ok(log.streams[2])
    assert codec.take_output() == PLAIN_BYTES * 2
    assert driver.wakes > 0


def test_thousands_of_pipelined_requests_answered_at_once_do_not_recurse() -> None:
    codec, log, _ = make(ok)
    codec.receive(GET * 5000)
    output = codec.take_output()
    while data := turn(codec):
        output += data
    assert len(log.heads) == 5000
    assert output == PLAIN_BYTES * 5000


def test_reading_pauses_while_too_much_is_pipelined() -> None:
    codec, log, driver = make(body_window=1000)
    codec.receive(GET)
    codec.receive(GET * 20)
    assert not driver.paused
    codec.receive(GET * 20)
    assert driver.paused
    answers = 0
    while answers < len(log.streams):
        ok(log.streams[answers])
        answers += 1
    assert answers == 41
    assert not driver.paused


def test_a_client_that_does_not_read_gets_no_further_request_served() -> None:
    codec, log, _ = make(ok)
    codec.pause_output()
    codec.receive(GET * 2)
    codec.receive(GET)
    assert log.heads == []
    codec.resume_output()
    assert log.events == [GET_EVENT] * 3
    assert codec.take_output() == PLAIN_BYTES * 3


def test_a_small_unread_body_is_thrown_away_behind_an_early_response() -> None:
    codec, log, _ = make()
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo")
    ok(log.streams[0])
    assert codec.take_output() == PLAIN_BYTES
    assert not codec.should_close
    log.take()
    codec.receive(b"dy" + GET)
    assert log.take() == [GET_EVENT]


@pytest.mark.parametrize("framing", [b"Content-Length: 2000", b"Transfer-Encoding: chunked"])
def test_a_large_unread_body_closes_the_connection_behind_an_early_response(framing: bytes) -> None:
    codec, log, _ = make(body_window=1000)
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
    ok(log.streams[0])
    codec.receive(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
    codec.receive(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
    assert codec.should_close
    assert not codec.abort
    assert [event[0] for event in log.events] == ["request"]


def test_an_early_response_may_go_on_while_the_body_still_comes() -> None:
    codec, log, _ = make()
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
    stream = log.streams[0]
    stream.send_response(ResponseHead(200), False)
    stream.send_data(b"x", False)
    codec.receive(b"1\r\ny\r\n0\r\n\r\n")
    stream.send_data(b"y", True)
    assert codec.take_output() == (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n1\r\ny\r\n0\r\n\r\n"
    )
    assert log.events[1:] == [("data", b"xy", True)]
    assert not codec.should_close


def test_draining_closes_with_the_next_response() -> None:
    codec, log, _ = make()
    codec.receive(GET)
    codec.drain(False)
    ok(log.streams[0])
    assert codec.take_output() == CLOSED_BYTES
    assert codec.should_close


def test_draining_an_idle_connection_closes_it_only_in_the_end() -> None:
    codec, _, driver = make()
    codec.drain(False)
    assert not codec.should_close
    codec.drain(True)
    assert codec.should_close
    assert driver.wakes


def test_final_draining_lets_the_response_on_its_way_finish() -> None:
    codec, log, _ = make()
    codec.receive(GET + GET)
    log.streams[0].send_response(PLAIN, False)
    codec.drain(True)
    assert not codec.should_close
    log.streams[0].send_data(b"ok", True)
    assert codec.should_close
    assert codec.take_output() == PLAIN_BYTES
    assert len(log.heads) == 1


def test_a_client_that_has_sent_its_last_byte_gets_its_answers() -> None:
    codec, log, _ = make()
    codec.receive(GET + GET)
    codec.receive_eof()
    assert not codec.should_close
    ok(log.streams[0])
    assert not codec.should_close
    ok(log.streams[1])
    assert codec.should_close
    assert codec.take_output() == PLAIN_BYTES * 2


@pytest.mark.parametrize("partial", [b"", b"GET / HT"])
def test_the_end_of_an_idle_connection_closes_it(partial: bytes) -> None:
    codec, log, _ = make()
    codec.receive(partial)
    codec.receive_eof()
    assert codec.should_close
    assert log.events == []


def test_the_end_in_mid_request_resets_the_stream() -> None:
    codec, log, _ = make()
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo")
    codec.receive_eof()
    assert log.events[-1] == ("reset", "connection closed in mid-request", True, True)
    assert codec.should_close


def test_a_lost_connection_resets_the_stream_and_closes() -> None:
    codec, log, _ = make()
    codec.receive(GET)
    codec.connection_lost("reset by peer")
    assert log.events == [GET_EVENT, ("reset", "reset by peer", True, False), ("closed", "reset by peer")]
    assert codec.active_streams == 0
    ok(log.streams[0])
    assert codec.take_output() == b""


def test_a_reset_stream_cuts_the_connection_without_a_callback() -> None:
    codec, log, driver = make()
    codec.receive(GET)
    log.streams[0].reset(ErrorCode.CANCEL)
    log.streams[0].reset(ErrorCode.CANCEL)
    assert log.events == [GET_EVENT]
    assert codec.should_close
    assert codec.abort
    assert driver.wakes


# --- flow control


def test_reading_pauses_at_a_full_window_and_goes_on_at_half() -> None:
    codec, log, driver = make(body_window=100)
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + b"x" * 99)
    assert driver.pauses == []
    codec.receive(b"x")
    assert driver.pauses == [True]
    log.streams[0].consume(49)
    assert driver.pauses == [True]
    log.streams[0].consume(1)
    assert driver.pauses == [True, False]


def test_a_stream_that_ends_with_a_full_window_lets_reading_go_on() -> None:
    codec, log, driver = make(body_window=100)
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n" + b"x" * 100)
    assert driver.paused
    ok(log.streams[0])
    assert not driver.paused
    log.streams[0].consume(100)
    codec.receive(GET)
    assert log.events[-1] == GET_EVENT


def test_body_bytes_wait_for_the_transport_and_are_reported_when_they_leave() -> None:
    codec, log, _ = make()
    codec.receive(GET)
    stream = log.streams[0]
    stream.send_response(ResponseHead(200), False)
    codec.pause_output()
    assert stream.send_data(b"abc", False) == 0
    assert stream.send_data(b"de", False) == 0
    stream.send_trailers(((b"x-a", b"b"),))
    assert codec.take_output() == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert codec.active_streams == 1
    codec.resume_output()
    assert log.events[1:] == [("sent", 5)]
    assert codec.take_output() == b"3\r\nabc\r\n2\r\nde\r\n0\r\nx-a: b\r\n\r\n"
    assert codec.active_streams == 0


def test_the_driver_is_woken_only_for_output_made_outside_of_receive() -> None:
    codec, _, driver = make(ok)
    codec.receive(GET)
    assert driver.wakes == 0
    codec, log, driver = make()
    codec.receive(GET)
    ok(log.streams[0])
    assert driver.wakes > 0


def test_a_finished_stream_ignores_late_calls() -> None:
    codec, log, _ = make()
    codec.receive(GET)
    stream = log.streams[0]
    ok(stream)
    codec.take_output()
    assert stream.send_data(b"late", True) == 4
    stream.send_trailers(())
    stream.send_response(PLAIN, True)
    stream.send_informational(ResponseHead(103))
    stream.reset(ErrorCode.CANCEL)
    stream.consume(5)
    assert codec.take_output() == b""
    assert not codec.should_close


def test_codec_and_stream_show_their_state() -> None:
    codec, log, _ = make()
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo")
    assert repr(codec) == (
        "<H1ServerCodec open input=0 stream=<H1ServerStream receiving=2 sending=-4 unconsumed=2 held=0>>"
    )
    assert isinstance(log.logs[0], StreamLog)


def test_a_burst_of_pipelined_requests_is_answered_a_few_a_turn_and_in_order() -> None:
    codec, log, _ = make(ok)
    codec.receive(b"".join(GET.replace(b" / ", b" /%d " % i) for i in range(100)) + GET[:10])
    assert len(log.heads) == 32
    codec.receive(GET[10:])
    codec.receive_eof()
    turns, output = 0, b""
    while data := turn(codec):
        turns += 1
        output += data
    assert [head.path for head in log.heads] == [*(b"/%d" % i for i in range(100)), b"/"]
    assert output.count(b"HTTP/1.1 200 ") == 101
    assert turns == 3  # and that of the read
    assert codec.should_close


def test_the_head_that_a_client_owes_is_named_until_it_comes() -> None:
    codec, log, _ = make()
    assert codec.awaited_head() == 0  # the first
    codec.receive(GET)
    assert codec.awaited_head() == -1
    ok(log.streams[0])
    assert codec.awaited_head() == -1  # idle
    codec.receive(GET[:5])
    assert codec.awaited_head() == 1
    codec.take_output()
    codec.refuse_late_head()
    assert codec.take_output().startswith(b"HTTP/1.1 408 ")
    assert codec.should_close


def test_a_body_that_is_owed_after_the_answer_delays_the_next_head() -> None:
    codec, log, _ = make()
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo")
    assert codec.awaited_head() == -1
    ok(log.streams[0])
    assert codec.awaited_head() == 1
    codec.refuse_late_head()
    assert codec.should_close
    assert b"408" not in codec.take_output()


def test_a_client_that_says_nothing_is_told_nothing() -> None:
    codec, _, _ = make()
    codec.refuse_late_head()
    assert codec.should_close
    assert codec.take_output() == b""
