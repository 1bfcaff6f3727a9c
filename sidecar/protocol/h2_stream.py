"""One HTTP/2 stream from either end (RFC 9113 section 5.1): `Stream` of `events.py`.

Made by `H2Codec` alone. It holds the state of both directions, the two flow-control windows, and the body
bytes that may not leave yet; the connection-wide part of every decision is `H2Sender`'s.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sidecar.protocol import h2_frames as frames
from sidecar.protocol.events import ErrorCode, Field, RequestHead, Reset, ResponseHead, StreamHandler
from sidecar.protocol.field_rules import NO_LENGTH
from sidecar.protocol.h2_sender import PIECE

if TYPE_CHECKING:
    from sidecar.protocol.h2_sender import H2Sender

HEAD = 0
BODY = 1
DONE = 2
"""What comes next in a direction: its head, body or trailers, nothing."""

_SMALL = 1024
"""Pieces below this are copied together instead of being kept one by one."""

RESPONSE_CREDIT = 4
"""How much of the peer's debt (see `H2Codec`) a response works off."""

SENT_CREDIT = 4
"""The same of a DATA frame: peers answer one with WINDOW_UPDATE frames for stream and connection, or PING."""

_pack = frames.pack_header


class _NoHandler:
    """Stands in until the owner of a new stream has set its own."""

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        """Ignored."""

    def on_informational(self, head: ResponseHead) -> None:
        """Ignored."""

    def on_data(self, data: bytes, end_stream: bool) -> None:
        """Ignored."""

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        """Ignored."""

    def on_sent(self, n: int) -> None:
        """Ignored."""

    def on_reset(self, reset: Reset) -> None:
        """Ignored."""


_NO_HANDLER = _NoHandler()


class H2Stream:
    """See `Stream` for what each method means. Calls on a stream that has ended do nothing."""

    __slots__ = (
        "_codec",
        "_ending",
        "_kept",
        "expected",
        "handler",
        "id",
        "incomplete",
        "kept_size",
        "local",
        "method",
        "queued",
        "receive_window",
        "remote",
        "send_window",
        "unreturned",
    )

    def __init__(self, codec: H2Sender, stream_id: int, remote: int, receive_window: int) -> None:
        self.handler: StreamHandler = _NO_HANDLER
        self._codec = codec
        self.id = stream_id  # 0 until the request is sent
        self.local = HEAD
        self.remote = remote
        self.send_window = codec.peer_initial_window
        self.receive_window = receive_window
        self.unreturned = 0
        """Bytes consumed here and not yet announced to the peer."""
        self.expected = NO_LENGTH
        """Body bytes still to come by the peer's content-length."""
        self.incomplete = False
        self.method = b""
        self._kept: deque[bytes | bytearray | memoryview] | None = None
        self.kept_size = 0
        self._ending: tuple[Field, ...] | bool = False
        """What follows the kept bytes: False nothing yet, True END_STREAM, or a trailer section."""
        self.queued = False

    # --- sending ------------------------------------------------------------------------------

    def send_request(self, head: RequestHead, end_stream: bool) -> None:
        """Client side, once, first. On a connection that is going away: `on_reset`, unprocessed."""
        if self.local != HEAD or self.id:
            return
        codec = self._codec
        refusal = codec.assign_id(self, head)
        if refusal:
            codec.released(self)
            self.handler.on_reset(Reset(ErrorCode.REFUSED_STREAM, refusal, processed=False, remote=False))
            return
        self.method = head.method
        self.local = DONE if end_stream else BODY
        codec.write_headers(self.id, codec.encoder.request(head), end_stream)

    def send_response(self, head: ResponseHead, end_stream: bool) -> None:
        """Server side, once."""
        if self.local != HEAD:
            return
        codec = self._codec
        if codec.debt:
            codec.debt = max(0, codec.debt - RESPONSE_CREDIT)
        codec.write_headers(self.id, codec.encoder.response(head), end_stream)
        if not end_stream:
            self.local = BODY
        else:
            self.local = DONE
            if self.remote == DONE:
                codec.released(self)

    def send_informational(self, head: ResponseHead) -> None:
        """Server side, before `send_response`."""
        if self.local == HEAD:
            self._codec.write_headers(self.id, self._codec.encoder.response(head), False)

    def send_data(self, data: bytes, end_stream: bool) -> int:
        """Queue body bytes; returns how many left at once, the rest comes as `on_sent`."""
        size = len(data)
        codec = self._codec
        if (
            0 < size <= self.send_window
            and self.local == BODY
            and self._kept is None
            and size <= codec.peer_window
            and size <= codec.peer_max_frame_size
            and not codec.paused
        ):
            self.send_window -= size
            codec.peer_window -= size
            header = _pack(size >> 8, size & 255, frames.DATA, 1 if end_stream else 0, self.id)
            if size <= _SMALL:
                codec.write(header + data)
            else:
                codec.write(header)
                codec.write(data)
                codec.bulk += size
            if codec.debt:
                codec.debt = max(0, codec.debt - SENT_CREDIT)
            if not codec.signalled:
                codec.signal()
            if end_stream:
                self.local = DONE
                if self.remote == DONE:
                    codec.released(self)
            return size
        return self._send_data_slowly(data, end_stream)

    def _send_data_slowly(self, data: bytes, end_stream: bool) -> int:
        if self.local != BODY or self._ending is not False:
            return len(data)
        sent = 0
        codec = self._codec
        if self._kept is None and not codec.paused:
            view = memoryview(data)
            limit = codec.peer_max_frame_size
            room = min(self.send_window, codec.peer_window, len(data))
            while sent < room:
                piece = view[sent : min(sent + limit, room)]
                sent += len(piece)
                self._write_data(piece, end_stream and sent == len(data))
        if sent < len(data):
            self._keep(data, sent)
            self._ending = end_stream
            if self.send_window > 0:
                codec.make_ready(self)
        elif end_stream:
            if self._kept is not None:
                self._ending = True
            else:
                if not data:
                    self._write_data(b"", True)
                self._sent_end()
        return sent

    def send_trailers(self, fields: tuple[Field, ...]) -> None:
        """End the message with a trailer section, after all queued data."""
        if self.local != BODY or self._ending is not False:
            return
        if self._kept is not None:
            self._ending = fields
        else:
            self._write_trailers(fields)
            self._sent_end()

    def send_piece(self) -> None:
        """Let kept bytes leave as far as the windows allow, at most 16 KiB; `H2Sender.pump` calls it."""
        kept = self._kept
        codec = self._codec
        limit = min(PIECE, codec.peer_window, self.send_window, codec.peer_max_frame_size)
        if kept is None or limit <= 0:
            return
        piece = kept[0]
        if len(piece) > limit:
            view = memoryview(piece)
            kept[0] = view[limit:]
            piece = view[:limit]
        else:
            kept.popleft()
        size = len(piece)
        self.kept_size -= size
        if kept:
            self._write_data(piece, False)
            if self.send_window > 0:
                codec.make_ready(self)
        else:
            self._kept = None
            self._write_data(piece, self._ending is True)
            if type(self._ending) is tuple:
                self._write_trailers(self._ending)
            if self._ending is not False:
                self.local = DONE
        self.handler.on_sent(size)
        if self.local == DONE and self.remote == DONE:
            codec.released(self)

    def has_sendable(self) -> bool:
        """Whether kept bytes have room in this stream's window."""
        return self._kept is not None and self.send_window > 0

    def _keep(self, data: bytes, start: int) -> None:
        kept = self._kept
        if kept is None:
            kept = self._kept = deque()
        size = len(data) - start
        self.kept_size += size
        if size >= _SMALL:
            # A view keeps all of `data` alive, which must not be much more than what is counted.
            kept.append(memoryview(data)[start:] if start <= size else data[start:])
        elif kept and type(kept[-1]) is bytearray and len(kept[-1]) < PIECE:
            kept[-1] += data[start:]
        else:
            kept.append(bytearray(data[start:]))

    def _write_data(self, piece: bytes | bytearray | memoryview, end_stream: bool) -> None:
        size = len(piece)
        codec = self._codec
        self.send_window -= size
        codec.peer_window -= size
        if codec.debt and size:
            codec.debt = max(0, codec.debt - SENT_CREDIT)
        codec.write(_pack(size >> 8, size & 255, frames.DATA, 1 if end_stream else 0, self.id))
        if size:
            codec.write(piece)
            codec.bulk += size
        codec.signal()

    def _write_trailers(self, fields: tuple[Field, ...]) -> None:
        self._codec.write_headers(self.id, self._codec.encoder.trailers(fields), True)

    def _sent_end(self) -> None:
        self.local = DONE
        if self.remote == DONE:
            self._codec.released(self)

    # --- the rest -----------------------------------------------------------------------------

    def reset(self, code: ErrorCode) -> None:
        """Abandon the stream in both directions. No callback follows."""
        if self.local != DONE or self.remote != DONE:
            self._codec.reset_stream(self, code)

    def consume(self, n: int) -> None:
        """Give back `n` received body bytes; announced to the peer by half windows."""
        if self.remote == DONE or n <= 0:
            return
        unreturned = self.unreturned + n
        codec = self._codec
        if unreturned < codec.stream_update_threshold:
            self.unreturned = unreturned
            return
        self.unreturned = 0
        self.receive_window += unreturned
        codec.write(frames.window_update(self.id, unreturned))
        codec.signal()

    def close(self) -> None:
        """Mark as ended in both directions and drop what is kept; `H2Codec` calls it."""
        self.local = self.remote = DONE
        self._kept = None
        self.kept_size = 0

    def __repr__(self) -> str:
        names = ("head", "body", "done")
        return (
            f"<H2Stream {self.id} sending={names[self.local]} receiving={names[self.remote]} "
            f"windows={self.send_window}/{self.receive_window} kept={self.kept_size}>"
        )
