"""Sizes that are too large, and floods: RFC 9113 section 10.5."""

from __future__ import annotations

import pytest

from sidecar.protocol.events import ErrorCode, RequestHead, ResponseHead
from tests.support import h2_frames as f
from tests.support.h2_frames import Connection, Frame, client, connection_error, server, stream_error

CALM = 11


def status_of(frame: Frame) -> bytes:
    peer = client()
    recorder = peer.request()
    peer.say(f.frame(frame.type, frame.flags, 1, frame.payload))
    assert isinstance(recorder.head, ResponseHead)
    return b"%d" % recorder.head.status


def test_too_large_request_is_answered_431_and_the_table_stays_right() -> None:
    connection = server(max_header_bytes=2000)
    big = f.block(f.GET) + b"\x40\x01a\x01b" + b"\0\x01x\x7f\xd1\x0e" + b"v" * 2000
    response, reset = connection.say(f.frame(f.HEADERS, f.END_HEADERS, 1, big))
    assert (response.type, response.flags, response.stream_id) == (f.HEADERS, 5, 1)
    assert status_of(response) == b"431"
    assert (reset.type, reset.code) == (f.RST_STREAM, 0)
    assert connection.say(f.data(1, b"late", True)) == []
    connection.say(f.frame(f.HEADERS, 5, 3, f.block(f.GET) + b"\xbe"))
    (recorder,) = connection.requests
    assert recorder.head.get(b"a") == b"b"
    assert connection.codec.active_streams == 1


def test_too_many_fields_are_answered_431() -> None:
    connection = server(max_header_count=10)
    assert connection.say(f.headers(1, [*f.GET, *[(b"a", b"%d" % i) for i in range(10)]], True)) == []
    (response,) = connection.say(f.headers(3, [*f.GET, *[(b"a", b"%d" % i) for i in range(11)]], True))
    assert status_of(response) == b"431"
    assert len(connection.requests) == 1


GRPC = (b"content-type", b"application/grpc")


@pytest.mark.parametrize(
    "extra",
    [
        [(b"x-large", b"v" * 2000), GRPC],
        [(b"x-large", b"v" * 1990), (b"x-b", b"2"), GRPC],
        [*((b"x-a", b"%d" % i) for i in range(10)), GRPC],
        [*((b"x-a", b"%d" % i) for i in range(30)), GRPC],
    ],
    ids=["size", "size reached late", "count", "count that is not decoded"],
)
@pytest.mark.parametrize("known", [False, True])
def test_too_large_grpc_metadata_is_a_grpc_status_wherever_the_content_type_stands(
    extra: list[tuple[bytes, bytes]], known: bool
) -> None:
    """`known`: the section begins with a part that is remembered."""
    connection = server(max_header_bytes=2000, max_header_count=10)
    ids = iter(range(1, 100, 2))
    for _ in range(3 if known else 0):
        connection.say(f.headers(next(ids), f.POST, True))
    (response,) = connection.say(f.headers(next(ids), [*f.POST, *extra], True))
    peer = client()
    recorder = peer.request()
    peer.say(f.frame(response.type, response.flags, 1, response.payload))
    assert (recorder.head.status, recorder.head.get(b"grpc-status")) == (200, b"8")


def test_requests_that_are_dear_to_refuse_end_the_connection_soon() -> None:
    """To decode one costs as much as to answer several others: 125 at a time, not a thousand."""
    connection = server()
    connection.say(f.frame(f.HEADERS, 5, 1, f.block(f.GET) + b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000))
    bombs = [f.frame(f.HEADERS, 5, i, f.block(f.GET) + b"\xbe" * 200) for i in range(3, 603, 2)]
    frames = connection.say(b"".join(bombs))
    assert (frames[-1].type, frames[-1].code) == (f.GOAWAY, CALM)
    assert 120 < sum(frame.type == f.HEADERS for frame in frames) <= 125


def test_limit_counts_32_octets_a_field() -> None:
    size = sum(len(n) + len(v) + 32 for n, v in f.GET) + 1 + 32
    for limit, answers in ((size, 0), (size - 1, 1)):
        connection = server(max_header_bytes=limit)
        assert len(connection.say(f.headers(1, [*f.GET, (b"a", b"")], True))) == answers


def test_limits_hold_for_repeated_blocks_too() -> None:
    connection = server(max_header_count=3)
    for stream_id in (1, 3, 5, 7):
        (response,) = connection.say(f.frame(f.HEADERS, 5, stream_id, f.block(f.GET) + b"\x90" * 4))
        assert status_of(response) == b"431"


@pytest.mark.parametrize("trailers", [False, True])
def test_too_large_response_is_told_to_the_handler(trailers: bool) -> None:
    connection = client(max_header_bytes=1000)
    recorder = connection.request()
    connection.take()
    fields = [(b"x", b"v" * 1000)]
    if trailers:
        connection.say(f.headers(1, f.OK))
    octets = f.headers(1, fields if trailers else [*f.OK, *fields], True)
    assert stream_error(connection, octets) == CALM
    assert recorder.reset is not None
    what = "trailers" if trailers else "response headers"
    assert recorder.reset.reason == f"{what} exceed 1000 bytes or 100 fields"


@pytest.mark.parametrize("trailers", [False, True])
@pytest.mark.parametrize(("count", "taken"), [(10, True), (11, False), (14, False), (40, False)])
def test_fields_of_responses_and_trailers_are_counted(trailers: bool, count: int, taken: bool) -> None:
    connection = client(max_header_count=10)
    recorder = connection.request()
    connection.take()
    fields = [(b"x-a", b"%d" % i) for i in range(count)]
    if trailers:
        connection.say(f.headers(1, f.OK))
    octets = f.headers(1, fields if trailers else [*f.OK, *fields], True)
    if taken:
        assert connection.say(octets) == []
        assert recorder.ended
    else:
        assert stream_error(connection, octets) == CALM
        assert recorder.reset is not None


def test_pieces_of_a_header_block_are_counted_by_the_block() -> None:
    connection = server()
    for stream_id in range(1, 801, 2):
        block = f.block(f.GET)
        octets = f.frame(f.HEADERS, f.END_STREAM, stream_id, block[:9])
        assert connection.say(octets + f.frame(f.CONTINUATION, f.END_HEADERS, stream_id, block[9:])) == []
    assert len(connection.requests) == 400


def test_header_bomb_ends_the_connection() -> None:
    connection = server()
    connection.say(f.frame(f.HEADERS, 5, 1, f.block(f.GET) + b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000))
    assert connection_error(connection, f.frame(f.HEADERS, 5, 3, b"\xbe" * 1000)) == CALM


def flood(connection: Connection, octets: bytes, times: int) -> int | None:
    """Feed the same octets in one read; the connection error's code if there was one."""
    frames = connection.say(octets * times)
    return frames[-1].code if frames and frames[-1].type == f.GOAWAY else None


FLOODS = {
    "PING": f.ping(),
    "SETTINGS": f.settings({4: 65535}),
    "SETTINGS ACK": f.frame(f.SETTINGS, f.ACK),
    "PRIORITY": f.priority(1),
    "unknown": f.frame(0xF0),
    "empty DATA": f.data(1, b""),
    "padding alone": f.padded(1, b"", 0),
    "WINDOW_UPDATE": f.window_update(1, 1),
    "late RST_STREAM": f.rst_stream(3, 8),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_end_the_connection(name: str) -> None:
    connection = server()
    connection.say(f.headers(1, f.POST) + f.headers(3, f.POST) + f.rst_stream(3, 8))
    assert flood(connection, FLOODS[name], 100) is None
    assert flood(connection, FLOODS[name], 2000) == CALM


def test_rapid_reset_ends_the_connection() -> None:
    connection = server(clock=Clock())
    octets = b"".join(f.headers(i, f.GET, True) + f.rst_stream(i, 8) for i in range(1, 2101, 2))
    assert connection_error(connection, octets) == CALM
    assert 990 < len(connection.requests) <= 1001  # each stream opened gives half a reset back


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def reset_paced(rate: int, age: float = 0.0, seconds: int = 60) -> int | None:
    """Every frame in a read of its own, `rate` requests a second, each reset `age` seconds later; the number
    of resets that were taken before the connection ended, or None."""
    clock = Clock()
    connection = server(clock=clock, max_concurrent_streams=100_000)
    late = int(age * rate)
    for n in range(rate * seconds):
        clock.time += 1 / rate
        connection.say(f.headers(2 * n + 1, f.GET, True))
        if n >= late:
            frames = connection.say(f.rst_stream(2 * (n - late) + 1, 8))
            if frames and frames[-1].type == f.GOAWAY:
                assert frames[-1].code == CALM
                return n - late
    return None


def test_rapid_reset_a_frame_at_a_time_ends_the_connection_too() -> None:
    taken = reset_paced(10_000)
    assert taken is not None
    assert 1000 <= taken <= 1020
    taken = reset_paced(200, seconds=12)
    assert taken is not None
    assert 1900 <= taken <= 2100


@pytest.mark.parametrize(("rate", "age"), [(90, 0.0), (500, 2.5)])
def test_requests_that_are_given_up_after_waiting_are_no_rapid_reset(rate: int, age: float) -> None:
    """An application that hangs: each of its callers' time-outs is a reset."""
    assert reset_paced(rate, age, 12) is None


def test_a_few_cancelled_requests_are_no_flood() -> None:
    connection = server()
    for i in range(1, 2001, 10):
        connection.say(f.headers(i, f.GET, True))
        connection.say(f.rst_stream(i, 8))
        connection.say(f.headers(i + 2, f.GET, True))
        connection.requests[-1].stream.send_response(ResponseHead(200), True)
    assert not connection.codec.should_close
    assert connection.codec.debt < 10


def test_pings_that_come_one_by_one_are_no_flood() -> None:
    connection = server()
    for _ in range(5000):
        assert len(connection.say(f.ping())) == 1


def test_responses_work_off_what_comes_between_requests() -> None:
    connection = server()
    for stream_id in range(1, 4001, 2):
        connection.say(f.ping() * 5 + f.headers(stream_id, f.GET, True))
        connection.requests[-1].stream.send_response(ResponseHead(200), True)
    assert not connection.codec.should_close


def test_frames_on_a_stream_that_was_reset_long_ago_are_no_error() -> None:
    connection = server()
    for stream_id in range(1, 4001, 2):
        connection.say(f.headers(stream_id, f.POST))
        connection.requests[-1].stream.reset(ErrorCode.CANCEL)
    connection.take()
    assert connection.say(f.data(1, b"late")) == []
    assert not connection.codec.should_close


def test_window_updates_that_answer_data_are_no_flood() -> None:
    connection = server()
    connection.say(f.headers(1, f.GET, True))
    stream = connection.requests[0].stream
    stream.send_response(ResponseHead(200), False)
    for _ in range(2000):
        for _ in range(3):
            assert stream.send_data(b"x" * 1000, False) == 1000
        connection.say((f.window_update(1, 1000) + f.window_update(0, 1000)) * 3)
    assert connection.codec.debt < 10


def test_refused_streams_without_end() -> None:
    connection = server(max_concurrent_streams=1)
    octets = b"".join(f.headers(i, f.GET, True) for i in range(1, 5001, 2))
    assert connection_error(connection, octets) == CALM


@pytest.mark.parametrize(
    "provoke",
    [f.window_update(1, 0), f.window_update(1, 2**31 - 1), f.data(1, b"x"), f.headers(1, f.GET, True)],
    ids=["window update of 0", "window overflow", "DATA after the end", "HEADERS after the end"],
)
def test_resets_that_the_client_provokes_count_as_its_own(provoke: bytes) -> None:
    """CVE-2025-8671."""
    connection = server(clock=Clock())
    octets = b"".join(
        f.headers(i, f.GET, True) + provoke[:5] + i.to_bytes(4, "big") + provoke[9:]
        for i in range(1, 3001, 2)
    )
    assert connection_error(connection, octets) == CALM
    assert 990 < len(connection.requests) <= 1001


def test_stream_errors_a_frame_at_a_time_end_the_connection_too() -> None:
    clock = Clock()
    connection = server(clock=clock)
    for i in range(1, 3001, 2):
        clock.time += 0.0001
        connection.say(f.headers(i, f.GET, True))
        frames = connection.say(f.window_update(i, 0))
        if frames[-1].type == f.GOAWAY:
            break
    assert frames[-1].code == CALM
    assert 1000 <= len(connection.requests) <= 1020


def test_a_few_stream_errors_between_responses_are_no_flood() -> None:
    connection = server()
    for i in range(1, 8001, 4):
        connection.say(f.headers(i, f.GET, True) + f.window_update(i, 0) + f.headers(i + 2, f.GET, True))
        connection.requests[-1].stream.send_response(ResponseHead(200), True)
    assert not connection.codec.should_close


def test_moving_many_windows_by_settings_costs_by_the_stream() -> None:
    connection = server()
    connection.say(b"".join(f.headers(i, f.GET, True) for i in range(1, 2001, 2)))
    changes = b"".join(b"\0\4" + (65535 + i % 2).to_bytes(4, "big") for i in range(40))
    assert connection_error(connection, f.frame(f.SETTINGS, 0, 0, changes)) == CALM


def test_one_change_of_settings_moves_a_thousand_windows() -> None:
    connection = server()
    connection.say(b"".join(f.headers(i, f.GET, True) for i in range(1, 2001, 2)))
    for _ in range(10):
        connection.say(f.settings({4: 100_000}))
    assert not connection.codec.should_close


@pytest.mark.parametrize("stream_id", [0, 1])
def test_windows_opened_byte_by_byte_under_waiting_data_are_a_flood(stream_id: int) -> None:
    connection = server(peer_settings={4: 0} if stream_id else {4: 2**20})
    connection.say(f.headers(1, f.GET, True))
    stream = connection.requests[0].stream
    stream.send_response(ResponseHead(200), False)
    stream.send_data(bytes(100_000), True)
    connection.take()
    assert flood(connection, f.window_update(stream_id, 1), 5000) == CALM


def test_small_windows_of_a_reader_that_takes_its_time_are_no_flood() -> None:
    connection = server(peer_settings={4: 0})
    connection.say(f.headers(1, f.GET, True))
    stream = connection.requests[0].stream
    stream.send_response(ResponseHead(200), False)
    stream.send_data(bytes(10_000), True)
    connection.take()
    for _ in range(5000):
        assert len(connection.say(f.window_update(1, 1))) == 1


def test_answers_that_are_never_read_end_the_connection() -> None:
    connection = server()
    connection.codec.pause_output()
    field = (b"x", b"v" * 10000)
    stream_id = 1
    while not connection.codec.should_close:
        connection.say(f.headers(stream_id, f.GET, True))
        connection.requests[-1].stream.send_response(ResponseHead(200, (field,)), True)
        stream_id += 2
    assert 150 < stream_id < 300


def test_a_reader_that_pauses_now_and_then_reads_its_answers() -> None:
    connection = server()
    field = (b"x", b"v" * 10000)
    for stream_id in range(1, 601, 2):
        connection.codec.pause_output()
        connection.say(f.headers(stream_id, f.GET, True))
        connection.requests[-1].stream.send_response(ResponseHead(200, (field,)), True)
        connection.codec.resume_output()
        connection.take()
    assert not connection.codec.should_close


def test_kept_bytes_never_exceed_what_the_window_let_in() -> None:
    source, sink = server(hold=True, initial_stream_window_size=30000), client(peer_settings={4: 0})
    source.say(f.headers(1, f.POST))
    upload = source.requests[0]
    forward = sink.request(RequestHead(b"POST", b"http", b"a", b"/"), False)
    sent = 0
    for _ in range(3):
        forward.stream.send_data(bytes(10000), False)
        source.say(f.data(1, bytes(10000)))
        sent += 10000
    assert forward.stream.kept_size == len(upload.body) == 30000
    assert stream_error(source, f.data(1, b"x")) == int(ErrorCode.FLOW_CONTROL_ERROR)
