"""The client side of HTTP/1.1 (RFC 9112) as a codec: one request at a time, the connection kept alive.

`net/connection.py` drives it, `upstream/pool.py` owns it. It never retries: it reports what became of a
request, and whether the server can have seen it.
"""

from __future__ import annotations

import base64

from sidecar.protocol.events import (
    ConnectionHandler,
    ErrorCode,
    RequestHead,
    Reset,
    ResponseHead,
    StreamHandler,
)
from sidecar.protocol.field_rules import without_length
from sidecar.protocol.h1_stream import (
    CLOSED_BEFORE_RESPONSE,
    DONE,
    NOT_BEGUN,
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
    ParsedResponse,
    check_partial,
    parse_response,
    websocket_accept,
)
from sidecar.protocol.h1_write import FieldBlock, FieldError, field_block, merge_length, request_start

# Without a body these say so (RFC 9110 section 8.6); for other methods it goes without saying.
_BODY_EXPECTED = frozenset((b"POST", b"PUT", b"PATCH"))


class H1ClientCodec(H1Connection):
    """One connection to a server."""

    __slots__ = ("_capacity_due", "_heads", "_leave", "_retired", "_taken", "keep_alive_timeout")

    _stream: H1ClientStream | None

    def __init__(self, handler: ConnectionHandler, options: H1Options) -> None:
        super().__init__(handler, options)
        self.keep_alive_timeout: float | None = None
        """Seconds after which the server closes an idle connection, as it last said."""
        self._heads: dict[bytes, ParsedResponse] = {}
        self._leave = False
        self._retired = False
        self._taken = False
        self._capacity_due = False

    @property
    def available(self) -> int:
        taken = self._stream is not None or self._capacity_due
        return 0 if taken or self._retired or self._draining or self._eof else 1

    def start(self) -> None:
        self.handler.on_ready()

    def open_stream(self, handler: StreamHandler) -> H1ClientStream:
        if not self.available:
            raise RuntimeError(f"{self!r} cannot take another stream")
        self._stream = stream = H1ClientStream(self)
        stream.handler = handler
        self.active_streams = 1
        self._taken = False
        return stream

    def process(self, data: bytes) -> None:
        try:
            while data and not self.should_close and not self.behind:
                stream = self._stream
                if stream is None or not self._taken:
                    raise H1Error(502, "bytes from the server before a request")
                data = self._response(stream, data) if stream.receiving == NOT_BEGUN else stream.receive(data)
        except H1Error as error:
            self._fail(str(error))
        if self._capacity_due:
            # Only now: what followed the response would have passed for the next one.
            self._capacity_due = False
            if not self.should_close:
                self.handler.on_capacity()
        if self.behind and not self.should_close:
            self.hold(data)

    def end_input(self) -> None:
        stream = self._stream
        if stream is None:
            self.close()
        elif stream.receiving == TUNNEL or stream.receiving == UNTIL_CLOSE:
            tunnel = stream.receiving == TUNNEL
            stream.receiving = DONE
            self._leave = True
            stream.deliver(b"", True)
            if not tunnel or self._stream is None:
                self.close()
        else:
            self._lose(stream, "connection closed in mid-response")

    def take_output(self) -> bytes:
        if self._out:
            self._taken = True
        return super().take_output()

    def connection_lost(self, reason: str) -> None:
        self.should_close = True
        if self._stream is not None:
            self._lose(self._stream, f"connection lost in mid-response: {reason}")
        self._retired = True
        self.handler.on_closed(reason)

    def drain(self, final: bool) -> None:
        """No stream is opened from now on. Closes when idle, `final` or not."""
        self._draining = True
        if self._stream is None:
            self.close()

    def close(self, abort: bool = False) -> None:
        super().close(abort)
        if not self._retired:
            self._retired = True
            self.handler.on_goaway()

    # --- responses

    def _response(self, stream: H1ClientStream, data: bytes) -> bytes:
        """A response head; returns what follows it. Raises `H1Error`."""
        taken = self.take_head(data)
        if taken is None:
            return b""
        raw, rest = taken
        parsed = self._heads.get(raw)
        if parsed is None:
            parsed = parse_response(raw, self.options)
            if len(raw) <= MAX_CACHED_HEAD:
                if len(self._heads) >= MAX_CACHED_HEADS:
                    self._heads.clear()
                self._heads[raw] = parsed
        head = parsed.head
        status = head.status
        if status < 200:
            if status == 101:
                self._switched(stream, parsed)
            else:
                stream.handler.on_informational(head)
            return rest
        if parsed.timeout is not None:
            self.keep_alive_timeout = parsed.timeout
        body = parsed.body
        if stream.tunnel:
            if stream.tunnel == b"CONNECT" and status < 300:
                # RFC 9110 section 9.3.6: whatever the head says of a body, it has none.
                stream.open_tunnel(without_length(head))
                return rest
            if stream.tunnel != b"CONNECT" and status < 300:
                # RFC 8441 section 5: passed on, it would say that the tunnel is open.
                raise H1Error(502, f"{status} instead of 101 in answer to an upgrade")
            stream.refuse_tunnel()
        if status in (204, 304) or stream.head_only:
            body = 0
        if not parsed.keep_alive or body == UNTIL_CLOSE:
            self._leave = True
        if body:
            stream.expect_body(body)
            stream.incomplete = body > len(rest)
            stream.handler.on_response(head, False)
        else:
            stream.receiving = DONE
            stream.handler.on_response(head, True)
            self.stream_advanced(stream)
        return rest

    def _switched(self, stream: H1ClientStream, parsed: ParsedResponse) -> None:
        """101: as RFC 8441 section 5 puts it, a 200 to the extended CONNECT."""
        if not stream.tunnel or parsed.upgrade.lower() != stream.tunnel:
            raise H1Error(502, "101 without the upgrade that was asked for")
        head = parsed.head
        if stream.accept and head.get(b"sec-websocket-accept") != stream.accept:
            raise H1Error(502, "wrong sec-websocket-accept")
        fields = tuple(field for field in head.fields if field[0] != b"sec-websocket-accept")
        stream.open_tunnel(ResponseHead(200, fields, head.fresh))

    def check_partial_head(self, start: int) -> None:
        check_partial(self._input, start, self.options, "response")

    # --- endings

    def stream_advanced(self, stream: H1Stream) -> None:
        if stream is not self._stream:
            return
        tunnel = self._stream.tunnel
        if stream.receiving != DONE:
            if tunnel and stream.receiving == TUNNEL:
                self.want_eof = True
                self.wrote()
            return
        if stream.sending != DONE:
            if tunnel:
                return
            self._leave = True  # The answer came before the request had left: the rest stays here.
        stream.finish()
        if self._leave or self._draining or self._eof:
            self.close()
        elif self._receiving:
            self._capacity_due = True
        else:
            self.handler.on_capacity()

    def body_refused(self, stream: H1Stream, error: H1Error) -> None:
        self._fail(str(error))

    def _fail(self, reason: str) -> None:
        """The server's bytes are refused."""
        self.error = reason
        stream, taken = self._stream, self._taken
        if stream is not None:
            stream.finish()
        self.close()
        if stream is not None:
            stream.handler.on_reset(Reset(ErrorCode.PROTOCOL_ERROR, reason, processed=taken, remote=False))

    def _lose(self, stream: H1ClientStream, reason: str) -> None:
        """The connection ended under a stream."""
        begun = stream.receiving != NOT_BEGUN or bool(self._input)
        stream.finish()
        self.close()
        if not self._taken:
            self._out.clear()  # or a server that has only half-closed would get it after all
            reset = Reset(ErrorCode.REFUSED_STREAM, "connection closed before the request left", False, False)
        elif not begun:
            reset = Reset(ErrorCode.CANCEL, CLOSED_BEFORE_RESPONSE)
        else:
            reset = Reset(ErrorCode.CANCEL, reason)
        stream.handler.on_reset(reset)


class H1ClientStream(H1Stream):
    """One request to the server and the response to it."""

    __slots__ = ("accept", "head_only", "tunnel")

    _connection: H1ClientCodec

    def __init__(self, connection: H1ClientCodec) -> None:
        super().__init__(connection)
        self.tunnel = b""
        """What the request asks to turn the connection into: `CONNECT`, an upgrade token, or nothing."""
        self.accept = b""
        self.head_only = False

    def send_request(self, head: RequestHead, end_stream: bool) -> None:
        if self.sending != NOT_BEGUN:
            return
        connection = self._connection
        try:
            block = field_block(head.fields)
            lines, length, te = block.lines, block.length, block.te
            if head.fresh:
                fresh = FieldBlock(head.fresh)
                if fresh.cookie and block.cookie:
                    fresh = FieldBlock(head.fields + head.fresh)
                    lines = b""
                lines += fresh.lines
                te = te or fresh.te
                if fresh.length >= 0:
                    length = merge_length(length, b"%d" % fresh.length)
            start = self._start(head, length, end_stream)
        except FieldError as error:
            self._unwritable(error)
            return
        connection._out.append(b"%b%b%b\r\n" % (start, lines, b"connection: te\r\n" if te else b""))
        if end_stream:
            self._end_sending()
        connection.wrote()

    def _start(self, head: RequestHead, length: int, end_stream: bool) -> bytes:
        """Request line, Host and what frames the message (RFC 9112 section 6); sets `sending`."""
        method = head.method
        if method == b"CONNECT":
            start = self._tunnel_start(head)
            self.sending = TUNNEL
            self._held = []  # Nothing goes ahead of the server's consent.
            return start
        start = request_start(method, head.path, head.authority)
        self.head_only = method == b"HEAD"
        if length >= 0 or end_stream:
            if end_stream and length > 0:
                raise FieldError("a content-length without the body")
            self.sending = max(length, 0)
            if length >= 0 or method in _BODY_EXPECTED:
                return b"%bcontent-length: %d\r\n" % (start, self.sending)
            return start
        self.sending = CHUNKED
        return start + b"transfer-encoding: chunked\r\n"

    def _tunnel_start(self, head: RequestHead) -> bytes:
        protocol = head.protocol
        if not protocol:
            start = request_start(b"CONNECT", head.authority, head.authority)
            self.tunnel = b"CONNECT"
            return start
        start = request_start(b"GET", head.path, head.authority)
        start += b"connection: upgrade\r\n" + FieldBlock(((b"x", protocol),)).lines.replace(
            b"x", b"upgrade", 1
        )
        if protocol.lower() == b"websocket":
            # RFC 8441 section 5: the key is made anew for each HTTP/1.1 hop.
            key = base64.b64encode(self._connection.options.random_bytes(16))
            self.accept = websocket_accept(key)
            start += b"sec-websocket-key: %b\r\n" % key
        self.tunnel = protocol.lower()
        return start

    def release(self) -> None:
        if not self.tunnel or self.receiving != NOT_BEGUN:
            super().release()

    def open_tunnel(self, head: ResponseHead) -> None:
        """The server consents: bytes both ways from here."""
        self.receiving = TUNNEL
        self._connection._leave = True
        self.handler.on_response(head, False)
        if not self._connection._output_paused:
            self.release()

    def refuse_tunnel(self) -> None:
        """An ordinary response instead: what waited for the tunnel goes nowhere."""
        self._held = None
        self.sending = DONE
        if self.tunnel == b"CONNECT":
            self._connection._leave = True
        self.tunnel = b""

    def _unwritable(self, error: FieldError) -> None:
        connection, handler = self._connection, self.handler
        self.finish()
        handler.on_reset(Reset(ErrorCode.INTERNAL_ERROR, f"the request has {error}", False, False))
        if connection.available:
            connection.handler.on_capacity()
