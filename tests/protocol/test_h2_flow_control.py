"""Flow control both ways and SETTINGS in flight: RFC 9113 sections 5.2, 6.5, 6.9."""

from __future__ import annotations

import pytest

from sidecar.protocol.events import BULK, ErrorCode, RequestHead, ResponseHead
from tests.support import h2_frames as f
from tests.support.h2_frames import (
    Connection,
    Frame,
    Recorder,
    client,
    connection_error,
    server,
    stream_error,
)

PROTOCOL_ERROR, FLOW_CONTROL, FRAME_SIZE = 1, 3, 6


def responding(connection: Connection, *stream_ids: int) -> list[Recorder]:
    """Requests whose response heads are sent."""
    for stream_id in stream_ids:
        connection.say(f.headers(stream_id, f.GET, True))
        connection.requests[-1].stream.send_response(ResponseHead(200), False)
    connection.take()
    return connection.requests


def sizes(frames: list[Frame]) -> list[tuple[int, int]]:
    return [(x.stream_id, len(x.payload)) for x in frames if x.type == f.DATA]


def test_data_waits_for_the_streams_window() -> None:
    connection = server(peer_settings={4: 10})
    (recorder,) = responding(connection, 1)
    assert recorder.stream.send_data(b"x" * 25, True) == 10
    assert sizes(connection.take()) == [(1, 10)]
    assert recorder.stream.kept_size == 15
    assert sizes(connection.say(f.window_update(1, 4))) == [(1, 4)]
    assert recorder.sent == 4
    (last,) = connection.say(f.window_update(1, 400))
    assert (last.flags, len(last.payload)) == (f.END_STREAM, 11)
    assert recorder.sent == 15
    assert connection.codec.active_streams == 0


def test_data_waits_for_the_connections_window() -> None:
    connection = server(peer_settings={4: 2**31 - 1})
    first, second = responding(connection, 1, 3)
    assert first.stream.send_data(b"x" * 65000, False) == 65000
    assert second.stream.send_data(b"y" * 1000, True) == 535
    connection.take()
    assert sizes(connection.say(f.window_update(0, 100000))) == [(3, 465)]


def test_small_pieces_use_up_the_connections_window() -> None:
    connection = server(peer_settings={4: 2**20})
    (recorder,) = responding(connection, 1)
    assert [recorder.stream.send_data(bytes(16000), False) for _ in range(5)] == [*[16000] * 4, 1535]


def test_a_stream_has_the_window_that_the_peer_allows_when_it_gets_its_id() -> None:
    connection = client()
    recorder = Recorder()
    stream = recorder.stream = connection.codec.open_stream(recorder)
    connection.say(f.settings({4: 10}))
    stream.send_request(RequestHead(b"POST", b"http", b"a", b"/"), False)
    assert stream.send_data(bytes(25), True) == 10


def test_an_ended_message_needs_no_more_credit() -> None:
    connection = server(hold=True)
    connection.say(f.headers(1, f.POST) + f.data(1, bytes(16384)) * 2)
    stream = connection.requests[0].stream
    assert connection.say(f.data(1, bytes(16384), True)) == []
    stream.consume(3 * 16384)
    assert connection.take() == []


def test_large_output_is_taken_in_parts_and_in_order() -> None:
    connection = server(peer_settings={4: 2**20})
    connection.say(f.window_update(0, 2**20))
    (recorder,) = responding(connection, 1)
    body = bytes(range(250)) * 3600
    for start in range(0, len(body), 10_000):
        recorder.stream.send_data(body[start : start + 10_000], start + 10_000 == len(body))
    parts = list(iter(connection.codec.take_output, b""))
    assert len(parts) > 3
    assert all(len(part) < BULK + 16384 + 9 for part in parts)
    assert all(len(part) >= BULK for part in parts[:-1])
    assert b"".join(frame.payload for frame in f.parse(b"".join(parts))) == body


def test_a_stalled_stream_never_blocks_another() -> None:
    connection = server(peer_settings={4: 100})
    stalled, other = responding(connection, 1, 3)
    assert stalled.stream.send_data(b"x" * 1000, True) == 100
    assert other.stream.send_data(b"y" * 100, True) == 100
    assert sizes(connection.take()) == [(1, 100), (3, 100)]


def test_kept_bytes_take_turns_in_pieces() -> None:
    connection = server(peer_settings={4: 10**6, 5: 65536})
    first, second = responding(connection, 1, 3)
    connection.codec.pause_output()
    assert first.stream.send_data(b"x" * 40000, True) == 0
    assert second.stream.send_data(b"y" * 20000, False) == 0
    second.stream.send_trailers(((b"t", b"1"),))
    assert connection.take() == []
    connection.codec.resume_output()
    frames = connection.take()
    assert sizes(frames) == [(1, 16384), (3, 16384), (1, 16384), (3, 3616), (1, 7232)]
    assert [(x.stream_id, x.type) for x in frames if x.flags & f.END_STREAM] == [(3, f.HEADERS), (1, f.DATA)]
    assert (first.sent, second.sent) == (40000, 20000)


def test_kept_bytes_leave_as_fast_as_they_are_taken() -> None:
    """Else one WINDOW_UPDATE would move all that many streams keep to a transport that may not be read."""
    connection = server(peer_settings={4: 0})
    recorders = responding(connection, *range(1, 201, 2))
    for recorder in recorders:
        assert recorder.stream.send_data(bytes(65536), True) == 0
    codec = connection.codec
    codec.receive(f.settings({4: 65536}) + f.window_update(0, 2**30))
    assert BULK <= sum(recorder.sent for recorder in recorders) < BULK + 16384
    assert len(codec.take_output()) >= BULK
    codec.pause_output()
    written = len(b"".join(iter(codec.take_output, b"")))
    assert written < BULK + 2 * 16384
    assert sum(recorder.sent for recorder in recorders) < 2 * (BULK + 16384)
    codec.resume_output()
    parts = data = 0
    while connection.outputs or data >= BULK:  # as the driver does
        connection.outputs = 0
        data = len(codec.take_output())
        parts += 1
    assert parts > 25
    assert [recorder.sent for recorder in recorders] == [65536] * 100
    assert codec.active_streams == 0


def test_small_increments_of_a_wide_window_are_no_tiny_windows_while_output_waits() -> None:
    connection = server(peer_settings={4: 0})
    for recorder in responding(connection, *range(1, 21, 2)):
        recorder.stream.send_data(bytes(65536), True)
    wide = f.settings({4: 65536}) + f.window_update(0, 2**20)
    connection.codec.receive(wide + f.window_update(0, 1) * 300)
    assert not connection.codec.failed
    assert sum(size for _, size in sizes(connection.take())) == 10 * 65536


def test_headers_and_answers_flow_while_output_is_paused() -> None:
    connection = server()
    (recorder,) = responding(connection, 1)
    connection.codec.pause_output()
    assert recorder.stream.send_data(b"x", False) == 0
    assert [x.type for x in connection.say(f.ping())] == [f.PING]
    recorder.stream.reset(ErrorCode.CANCEL)
    assert [x.type for x in connection.take()] == [f.RST_STREAM]


def test_large_data_is_cut_to_the_peers_frame_size() -> None:
    connection = server(peer_settings={4: 10**6})
    (recorder,) = responding(connection, 1)
    assert recorder.stream.send_data(b"x" * 40000, True) == 40000
    assert sizes(connection.take()) == [(1, 16384), (1, 16384), (1, 7232)]
    connection.say(f.settings({5: 100000}))
    (recorder,) = responding(connection, 3)[1:]
    assert recorder.stream.send_data(b"x" * 20000, True) == 20000
    assert sizes(connection.take()) == [(3, 20000)]


def test_empty_end_of_stream_needs_no_window() -> None:
    connection = server(peer_settings={4: 0})
    (recorder,) = responding(connection, 1)
    connection.codec.pause_output()
    assert recorder.stream.send_data(b"", True) == 0
    assert connection.take() == [Frame(f.DATA, f.END_STREAM, 1, b"")]


def test_initial_window_of_the_peer_may_become_negative() -> None:
    connection = server()
    (recorder,) = responding(connection, 1)
    assert recorder.stream.send_data(b"x" * 1000, False) == 1000
    connection.take()
    assert connection.say(f.settings({4: 400})) == [Frame(f.SETTINGS, f.ACK, 0, b"")]
    assert recorder.stream.send_window == -600
    assert recorder.stream.send_data(b"y" * 10, False) == 0
    assert connection.say(f.window_update(1, 600)) == []
    assert sizes(connection.say(f.window_update(1, 3))) == [(1, 3)]
    assert sizes(connection.say(f.settings({4: 500}))) == [(1, 7)]


def test_window_overflows() -> None:
    connection = server()
    responding(connection, 1)
    assert stream_error(connection, f.window_update(1, 2**31 - 1)) == FLOW_CONTROL
    responding(connection, 3)
    assert stream_error(connection, f.window_update(3, 0)) == PROTOCOL_ERROR
    responding(connection, 5)
    connection.say(f.window_update(5, 1000))
    assert connection_error(connection, f.settings({4: 2**31 - 1})) == FLOW_CONTROL


SETTINGS_ERRORS = [
    ({2: 2}, PROTOCOL_ERROR),
    ({4: 2**31}, FLOW_CONTROL),
    ({5: 16383}, PROTOCOL_ERROR),
    ({5: 2**24}, PROTOCOL_ERROR),
    ({8: 2}, PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("values", "code"), SETTINGS_ERRORS)
def test_settings_out_of_range(values: dict[int, int], code: int) -> None:
    for connection in (server(), client()):
        assert connection_error(connection, f.settings(values)) == code


def test_settings_that_only_one_side_may_send() -> None:
    assert connection_error(client(), f.settings({2: 1})) == PROTOCOL_ERROR
    assert server().say(f.settings({2: 1, 99: 5})) == [Frame(f.SETTINGS, f.ACK, 0, b"")]
    connection = client(peer_settings={8: 1})
    assert connection_error(connection, f.settings({8: 0})) == PROTOCOL_ERROR


def test_connection_credit_returns_on_receipt_and_stream_credit_on_consume() -> None:
    connection = server(hold=True, initial_stream_window_size=100000, initial_connection_window_size=100000)
    connection.say(f.headers(1, f.POST))
    frames = [x for _ in range(4) for x in connection.say(f.data(1, bytes(16384)))]
    assert frames == [Frame(f.WINDOW_UPDATE, 0, 0, (65536).to_bytes(4, "big"))]
    stream = connection.requests[0].stream
    stream.consume(30000)
    assert connection.take() == []
    stream.consume(20000)
    assert connection.take() == [Frame(f.WINDOW_UPDATE, 0, 1, (50000).to_bytes(4, "big"))]


def test_peer_beyond_the_streams_window() -> None:
    connection = server(hold=True, initial_stream_window_size=65535)
    connection.say(f.headers(1, f.POST))
    for _ in range(3):
        connection.say(f.data(1, bytes(16384)))
    connection.say(f.data(1, bytes(16383)))
    assert stream_error(connection, f.data(1, b"x")) == FLOW_CONTROL
    assert len(connection.requests[0].body) == 65535


def test_peer_beyond_the_connections_window() -> None:
    connection = server(hold=True)
    connection.codec.receive_window = 10
    connection.say(f.headers(1, f.POST))
    assert connection_error(connection, f.data(1, bytes(11))) == FLOW_CONTROL


def test_small_window_counts_from_its_acknowledgement() -> None:
    connection = Connection(False, hold=True, initial_stream_window_size=100)
    connection.codec.start()
    connection.say(f.PREFACE + f.settings() + f.headers(1, f.POST) + f.data(1, bytes(1000)))
    assert len(connection.requests[0].body) == 1000
    connection.say(f.frame(f.SETTINGS, f.ACK) + f.headers(3, f.POST))
    assert connection.requests[0].stream.receive_window == 100 - 1000
    assert stream_error(connection, f.data(3, bytes(101))) == FLOW_CONTROL
    assert connection.say(f.data(1, b"")) == []
    assert stream_error(connection, f.data(1, b"x")) == FLOW_CONTROL


def test_padding_counts_and_is_given_back() -> None:
    connection = server(hold=True, initial_stream_window_size=65535)
    connection.say(f.headers(1, f.POST))
    stream = connection.requests[0].stream
    connection.say(f.padded(1, b"abc", 200))
    assert connection.requests[0].body == b"abc"
    assert stream.receive_window == 65535 - 204
    assert stream.unreturned == 201
    updates = [x for _ in range(300) for x in connection.say(f.padded(1, b"", 255)) if x.stream_id == 1]
    assert sum(int.from_bytes(x.payload, "big") for x in updates) >= 300 * 256 + 201 - 65535 // 2


def test_data_on_a_discarded_stream_still_counts_for_the_connection() -> None:
    connection = server()
    connection.say(f.headers(1, f.POST))
    connection.requests[0].stream.reset(ErrorCode.CANCEL)
    before = connection.codec.receive_window
    connection.say(f.data(1, bytes(5000)))
    assert connection.codec.receive_window == before - 5000


def test_many_small_pieces_are_kept_compactly() -> None:
    connection = server(peer_settings={4: 0})
    (recorder,) = responding(connection, 1)
    for _ in range(5000):
        recorder.stream.send_data(b"x", False)
    assert len(recorder.stream._kept) == 1
    recorder.stream.send_data(b"", True)
    frames = connection.say(f.window_update(1, 2000) + f.window_update(1, 4000))
    assert sizes(frames) == [(1, 2000), (1, 3000)]
    assert frames[-1].flags == f.END_STREAM


def test_a_sent_piece_may_make_its_source_send_more() -> None:
    connection = server(peer_settings={4: 10})
    (recorder,) = responding(connection, 1)
    stream = recorder.stream
    stream.send_data(b"a" * 20, False)
    recorder.on_sent = lambda n: stream.send_data(b"b" * n, False)  # type: ignore[method-assign]
    connection.take()
    frames = connection.say(f.window_update(1, 15))
    assert b"".join(x.payload for x in frames) == b"a" * 10 + b"b" * 5
    assert stream.send_window == 0
