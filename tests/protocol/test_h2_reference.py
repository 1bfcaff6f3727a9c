"""The `h2` package behind the codec interface: the same callbacks as any codec's."""

from __future__ import annotations

import pytest

from sidecar.protocol.events import ErrorCode, RequestHead, ResponseHead, Stream
from sidecar.protocol.h2 import H2Options
from sidecar.protocol.h2_reference import H2ReferenceCodec
from tests.support.codec_events import ConnectionLog, Driver, StreamLog

GET = RequestHead(b"GET", b"http", b"a", b"/x", ((b"x-a", b"b"),), ((b"traceparent", b"1"),))


class Pair:
    """A client and a server codec with nothing between them."""

    def __init__(self, answer=None, **options) -> None:
        self.client_log, self.server_log = ConnectionLog(), ConnectionLog(answer)
        self.client = H2ReferenceCodec(True, self.client_log, H2Options(**options))
        self.server = H2ReferenceCodec(False, self.server_log, H2Options(**options))
        self.client_driver, self.server_driver = Driver(self.client), Driver(self.server)
        self.client.start()
        self.server.start()
        self.settle()

    def settle(self) -> None:
        while True:
            to_server, to_client = self.client.take_output(), self.server.take_output()
            if not to_server and not to_client:
                return
            self.server.receive(to_server)
            self.client.receive(to_client)

    def request(self, head: RequestHead = GET, end_stream: bool = True) -> tuple[Stream, StreamLog]:
        log = StreamLog()
        stream = self.client.open_stream(log)
        stream.send_request(head, end_stream)
        self.settle()
        return stream, log


def ok(stream: Stream, head: RequestHead) -> None:
    stream.send_response(ResponseHead(200, ((b"x-c", b"d"),)), False)
    stream.send_data(b"ok", True)


def test_a_client_is_ready_once_the_servers_settings_have_come() -> None:
    pair = Pair()
    assert pair.client_log.events == [("ready",)]
    assert pair.client.available == 1024
    assert H2ReferenceCodec(True, ConnectionLog(), H2Options()).available == 0


def test_a_request_and_its_response_pass() -> None:
    pair = Pair(ok)
    _, log = pair.request()
    assert pair.server_log.events == [
        ("request", b"GET", b"a", b"/x", ((b"x-a", b"b"), (b"traceparent", b"1")), True)
    ]
    assert log.events == [("response", 200, ((b"x-c", b"d"),), False), ("data", b"ok", True)]
    assert pair.client_log.events == [("ready",), ("capacity",)]
    assert (pair.client.active_streams, pair.server.active_streams) == (0, 0)


def test_bodies_trailers_and_informational_responses_pass() -> None:
    pair = Pair()
    stream, log = pair.request(end_stream=False)
    served = pair.server_log.streams[0]
    served.send_informational(ResponseHead(103, ((b"link", b"</a>"),)))
    assert stream.send_data(b"up", False) == 2
    stream.send_trailers(((b"x-up", b"1"),))
    pair.settle()
    assert pair.server_log.events[1:] == [("data", b"up", False), ("trailers", ((b"x-up", b"1"),))]
    served.send_response(ResponseHead(200), False)
    served.send_trailers(((b"grpc-status", b"0"),))
    pair.settle()
    assert log.events == [
        ("informational", 103, ((b"link", b"</a>"),)),
        ("response", 200, (), False),
        ("trailers", ((b"grpc-status", b"0"),)),
    ]
    assert (pair.client.active_streams, pair.server.active_streams) == (0, 0)


def test_a_body_stops_at_the_window_and_goes_on_as_it_is_consumed() -> None:
    pair = Pair()
    stream, _ = pair.request(end_stream=False)
    assert stream.send_data(b"x" * 100_000, True) == 65536
    pair.settle()
    received = len(pair.server_log.events[1][1])
    assert received <= 65536
    pair.server_log.streams[0].consume(received)
    pair.settle()
    assert pair.server_log.events[1:] == [("data", b"x" * 100_000, True)]


def test_what_a_window_held_back_is_reported_when_it_leaves() -> None:
    pair = Pair()
    stream, log = pair.request(end_stream=False)
    accepted = stream.send_data(b"x" * 100_000, True)
    pair.settle()
    pair.server_log.streams[0].consume(accepted)
    pair.settle()
    assert log.events == [("sent", 100_000 - accepted)]


def test_a_stalled_stream_does_not_hold_up_another() -> None:
    pair = Pair(initial_connection_window_size=100_000)
    stalled, _ = pair.request(end_stream=False)
    stalled.send_data(b"x" * 65536, False)
    pair.settle()
    for _ in range(5):
        other, _ = pair.request(end_stream=False)
        other.send_data(b"y" * 50_000, True)
        pair.settle()
        assert pair.server_log.events[-1] == ("data", b"y" * 50_000, True)


def test_a_paused_transport_holds_bodies_but_not_heads() -> None:
    pair = Pair()
    pair.request()
    served = pair.server_log.streams[0]
    pair.server.pause_output()
    served.send_response(ResponseHead(200), False)
    assert served.send_data(b"ok", True) == 0
    assert len(pair.server.take_output()) > 0
    pair.server.resume_output()
    assert pair.server_log.events[-1] == ("sent", 2)


def test_connect_and_extended_connect_pass() -> None:
    pair = Pair(enable_connect_protocol=True)
    pair.request(RequestHead(b"CONNECT", b"", b"db:5432", b""), False)
    pair.request(RequestHead(b"CONNECT", b"http", b"a", b"/chat", protocol=b"websocket"), False)
    assert pair.server_log.events == [
        ("request", b"CONNECT", b"db:5432", b"", (), False),
        ("request", b"CONNECT", b"a", b"/chat", b"websocket", (), False),
    ]


def test_extended_connect_is_refused_unless_the_peer_offers_it() -> None:
    pair = Pair()
    _, log = pair.request(RequestHead(b"CONNECT", b"http", b"a", b"/", protocol=b"websocket"), False)
    assert log.events == [("reset", "the peer does not offer extended CONNECT (RFC 8441)", False, False)]


def test_a_reset_reaches_the_other_side() -> None:
    pair = Pair()
    stream, log = pair.request()
    stream.reset(ErrorCode.CANCEL)
    stream.reset(ErrorCode.CANCEL)
    pair.settle()
    assert pair.server_log.events[1:] == [("reset", "peer reset the stream: CANCEL", True, True)]
    assert log.events == []
    _, log = pair.request()
    pair.server_log.streams[1].reset(ErrorCode.REFUSED_STREAM)
    pair.settle()
    assert log.events == [("reset", "peer reset the stream: REFUSED_STREAM", False, True)]


def test_draining_finishes_what_is_open_and_refuses_what_comes() -> None:
    pair = Pair()
    _, log = pair.request()
    pair.server.drain(False)
    pair.settle()
    assert pair.client_log.events[-1] == ("goaway",)
    assert pair.client.available == 0
    pair.server.drain(True)
    pair.settle()
    ok(pair.server_log.streams[0], GET)
    pair.settle()
    assert log.events[-1] == ("data", b"ok", True)
    assert pair.server.should_close
    assert pair.client.should_close


def test_goaway_says_which_requests_were_not_processed() -> None:
    pair = Pair()
    _, first = pair.request()
    second = StreamLog()
    pair.client.open_stream(second).send_request(GET, True)
    pair.server.drain(True)
    pair.client.receive(pair.server.take_output())
    assert second.events == [("reset", "peer is going away: NO_ERROR", False, True)]
    assert first.events == []


def test_a_lost_connection_tells_what_has_left() -> None:
    pair = Pair()
    _, first = pair.request()
    second = StreamLog()
    pair.client.open_stream(second).send_request(GET, True)
    third = StreamLog()
    pair.client.open_stream(third)
    pair.client.connection_lost("broken")
    assert third.events == [("reset", "broken", False, False)]
    assert first.events == [("reset", "broken", True, False)]
    assert second.events == [("reset", "broken", False, False)]
    assert pair.client_log.events[-1] == ("closed", "broken")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n" * 2, b"\x00" * 64])
def test_bytes_that_are_not_http_2_end_the_connection(data: bytes) -> None:
    log = ConnectionLog()
    codec = H2ReferenceCodec(False, log, H2Options())
    codec.start()
    codec.receive(data)
    assert codec.should_close
    assert log.events == []


def test_a_request_with_too_many_fields_gets_431() -> None:
    pair = Pair(max_header_count=3)
    _, log = pair.request(RequestHead(b"GET", b"http", b"a", b"/", ((b"x-a", b"b"),) * 4))
    assert log.head is not None
    assert log.head.status == 431
    assert pair.server_log.events == []
