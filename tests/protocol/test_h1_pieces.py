"""However the bytes of a connection are cut, the same events come of them; h11 reads and writes the same."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.protocol.events import RequestHead, ResponseHead, Stream
from sidecar.protocol.h1 import H1ClientCodec, H1Options, H1ServerCodec
from tests.support.codec_events import ConnectionLog, Driver, StreamLog

_NAMES = st.sampled_from([b"x-a", b"accept", b"x-long-name", b"set-cookie"])
_VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20).map(str.encode)
_FIELDS = st.lists(st.tuples(_NAMES, _VALUES), max_size=4).map(tuple)
_BODIES = st.lists(st.binary(max_size=40), max_size=4)


@st.composite
def messages(draw: st.DrawFn, start: bytes) -> bytes:
    """A well-formed message: head, and a body by length or in chunks."""
    head = start + b"".join(b"%b: %b\r\n" % field for field in draw(_FIELDS))
    pieces = draw(_BODIES)
    if draw(st.booleans()):
        body = b"".join(pieces)
        return head + b"content-length: %d\r\n\r\n" % len(body) + body
    chunks = b"".join(b"%x;e=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
    trailers = b"x-sum: 1\r\n" if draw(st.booleans()) else b""
    return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailers + b"\r\n"


_BREAKS = st.sampled_from([b"", b"", b"", b"\n", b" ", b"\x00", b"\r"])


@st.composite
def streams(draw: st.DrawFn, start: bytes) -> bytes:
    """Messages behind each other, sometimes with a byte too many somewhere."""
    data = b"".join(draw(st.lists(messages(start), min_size=1, max_size=3)))
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(_BREAKS) + data[at:]


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(position % (len(data) + 1) for position in at)})
    return [data[start:end] for start, end in pairwise(edges)]


def settled(events: list) -> list:
    """Without a body's last piece ahead of a reset: how much of it was passed on depends on the cut."""
    return [
        event
        for event, following in pairwise([*events, ("",)])
        if not (event[0] == "data" and following[0] == "reset")
    ]


def answer(stream: Stream, head: RequestHead) -> None:
    stream.send_response(ResponseHead(200), True)


def served(pieces: list[bytes]) -> tuple[list, bytes, bool]:
    log = ConnectionLog()
    codec = H1ServerCodec(log, H1Options(max_header_bytes=400))
    Driver(codec)
    output = b""
    for piece in pieces:
        codec.receive(piece)
        # Answered only when the whole request is there, as an early answer may come at any point of it.
        while log.streams and (not log.events or log.events[-1][0] != "data" or log.events[-1][2]):
            complete = log.events[-1][0] == "trailers" or log.events[-1][-1] is True
            if not complete:
                break
            answer(log.streams.pop(), log.heads[-1])
        output += codec.take_output()
    return settled(log.events), output, codec.should_close


@settings(deadline=None, max_examples=150)
@given(streams(b"POST / HTTP/1.1\r\nhost: a\r\n"), st.lists(st.integers(0, 2000), max_size=8))
def test_requests_cut_anywhere_are_the_same_requests(data: bytes, at: list[int]) -> None:
    assert served(cut(data, at)) == served([data])


def received(pieces: list[bytes]) -> tuple[list, bool]:
    log = StreamLog()
    codec = H1ClientCodec(ConnectionLog(), H1Options(max_header_bytes=400))
    codec.open_stream(log).send_request(RequestHead(b"GET", b"http", b"a", b"/"), True)
    codec.take_output()
    for piece in pieces:
        codec.receive(piece)
    codec.receive_eof()
    return settled(log.events), codec.should_close


@settings(deadline=None, max_examples=150)
@given(streams(b"HTTP/1.1 200 OK\r\n"), st.lists(st.integers(0, 2000), max_size=8))
def test_responses_cut_anywhere_are_the_same_responses(data: bytes, at: list[int]) -> None:
    assert received(cut(data, at)) == received([data])


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_raise(data: bytes, begun: bool) -> None:
    start = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" if begun else b""
    served([start + data])
    received([(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" if begun else b"") + data])


# --- h11 at the other end


def h11_events(connection: h11.Connection, data: bytes) -> list:
    connection.receive_data(data)
    events = []
    while True:
        event = connection.next_event()
        if event in (h11.NEED_DATA, h11.PAUSED):
            return events
        events.append(event)
        if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return events


def h11_body(events: list) -> bytes:
    return b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data))


@settings(deadline=None, max_examples=50)
@given(_FIELDS, _BODIES, st.booleans(), st.booleans())
def test_h11_as_the_client_understands_the_server(
    fields: tuple, pieces: list[bytes], known_length: bool, trailers: bool
) -> None:
    peer = h11.Connection(h11.CLIENT)
    log = ConnectionLog()
    codec = H1ServerCodec(log, H1Options())
    Driver(codec)
    body = b"".join(pieces)
    for _ in range(2):
        framing = [("content-length", str(len(body)))] if known_length else [("transfer-encoding", "chunked")]
        sent = peer.send(h11.Request(method="POST", target="/", headers=[("host", "a"), *framing, *fields]))
        for piece in pieces:
            sent += peer.send(h11.Data(data=piece))
        codec.receive(sent + peer.send(h11.EndOfMessage()))
        stream = log.streams[-1]
        seen = log.take()
        assert seen[0][1:4] == (b"POST", b"a", b"/")
        assert b"".join(event[1] for event in seen if event[0] == "data") == body
        length = ((b"content-length", b"%d" % len(body)),) if known_length else ()
        stream.send_response(ResponseHead(200, length + fields), False)
        for piece in pieces:
            stream.send_data(piece, False)
        if trailers:
            stream.send_trailers(((b"x-sum", b"1"),))
        else:
            stream.send_data(b"", True)
        events = h11_events(peer, codec.take_output())
        assert events[0].status_code == 200
        values = [value.strip(b" \t") for name, value in fields]
        assert [value for name, value in events[0].headers if name in dict(fields)] == values
        assert h11_body(events) == body
        peer.start_next_cycle()
    assert not codec.should_close


@settings(deadline=None, max_examples=50)
@given(_FIELDS, _BODIES, st.booleans())
def test_h11_as_the_server_understands_the_client(
    fields: tuple, pieces: list[bytes], known_length: bool
) -> None:
    peer = h11.Connection(h11.SERVER)
    codec = H1ClientCodec(ConnectionLog(), H1Options())
    Driver(codec)
    body = b"".join(pieces)
    length = ((b"content-length", b"%d" % len(body)),) if known_length else ()
    for _ in range(2):
        log = StreamLog()
        stream = codec.open_stream(log)
        stream.send_request(RequestHead(b"POST", b"http", b"a", b"/x", length + fields), False)
        for piece in pieces:
            stream.send_data(piece, False)
        stream.send_data(b"", True)
        events = h11_events(peer, codec.take_output())
        assert (events[0].method, events[0].target) == (b"POST", b"/x")
        assert [value for name, value in events[0].headers if name in dict(fields)] == [
            value for _, value in fields
        ]
        assert h11_body(events) == body
        assert isinstance(events[-1], h11.EndOfMessage)
        framing = [("content-length", str(len(body)))] if known_length else [("transfer-encoding", "chunked")]
        sent = peer.send(h11.Response(status_code=200, headers=[*framing, *fields]))
        for piece in pieces:
            sent += peer.send(h11.Data(data=piece))
        codec.receive(sent + peer.send(h11.EndOfMessage()))
        assert log.events[0][:2] == ("response", 200)
        assert b"".join(event[1] for event in log.events if event[0] == "data") == body
        assert log.events[-1][-1] is True
        peer.start_next_cycle()
    assert codec.available == 1


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_h11_sees_the_end_of_a_body_that_the_connection_ends(version: bytes) -> None:
    log = ConnectionLog()
    codec = H1ServerCodec(log, H1Options())
    Driver(codec)
    codec.receive(b"GET / HTTP/" + version + b"\r\nhost: a\r\nconnection: close\r\n\r\n")
    log.streams[0].send_response(ResponseHead(200), False)
    log.streams[0].send_data(b"ok", True)
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    peer.send(h11.EndOfMessage())
    peer.receive_data(codec.take_output())
    peer.receive_data(b"")
    events = [peer.next_event() for _ in range(3)]
    assert h11_body(events) == b"ok"
    assert isinstance(events[-1], h11.EndOfMessage)
    assert codec.should_close
