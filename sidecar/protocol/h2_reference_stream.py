"""A stream of `h2_reference.py`: what is queued until the windows let it through, and how the stream ends."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from h2.exceptions import ProtocolError

from sidecar.protocol.events import ErrorCode, Field, RequestHead, Reset, ResponseHead, StreamHandler

if TYPE_CHECKING:
    from sidecar.protocol.h2_reference import H2ReferenceCodec


class H2ReferenceStream:
    """One request and its response; `events.Stream` has the contract."""

    handler: StreamHandler
    incomplete = False

    def __init__(self, codec: H2ReferenceCodec, stream_id: int) -> None:
        self.id = stream_id
        self.remote_done = False
        self._codec = codec
        self._over = False
        self._local_done = False
        self._end_queued = False
        self._queue: deque[bytes] = deque()
        self._trailers: tuple[Field, ...] | None = None
        self._unreturned = 0

    def __repr__(self) -> str:
        held = sum(map(len, self._queue))
        return f"<H2ReferenceStream {self.id} local={self._local_done} remote={self.remote_done} held={held}>"

    # --- sending

    def send_request(self, head: RequestHead, end_stream: bool) -> None:
        codec = self._codec
        if not self._may_request(head):
            return
        self.id = codec.connection.get_next_available_stream_id()
        codec.opened(self)
        fields: list[Field] = [(b":method", head.method)]
        if head.method != b"CONNECT" or head.protocol:
            fields += [(b":scheme", head.scheme), (b":path", head.path)]
        fields.append((b":authority", head.authority))
        if head.protocol:
            fields.append((b":protocol", head.protocol))
        self._send_headers([*fields, *head.fields, *head.fresh], end_stream)

    def send_response(self, head: ResponseHead, end_stream: bool) -> None:
        self._send_headers([(b":status", b"%d" % head.status), *head.fields, *head.fresh], end_stream)

    def send_informational(self, head: ResponseHead) -> None:
        self._send_headers([(b":status", b"%d" % head.status), *head.fields, *head.fresh], False)

    def send_data(self, data: bytes, end_stream: bool) -> int:
        if self._over or self._end_queued:
            return len(data)
        held = bool(self._queue)
        if data:
            self._queue.append(data)
        self._end_queued = end_stream
        if held:
            return 0
        sent = self._send_queued()
        self.finish_if_done()
        return sent

    def send_trailers(self, fields: tuple[Field, ...]) -> None:
        if not self._over and not self._end_queued:
            self._trailers = fields
            self._end_queued = True
            self._send_queued()
            self.finish_if_done()

    def pump(self) -> None:
        """The peer's window, or the transport, may have room again."""
        if self._queue or self._end_queued:
            sent = self._send_queued()
            if sent:
                self.handler.on_sent(sent)
            self.finish_if_done()

    # --- receiving and ending

    def consume(self, n: int) -> None:
        self._unreturned += n
        if self._over or self.remote_done:
            return
        if self._unreturned and self._unreturned >= self._codec.options.initial_stream_window_size // 2:
            self._codec.connection.increment_flow_control_window(self._unreturned, self.id)
            self._unreturned = 0
            self._codec.wrote()

    def reset(self, code: ErrorCode) -> None:
        if not self._over:
            self.abandon(code)
            self._end()

    def abandon(self, code: ErrorCode) -> None:
        """Queue RST_STREAM."""
        if self.id and not self._codec.should_close:
            self._codec.connection.reset_stream(self.id, code)
            self._codec.wrote()

    def fail(self, reset: Reset) -> None:
        """The stream is gone, and its handler must know."""
        if not self._over:
            self._end()
            self.handler.on_reset(reset)

    def finish_if_done(self) -> None:
        """Forget the stream once both directions have ended."""
        if self.remote_done and self._local_done and not self._over:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._queue.clear()
        self._codec.forget(self)

    def _may_request(self, head: RequestHead) -> bool:
        codec = self._codec
        if self._over or self.id:
            return False
        if codec.refusing or codec.should_close:
            reason = "the connection is going away"
        elif head.protocol and not codec.peer_enables_connect_protocol:
            reason = "the peer does not offer extended CONNECT (RFC 8441)"
        else:
            return True
        self.fail(Reset(ErrorCode.REFUSED_STREAM, reason, processed=False, remote=False))
        return False

    def _send_headers(self, fields: list[Field], end_stream: bool) -> None:
        if self._over or self._local_done:
            return
        try:
            self._codec.connection.send_headers(self.id, fields, end_stream)
        except ProtocolError as error:
            self.abandon(ErrorCode.INTERNAL_ERROR)
            self.fail(
                Reset(ErrorCode.INTERNAL_ERROR, f"header section cannot be sent: {error}", remote=False)
            )
            return
        self._codec.wrote()
        if end_stream:
            self._local_done = self._end_queued = True
            self.finish_if_done()

    def _send_queued(self) -> int:
        """Send what the windows let through; returns how many body bytes that were."""
        codec = self._codec
        connection = codec.connection
        sent = 0
        while self._queue and not codec.paused:
            room = min(connection.local_flow_control_window(self.id), connection.max_outbound_frame_size)
            if room <= 0:
                break
            data = self._queue.popleft()
            if len(data) > room:
                self._queue.appendleft(data[room:])
                data = data[:room]
            last = self._end_queued and not self._queue and self._trailers is None
            connection.send_data(self.id, data, last)
            sent += len(data)
            self._local_done = last
        if self._end_queued and not self._queue and not self._local_done:
            self._send_end()
        codec.wrote()
        return sent

    def _send_end(self) -> None:
        if self._trailers:
            self._send_headers(list(self._trailers), True)
        else:
            self._codec.connection.end_stream(self.id)
            self._local_done = True
