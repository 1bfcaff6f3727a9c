"""What one turn of the event loop takes of an HTTP/1 read: other connections must not wait for all of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.protocol import h1_chunked
from sidecar.protocol.events import RequestHead, ResponseHead, Stream
from sidecar.protocol.h1 import H1ClientCodec, H1Options, H1ServerCodec
from tests.support.codec_events import ConnectionLog, Driver, StreamLog, turn

POST = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
GET = b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n"
UPGRADE = (
    b"GET /chat HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"1\r\nx\r\n"
LAST = b"0\r\n\r\n"
A_TURN = 1024


def server(answer=None) -> tuple[H1ServerCodec, ConnectionLog, Driver]:
    log = ConnectionLog(answer)
    codec = H1ServerCodec(log, H1Options())
    return codec, log, Driver(codec)


def client() -> tuple[H1ClientCodec, StreamLog, ConnectionLog, Driver]:
    connection, log = ConnectionLog(), StreamLog()
    codec = H1ClientCodec(connection, H1Options())
    driver = Driver(codec)
    codec.open_stream(log).send_request(RequestHead(b"GET", b"http", b"a", b"/"), True)
    codec.take_output()
    connection.take()
    return codec, log, connection, driver


def body(log: StreamLog | ConnectionLog) -> bytes:
    return b"".join(event[1] for event in log.events if event[0] == "data")


def settle(codec: H1ServerCodec | H1ClientCodec, driver: Driver) -> bytes:
    """Turns until nothing waits and nobody asks for one; what was written."""
    output = codec.take_output()
    while codec.behind or driver.wakes:
        driver.wakes = 0
        output += turn(codec)
    return output


def ok(stream: Stream, _: RequestHead | None = None) -> None:
    stream.send_response(ResponseHead(204), True)


def test_a_read_full_of_tiny_chunks_is_taken_over_several_turns() -> None:
    codec, log, _ = server()
    codec.receive(POST + CHUNK * 2500 + LAST)
    assert len(body(log)) == A_TURN
    assert codec.take_output() == b""
    assert len(body(log)) == A_TURN
    sizes = []
    while codec.behind:
        turn(codec)
        sizes.append(len(body(log)))
    assert sizes == [2 * A_TURN, 2500]
    assert log.events[-1] == ("data", b"x" * 2500, True)


def test_large_chunks_are_taken_at_once() -> None:
    codec, log, _ = server()
    codec.receive(POST + (b"400\r\n" + bytes(1024) + b"\r\n") * 60 + LAST)
    assert log.events[-1] == ("data", bytes(60 * 1024), True)
    assert not codec.behind


def test_chunks_with_extensions_count_as_well() -> None:
    codec, log, driver = server()
    codec.receive(POST + b"1;a\r\nx\r\n" * 1500 + LAST)
    assert len(body(log)) == A_TURN
    settle(codec, driver)
    assert log.events[-1] == ("data", b"x" * 1500, True)


def test_reading_stops_while_much_waits() -> None:
    codec, log, driver = server()
    codec.receive(POST + CHUNK * 20_000)
    assert driver.paused
    log.logs[0].on_data = lambda data, end: log.streams[0].consume(len(data))  # type: ignore[method-assign]
    settle(codec, driver)
    assert driver.pauses == [True, False]


def test_what_comes_meanwhile_has_its_turn_behind_it() -> None:
    codec, log, driver = server(lambda stream, head: ok(stream) if head.path == b"/next" else None)
    codec.receive(POST + CHUNK * 1100)
    codec.receive(b"2\r\nyz\r\n" + LAST + GET)
    assert len(body(log)) == A_TURN
    settle(codec, driver)
    assert log.events[-1] == ("data", b"x" * 1100 + b"yz", True)
    ok(log.streams[0])
    assert log.heads[-1].path == b"/next"
    assert settle(codec, driver).count(b" 204 ") == 2


def test_the_end_of_the_connection_waits_for_the_chunks_before_it() -> None:
    codec, log, driver = server()
    codec.receive(POST + CHUNK * 2500 + LAST)
    codec.receive_eof()
    assert [event[0] for event in log.events] == ["request", "data"]
    settle(codec, driver)
    assert log.events[-1] == ("data", b"x" * 2500, True)
    assert not codec.should_close
    ok(log.streams[0])
    assert b" 204 " in codec.take_output()
    assert codec.should_close


def test_a_body_that_the_end_of_the_connection_cuts_is_no_whole_one() -> None:
    codec, log, driver = server()
    codec.receive(POST + CHUNK * 2500)
    codec.receive_eof()
    settle(codec, driver)
    assert log.events[-2:] == [
        ("data", b"x" * 2500, False),
        ("reset", "connection closed in mid-request", True, True),
    ]
    assert codec.should_close


def test_a_bad_chunk_in_a_later_turn_is_refused() -> None:
    codec, log, driver = server()
    codec.receive(POST + CHUNK * 2500 + b"x\r\n")
    assert not codec.should_close
    assert settle(codec, driver).startswith(b"HTTP/1.1 400 ")
    assert codec.should_close
    assert log.events[-1][:2] == ("reset", "invalid chunk size")


def test_reading_goes_on_for_a_head_that_follows_a_body_of_several_turns() -> None:
    codec, log, driver = server()
    head = b"GET /next HTTP/1.1\r\nhost: a\r\nx-large: "
    codec.receive(POST + CHUNK * 5500 + LAST + head + b"v" * 40_000)
    assert driver.paused
    ok(log.streams[0])
    settle(codec, driver)
    assert not driver.paused
    codec.receive(b"\r\n\r\n")
    assert log.heads[-1].path == b"/next"


def test_trailers_in_a_later_turn() -> None:
    codec, log, driver = server()
    codec.receive(POST + CHUNK * 2500 + b"0\r\nx-sum: 1\r\n\r\n")
    settle(codec, driver)
    assert log.events[-2:] == [("data", b"x" * 2500, False), ("trailers", ((b"x-sum", b"1"),))]


def test_a_small_rest_that_nobody_wants_is_read_over_several_turns() -> None:
    codec, log, driver = server()
    codec.receive(POST + CHUNK * 2500 + LAST + GET)
    ok(log.streams[0])
    settle(codec, driver)
    assert [head.path for head in log.heads] == [b"/", b"/next"]
    assert not codec.should_close


def test_a_connection_that_is_lost_says_so_to_the_stream_that_waits() -> None:
    codec, log, _ = server()
    codec.receive(POST + CHUNK * 2500)
    codec.connection_lost("reset by peer")
    assert log.events[-2:] == [("reset", "reset by peer", True, False), ("closed", "reset by peer")]
    assert codec.take_output() == b""
    assert len(body(log)) == A_TURN


def test_a_tunnel_that_is_granted_in_a_later_turn_has_what_was_sent_ahead() -> None:
    def answer(stream: Stream, head: RequestHead) -> None:
        stream.send_response(ResponseHead(200 if head.protocol else 204), not head.protocol)

    codec, log, driver = server(answer)
    codec.receive(GET * 40 + UPGRADE + b"ahead")
    output = settle(codec, driver)
    assert output.count(b" 204 ") == 40
    assert b" 101 " in output
    assert log.events[-1] == ("data", b"ahead", False)


def test_a_response_of_tiny_chunks_is_taken_over_several_turns() -> None:
    codec, log, connection, driver = client()
    codec.receive(CHUNKED + CHUNK * 2500 + LAST)
    assert len(body(log)) == A_TURN
    assert codec.available == 0
    settle(codec, driver)
    assert log.events[-1] == ("data", b"x" * 2500, True)
    assert connection.events == [("capacity",)]
    assert codec.available == 1


def test_the_connection_is_used_again_in_the_turn_in_which_a_response_ends() -> None:
    codec, _, connection, driver = client()
    following = StreamLog()

    def on_capacity() -> None:
        if not following.events:
            codec.open_stream(following).send_request(RequestHead(b"GET", b"http", b"a", b"/next"), True)

    connection.on_capacity = on_capacity  # type: ignore[method-assign]
    codec.receive(CHUNKED + CHUNK * 2500 + LAST)
    assert settle(codec, driver) == b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n"
    codec.receive(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert following.events == [("response", 204, (), True)]
    assert codec.error == ""


def test_a_connection_that_the_server_has_ended_is_not_used_again() -> None:
    codec, log, connection, driver = client()
    codec.receive(CHUNKED + CHUNK * 2500 + LAST)
    codec.receive_eof()
    assert codec.available == 0
    settle(codec, driver)
    assert log.events[-1] == ("data", b"x" * 2500, True)
    assert ("capacity",) not in connection.events
    assert codec.should_close


def test_a_request_that_the_end_of_the_connection_overtakes_is_not_written() -> None:
    """It is reported as never sent, so that it goes to another server."""
    codec, _, _, _ = client()
    codec.receive(b"HTTP/1.1 204 No Content\r\n\r\n")
    again = StreamLog()
    codec.open_stream(again).send_request(RequestHead(b"GET", b"http", b"a", b"/"), True)
    codec.receive_eof()
    assert again.events == [("reset", "connection closed before the request left", False, False)]
    assert codec.take_output() == b""


def test_a_server_that_closes_behind_its_last_chunk_has_answered() -> None:
    codec, log, _, driver = client()
    codec.receive(CHUNKED + CHUNK * 1100)
    codec.receive(CHUNK * 1400 + LAST)
    codec.receive_eof()
    settle(codec, driver)
    assert log.events[-1] == ("data", b"x" * 2500, True)
    assert codec.should_close


def test_a_response_that_is_cut_behind_many_chunks_is_no_whole_one() -> None:
    codec, log, _, driver = client()
    codec.receive(CHUNKED + CHUNK * 2500)
    codec.receive_eof()
    settle(codec, driver)
    assert log.events[-2:] == [
        ("data", b"x" * 2500, False),
        ("reset", "connection closed in mid-response", True, True),
    ]


# --- the same whatever a turn takes

_CHUNKS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=20).map(lambda data: b"%x\r\n%b\r\n" % (len(data), data)),
        st.binary(min_size=1, max_size=20).map(lambda data: b"%X ;e=1\r\n%b\r\n" % (len(data), data)),
        st.sampled_from([b"00001\r\nx\r\n", b"1\r\nx\n", b"1\r\nx\r\r\n", b"2\r\nx\r\n", b"g\r\n", b"\r\n"]),
    ),
    max_size=12,
).map(b"".join)
_ENDS = st.sampled_from([LAST, b"0\r\nx-sum: 1\r\n\r\n", b"0;e\r\n\r\n", b"000\r\n\r\n", b"", b"0\r\n"])


def events_of(data: bytes, cuts: list[int], a_turn: int, eof: bool, early: bool) -> tuple[list, bytes, bool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h1_chunked, "CHUNKS_A_TURN", a_turn)

        def answer(stream: Stream, head: RequestHead) -> None:
            if early or head.path == b"/next":
                ok(stream)

        codec, log, driver = server(answer)
        output = b""
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for start, end in pairwise(edges):
            codec.receive(data[start:end])
        if eof:
            codec.receive_eof()
        output += settle(codec, driver)
        events = [event for event in log.events if not (event[0] == "data" and log.events[-1][0] == "reset")]
        return events, output, codec.should_close


@settings(deadline=None, max_examples=300)
@given(
    _CHUNKS, _ENDS, st.lists(st.integers(0, 400), max_size=4), st.integers(1, 4), st.booleans(), st.booleans()
)
def test_a_body_is_the_same_however_little_a_turn_takes(
    chunks: bytes, end: bytes, cuts: list[int], a_turn: int, eof: bool, early: bool
) -> None:
    data = POST + chunks + end + GET
    assert events_of(data, cuts, a_turn, eof, early) == events_of(data, [], 1024, eof, early)
