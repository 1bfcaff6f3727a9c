"""The server side of HTTP/1.1 and 1.0 (RFC 9112) as a codec.

`net/connection.py` drives it, `server/connection_manager.py` answers its requests. A request that two
parsers could read differently is refused here, with 400 and the connection closed, before anything of it
is passed on. Pipelined requests wait until the response before them is complete; the next `on_request`
may come from inside the call that completes it.
"""

from __future__ import annotations

from typing import cast

from sidecar.protocol.events import (
    ConnectionHandler,
    ErrorCode,
    Reset,
    ResponseHead,
    StreamHandler,
)
from sidecar.protocol.h1_stream import (
    DONE,
    NO_BODY,
    NOT_BEGUN,
    TUNNEL_HELD,
    H1Connection,
    H1Stream,
)
from sidecar.protocol.h1_wire import (
    CHUNKED,
    MAX_CACHED_HEAD,
    MAX_CACHED_HEADS,
    TUNNEL,
    UNTIL_CLOSE,
    H1Error,
    H1Options,
    ParsedRequest,
    check_partial,
    cut_fresh,
    parse_request,
    websocket_accept,
)
from sidecar.protocol.h1_write import FieldBlock, FieldError, field_block, merge_length, status_line

_REQUESTS_A_TURN = 32
"""Pipelined requests that are answered before other connections get their turn."""


def _remember(heads: dict[bytes, ParsedRequest], key: bytes, parsed: ParsedRequest) -> None:
    if len(heads) >= MAX_CACHED_HEADS:
        heads.clear()
    heads[key] = parsed


class H1ServerCodec(H1Connection):
    """One connection from a client. `available` and `open_stream` are for the other side."""

    __slots__ = ("_begun", "_heads", "_shared_heads", "leave")

    _stream: H1ServerStream | None

    def __init__(
        self,
        handler: ConnectionHandler,
        options: H1Options,
        shared_heads: dict[bytes, ParsedRequest] | None = None,
    ) -> None:
        """`shared_heads`: those of other connections with equal options whose heads mean the same, down to
        what is kept in their memos. A client that connects for every request is then known again."""
        super().__init__(handler, options)
        self._heads: dict[bytes, ParsedRequest] = {}
        self._shared_heads = {} if shared_heads is None else shared_heads
        self._begun = 0
        """Requests so far."""
        self.leave = False
        """Close when the exchange on the way is over."""

    @property
    def available(self) -> int:
        return 0

    def start(self) -> None:
        """The client speaks first."""

    def open_stream(self, handler: StreamHandler) -> H1Stream:
        raise RuntimeError(f"{self!r} is the server side: it opens no streams")

    def end_input(self) -> None:
        """A stream whose message is incomplete is lost; the others may be answered."""
        stream = self._stream
        if stream is None:
            if not (self._output_paused and self._input):
                self.close()
        elif stream.receiving == TUNNEL:
            stream.receiving = DONE
            stream.deliver(b"", True)
        elif stream.receiving not in (DONE, TUNNEL_HELD):
            handler = stream.handler
            stream.finish()
            self.close()
            handler.on_reset(Reset(ErrorCode.CANCEL, "connection closed in mid-request"))

    def take_output(self) -> bytes:
        # A tunnel that has just been granted may be handed to another codec, with what the client sent
        # ahead. So its bytes go to this stream's handler only one flush after the answer has left.
        stream = self._stream
        if stream is None or stream.receiving != TUNNEL_HELD or not (self._input or self._eof):
            return super().take_output()
        if not self._out and stream.accepted:
            self._receiving = True
            self._open_tunnel(stream)
            self._receiving = False
            return super().take_output()
        if stream.accepted:
            self.on_output()
        return super().take_output()

    def resume_output(self) -> None:
        super().resume_output()
        self._replay()

    def connection_lost(self, reason: str) -> None:
        stream = self._stream
        self.should_close = True
        if stream is not None:
            handler = stream.handler
            stream.finish()
            handler.on_reset(Reset(ErrorCode.CANCEL, reason, remote=False))
        self.handler.on_closed(reason)

    def drain(self, final: bool) -> None:
        self._draining = True
        if not final:
            return
        self.leave = True
        stream = self._stream
        if stream is None or not self.active_streams:
            if stream is not None:
                stream.finish()
            self.close()

    # --- requests

    def process(self, data: bytes) -> None:
        stream = self._stream
        if stream is not None and stream.receiving == TUNNEL_HELD and stream.accepted:
            self._open_tunnel(stream)
        last = self._begun + _REQUESTS_A_TURN
        try:
            while data and not self.should_close:
                stream = self._stream
                if self.behind:
                    break
                if stream is None:
                    if self._output_paused:  # A client that does not read is not answered further.
                        break
                    if self._begun == last:
                        self.behind = True
                        break
                    data = self._begin(data)
                elif stream.receiving in (DONE, TUNNEL_HELD):
                    break
                else:
                    data = stream.receive(data)
        except H1Error as error:
            self._refuse(error.status, str(error))
        if data and not self.should_close:
            self.hold(data)

    def _replay(self) -> None:
        """Go on with the requests that were held."""
        if self._receiving or self.behind or self._stream is not None or self.should_close or not self._input:
            return
        self.process_held()
        if self._eof and self._stream is None and not self._output_paused and not self.behind:
            self.close()
        if self._out or self.should_close or self.behind:
            self.on_output()

    def _begin(self, data: bytes) -> bytes:
        """A new request; returns what follows its head. Raises `H1Error`."""
        taken = self.take_head(data)
        if taken is None:
            return b""
        raw, rest = taken
        parsed = self._heads.get(raw)
        if parsed is None:
            parsed = self._parse(raw)
        self._stream = stream = H1ServerStream(self, parsed)
        self.active_streams = 1
        self._begun += 1
        body = parsed.body
        if not body:
            stream.receiving = DONE
            self.handler.on_request(stream, parsed.head, True)
            return rest
        if body == TUNNEL:
            # Another codec may take over before the handler returns, and what came behind goes with it.
            self.hold(rest)
            rest = b""
        stream.expect_body(TUNNEL_HELD if body == TUNNEL else body)
        self.handler.on_request(stream, parsed.head, False)
        return rest

    def _parse(self, raw: bytes) -> ParsedRequest:
        if raw.startswith(b"\r\n"):  # RFC 9112 section 2.2: one empty line before a request is ignored.
            raw = raw[2:]
        key, fresh = cut_fresh(raw)
        if raw.count(b"\n") - 2 <= self.options.max_header_count:
            known = self._heads.get(key)
            if known is None:
                known = self._shared_heads.get(key)
                if known is not None:
                    _remember(self._heads, key, known)
            if known is not None:
                return known.with_fresh(fresh) if fresh else known
        parsed = parse_request(raw, self.options)
        # Otherwise `Connection` has dropped one, or a line was not found: then the rest is no template.
        if parsed.head.fresh == fresh and len(key) <= MAX_CACHED_HEAD:
            known = parsed.with_fresh(()) if fresh else parsed
            _remember(self._heads, key, known)
            _remember(self._shared_heads, key, known)
        return parsed

    def check_partial_head(self, start: int) -> None:
        check_partial(self._input, start, self.options, "request")

    def _open_tunnel(self, stream: H1ServerStream) -> None:
        stream.receiving = TUNNEL
        data = bytes(self._input)
        self._input.clear()
        if data:
            stream.deliver(data, False)
        self.update_read_pause()
        if self._eof and stream.receiving == TUNNEL:
            stream.receiving = DONE
            stream.deliver(b"", True)

    # --- heads that do not end

    def awaited_head(self) -> int:
        """See `ConnectionManager`. A connection that has had a request may be idle; one that is answered and
        has not sent the rest of its body delays its next head."""
        if self._output_paused or self.should_close:
            return -1
        if self._stream is None:
            waiting = bool(self._input) or not self._begun
        else:
            waiting = not self.active_streams
        return self._begun if waiting else -1

    def refuse_late_head(self) -> None:
        """408 (RFC 9110 section 15.5.9); nothing to a client that has said nothing."""
        if self._input and self._stream is None:
            self._refuse(408, "the request head took too long")
            return
        if self._stream is not None:
            self._stream.finish()
        self.close()

    # --- endings

    def stream_advanced(self, stream: H1Stream) -> None:
        if stream is not self._stream or stream.sending != DONE:
            return
        if stream.receiving in (TUNNEL, TUNNEL_HELD):
            self.want_eof = True
            self.wrote()
            return
        if stream.receiving != DONE and stream.discard():
            self.active_streams = 0
            return
        leave = (
            self.leave or stream.receiving != DONE or (self._eof and not self._input and not self._receiving)
        )
        stream.finish()
        if leave:
            self.close()
        else:
            self._replay()

    def body_refused(self, stream: H1Stream, error: H1Error) -> None:
        handler, begun = stream.handler, stream.sending != NOT_BEGUN
        stream.finish()
        if begun:
            self.error = str(error)
            self.close(abort=True)
        else:
            self._refuse(error.status, str(error))
        handler.on_reset(Reset(ErrorCode.PROTOCOL_ERROR, str(error), remote=False))

    def _refuse(self, status: int, reason: str) -> None:
        self.error = reason
        self.answer(status, reason)

    def answer(self, status: int, reason: str) -> None:
        """A local response of one line of text, then close."""
        self._out.append(
            b"%bcontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b\n"
            % (status_line(status), len(reason) + 1, reason.encode("ascii", "replace"))
        )
        self.close()


class H1ServerStream(H1Stream):
    """One request from the client and the response to it."""

    __slots__ = ("_continued", "_parsed", "accepted")

    _connection: H1ServerCodec

    def __init__(self, connection: H1ServerCodec, parsed: ParsedRequest) -> None:
        super().__init__(connection)
        self._parsed = parsed
        self._continued = not parsed.expects
        self.accepted = False
        """A tunnel was asked for and granted."""

    def send_informational(self, head: ResponseHead) -> None:
        """Dropped for an HTTP/1.0 client, which does not know it (RFC 9110 section 15.2)."""
        if self.sending != NOT_BEGUN or self._parsed.http10:
            return
        try:
            lines = FieldBlock(head.fields + head.fresh).lines
        except FieldError as error:
            self._unwritable(error)
            return
        if head.status == 100:
            self._continued = True
        self._connection._out.append(b"%b%b\r\n" % (status_line(head.status), lines))
        self._connection.wrote()

    def send_response(self, head: ResponseHead, end_stream: bool) -> None:
        if self.sending != NOT_BEGUN:
            return
        connection = self._connection
        try:
            block = field_block(head.fields)
            lines, length = block.lines, block.length
            if head.fresh:
                fresh = FieldBlock(head.fresh)
                lines += fresh.lines
                if fresh.length >= 0:
                    length = merge_length(length, b"%d" % fresh.length)
            start = self._start(head.status, length, end_stream)
        except FieldError as error:
            self._unwritable(error)
            return
        connection._out.append(b"%b%b\r\n" % (start, lines))
        if end_stream:
            self._end_sending()
        if not connection._receiving:
            connection.on_output()

    def _start(self, status: int, length: int, end_stream: bool) -> bytes:
        """Status line and what frames the message (RFC 9112 section 6); sets `sending`."""
        connection, parsed = self._connection, self._parsed
        if parsed.body == TUNNEL:
            if 200 <= status < 300:
                return self._accept_tunnel(status)
            # What was sent ahead of a refused tunnel is not a request: never parse it as one.
            if connection._input:
                connection.leave = True
            self.receiving = DONE
        framing = b""
        if status in (204, 304) or parsed.head.method == b"HEAD":
            self.sending = NO_BODY
            if length >= 0 and status != 204:
                framing = b"content-length: %d\r\n" % length
        elif end_stream or length >= 0:
            if end_stream and length > 0:
                raise FieldError("a content-length without the body")
            self.sending = max(length, 0)
            framing = b"content-length: %d\r\n" % self.sending
        elif parsed.http10:
            self.sending = UNTIL_CLOSE
            connection.leave = True
        else:
            self.sending = CHUNKED
            framing = b"transfer-encoding: chunked\r\n"
        if not parsed.keep_alive or connection._draining or (self.receiving != DONE and not self._continued):
            connection.leave = True
        if connection.leave:
            framing += b"connection: close\r\n"
        elif parsed.http10:
            framing += b"connection: keep-alive\r\n"
        return status_line(status) + framing

    def _accept_tunnel(self, status: int) -> bytes:
        self.accepted = True
        self.sending = TUNNEL
        self._connection.leave = True
        if not self._parsed.websocket_key:
            return status_line(status)
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-accept: %b\r\n" % websocket_accept(self._parsed.websocket_key)
        )

    def _unwritable(self, error: FieldError) -> None:
        handler = self.handler
        self.finish()
        self._connection.answer(502, f"the response has {error}")
        handler.on_reset(Reset(ErrorCode.INTERNAL_ERROR, f"the response has {error}", remote=False))

    def discard(self) -> bool:
        """Answered before its body has come: read on and throw a small rest away, so that the client gets
        to the answer and the connection lives. False when the rest is large, or may never be sent."""
        window = self._connection.options.body_window
        if self._connection.leave or not self._continued or self.receiving > window:
            return False
        self.handler = cast(StreamHandler, _Discard(self, window))
        return True


class _Discard:
    """Handler of a body that nobody wants."""

    __slots__ = ("_left", "_stream")

    def __init__(self, stream: H1ServerStream, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def on_data(self, data: bytes, end_stream: bool) -> None:
        self._stream.consume(len(data))
        self._left -= len(data)
        if self._left < 0 and not end_stream:
            connection = self._stream._connection
            self._stream.finish()
            connection.close()

    def on_trailers(self, fields: object) -> None:
        pass

    def on_reset(self, reset: Reset) -> None:
        pass
