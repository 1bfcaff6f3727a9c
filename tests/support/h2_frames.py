"""HTTP/2 from raw octets: frame builders, a parser, and a codec under test with everything it says recorded.

Independent of the codec's own frame code on purpose; header blocks come from the `hpack` package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import hpack

from sidecar.protocol.events import RequestHead, Reset, ResponseHead
from sidecar.protocol.h2 import H2Codec, H2Options

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 1, 1, 4, 8, 32
GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.example"), (b":path", b"/")]
POST = [(b":method", b"POST"), *GET[1:]]
OK = [(b":status", b"200")]


@dataclass(frozen=True)
class Frame:
    type: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[4:8] if self.type == GOAWAY else self.payload, "big")


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def parse(octets: bytes) -> list[Frame]:
    found = []
    while octets:
        end = 9 + int.from_bytes(octets[:3], "big")
        assert len(octets) >= end, "output ends inside a frame"
        stream_id = int.from_bytes(octets[5:9], "big")
        found.append(Frame(octets[3], octets[4], stream_id, octets[9:end]))
        octets = octets[end:]
    return found


def block(fields: list[tuple[bytes, bytes]]) -> bytes:
    """A header block that uses no dynamic table, so that it fits anywhere."""
    encoder = hpack.Encoder()
    return encoder.encode([hpack.NeverIndexedHeaderTuple(n, v) for n, v in fields], huffman=False)


def headers(stream_id: int, fields: list[tuple[bytes, bytes]], end_stream: bool = False) -> bytes:
    return frame(HEADERS, END_HEADERS | end_stream, stream_id, block(fields))


def data(stream_id: int, payload: bytes, end_stream: bool = False) -> bytes:
    return frame(DATA, int(end_stream), stream_id, payload)


def padded(stream_id: int, payload: bytes, padding: int, end_stream: bool = False) -> bytes:
    return frame(DATA, PADDED | end_stream, stream_id, bytes((padding,)) + payload + bytes(padding))


def settings(values: dict[int, int] | None = None) -> bytes:
    pairs = (values or {}).items()
    return frame(SETTINGS, 0, 0, b"".join(k.to_bytes(2, "big") + v.to_bytes(4, "big") for k, v in pairs))


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def rst_stream(stream_id: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def ping(payload: bytes = b"12345678", flags: int = 0) -> bytes:
    return frame(PING, flags, 0, payload)


def goaway(last_id: int, code: int = 0, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, last_id.to_bytes(4, "big") + code.to_bytes(4, "big") + debug)


def priority(stream_id: int, payload: bytes = b"\0\0\0\0\x10") -> bytes:
    return frame(PRIORITY, 0, stream_id, payload)


@dataclass
class Recorder:
    """A stream's handler: `events` in order, body joined in `body`. With `hold` nothing is consumed."""

    stream: Any = None
    head: RequestHead | ResponseHead | None = None
    events: list[tuple[Any, ...]] = field(default_factory=list)
    body: bytes = b""
    sent: int = 0
    hold: bool = False
    ended: bool = False
    reset: Reset | None = None

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        self._alive()
        self.head = head
        self.ended = end_stream
        self.events.append(("response", head.status, end_stream))

    def on_informational(self, head: ResponseHead) -> None:
        self._alive()
        self.events.append(("informational", head.status))

    def on_data(self, data: bytes, end_stream: bool) -> None:
        self._alive()
        self.body += data
        self.ended = end_stream
        self.events.append(("data", bytes(data), end_stream))
        if not self.hold:
            self.stream.consume(len(data))

    def on_trailers(self, fields: tuple[tuple[bytes, bytes], ...]) -> None:
        self._alive()
        self.ended = True
        self.events.append(("trailers", fields))

    def on_sent(self, n: int) -> None:
        assert self.reset is None
        self.sent += n

    def on_reset(self, reset: Reset) -> None:
        assert self.reset is None, "on_reset twice"
        self.reset = reset
        self.events.append(("reset", int(reset.code), reset.processed, reset.remote))

    def _alive(self) -> None:
        assert self.reset is None
        assert not self.ended


class Connection:
    """A codec under test and its `ConnectionHandler`. `say` feeds octets and returns the frames answered."""

    def __init__(self, client: bool, hold: bool = False, **options: Any) -> None:
        self.hold = hold
        self.requests: list[Recorder] = []
        self.events: list[str] = []
        self.on_new_request: Any = None
        self.outputs = 0
        self.codec = H2Codec(client, self, H2Options(**options))
        self.codec.on_output = self._on_output
        self._in_receive = False

    def _on_output(self) -> None:
        assert not self._in_receive, "on_output inside receive"
        self.outputs += 1

    def on_request(self, stream: Any, head: RequestHead, end_stream: bool) -> None:
        recorder = Recorder(stream, head, ended=end_stream, hold=self.hold)
        recorder.events.append(("request", head.method, head.path, end_stream))
        stream.handler = recorder
        self.requests.append(recorder)
        if self.on_new_request is not None:
            self.on_new_request(recorder)

    def on_ready(self) -> None:
        self.events.append("ready")

    def on_capacity(self) -> None:
        self.events.append("capacity")

    def on_goaway(self) -> None:
        self.events.append("goaway")

    def on_closed(self, reason: str) -> None:
        self.events.append("closed")

    def start(self, peer_settings: dict[int, int] | None = None) -> Connection:
        """Exchange prefaces and SETTINGS; forgets what was written so far."""
        self.codec.start()
        self.say((b"" if self.codec.client else PREFACE) + settings(peer_settings) + frame(SETTINGS, ACK))
        return self

    def say(self, octets: bytes) -> list[Frame]:
        self._in_receive = True
        if len(octets) % 2:
            self.codec.receive(octets)
        else:  # as bulk comes: in a buffer that is then used for something else
            buffer = bytearray(octets)
            self.codec.receive(memoryview(buffer))
            buffer[:] = b"\xff" * len(buffer)
        self._in_receive = False
        return self.take()

    def take(self) -> list[Frame]:
        """What it writes until nothing waits for a turn of the event loop any more."""
        octets = b""
        while (more := self.codec.take_output()) or self.codec.behind:
            octets += more
            if self.codec.behind:
                self.codec.catch_up()
        return parse(octets.removeprefix(PREFACE))

    def request(self, head: RequestHead | None = None, end_stream: bool = True) -> Recorder:
        """Client: open a stream and send a request."""
        recorder = Recorder(hold=self.hold)
        recorder.stream = self.codec.open_stream(recorder)
        recorder.stream.send_request(head or RequestHead(b"GET", b"http", b"a.example", b"/"), end_stream)
        return recorder


def server(hold: bool = False, peer_settings: dict[int, int] | None = None, **options: Any) -> Connection:
    return Connection(False, hold, **options).start(peer_settings)


def client(hold: bool = False, peer_settings: dict[int, int] | None = None, **options: Any) -> Connection:
    return Connection(True, hold, **options).start(peer_settings)


def connection_error(connection: Connection, octets: bytes) -> int:
    """Feed octets that must end the connection; returns GOAWAY's code."""
    frames = connection.say(octets)
    assert frames, "no answer"
    assert frames[-1].type == GOAWAY, frames
    assert connection.codec.should_close
    assert connection.codec.active_streams == 0
    return frames[-1].code


def stream_error(connection: Connection, octets: bytes) -> int:
    """Feed octets that must reset one stream and leave the connection; returns RST_STREAM's code."""
    frames = connection.say(octets)
    assert [f.type for f in frames if f.type != WINDOW_UPDATE] == [RST_STREAM], frames
    assert not connection.codec.should_close
    return next(f.code for f in frames if f.type == RST_STREAM)


def parse_prefix(octets: bytes) -> list[Frame]:
    """Frames as far as they are whole, to show what a test sent."""
    end = 0
    while len(octets) - end >= 9 + int.from_bytes(octets[end : end + 3], "big"):
        end += 9 + int.from_bytes(octets[end : end + 3], "big")
    return parse(octets[:end])
