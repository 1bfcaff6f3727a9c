"""Frame layout, sizes and order: RFC 9113 sections 3.4, 4, and the fixed parts of section 6."""

from __future__ import annotations

import pytest

from sidecar.protocol.events import RequestHead, ResponseHead
from tests.support import h2_frames as f
from tests.support.h2_frames import client, connection_error, server, stream_error

PROTOCOL_ERROR, FLOW_CONTROL, STREAM_CLOSED, FRAME_SIZE = 1, 3, 5, 6
COMPRESSION, CALM = 9, 11


def test_server_says_settings_and_window_first() -> None:
    connection = f.Connection(False, initial_stream_window_size=70000, max_concurrent_streams=7)
    connection.codec.start()
    first, update = connection.take()
    assert (first.type, first.flags, first.stream_id) == (f.SETTINGS, 0, 0)
    values = {
        first.payload[i + 1]: int.from_bytes(first.payload[i + 2 : i + 6], "big") for i in range(0, 24, 6)
    }
    assert values == {3: 7, 4: 70000, 5: 16384, 6: 65536}
    assert update == f.Frame(f.WINDOW_UPDATE, 0, 0, (1048576 - 65535).to_bytes(4, "big"))


def test_client_says_preface_and_refuses_push() -> None:
    connection = f.Connection(True)
    connection.codec.start()
    output = connection.codec.take_output()
    assert output.startswith(f.PREFACE)
    assert b"\0\2\0\0\0\0" in f.parse(output.removeprefix(f.PREFACE))[0].payload


@pytest.mark.parametrize("wrong", [b"GET / HTTP/1.1\r\n\r\n", f.PREFACE[:-1] + b"x", b"P" + b"\0" * 30])
def test_wrong_preface_ends_the_connection(wrong: bytes) -> None:
    connection = f.Connection(False)
    connection.codec.start()
    connection.take()
    assert connection_error(connection, wrong) == PROTOCOL_ERROR


def test_everything_works_octet_by_octet() -> None:
    connection = f.Connection(False)
    connection.codec.start()
    octets = f.PREFACE + f.settings() + f.headers(1, f.POST) + f.data(1, b"abc") + f.data(1, b"def", True)
    for octet in octets:
        connection.say(bytes((octet,)))
    assert connection.requests[0].body == b"abcdef"
    assert connection.requests[0].ended


@pytest.mark.parametrize("first", [f.ping(), f.headers(1, f.GET, True), f.frame(f.SETTINGS, f.ACK)])
def test_first_frame_must_be_settings(first: bytes) -> None:
    for is_client in (False, True):
        connection = f.Connection(is_client)
        connection.codec.start()
        connection.take()
        assert connection_error(connection, (b"" if is_client else f.PREFACE) + first) == PROTOCOL_ERROR


SIZES = {
    "too large frame": (f.frame(f.DATA, 0, 1, bytes(16385)), FRAME_SIZE),
    "too large unknown frame": (f.frame(99, 0, 0, bytes(16385)), FRAME_SIZE),
    "short RST_STREAM": (f.frame(f.RST_STREAM, 0, 1, b"\0\0\0"), FRAME_SIZE),
    "RST_STREAM on 0": (f.frame(f.RST_STREAM, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "RST_STREAM on idle": (f.rst_stream(9, 8), PROTOCOL_ERROR),
    "short PING": (f.frame(f.PING, 0, 0, bytes(7)), FRAME_SIZE),
    "PING on a stream": (f.frame(f.PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "SETTINGS of 5": (f.frame(f.SETTINGS, 0, 0, bytes(5)), FRAME_SIZE),
    "SETTINGS ACK with payload": (f.frame(f.SETTINGS, f.ACK, 0, bytes(6)), FRAME_SIZE),
    "SETTINGS on a stream": (f.frame(f.SETTINGS, 0, 1), PROTOCOL_ERROR),
    "GOAWAY on a stream": (f.frame(f.GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "short GOAWAY": (f.frame(f.GOAWAY, 0, 0, bytes(7)), FRAME_SIZE),
    "short WINDOW_UPDATE": (f.frame(f.WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE),
    "long WINDOW_UPDATE": (f.frame(f.WINDOW_UPDATE, 0, 1, bytes(5)), FRAME_SIZE),
    "WINDOW_UPDATE 0": (f.window_update(0, 0), PROTOCOL_ERROR),
    "WINDOW_UPDATE on idle": (f.window_update(9, 1), PROTOCOL_ERROR),
    "WINDOW_UPDATE overflow": (f.window_update(0, 2**31 - 1), FLOW_CONTROL),
    "DATA on 0": (f.data(0, b"x"), PROTOCOL_ERROR),
    "DATA on idle": (f.data(9, b"x"), PROTOCOL_ERROR),
    "HEADERS on 0": (f.headers(0, f.GET), PROTOCOL_ERROR),
    "HEADERS on even": (f.headers(2, f.GET), PROTOCOL_ERROR),
    "PRIORITY on 0": (f.priority(0), PROTOCOL_ERROR),
    "short PRIORITY on idle": (f.priority(9, bytes(4)), FRAME_SIZE),
    "PUSH_PROMISE": (f.frame(f.PUSH_PROMISE, 4, 1, bytes(4)), PROTOCOL_ERROR),
    "CONTINUATION alone": (f.frame(f.CONTINUATION, 4, 1, b""), PROTOCOL_ERROR),
    "padding as long as DATA": (f.frame(f.DATA, f.PADDED, 1, b"\x04abc"), PROTOCOL_ERROR),
    "padded DATA without length": (f.frame(f.DATA, f.PADDED, 1), FRAME_SIZE),
    "padding too long in HEADERS": (f.frame(f.HEADERS, 12, 3, b"\x09abc"), PROTOCOL_ERROR),
    "padding into the priority": (f.frame(f.HEADERS, 44, 3, b"\x03" + bytes(5)), PROTOCOL_ERROR),
    "padded HEADERS too short for priority": (f.frame(f.HEADERS, 44, 3, b"\x03" + bytes(4)), FRAME_SIZE),
    "HEADERS too short for priority": (f.frame(f.HEADERS, 36, 3, b"abc"), FRAME_SIZE),
    "broken header block": (f.frame(f.HEADERS, 5, 3, b"\xff\xff"), COMPRESSION),
    "index out of table": (f.frame(f.HEADERS, 5, 3, b"\xfe"), COMPRESSION),
}


@pytest.mark.parametrize("name", SIZES)
def test_connection_errors_of_a_server(name: str) -> None:
    octets, code = SIZES[name]
    connection = server()
    connection.say(f.headers(1, f.POST))
    other = server()
    assert connection_error(connection, octets) == code
    assert connection.requests[0].events[-1] == ("reset", code, True, False)
    assert other.say(f.ping()) == [f.Frame(f.PING, f.ACK, 0, b"12345678")]


@pytest.mark.parametrize("name", [name for name in SIZES if "HEADERS on even" not in name])
def test_connection_errors_of_a_client(name: str) -> None:
    octets, code = SIZES[name]
    connection = client()
    recorder = connection.request()
    connection.take()
    connection.say(f.headers(1, f.OK))
    if b"\0\0\0\3" in octets[5:9]:  # stream 3 is idle for a client, but the errors of layout come first
        connection.request()
        connection.take()
    assert connection_error(connection, octets) == code
    assert recorder.reset is not None
    assert connection.events[-1] == "goaway"
    assert connection.codec.available == 0


def test_nothing_is_read_after_a_connection_error() -> None:
    connection = server()
    connection_error(connection, f.data(0, b"x") + f.headers(1, f.GET, True))
    assert connection.say(f.headers(1, f.GET, True)) == []
    assert connection.requests == []


def test_reserved_bits_are_ignored() -> None:
    connection = server()
    octets = bytearray(f.headers(1, f.GET, True))
    octets[5] |= 0x80
    connection.say(bytes(octets))
    assert connection.requests[0].stream.id == 1
    assert connection.say(f.frame(f.WINDOW_UPDATE, 0, 0, b"\x80\0\0\1")) == []


def test_unknown_frames_and_flags_are_ignored() -> None:
    connection = server()
    assert connection.say(f.frame(0xBE, 0xFF, 77, b"whatever") + f.priority(1) + f.priority(99)) == []
    assert connection.say(f.frame(f.HEADERS, f.END_STREAM | f.END_HEADERS | 0x42, 1, f.block(f.GET))) == []
    assert len(connection.requests) == 1


def test_ping_is_answered_and_its_answer_is_not() -> None:
    connection = server()
    assert connection.say(f.ping(b"abcdefgh")) == [f.Frame(f.PING, f.ACK, 0, b"abcdefgh")]
    assert connection.say(f.ping(b"abcdefgh", f.ACK)) == []


def test_header_block_in_pieces() -> None:
    connection = server()
    octets = f.block([*f.GET, (b"x-long", b"v" * 1000)])
    pieces = [octets[:3], b"", octets[3:500], octets[500:]]
    connection.say(f.frame(f.HEADERS, f.END_STREAM | f.PADDED, 1, b"\2" + pieces[0] + b"\0\0"))
    for piece in pieces[1:-1]:
        connection.say(f.frame(f.CONTINUATION, 0, 1, piece))
    assert connection.requests == []
    connection.say(f.frame(f.CONTINUATION, f.END_HEADERS, 1, pieces[-1]))
    assert connection.requests[0].head.get(b"x-long") == b"v" * 1000
    assert connection.requests[0].ended


@pytest.mark.parametrize(
    "between", [f.ping(), f.frame(0xBE), f.headers(1, f.GET), f.frame(f.CONTINUATION, 4, 3), f.data(1, b"")]
)
def test_nothing_interrupts_a_header_block(between: bytes) -> None:
    connection = server()
    connection.say(f.frame(f.HEADERS, 0, 1, f.block(f.GET)))
    assert connection_error(connection, between) == PROTOCOL_ERROR


def test_header_block_without_end_is_cut_off() -> None:
    connection = server()
    connection.say(f.frame(f.HEADERS, 0, 1, b"\x82" * 16384))
    octets = f.frame(f.CONTINUATION, 0, 1, b"\x82" * 16384)
    codes = [frame.code for _ in range(12) for frame in connection.say(octets) if frame.type == f.GOAWAY]
    assert codes == [CALM]


def test_empty_continuations_without_end_are_cut_off() -> None:
    connection = server()
    connection.say(f.frame(f.HEADERS, 0, 1, b""))
    assert connection_error(connection, f.frame(f.CONTINUATION, 0, 1, b"") * 100) == CALM


def test_priority_of_wrong_length_is_a_stream_error() -> None:
    connection = server()
    connection.say(f.headers(1, f.POST))
    assert stream_error(connection, f.priority(1, bytes(4))) == FRAME_SIZE


def test_priority_in_headers_is_skipped() -> None:
    connection = server()
    connection.say(
        f.frame(f.HEADERS, f.END_HEADERS | f.PRIORITY_FLAG | 1, 1, b"\0\0\0\0\x0f" + f.block(f.GET))
    )
    assert connection.requests[0].head.path == b"/"


def test_large_header_sections_are_sent_in_pieces() -> None:
    connection = client()
    connection.request(RequestHead(b"GET", b"http", b"a", b"/", ((b"x", b"v" * 40000),)))
    frames = connection.take()
    assert [(x.type, x.flags) for x in frames] == [(f.HEADERS, 1), (f.CONTINUATION, 0), (f.CONTINUATION, 4)]
    assert all(len(x.payload) <= 16384 for x in frames)
    other = server()
    other.say(b"".join(f.frame(x.type, x.flags, x.stream_id, x.payload) for x in frames))
    assert other.requests[0].head.get(b"x") == b"v" * 40000


def test_on_output_is_called_once_until_output_is_taken() -> None:
    connection = server()
    connection.say(f.headers(1, f.GET, True))
    connection.requests[0].stream.send_response(ResponseHead(200), False)
    connection.requests[0].stream.send_data(b"x", True)
    assert connection.outputs == 2  # start() and this
    connection.take()
    connection.codec.drain(False)
    assert connection.outputs == 3


def test_state_is_shown() -> None:
    connection = server()
    connection.say(f.headers(1, f.POST))
    assert "server streams=1 last_id=1" in repr(connection.codec)
    assert "<H2Stream 1 sending=head receiving=body" in repr(connection.requests[0].stream)
