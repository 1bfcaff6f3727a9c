"""HTTP/2 (RFC 9113) for both ends of a connection: `Codec` of `events.py`.

`sidecar/net/connection.py` drives it; `h2_sender.py` is its sending half, `h2_stream.py` a stream,
`h2_control.py` the frames that concern the connection. It never raises for what a peer sends: a stream error
resets that stream, a connection error queues GOAWAY, resets all streams and sets `should_close`.

A peer that makes work without making progress runs into debt: PING, SETTINGS, empty and unknown frames,
refused streams. Responses and body bytes work the debt off, and so does every call of `receive`, which
stands in for time: what comes slowly is no flood. Too much of it ends the connection with
ENHANCE_YOUR_CALM. Streams that are reset before their response cost others more than a read, so they have a
budget of their own, by the clock.
"""

from __future__ import annotations

from sidecar.protocol import h2_frames as frames
from sidecar.protocol.events import (
    ConnectionHandler,
    ErrorCode,
    Field,
    RequestHead,
    ResponseHead,
)
from sidecar.protocol.field_rules import (
    NO_LENGTH,
    MalformedError,
    check_fresh,
    is_path,
    request_head,
    response_head,
    trailer_section,
    without_length,
)
from sidecar.protocol.h2_control import H2Control
from sidecar.protocol.h2_sender import ConnectionFailure, H2Options
from sidecar.protocol.h2_stream import BODY, DONE, HEAD, RESPONSE_CREDIT, H2Stream
from sidecar.protocol.hpack import HeaderBlock, HpackBombError, HpackDecoder, HpackError

__all__ = ["H2Codec", "H2Options"]

_MAX_CONTINUATIONS = 64
_WORK_A_TURN = 512
_HEAD_WORK = 8
"""Frames that are taken in one turn of the event loop, a header section counting for several more, and for
another each 256 octets: a read may hold thousands of requests, and other connections would wait for all."""
_REFUSAL_COST = 1
_TOO_LARGE_COST = 8
"""Of a request that is answered 431: decoding it has cost more than answering ten others."""
_unpack = frames.unpack_header
_CONNECT = b"CONNECT"
_TOO_LARGE = ResponseHead(431, ((b"content-length", b"0"),))
_TOO_LARGE_GRPC = ResponseHead(
    200,
    (
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"8"),
        (b"grpc-message", b"header section larger than the sidecar allows"),
    ),
)
"""RESOURCE_EXHAUSTED: gRPC clients understand no other language."""


class H2Codec(H2Control):
    """One HTTP/2 connection, client or server side.

    `peer_enables_connect_protocol` tells a client, once `on_ready` was called, whether it may send
    extended CONNECT requests (RFC 8441).
    """

    def __init__(self, client: bool, handler: ConnectionHandler, options: H2Options | None = None) -> None:
        super().__init__(client, handler, options or H2Options())
        options = self.options
        self._decoder = HpackDecoder(
            options.max_header_bytes,
            options.max_header_count + 5,
            open_paths=not client,
            common=options.common_blocks,
        )
        self._preface_left = b"" if client else frames.PREFACE
        self._partial = bytearray()
        self._needed = 0
        self._continued = bytearray()
        self._continued_frames = 0
        self._continued_flags = 0
        # Twice the list's limit: literals may be sent less compactly than they are counted.
        self._max_block = 2 * options.max_header_bytes + frames.DEFAULT_FRAME_SIZE
        self._at_hand = 0
        """How many bytes of this read follow the header section."""
        self._held = b""
        """What waits for the turns that follow, while `behind`."""
        self._eof_waits = False
        self._passed_over = range(0)
        """Ids between the last two streams that did not follow each other."""

    # --- input --------------------------------------------------------------------------------

    takes_views = True

    def receive(self, data: bytes | memoryview) -> None:
        """Bytes from the peer."""
        if self.failed:
            return
        self.heard = True
        if self.debt:
            self.debt -= 1
        if self.behind:  # read before reading paused
            self._held += data
        else:
            self._take(data)

    def _take(self, data: bytes | memoryview) -> None:
        self.signalled = True  # the driver takes the output after this call
        try:
            if self._preface_left:
                data = self._receive_preface(data)
            start = self._complete_frame(data) if self._partial else 0
            if start < len(data):
                self._frames(data, start)
        except ConnectionFailure as failure:
            self.fail(failure.code, failure.text)
        finally:
            self.signalled = False

    def _receive_preface(self, data: bytes | memoryview) -> bytes | memoryview:
        expected = self._preface_left
        if data[: len(expected)] != expected[: len(data)]:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 connection preface")
        self._preface_left = expected[len(data) :]
        return data[len(expected) :]

    def _complete_frame(self, data: bytes | memoryview) -> int:
        """Take the frame that an earlier piece began; returns where the next one begins. Only this frame is
        put together anew: large bodies come in pieces that hold many."""
        partial = self._partial
        start = 0
        while partial:
            end = start + self._needed - len(partial)
            partial += memoryview(data)[start:end]
            if end > len(data):
                return len(data)
            frame = bytes(partial)
            partial.clear()
            self._frames(frame, 0)  # a mere frame header comes back as partial, its length then known
            if self.failed:
                return len(data)
            start = end
        return start

    def _frames(self, data: bytes | memoryview, pos: int) -> None:
        """Take every whole frame of `data` from `pos` on; keep the rest until more comes."""
        size = len(data)
        max_frame_size = self.options.max_frame_size
        work = _WORK_A_TURN
        while size - pos >= 9:
            high, low, kind, flags, stream_id = _unpack(data, pos)
            length = high << 8 | low
            if length > max_frame_size:
                raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} octets is too large")
            end = pos + 9 + length
            if end > size:
                self._needed = 9 + length
                self._partial += memoryview(data)[pos:]
                return
            stream_id &= frames.MAX_STREAM_ID
            if self._gate:
                self._check_gate(kind, flags, stream_id)
            piece = data[pos + 9 : end]
            payload = piece if type(piece) is bytes else bytes(piece)
            if kind == 1:
                work -= _HEAD_WORK + (length >> 8)
                self._at_hand = size - end
                if flags & 0x2C == 4:
                    self._on_header_block(stream_id, flags, payload)
                else:
                    self._on_headers_frame(stream_id, flags, payload)
            elif kind == 0:
                if flags & 8 or not length:
                    self._on_odd_data(stream_id, flags, payload)
                else:
                    self._on_data(stream_id, flags, payload, length)
            elif kind == frames.CONTINUATION:
                work -= length >> 8
                self._at_hand = size - end
                self._on_continuation(stream_id, flags, payload)
            else:
                self.on_control_frame(kind, flags, stream_id, payload)
            if self.failed:
                return
            pos = end
            work -= 1
            if work <= 0 and pos < size:
                self._fall_behind(bytes(data[pos:]))
                return
        if pos < size:
            self._needed = 9
            self._partial += memoryview(data)[pos:]

    def _fall_behind(self, rest: bytes) -> None:
        self._held = rest
        if not self.behind:
            self.behind = True
            self.on_read_pause(True)

    def catch_up(self) -> None:
        """Some of what waits, in a turn of its own; the rest is left to the next while still `behind`."""
        data, self._held = self._held, b""
        if not self.failed:
            self._take(data)
        if self._held:
            return
        self.behind = False
        self.on_read_pause(False)
        if self._eof_waits:
            self.receive_eof()

    def receive_eof(self) -> None:
        """The peer sends no more: streams whose message is incomplete are lost, others may be answered."""
        self._eof_waits = self.behind
        if not self.behind:
            super().receive_eof()
        elif self.client:
            self.refusing = True

    def awaited_head(self) -> int:
        """Server side, see `ConnectionManager`: preface, first SETTINGS and header sections."""
        partial = self._partial
        if self._gate or (len(partial) > 3 and partial[3] in (frames.HEADERS, frames.CONTINUATION)):
            return self.last_opened_id
        return -1

    def refuse_late_head(self) -> None:
        """End the connection: what may follow a header section that is never finished is unknown."""
        self.fail(ErrorCode.ENHANCE_YOUR_CALM, "the header section took too long")

    # --- HEADERS and CONTINUATION -------------------------------------------------------------

    def _on_headers_frame(self, stream_id: int, flags: int, payload: bytes) -> None:
        """HEADERS with padding, priority or CONTINUATION."""
        priority = 5 if flags & frames.PRIORITY_FLAG else 0
        payload = _unpadded(flags, payload, priority)
        if len(payload) < priority:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
        payload = payload[priority:]
        if flags & frames.END_HEADERS:
            self._on_header_block(stream_id, flags, payload)
            return
        if not stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        self._continued += payload
        self._continued_frames = 0
        self._continued_flags = flags
        self.expect_continuation(stream_id)

    def _on_continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not self._continued_flags and not self.continued_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._continued += payload
        self._continued_frames += 1
        if len(self._continued) > self._max_block or self._continued_frames > _MAX_CONTINUATIONS:
            raise ConnectionFailure(
                ErrorCode.ENHANCE_YOUR_CALM, "header block is too large or in too many pieces"
            )
        if flags & frames.END_HEADERS:
            block = bytes(self._continued)
            self._continued.clear()
            self.expect_continuation(0)
            self._on_header_block(stream_id, self._continued_flags, block)

    def _on_header_block(self, stream_id: int, flags: int, octets: bytes) -> None:
        if not stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        try:
            block = self._decoder.decode(octets)
        except HpackError as error:
            raise ConnectionFailure(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        except HpackBombError as error:
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, str(error)) from None
        stream = self.streams.get(stream_id)
        end_stream = bool(flags & frames.END_STREAM)
        if block.path_at >= 0 and stream is not None:
            self.stream_error(stream, ErrorCode.PROTOCOL_ERROR, ":path in a trailer section")
            return
        if stream is None:
            if not self.client and stream_id & 1 and stream_id > self.last_opened_id:
                self._on_request(stream_id, block, end_stream)
            else:
                self._on_unexpected_headers(stream_id)
        elif stream.remote == HEAD:
            self._on_response(stream, block, end_stream)
        elif stream.remote == BODY:
            self._on_trailers(stream, block, end_stream)
        else:
            self.stream_error(stream, ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")

    def _on_request(self, stream_id: int, block: HeaderBlock, end_stream: bool) -> None:
        if stream_id > self.last_opened_id + 2:
            self._passed_over = range(self.last_opened_id + 1, stream_id)
        self.last_opened_id = stream_id
        if self.refusing or self.active_streams >= self.options.max_concurrent_streams:
            self.incur(_REFUSAL_COST, "refused streams")
            self.write_control(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            self.remember_closed(stream_id, False)
            return
        if block.too_large:
            self._answer_too_large(stream_id, end_stream, block.fields)
            return
        head = block.head
        if type(head) is RequestHead and not self._decoder.fresh and block.path_at < 0:
            length = block.content_length
        else:
            try:
                head, length = self._request_head(block)
            except MalformedError as error:
                self.refuse_malformed(stream_id, str(error))
                return
        if len(head.fields) + len(head.fresh) > self.options.max_header_count:
            self._answer_too_large(stream_id, end_stream, head.fields + head.fresh)
            return
        if end_stream and length > 0:
            self.refuse_malformed(stream_id, "content-length without content")
            return
        stream = H2Stream(self, stream_id, DONE if end_stream else BODY, self.new_stream_window)
        stream.expected = length
        self.streams[stream_id] = stream
        self.active_streams += 1
        self.handler.on_request(stream, head, end_stream)

    def _request_head(self, block: HeaderBlock) -> tuple[RequestHead, int]:
        """The head, shared as far as the block is."""
        head = block.head
        fresh = self._decoder.fresh
        path = self._decoder.path
        connect = self.options.enable_connect_protocol
        if head is None:
            try:
                head, block.content_length = request_head(block.all_fields(path), connect)
            except MalformedError:
                # Perhaps it is only incomplete.
                if not fresh and block.path_at < 0:
                    raise
                head = False
            block.head = head
        if type(head) is RequestHead:
            if block.path_at < 0:
                path = head.path
            elif not is_path(path):
                return request_head(block.all_fields(path) + fresh, connect)
            elif not fresh:
                return head.vary(path, ()), block.content_length
            length = check_fresh(fresh, block.content_length)
            if length is not None:
                return head.vary(path, fresh), length if head.method != _CONNECT else NO_LENGTH
        return request_head(block.all_fields(path) + fresh, connect)

    def _answer_too_large(self, stream_id: int, end_stream: bool, fields: tuple[Field, ...]) -> None:
        self.incur(_TOO_LARGE_COST, "requests with too large header sections")
        grpc = any(n == b"content-type" and v.startswith(b"application/grpc") for n, v in fields)
        answer = _TOO_LARGE_GRPC if grpc else _TOO_LARGE
        self.write_headers(stream_id, self.encoder.response(answer), True)
        if not end_stream:
            self.write_control(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))
            self.remember_closed(stream_id, False)

    def _on_response(self, stream: H2Stream, block: HeaderBlock, end_stream: bool) -> None:
        if block.too_large:
            self._reset_too_large(stream, "response headers")
            return
        head = block.head
        if type(head) is ResponseHead and not self._decoder.fresh:
            length = block.content_length
        else:
            try:
                head, length = self._response_head(block)
            except MalformedError as error:
                self.stream_error(stream, ErrorCode.PROTOCOL_ERROR, str(error))
                return
        if len(head.fields) + len(head.fresh) > self.options.max_header_count:
            self._reset_too_large(stream, "response headers")
            return
        status = head.status
        if status < 200:
            if end_stream:
                self.stream_error(stream, ErrorCode.PROTOCOL_ERROR, "informational response ends the stream")
            else:
                self.incur(1, "informational responses")
                stream.handler.on_informational(head if length == NO_LENGTH else without_length(head))
            return
        if self.debt:
            self.debt = max(0, self.debt - RESPONSE_CREDIT)
        method = stream.method
        if status == 204 or (method == _CONNECT and status < 300):
            if length != NO_LENGTH:
                head = without_length(head)
            length = NO_LENGTH if method == _CONNECT else 0
        elif method == b"HEAD" or status == 304:
            length = 0
        elif end_stream and length > 0:
            self.stream_error(stream, ErrorCode.PROTOCOL_ERROR, "content-length without content")
            return
        stream.expected = length
        stream.incomplete = length > 0 and length + 9 > self._at_hand
        stream.remote = DONE if end_stream else BODY
        stream.handler.on_response(head, end_stream)
        if end_stream and stream.local == DONE:
            self.released(stream)

    def _response_head(self, block: HeaderBlock) -> tuple[ResponseHead, int]:
        head = block.head
        fresh = self._decoder.fresh
        if head is None:
            try:
                head, block.content_length = response_head(block.fields)
            except MalformedError:
                if not fresh:
                    raise
                head = False
            block.head = head
        if type(head) is ResponseHead:
            if not fresh:
                return head, block.content_length
            length = check_fresh(fresh, block.content_length)
            if length is not None:
                return ResponseHead(head.status, head.fields, fresh, head.memo), length
        return response_head(block.fields + fresh)

    def _on_trailers(self, stream: H2Stream, block: HeaderBlock, end_stream: bool) -> None:
        fresh = self._decoder.fresh
        if block.too_large or len(block.fields) + len(fresh) > self.options.max_header_count:
            self._reset_too_large(stream, "trailers")
            return
        if not end_stream:
            self.stream_error(stream, ErrorCode.PROTOCOL_ERROR, "trailers do not end the stream")
            return
        fields = block.trailers
        if fields is None or fresh:
            try:
                fields = trailer_section(block.fields + fresh)
            except MalformedError as error:
                self.stream_error(stream, ErrorCode.PROTOCOL_ERROR, str(error))
                return
            if not fresh:
                block.trailers = fields
        if stream.expected > 0:
            self.stream_error(stream, ErrorCode.PROTOCOL_ERROR, "less content than content-length")
            return
        stream.remote = DONE
        stream.handler.on_trailers(fields)
        if stream.local == DONE:
            self.released(stream)

    def _reset_too_large(self, stream: H2Stream, what: str) -> None:
        options = self.options
        self.stream_error(
            stream,
            ErrorCode.ENHANCE_YOUR_CALM,
            f"{what} exceed {options.max_header_bytes} bytes or {options.max_header_count} fields",
        )

    def _on_unexpected_headers(self, stream_id: int) -> None:
        self.check_not_idle(stream_id, "HEADERS")
        if stream_id in self._passed_over:
            text = f"stream {stream_id} opened after a higher one (section 5.1.1)"
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, text)
        self.on_closed_stream_frame(stream_id)

    # --- DATA ---------------------------------------------------------------------------------

    def _on_odd_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        """DATA with padding or without content."""
        data = _unpadded(flags, payload)
        if not data and not flags & frames.END_STREAM:
            self.incur(1, "empty DATA frames")
        self._on_data(stream_id, flags, data, len(payload))

    def _on_data(self, stream_id: int, flags: int, data: bytes, length: int) -> None:
        """`length` counts the padding too (RFC 9113 section 6.1)."""
        if not stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        self.receive_window -= length
        if self.receive_window <= self.connection_update_threshold:
            self._update_connection_window()
        stream = self.streams.get(stream_id)
        if stream is None:
            self.check_not_idle(stream_id, "DATA")
            self.on_closed_stream_frame(stream_id)
            return
        if stream.remote != BODY:
            if stream.remote == DONE:
                self.stream_error(stream, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
            else:
                self.stream_error(stream, ErrorCode.PROTOCOL_ERROR, "DATA before HEADERS")
            return
        window = stream.receive_window - length
        if window < 0 and length:
            self.stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
            return
        stream.receive_window = window
        size = len(data)
        end_stream = bool(flags & frames.END_STREAM)
        if size != length and not end_stream:
            stream.consume(length - size)
        expected = stream.expected
        if expected >= 0:
            expected -= size
            stream.expected = expected
            if expected < 0 or (end_stream and expected):
                self.stream_error(stream, ErrorCode.PROTOCOL_ERROR, "content differs from content-length")
                return
        if not end_stream:
            if size:
                if self.debt:
                    self.debt -= 1
                stream.handler.on_data(data, False)
            return
        stream.remote = DONE
        stream.handler.on_data(data, True)
        if stream.local == DONE:
            self.released(stream)

    def _update_connection_window(self) -> None:
        """Give back what came at once: held back, one stalled reader would starve every stream beside it."""
        if self.receive_window < 0:
            raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        increment = self.connection_window - self.receive_window
        self.receive_window = self.connection_window
        self.write(frames.window_update(0, increment))


def _unpadded(flags: int, payload: bytes, fixed: int = 0) -> bytes:
    """Without padding, which must leave room for `fixed` octets (sections 6.1 and 6.2)."""
    if not flags & frames.PADDED:
        return payload
    room = len(payload) - 1 - fixed
    if room < 0:
        raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "padded frame too short for what it must hold")
    padding = payload[0]
    if padding > room:
        raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "padding is longer than the frame")
    return payload[1 : len(payload) - padding]
