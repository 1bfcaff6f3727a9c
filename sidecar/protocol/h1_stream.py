"""What both ends of an HTTP/1.1 connection share: body framing in and out, flow control, output.

`h1_server.py` and `h1_client.py` derive from `H1Connection` and `H1Stream`. A connection carries one
stream at a time; what concerns a message lives in the stream, so that a late call on a finished one
touches nothing. Heads are none of this module's business.
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
from sidecar.protocol.h1_chunked import ChunkedDecoder
from sidecar.protocol.h1_wire import CHUNKED, TUNNEL, UNTIL_CLOSE, H1Error, H1Options
from sidecar.protocol.h1_write import FieldBlock, FieldError

NOT_BEGUN = -4
"""Sending: no head yet. Receiving: the head is still to come."""
DONE = -5
"""That side of the message has ended."""
NO_BODY = -6
"""Sending: a message that has no body whatever its fields say (RFC 9112 section 6.3); data is dropped."""
ENDING = -7
"""Sending: ended by the caller, but bytes are still held for the transport."""
TUNNEL_HELD = -8
"""Receiving: a tunnel was asked for and is not open, so what comes is held."""

CLOSED_BEFORE_RESPONSE = "connection closed before response"


def _nothing() -> None:
    pass


def _ignore(_: bool) -> None:
    pass


class H1Connection:
    """The protocol-independent half of a codec; see `events.Codec` for the methods without a docstring."""

    __slots__ = (
        "_draining",
        "_eof",
        "_input",
        "_out",
        "_output_paused",
        "_processing",
        "_read_paused",
        "_receiving",
        "_stream",
        "abort",
        "active_streams",
        "behind",
        "error",
        "handler",
        "on_output",
        "on_read_pause",
        "options",
        "should_close",
        "want_eof",
    )

    def __init__(self, handler: ConnectionHandler, options: H1Options) -> None:
        self.handler = handler
        self.options = options
        self.on_output = _nothing
        self.on_read_pause: Callable[[bool], None] = _ignore
        self.should_close = False
        self.abort = False
        """With `should_close`: end by RST, because an orderly end would pass for the message's."""
        self.want_eof = False
        """A tunnel's sending half has ended: FIN after the output, and read on."""
        self.active_streams = 0
        self.error = ""
        """What the peer did wrong, "" while nothing."""
        self.behind = False
        """More is at hand, requests or chunks, than one turn of the event loop is given to."""
        self._eof = False
        self._input = bytearray()
        self._processing = 0
        """Bytes that were held and are being processed: they do not count as taken before that ends."""
        self._out: list[bytes] = []
        self._stream: H1Stream | None = None
        self._receiving = False
        self._read_paused = False
        self._output_paused = False
        self._draining = False

    def __repr__(self) -> str:
        state = "closing" if self.should_close else "draining" if self._draining else "open"
        return f"<{type(self).__name__} {state} input={len(self._input)} stream={self._stream!r}>"

    def receive(self, data: bytes) -> None:
        if self.should_close:
            return
        if self.behind:
            self.hold(data)
            return
        self._receiving = True
        self.process(data)
        self._receiving = False

    def receive_eof(self) -> None:
        if self.should_close:
            return
        self._eof = True
        if not self.behind:
            self._receiving = True
            self.end_input()
            self._receiving = False

    def catch_up(self) -> None:
        """Some of what waits, in a turn of its own; the rest is left to the next while still `behind`."""
        self.behind = False
        self.process_held()
        if self._eof:
            self.receive_eof()

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
        if self._stream is not None:
            self._stream.release()

    def take_leftover(self) -> bytes:
        """What came behind a CONNECT or Upgrade, for the codec that takes over. This one is finished."""
        data = bytes(self._input)
        self._input.clear()
        self._stream = None
        self.should_close = True
        return data

    # --- for streams and the two ends

    def wrote(self) -> None:
        """Output or `should_close` has changed: have the driver look, unless it will anyway."""
        if not self._receiving:
            self.on_output()

    def close(self, abort: bool = False) -> None:
        """Nothing more is read; the socket closes after the output."""
        self.should_close = True
        self.abort = self.abort or abort
        self._input.clear()
        self.wrote()

    def process_held(self) -> None:
        """Go on with what was held; not from inside `receive`, whose loop does so itself."""
        data = bytes(self._input)
        self._input.clear()
        self._processing = len(data)
        self._receiving = True
        self.process(data)
        self._receiving = False
        self._processing = 0
        self.update_read_pause()

    def hold(self, data: bytes) -> None:
        """Keep `data` for later."""
        self._input += data
        self.update_read_pause()

    def process(self, data: bytes) -> None:
        """Take `data` as far as it can be taken now, and hold the rest."""
        raise NotImplementedError

    def end_input(self) -> None:
        """The peer sends no more, and all that it has sent was processed."""
        raise NotImplementedError

    def update_read_pause(self) -> None:
        """Stop reading at a full window, go on at half of it."""
        window = self.options.body_window
        held = self._processing
        if self._stream is not None or self.behind or self._output_paused:  # otherwise it is a head begun
            held = max(held, len(self._input))
        if self._stream is not None:
            held = max(held, self._stream.unconsumed)
        paused = held >= window or (self._read_paused and held > window // 2)
        if paused is not self._read_paused:
            self._read_paused = paused
            self.on_read_pause(paused)

    def take_head(self, data: bytes) -> tuple[bytes, bytes] | None:
        """A whole head and what follows it; None, keeping `data`, while the head is incomplete."""
        buffered = self._input
        limit = self.options.max_header_bytes
        if not buffered:
            end = data.find(b"\r\n\r\n") + 4
            if 3 < end <= limit:
                return (data, b"") if end == len(data) else (data[:end], data[end:])
            buffered += data
            start = 0
        else:
            start = max(0, len(buffered) - 3)
            buffered += data
            end = buffered.find(b"\r\n\r\n", start) + 4
        if 3 < end <= limit:
            head, rest = bytes(buffered[:end]), bytes(buffered[end:])
            buffered.clear()
            return head, rest
        self.check_partial_head(start)
        return None

    def check_partial_head(self, start: int) -> None:
        """Raise `H1Error` if what is buffered, looked at from `start`, cannot become a head."""
        raise NotImplementedError

    def body_refused(self, stream: H1Stream, error: H1Error) -> None:
        """The body's framing is wrong."""
        raise NotImplementedError

    def stream_advanced(self, stream: H1Stream) -> None:
        """A direction of the stream has ended."""
        raise NotImplementedError


class H1Stream:
    """One request and its response; `events.Stream` has the contract."""

    __slots__ = (
        "_connection",
        "_decoder",
        "_held",
        "_held_bytes",
        "handler",
        "incomplete",
        "receiving",
        "sending",
        "unconsumed",
    )

    handler: StreamHandler

    def __init__(self, connection: H1Connection) -> None:
        self._connection = connection
        self._decoder: ChunkedDecoder | None = None
        self._held: list[bytes] | None = None
        self._held_bytes = 0
        self.incomplete = False
        self.receiving = NOT_BEGUN
        """A state from above, a framing from `h1_wire`, or how many bytes of the body are to come."""
        self.sending = NOT_BEGUN
        """The same for the other direction."""
        self.unconsumed = 0

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} receiving={self.receiving} sending={self.sending} "
            f"unconsumed={self.unconsumed} held={self._held_bytes}>"
        )

    # --- sending

    def send_request(self, head: RequestHead, end_stream: bool) -> None:
        raise RuntimeError(f"{self!r} is the server side: it sends no request")

    def send_response(self, head: ResponseHead, end_stream: bool) -> None:
        raise RuntimeError(f"{self!r} is the client side: it sends no response")

    def send_informational(self, head: ResponseHead) -> None:
        raise RuntimeError(f"{self!r} is the client side: it sends no response")

    def send_data(self, data: bytes, end_stream: bool) -> int:
        n = len(data)
        sending = self.sending
        if sending >= 0:
            if n > sending or (end_stream and n < sending):
                self._fail_sending(f"{'longer' if n > sending else 'shorter'} than its content-length")
                return n
            self.sending = sending - n
            self._write_body((data,), n)
        elif sending == CHUNKED:
            if n:
                self._write_body((b"%x\r\n" % n, data, b"\r\n0\r\n\r\n" if end_stream else b"\r\n"), n)
            elif end_stream:
                self._write_body((b"0\r\n\r\n",), 0)
        elif sending in (UNTIL_CLOSE, TUNNEL):
            self._write_body((data,), n)
        elif sending != NO_BODY:
            return n  # The stream is over.
        accepted = n if self._held is None else 0
        if end_stream:
            self._end_sending()
        return accepted

    def send_trailers(self, fields: tuple[Field, ...]) -> None:
        sending = self.sending
        if sending == CHUNKED:
            try:
                lines = FieldBlock(fields).lines
            except FieldError as error:
                self._fail_sending(f"followed by {error}")
                return
            self._write_body((b"0\r\n", lines, b"\r\n"), 0)
        elif sending > 0:
            self._fail_sending("shorter than its content-length")
            return
        elif sending in (DONE, ENDING, NOT_BEGUN):
            return
        # Any other framing has no room for trailers: they are lost here (RFC 9110 section 6.5.1).
        self._end_sending()

    def release(self) -> None:
        """The transport takes bytes again."""
        held = self._held
        if held is None:
            return
        connection = self._connection
        n = self._held_bytes
        self._held = None
        self._held_bytes = 0
        connection._out += held
        connection.wrote()
        if n:
            self.handler.on_sent(n)
        if self.sending == ENDING:
            self._end_sending()

    def _write_body(self, pieces: tuple[bytes, ...], n: int) -> None:
        connection = self._connection
        if connection._output_paused or self._held is not None:
            if self._held is None:
                self._held = []
            self._held += pieces
            self._held_bytes += n
        else:
            connection._out += pieces
            if not connection._receiving:
                connection.on_output()

    def _end_sending(self) -> None:
        if self._held is not None:
            self.sending = ENDING
            return
        self.sending = DONE
        self._connection.stream_advanced(self)

    def _fail_sending(self, reason: str) -> None:
        """The caller's body does not fit the head it sent: the peer must not take it for whole."""
        handler = self.handler
        self.finish()
        self._connection.close(abort=True)
        handler.on_reset(Reset(ErrorCode.INTERNAL_ERROR, f"body {reason}", remote=False))

    # --- receiving

    def consume(self, n: int) -> None:
        self.unconsumed -= n
        connection = self._connection
        if connection._read_paused and connection._stream is self:
            connection.update_read_pause()

    def expect_body(self, framing: int) -> None:
        """The head has come; `framing` is a length > 0 or one of `h1_wire`."""
        self.receiving = framing
        if framing == CHUNKED:
            self._decoder = ChunkedDecoder(self._connection.options)

    def receive(self, data: bytes) -> bytes:
        """Body bytes of this message; returns what is not its own, or is left to another turn (`behind`)."""
        receiving = self.receiving
        if receiving > 0:
            n = len(data)
            if n < receiving:
                self.receiving = receiving - n
                self.deliver(data, False)
                return b""
            self.receiving = DONE
            if n == receiving:
                self.deliver(data, True)
                return b""
            self.deliver(data[:receiving], True)
            return data[receiving:]
        if receiving == CHUNKED:
            return self._receive_chunked(data)
        self.deliver(data, False)
        return b""

    def deliver(self, data: bytes, end: bool) -> None:
        """Hand body bytes to the handler; with `end`, the other direction may now finish the stream."""
        connection = self._connection
        self.unconsumed += len(data)
        if self.unconsumed >= connection.options.body_window:
            connection.update_read_pause()
        self.handler.on_data(data, end)
        if end:
            connection.stream_advanced(self)

    def _receive_chunked(self, data: bytes) -> bytes:
        decoder = self._decoder
        assert decoder is not None
        try:
            body, rest = decoder.feed(data)
        except H1Error as error:
            self._connection.body_refused(self, error)
            return b""
        if not decoder.ended:
            if rest:
                self._connection.behind = True
            if body:
                self.deliver(body, False)
            return rest
        self.receiving = DONE
        if not decoder.trailers:
            self.deliver(body, True)
            return rest
        if body:
            self.deliver(body, False)
        if self._connection._stream is self:
            self.handler.on_trailers(decoder.trailers)
            self._connection.stream_advanced(self)
        return rest

    # --- ending

    def finish(self) -> None:
        """Neither direction goes on: whatever is called from now on has no effect."""
        self.sending = self.receiving = DONE
        self._held = None
        connection = self._connection
        if connection._stream is self:
            connection._stream = None
            connection.active_streams = 0
            if connection._read_paused:
                connection.update_read_pause()

    def reset(self, code: ErrorCode) -> None:
        """HTTP/1 can abandon a stream only with its connection."""
        if self._connection._stream is self:
            self.finish()
            self._connection.close(abort=True)
