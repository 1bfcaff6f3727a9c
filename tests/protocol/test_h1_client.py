"""The HTTP/1 client codec: requests out, responses in, and when the connection may be used again."""

from __future__ import annotations

import pytest

from sidecar.protocol.events import ErrorCode, RequestHead, ResponseHead, Stream
from sidecar.protocol.h1 import CLOSED_BEFORE_RESPONSE, H1ClientCodec, H1Options
from tests.support.codec_events import ConnectionLog, Driver, StreamLog

GET = RequestHead(b"GET", b"http", b"a", b"/x")
POST = RequestHead(b"POST", b"http", b"a", b"/")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
OK_EVENTS = [("response", 200, ((b"content-length", b"2"),), False), ("data", b"ok", True)]


class Client:
    def __init__(self, **options) -> None:
        self.log = ConnectionLog()
        self.codec = H1ClientCodec(self.log, H1Options(**options))
        self.driver = Driver(self.codec)
        self.codec.start()
        self.log.take()

    def request(self, head: RequestHead = GET, end_stream: bool = True) -> tuple[Stream, StreamLog]:
        log = StreamLog()
        stream = self.codec.open_stream(log)
        stream.send_request(head, end_stream)
        return stream, log

    def exchange(self, response: bytes, head: RequestHead = GET) -> list[tuple]:
        _, log = self.request(head)
        self.codec.take_output()
        self.codec.receive(response)
        return log.events


def test_a_client_is_ready_at_once() -> None:
    log = ConnectionLog()
    codec = H1ClientCodec(log, H1Options())
    codec.start()
    assert log.events == [("ready",)]
    assert codec.available == 1


# --- requests


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        (GET, None, b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n"),
        (POST, None, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"),
        (
            POST,
            b"hello",
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            RequestHead(b"POST", b"http", b"a", b"/", ((b"content-length", b"2"), (b"x-a", b"b"))),
            b"hi",
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nx-a: b\r\n\r\nhi",
        ),
        (
            RequestHead(b"GET", b"http", b"a", b"/", ((b"te", b"trailers"),), ((b"traceparent", b"1"),)),
            None,
            b"GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntraceparent: 1\r\nconnection: te\r\n\r\n",
        ),
        (
            RequestHead(b"GET", b"http", b"a", b"/", ((b"connection", b"close"), (b"host", b"b"))),
            None,
            b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            RequestHead(
                b"GET",
                b"http",
                b"a",
                b"/",
                ((b"cookie", b"a=1"), (b"x-a", b"b"), (b"cookie", b"b=2")),
                ((b"x-b", b"c"), (b"cookie", b"c=3")),
            ),
            None,
            b"GET / HTTP/1.1\r\nhost: a\r\nx-a: b\r\nx-b: c\r\ncookie: a=1; b=2; c=3\r\n\r\n",
        ),
        (
            RequestHead(b"GET", b"http", b"a", b"/", ((b"x-a", b"b"),), ((b"cookie", b"c=3"),)),
            None,
            b"GET / HTTP/1.1\r\nhost: a\r\nx-a: b\r\ncookie: c=3\r\n\r\n",
        ),
        (RequestHead(b"OPTIONS", b"http", b"a", b"*"), None, b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"),
        (RequestHead(b"GET", b"http", b"", b"/"), None, b"GET / HTTP/1.1\r\nhost: \r\n\r\n"),
    ],
)
def test_a_request_is_framed_by_what_is_known_of_it(
    head: RequestHead, body: bytes | None, expected: bytes
) -> None:
    client = Client()
    stream, _ = client.request(head, body is None)
    if body is not None:
        assert stream.send_data(body, True) == len(body)
    assert client.codec.take_output() == expected
    assert client.driver.wakes > 0


def test_request_trailers_are_written_behind_the_last_chunk() -> None:
    client = Client()
    stream, _ = client.request(POST, False)
    stream.send_trailers(((b"x-sum", b"1"),))
    assert client.codec.take_output().endswith(b"chunked\r\n\r\n0\r\nx-sum: 1\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        RequestHead(b"GET", b"http", b"a", b"/ HTTP/1.1\r\nx: y"),
        RequestHead(b"GET", b"http", b"a", b"/a b"),
        RequestHead(b"GET", b"http", b"a\r\nx: y", b"/"),
        RequestHead(b"GET / HTTP/1.1\r\nx: y\r\n\r\nGET", b"http", b"a", b"/"),
        RequestHead(b"GET", b"http", b"a", b""),
        RequestHead(b"GET", b"http", b"a", b"/", ((b"x-a", b"b\r\nx-c: d"),)),
        RequestHead(b"GET", b"http", b"a", b"/", (), ((b"x-a", b"b\nc"),)),
        RequestHead(b"GET", b"http", b"a", b"/", ((b"content-length", b"5"),)),
    ],
)
def test_a_request_that_cannot_be_written_leaves_the_connection_alone(head: RequestHead) -> None:
    client = Client()
    _, log = client.request(head)
    assert client.codec.take_output() == b""
    (reset,) = log.resets
    assert (reset.code, reset.processed, reset.remote) == (ErrorCode.INTERNAL_ERROR, False, False)
    assert client.codec.available == 1
    assert client.exchange(OK) == OK_EVENTS


def test_a_body_that_belies_its_length_cuts_the_connection() -> None:
    client = Client()
    stream, log = client.request(
        RequestHead(b"POST", b"http", b"a", b"/", ((b"content-length", b"5"),)), False
    )
    stream.send_data(b"hi", True)
    assert log.events == [("reset", "body shorter than its content-length", True, False)]
    assert client.codec.should_close
    assert client.codec.abort


def test_body_bytes_wait_for_the_transport() -> None:
    client = Client()
    stream, log = client.request(POST, False)
    client.codec.take_output()
    client.codec.pause_output()
    assert stream.send_data(b"hi", True) == 0
    assert client.codec.take_output() == b""
    client.codec.resume_output()
    assert log.events == [("sent", 2)]
    assert client.codec.take_output() == b"2\r\nhi\r\n0\r\n\r\n"


def test_each_pause_reports_what_waited_in_it() -> None:
    client = Client()
    stream, log = client.request(POST, False)
    for _ in range(2):
        client.codec.pause_output()
        assert stream.send_data(b"abc", False) == 0
        client.codec.resume_output()
    assert log.events == [("sent", 3), ("sent", 3)]


def test_trailers_behind_a_body_that_is_too_short_cut_the_connection() -> None:
    client = Client()
    stream, log = client.request(
        RequestHead(b"POST", b"http", b"a", b"/", ((b"content-length", b"5"),)), False
    )
    stream.send_data(b"hi", False)
    stream.send_trailers(((b"x-a", b"b"),))
    assert log.events == [("reset", "body shorter than its content-length", True, False)]
    assert client.codec.abort


# --- responses


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (OK, OK_EVENTS),
        (
            b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
            [("response", 200, ((b"content-length", b"2"),), False), ("data", b"ok", True)],
        ),
        (
            b"HTTP/1.1 200 Yes\r\nX-A:  b \r\nConnection: x-hop\r\nX-Hop: 1\r\nContent-Length: 0\r\n\r\n",
            [("response", 200, ((b"x-a", b"b"), (b"content-length", b"0")), True)],
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", [("response", 204, (), True)]),
        (
            b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nX-A: b\r\n\r\n"
            b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\nTE: trailers\r\n\r\n",
            [("informational", 103, ((b"x-a", b"b"),)), ("response", 204, (), True)],
        ),
        (
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            [("response", 304, ((b"content-length", b"9"),), True)],
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            [("response", 200, (), False), ("data", b"ok", True)],
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
            [("response", 200, (), False), ("data", b"ok", False), ("trailers", ((b"x-sum", b"1"),))],
        ),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
            [("informational", 100, ()), ("informational", 103, ((b"link", b"</a>"),)), *OK_EVENTS],
        ),
    ],
)
def test_a_response_arrives_in_the_common_form_and_the_connection_is_reusable(
    raw: bytes, events: list
) -> None:
    client = Client()
    assert client.exchange(raw) == events
    assert client.codec.available == 1
    assert client.log.take() == [("capacity",)]
    assert client.exchange(OK) == OK_EVENTS


def test_a_response_to_head_has_no_body() -> None:
    client = Client()
    head = RequestHead(b"HEAD", b"http", b"a", b"/")
    for framing in (b"Content-Length: 9", b"Transfer-Encoding: chunked", b"X-A: b"):
        events = client.exchange(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n", head)
        assert events[0][0] == "response"
        assert events[0][3]
        assert len(events) == 1
    assert client.exchange(OK) == OK_EVENTS


@pytest.mark.parametrize(
    ("raw", "incomplete"),
    [
        (OK, False),
        (OK[:-1], True),
        (OK[:-2], True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\n\r\n", False),
    ],
)
def test_a_response_of_known_length_is_incomplete_until_all_of_it_is_at_hand(
    raw: bytes, incomplete: bool
) -> None:
    client = Client()
    stream, log = client.request()
    client.codec.take_output()
    client.codec.receive(raw)
    assert log.head is not None
    assert stream.incomplete is incomplete


def test_a_head_that_comes_again_is_the_same_object() -> None:
    client = Client()
    logs = []
    for _ in range(2):
        _, log = client.request()
        client.codec.take_output()
        client.codec.receive(OK)
        logs.append(log)
    assert logs[0].head is logs[1].head


def test_a_body_of_unknown_length_ends_with_the_connection() -> None:
    client = Client()
    _, log = client.request()
    client.codec.take_output()
    client.codec.receive(b"HTTP/1.1 200 OK\r\n\r\nso ")
    client.codec.receive(b"far")
    assert log.events == [("response", 200, (), False), ("data", b"so far", False)]
    client.codec.receive_eof()
    assert log.events == [("response", 200, (), False), ("data", b"so far", True)]
    assert client.codec.should_close
    assert client.log.events == [("goaway",)]


def test_reading_pauses_at_a_full_window_and_goes_on_at_half() -> None:
    client = Client(body_window=100)
    stream, _ = client.request()
    client.codec.take_output()
    client.codec.receive(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"x" * 100)
    assert client.driver.pauses == [True]
    stream.consume(50)
    assert client.driver.pauses == [True, False]


# --- how long the connection lives


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
)
def test_the_server_may_end_the_connection_with_a_response(raw: bytes) -> None:
    client = Client()
    assert client.exchange(raw) == OK_EVENTS
    assert client.codec.should_close
    assert client.codec.available == 0
    assert client.log.events == [("goaway",)]


def test_an_http_1_0_server_may_keep_the_connection() -> None:
    client = Client()
    client.exchange(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\ncontent-length: 2\r\n\r\nok")
    assert client.codec.available == 1


def test_the_servers_idle_timeout_is_known() -> None:
    client = Client()
    assert client.codec.keep_alive_timeout is None
    client.exchange(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nKeep-Alive: timeout=5, max=100\r\n\r\n")
    assert client.codec.keep_alive_timeout == 5.0


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    client = Client()
    client.codec.receive(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert client.codec.should_close
    assert client.log.events == [("goaway",)]


def test_bytes_behind_a_response_never_pass_for_the_next_one() -> None:
    client = Client()
    assert client.exchange(OK + OK) == OK_EVENTS
    assert client.codec.should_close
    assert client.log.events == [("goaway",)]


def test_a_response_that_comes_before_the_request_has_left_is_not_its_own() -> None:
    client = Client()
    _, log = client.request()
    client.codec.receive(OK)
    assert log.events == [("reset", "bytes from the server before a request", False, False)]
    assert client.codec.should_close


def test_the_end_of_an_idle_connection_makes_it_unusable() -> None:
    client = Client()
    client.codec.receive_eof()
    assert client.codec.should_close
    assert client.codec.available == 0
    client.codec.connection_lost("closed")
    assert client.log.events == [("goaway",), ("closed", "closed")]


@pytest.mark.parametrize("lose", ["connection_lost", "receive_eof"])
def test_a_connection_lost_before_the_request_left_says_so(lose: str) -> None:
    client = Client()
    _, log = client.request()
    client.codec.receive_eof() if lose == "receive_eof" else client.codec.connection_lost("broken")
    (reset,) = log.resets
    assert (reset.code, reset.processed, reset.remote) == (ErrorCode.REFUSED_STREAM, False, False)


@pytest.mark.parametrize("lose", ["connection_lost", "receive_eof"])
def test_a_connection_lost_before_the_response_says_so(lose: str) -> None:
    client = Client()
    client.exchange(OK)
    _, log = client.request()
    client.codec.take_output()
    client.codec.receive_eof() if lose == "receive_eof" else client.codec.connection_lost("broken")
    assert log.events == [("reset", CLOSED_BEFORE_RESPONSE, True, True)]
    assert client.codec.available == 0


@pytest.mark.parametrize(
    "partial", [b"HTTP/1.1 2", OK[:-1], b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"]
)
def test_the_end_in_mid_response_is_a_reset(partial: bytes) -> None:
    client = Client()
    _, log = client.request()
    client.codec.take_output()
    client.codec.receive(partial)
    client.codec.receive_eof()
    assert log.events[-1] == ("reset", "connection closed in mid-response", True, True)


def test_a_broken_connection_does_not_end_a_body_of_unknown_length() -> None:
    client = Client()
    _, log = client.request()
    client.codec.take_output()
    client.codec.receive(b"HTTP/1.1 200 OK\r\n\r\nso far")
    client.codec.connection_lost("reset by peer")
    assert log.events[-1] == ("reset", "connection lost in mid-response: reset by peer", True, True)
    assert client.log.events == [("goaway",), ("closed", "reset by peer")]


def test_an_answer_before_the_request_has_left_ends_the_connection() -> None:
    client = Client()
    stream, log = client.request(POST, False)
    client.codec.take_output()
    client.codec.receive(OK)
    assert log.events == OK_EVENTS
    assert client.codec.should_close
    assert stream.send_data(b"late", True) == 4
    assert client.codec.take_output() == b""


def test_a_reset_stream_cuts_the_connection_without_a_callback() -> None:
    client = Client()
    stream, log = client.request()
    stream.reset(ErrorCode.CANCEL)
    assert log.events == []
    assert client.codec.should_close
    assert client.codec.abort
    assert client.log.events == [("goaway",)]


def test_draining_closes_an_idle_connection_and_lets_a_response_finish() -> None:
    client = Client()
    client.codec.drain(False)
    assert client.codec.should_close
    client = Client()
    _, log = client.request()
    client.codec.take_output()
    client.codec.drain(False)
    assert not client.codec.should_close
    client.codec.receive(OK)
    assert log.events == OK_EVENTS
    assert client.codec.should_close


def test_a_second_stream_cannot_be_opened_beside_the_first() -> None:
    client = Client()
    client.request()
    assert client.codec.available == 0
    with pytest.raises(RuntimeError, match="cannot take another stream"):
        client.codec.open_stream(StreamLog())


def test_streams_of_the_client_send_no_response() -> None:
    stream, _ = Client().request()
    with pytest.raises(RuntimeError, match="client side"):
        stream.send_response(ResponseHead(200), True)
