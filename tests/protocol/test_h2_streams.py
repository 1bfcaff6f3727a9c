"""Stream states, resets, GOAWAY and draining: RFC 9113 sections 5.1, 5.4, 6.4, 6.8 and 8.7."""

from __future__ import annotations

import pytest

from sidecar.protocol.events import ErrorCode, RequestHead, Reset, ResponseHead
from tests.support import h2_frames as f
from tests.support.h2_frames import Frame, client, connection_error, server, stream_error

PROTOCOL_ERROR, STREAM_CLOSED, REFUSED, CANCEL = 1, 5, 7, 8
RESPONSE = ResponseHead(200)


def test_exchange_with_bodies_and_trailers_both_ways() -> None:
    connection = server()
    connection.say(f.headers(1, f.POST) + f.data(1, b"ab") + f.headers(1, [(b"x-sum", b"9")], True))
    recorder = connection.requests[0]
    assert recorder.events == [
        ("request", b"POST", b"/", False),
        ("data", b"ab", False),
        ("trailers", ((b"x-sum", b"9"),)),
    ]
    recorder.stream.send_informational(ResponseHead(103, ((b"link", b"</a>"),)))
    recorder.stream.send_response(RESPONSE, False)
    assert recorder.stream.send_data(b"cd", False) == 2
    recorder.stream.send_trailers(((b"grpc-status", b"0"),))
    peer = client()
    request = peer.request()
    peer.take()
    for frame in connection.take():
        peer.say(f.frame(frame.type, frame.flags, frame.stream_id, frame.payload))
    assert request.events == [
        ("informational", 103),
        ("response", 200, False),
        ("data", b"cd", False),
        ("trailers", ((b"grpc-status", b"0"),)),
    ]
    assert connection.codec.active_streams == peer.codec.active_streams == 0
    assert peer.events == ["ready", "capacity"]


TWO = [*f.OK, (b"content-length", b"2")]


@pytest.mark.parametrize(
    ("octets", "incomplete"),
    [
        (f.headers(1, TWO) + f.data(1, b"ok", True), False),
        (f.headers(1, TWO), True),
        (f.headers(1, TWO) + b"\0", True),
        (f.headers(1, f.OK), False),
        (f.headers(1, [*f.OK, (b"content-length", b"0")], True), False),
    ],
)
def test_a_response_of_known_length_is_incomplete_until_as_much_is_at_hand(
    octets: bytes, incomplete: bool
) -> None:
    connection = client()
    request = connection.request()
    connection.take()
    connection.codec.receive(octets)
    assert request.events[0][0] == "response"
    assert request.stream.incomplete is incomplete


def test_data_after_end_stream_is_a_stream_error() -> None:
    connection = server()
    connection.say(f.headers(1, f.GET, True))
    assert stream_error(connection, f.data(1, b"x")) == STREAM_CLOSED
    assert connection.requests[0].reset == Reset(
        ErrorCode.STREAM_CLOSED, "DATA after END_STREAM", remote=False
    )


def test_headers_after_end_stream_is_a_stream_error() -> None:
    connection = server()
    connection.say(f.headers(1, f.GET, True))
    assert stream_error(connection, f.headers(1, f.GET, True)) == STREAM_CLOSED


@pytest.mark.parametrize("late", [f.data(1, b"x"), f.headers(1, f.GET, True)])
def test_frames_on_a_finished_stream_end_the_connection(late: bytes) -> None:
    connection = server()
    connection.say(f.headers(1, f.GET, True))
    connection.requests[0].stream.send_response(RESPONSE, True)
    connection.take()
    assert connection_error(connection, late) == STREAM_CLOSED


@pytest.mark.parametrize("late", [f.window_update(1, 5), f.rst_stream(1, 8), f.priority(1)])
def test_late_control_frames_on_a_finished_stream_are_ignored(late: bytes) -> None:
    connection = server()
    connection.say(f.headers(1, f.GET, True))
    connection.requests[0].stream.send_response(RESPONSE, True)
    connection.take()
    assert connection.say(late) == []
    assert not connection.codec.should_close


def test_frames_on_a_stream_reset_here_are_ignored() -> None:
    connection = server()
    connection.say(f.headers(1, f.POST))
    connection.requests[0].stream.reset(ErrorCode.CANCEL)
    connection.requests[0].stream.reset(ErrorCode.CANCEL)
    assert connection.take() == [Frame(f.RST_STREAM, 0, 1, b"\0\0\0\x08")]
    assert (
        connection.say(f.data(1, b"abc") + f.headers(1, [(b"t", b"1")], True) + f.window_update(1, 1)) == []
    )
    assert connection.requests[0].events == [("request", b"POST", b"/", False)]


@pytest.mark.parametrize("late", [f.data(1, b"x"), f.headers(1, f.GET, True)])
def test_frames_on_a_stream_that_the_peer_reset_are_a_stream_error(late: bytes) -> None:
    connection = server()
    connection.say(f.headers(1, f.POST) + f.rst_stream(1, 8))
    assert stream_error(connection, late) == STREAM_CLOSED


def test_header_compression_survives_discarded_streams() -> None:
    peer = client()
    recorder = peer.request()
    recorder.stream.reset(ErrorCode.CANCEL)
    second = peer.request()
    peer.take()
    # 0x40: literal with indexing, which the second block then refers to
    peer.say(f.frame(f.HEADERS, 4, 1, b"\x88\x40\x01a\x01b") + f.frame(f.HEADERS, 5, 3, b"\x88\xbe"))
    assert second.head.fields == ((b"a", b"b"),)


@pytest.mark.parametrize("stream_id", [3, 5, 7])
def test_a_stream_that_was_passed_over_cannot_be_opened_any_more(stream_id: int) -> None:
    connection = server()
    connection.say(f.headers(1, f.GET, True) + f.headers(9, f.GET, True))
    assert connection_error(connection, f.headers(stream_id, f.GET, True)) == PROTOCOL_ERROR


def test_peer_reset_is_told_once_and_kept_bytes_are_dropped() -> None:
    connection = server(peer_settings={4: 0})
    connection.say(f.headers(1, f.GET, True))
    recorder = connection.requests[0]
    recorder.stream.send_response(RESPONSE, False)
    assert recorder.stream.send_data(b"x" * 100, True) == 0
    connection.say(f.rst_stream(1, 8))
    assert recorder.reset == Reset(8, "peer reset the stream: CANCEL", True, True)
    assert connection.say(f.window_update(1, 1000)) == []
    assert recorder.stream.send_data(b"more", True) == 4
    recorder.stream.consume(10)
    recorder.stream.reset(ErrorCode.CANCEL)
    assert connection.take() == []
    assert connection.codec.active_streams == 0


def test_refused_stream_was_not_processed() -> None:
    connection = client()
    recorder = connection.request()
    connection.take()
    connection.say(f.rst_stream(1, REFUSED))
    assert recorder.events == [("reset", REFUSED, False, True)]
    assert connection.events == ["ready", "capacity"]


def test_goaway_refuses_new_streams_and_finishes_old_ones() -> None:
    connection = client()
    first, second, third = (connection.request() for _ in range(3))
    connection.take()
    connection.say(f.goaway(3, 0, b"maintenance"))
    assert third.reset is not None
    assert (third.reset.processed, third.reset.remote, third.reset.code) == (False, True, 0)
    assert third.reset.reason.endswith("NO_ERROR maintenance")
    assert connection.events == ["ready", "capacity", "goaway"]
    assert connection.codec.available == 0
    connection.say(f.headers(1, f.OK, True))
    assert first.ended
    assert not connection.codec.should_close
    connection.say(f.goaway(1))
    assert second.reset is not None
    assert not second.reset.processed
    assert connection.codec.should_close
    late = connection.request()
    assert late.reset is not None
    assert not late.reset.processed
    assert connection.take() == []
    assert connection.codec.active_streams == 0


def test_two_phase_goaway_of_a_server() -> None:
    connection = server()
    connection.say(f.headers(1, f.GET, True))
    connection.codec.drain(False)
    assert connection.take() == [Frame(f.GOAWAY, 0, 0, b"\x7f\xff\xff\xff" + bytes(4))]
    connection.say(f.headers(3, f.GET, True))
    assert len(connection.requests) == 2
    connection.codec.drain(True)
    assert connection.take() == [Frame(f.GOAWAY, 0, 0, b"\0\0\0\3" + bytes(4))]
    assert stream_error(connection, f.headers(5, f.POST)) == REFUSED
    assert connection.say(f.data(5, b"late")) == []
    for recorder in connection.requests:
        assert not connection.codec.should_close
        recorder.stream.send_response(RESPONSE, True)
    assert connection.codec.should_close


def test_drain_of_an_idle_connection_closes_it() -> None:
    for connection in (server(), client()):
        connection.codec.drain(True)
        assert connection.codec.should_close
        assert [x.type for x in connection.take()] == [f.GOAWAY]


def test_draining_client_opens_no_more() -> None:
    connection = client()
    recorder = connection.request()
    connection.codec.drain(True)
    assert connection.codec.available == 0
    connection.say(f.headers(1, f.OK, True))
    assert recorder.ended
    assert connection.codec.should_close


def test_concurrency_above_the_limit_is_refused() -> None:
    connection = server(max_concurrent_streams=2)
    connection.say(f.headers(1, f.GET, True) + f.headers(3, f.GET, True))
    assert stream_error(connection, f.headers(5, f.GET, True)) == REFUSED
    connection.requests[0].stream.send_response(RESPONSE, True)
    connection.take()
    assert connection.say(f.headers(7, f.GET, True)) == []
    assert len(connection.requests) == 3


def test_client_opens_nothing_before_settings_and_honours_the_limit() -> None:
    connection = f.Connection(True, max_concurrent_streams=3)
    connection.codec.start()
    assert connection.codec.available == 0
    connection.say(f.settings({3: 2}))
    assert connection.events == ["ready"]
    assert connection.codec.available == 2
    connection.request()
    connection.request()
    assert connection.codec.available == 0
    connection.say(f.settings({3: 100}))
    assert connection.events == ["ready", "capacity"]
    assert connection.codec.available == 1


def test_lost_connection_tells_what_cannot_have_been_processed() -> None:
    connection = client()
    taken = connection.request()
    connection.take()
    unsent = connection.request()
    connection.codec.connection_lost("connection reset")
    assert taken.reset == Reset(ErrorCode.CANCEL, "connection lost: connection reset", True, False)
    assert unsent.reset is not None
    assert not unsent.reset.processed
    assert connection.events == ["ready", "closed"]
    assert connection.request().reset is not None


def test_eof_leaves_complete_requests_to_be_answered() -> None:
    connection = server()
    connection.say(f.headers(1, f.GET, True) + f.headers(3, f.POST))
    connection.codec.receive_eof()
    complete, incomplete = connection.requests
    assert incomplete.reset is not None
    assert complete.reset is None
    complete.stream.send_response(RESPONSE, True)
    assert connection.codec.should_close


def test_eof_ends_a_client_at_once() -> None:
    connection = client()
    recorder = connection.request()
    connection.take()
    connection.codec.receive_eof()
    assert recorder.reset == Reset(ErrorCode.CANCEL, "peer closed the connection", True, True)
    assert connection.codec.should_close


def test_stream_ids_run_out() -> None:
    connection = client()
    connection.codec._next_id = 2**31 - 1
    assert connection.codec.available == 1
    recorder = connection.request()
    assert recorder.stream.id == 2**31 - 1
    assert connection.codec.available == 0
    assert connection.events == ["ready", "goaway"]
    connection.take()
    connection.say(f.headers(2**31 - 1, f.OK, True))
    assert recorder.ended
    assert connection.codec.should_close


def test_response_may_end_before_the_request() -> None:
    connection = server()
    connection.say(f.headers(1, f.POST))
    recorder = connection.requests[0]
    recorder.stream.send_response(RESPONSE, True)
    assert connection.codec.active_streams == 1
    connection.say(f.data(1, b"abc", True))
    assert recorder.body == b"abc"
    assert connection.codec.active_streams == 0


@pytest.mark.parametrize("early", [f.data(1, b"x"), f.headers(1, [(b":status", b"99")]), f.headers(1, [])])
def test_wrong_start_of_a_response_is_a_stream_error(early: bytes) -> None:
    connection = client()
    recorder = connection.request()
    connection.take()
    assert stream_error(connection, early) == PROTOCOL_ERROR
    assert recorder.events == [("reset", PROTOCOL_ERROR, True, False)]


def test_server_cannot_open_streams() -> None:
    for stream_id in (2, 9):
        assert connection_error(client(), f.headers(stream_id, f.OK)) == PROTOCOL_ERROR


def test_a_handler_may_reset_in_any_callback() -> None:
    connection = server()
    connection.on_new_request = lambda recorder: recorder.stream.reset(ErrorCode.REFUSED_STREAM)
    assert stream_error(connection, f.headers(1, f.POST) + f.data(1, b"abc", True)) == REFUSED
    assert connection.codec.active_streams == 0


def test_a_request_may_be_answered_in_its_callback() -> None:
    connection = server()
    connection.on_new_request = lambda recorder: recorder.stream.send_response(RESPONSE, True)
    frames = connection.say(f.headers(1, f.GET, True) + f.headers(3, f.GET, True))
    assert [(x.type, x.flags, x.stream_id) for x in frames] == [(f.HEADERS, 5, 1), (f.HEADERS, 5, 3)]
    assert connection.codec.active_streams == 0


def test_extended_connect_needs_the_peers_consent() -> None:
    head = RequestHead(b"CONNECT", b"https", b"a", b"/chat", protocol=b"websocket")
    connection = client()
    recorder = connection.request(head, False)
    assert recorder.events == [("reset", REFUSED, False, False)]
    connection = client(peer_settings={8: 1})
    assert connection.codec.peer_enables_connect_protocol
    assert connection.request(head, False).reset is None


def test_connect_tunnel_with_half_close() -> None:
    near, far = client(), server()
    recorder = near.request(RequestHead(b"CONNECT", b"", b"db:5432", b""), False)
    recorder.stream.send_data(b"hello", True)
    far.say(near.codec.take_output())
    tunnel = far.requests[0]
    assert (tunnel.head.method, tunnel.head.authority, tunnel.head.path) == (b"CONNECT", b"db:5432", b"")
    assert (tunnel.body, tunnel.ended) == (b"hello", True)
    tunnel.stream.send_response(RESPONSE, False)
    tunnel.stream.send_data(b"bye", True)
    near.say(far.codec.take_output())
    assert (recorder.body, recorder.ended) == (b"bye", True)
    assert near.codec.active_streams == far.codec.active_streams == 0
