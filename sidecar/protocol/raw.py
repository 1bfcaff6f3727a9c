"""Opaque TCP as a codec with one stream: no heads, only bytes, each direction ending on its own.

`server/tcp_proxy.py` and `upstream/pool.py` use it on either side of a proxied connection;
`net/connection.py` drives it. It never looks at the bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.protocol.events import (
    ConnectionHandler,
    ErrorCode,
    Field,
    RequestHead,
    Reset,
    ResponseHead,
    StreamHandler,
)

WINDOW = 65536
"""Received and not yet consumed bytes at which reading stops; it goes on at half of them."""


def _nothing() -> None:
    pass


def _ignore(_: bool) -> None:
    pass


class RawCodec:
    """One TCP connection. `stream` is there from the start; set its handler before `start`."""

    __slots__ = (
        "_capacity",
        "_out",
        "_output_paused",
        "_read_paused",
        "_receiving",
        "abort",
        "error",
        "handler",
        "on_output",
        "on_read_pause",
        "should_close",
        "stream",
        "want_eof",
    )
    opaque = True
    """Its peer cannot be asked whether it is there: the connection is watched (`net/peer_watch.py`)."""

    def __init__(self, handler: ConnectionHandler | None) -> None:
        self.handler = handler
        self.on_output = _nothing
        self.on_read_pause: Callable[[bool], None] = _ignore
        self.should_close = False
        self.error = ""
        self.abort = False
        """With `should_close`: end by RST."""
        self.want_eof = False
        """The sending direction has ended: FIN after the output, and read on."""
        self.stream = RawStream(self)
        self._out: list[bytes] = []
        self._capacity = 1
        self._output_paused = False
        self._read_paused = False
        self._receiving = False

    def __repr__(self) -> str:
        return f"<RawCodec {'closing' if self.should_close else 'open'} {self.stream!r}>"

    @property
    def active_streams(self) -> int:
        return 0 if self.stream.ended else 1

    @property
    def available(self) -> int:
        """The one stream, until it is taken."""
        return 0 if self.should_close else self._capacity

    def start(self) -> None:
        if self.handler is not None:
            self.handler.on_ready()

    def open_stream(self, handler: StreamHandler) -> RawStream:
        if not self.available:
            raise RuntimeError(f"{self!r} has one stream, and it is taken")
        self._capacity = 0
        self.stream.handler = handler
        return self.stream

    def receive(self, data: bytes) -> None:
        stream = self.stream
        if self.should_close or stream.received:
            return
        self._receiving = True
        stream.unconsumed += len(data)
        if stream.unconsumed >= WINDOW:
            self._pause_reading(True)
        stream.handler.on_data(data, False)
        self._receiving = False

    def receive_eof(self) -> None:
        stream = self.stream
        if self.should_close or stream.received:
            return
        self._receiving = True
        stream.received = True
        stream.handler.on_data(b"", True)
        self.finish_if_done()
        self._receiving = False

    def take_output(self) -> bytes:
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def pause_output(self) -> None:
        self._output_paused = True

    def resume_output(self) -> None:
        self._output_paused = False
        self.stream.release()

    def connection_lost(self, reason: str) -> None:
        self.should_close = True
        if not self.stream.ended:
            self.stream.end()
            self.stream.handler.on_reset(Reset(ErrorCode.CANCEL, reason))
        if self.handler is not None:
            self.handler.on_closed(reason)

    def drain(self, final: bool) -> None:
        """Nothing can be announced in opaque bytes: the stream is left to end by itself."""
        self._capacity = 0

    # --- for the stream

    def wrote(self) -> None:
        if not self._receiving:
            self.on_output()

    def finish_if_done(self) -> None:
        """Close once both directions have ended and nothing is held; FIN when only this one has."""
        stream = self.stream
        if not stream.flushed:
            return
        self.want_eof = True
        if stream.received:
            stream.end()
            self.should_close = True
        self.wrote()

    def _pause_reading(self, paused: bool) -> None:
        if paused is not self._read_paused:
            self._read_paused = paused
            self.on_read_pause(paused)


class RawStream:
    """Both directions of the connection; `events.Stream` has the contract. Heads have no bytes here."""

    __slots__ = (
        "_codec",
        "_held",
        "_held_bytes",
        "ended",
        "flushed",
        "handler",
        "received",
        "sent",
        "unconsumed",
    )

    handler: StreamHandler
    incomplete = False

    def __init__(self, codec: RawCodec) -> None:
        self._codec = codec
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.unconsumed = 0
        self.received = False
        """The peer has sent its last byte."""
        self.sent = False
        """This side has been given its last byte."""
        self.flushed = False
        """… and holds none back."""
        self.ended = False

    def __repr__(self) -> str:
        return (
            f"<RawStream received={self.received} sent={self.sent} "
            f"unconsumed={self.unconsumed} held={self._held_bytes}>"
        )

    def send_request(self, head: RequestHead, end_stream: bool) -> None:
        """TCP has no head; the request is the connection itself."""
        if end_stream:
            self.send_data(b"", True)

    def send_response(self, head: ResponseHead, end_stream: bool) -> None:
        """A success has no bytes; a refusal ends the connection."""
        if head.status >= 300:
            self.reset(ErrorCode.CONNECT_ERROR)
        elif end_stream:
            self.send_data(b"", True)

    def send_informational(self, head: ResponseHead) -> None:
        """TCP has no room for it."""

    def send_data(self, data: bytes, end_stream: bool) -> int:
        n = len(data)
        if self.sent or self.ended:
            return n
        codec = self._codec
        held = codec._output_paused or bool(self._held)
        if n and held:
            self._held.append(data)
            self._held_bytes += n
        elif n:
            codec._out.append(data)
        self.sent = end_stream
        if end_stream and not self._held:
            self.flushed = True
            codec.finish_if_done()
        elif n and not held:
            codec.wrote()
        return 0 if held else n

    def send_trailers(self, fields: tuple[Field, ...]) -> None:
        """TCP has none: this ends the sending direction."""
        self.send_data(b"", True)

    def release(self) -> None:
        """The transport takes bytes again."""
        if not self._held:
            return
        codec, n = self._codec, self._held_bytes
        codec._out += self._held
        self._held.clear()
        self._held_bytes = 0
        codec.wrote()
        self.handler.on_sent(n)
        if self.sent and not self._held and not self.flushed and not self.ended:
            self.flushed = True
            codec.finish_if_done()

    def reset(self, code: ErrorCode) -> None:
        """RST: what is queued is dropped."""
        if not self.ended:
            self.end()
            codec = self._codec
            codec._out.clear()
            codec.should_close = codec.abort = True
            codec.wrote()

    def consume(self, n: int) -> None:
        self.unconsumed -= n
        if self._codec._read_paused and self.unconsumed <= WINDOW // 2:
            self._codec._pause_reading(False)

    def end(self) -> None:
        """Neither direction goes on."""
        self.ended = True
        self._held.clear()
        self._held_bytes = 0
