"""The sending half of an HTTP/2 connection: output, the peer's limits, flow control towards the peer.

`H2Codec` is this with the receiving half added; `H2Stream` writes through it. Body bytes that may not leave
yet (windows, a full transport) stay with their stream; when room comes, the streams that can send take
turns in pieces of 16 KiB, so that a large body delays a small one by a piece, never by its length.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.protocol import h2_frames as frames
from sidecar.protocol.events import BULK, ConnectionHandler, ErrorCode, RequestHead
from sidecar.protocol.hpack import HeaderBlock
from sidecar.protocol.hpack_encoder import HpackEncoder

if TYPE_CHECKING:
    from sidecar.protocol.h2_stream import H2Stream

PIECE = 16384
_MAX_UNREAD = 1 << 20
"""Control and header octets for a peer that does not read."""


@dataclass(frozen=True, slots=True)
class H2Options:
    """What this side allows its peer; sizes in bytes."""

    max_concurrent_streams: int = 1024
    """Server: announced and enforced. Client: opens no more, whatever the peer allows."""
    initial_stream_window_size: int = 65536
    initial_connection_window_size: int = 1048576
    max_frame_size: int = 16384
    max_header_bytes: int = 65536
    """Of a header list: octets of names and values, and 32 a field (RFC 9113 section 6.5.2)."""
    max_header_count: int = 100
    """Regular fields of a header section."""
    enable_connect_protocol: bool = False
    """Server: offer extended CONNECT (RFC 8441)."""
    trusted_peer: bool = False
    """The peer is another sidecar of the mesh (see `hpack_encoder`)."""
    keepalive_interval: float = 30.0
    """Seconds, see `check_alive`."""
    common_blocks: dict[bytes, HeaderBlock] | None = None
    """Server: what connections have in common whose heads mean the same, down to the caller's identity (see
    `HpackDecoder`)."""
    clock: Callable[[], float] = time.monotonic
    """Seconds; asked when a stream is reset before its response."""


class ConnectionFailure(Exception):
    """A connection error (RFC 9113 section 5.4.1). Raised and caught inside the codec."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def _nothing() -> None:
    pass


def _nothing_of(_: bool) -> None:
    pass


class H2Sender:
    """State of the sending half. `write` appends to the output, `signal` tells the driver about it."""

    def __init__(self, client: bool, handler: ConnectionHandler, options: H2Options) -> None:
        self.on_output: Callable[[], None] = _nothing
        self.on_read_pause: Callable[[bool], None] = _nothing_of
        self.should_close = False
        self.error = ""
        self.active_streams = 0
        self.client = client
        self.handler = handler
        self.options = options
        self.streams: dict[int, H2Stream] = {}
        self.encoder = HpackEncoder(options.trusted_peer)
        self.peer_window = frames.DEFAULT_WINDOW
        self.peer_initial_window = frames.DEFAULT_WINDOW
        self.peer_max_frame_size = frames.DEFAULT_FRAME_SIZE
        self.paused = False
        self.last_opened_id = 0
        """Client: the highest stream id used; server: the highest that the peer used."""
        self._taken_id = 0
        self._out: list[bytes | bytearray | memoryview] = []
        self.write: Callable[[bytes | bytearray | memoryview], None] = self._out.append
        self.bulk = 0
        """Octets of large body pieces in the output."""
        self.signalled = False
        """on_output was called, or need not be because the driver takes the output anyway."""
        self.behind = False
        """More frames are at hand than one turn of the event loop is given to."""
        self.debt = 0
        """What the peer has made this side do without any progress (see `H2Codec`)."""
        self.stream_update_threshold = max(1, options.initial_stream_window_size // 2)
        self._unread = 0
        self.ready: deque[H2Stream] = deque()
        self._pumping = False

    # --- output -------------------------------------------------------------------------------

    def signal(self) -> None:
        """Tell the driver that there is output, once until it is taken."""
        if not self.signalled:
            self.signalled = True
            self.on_output()

    def take_output(self) -> bytes:
        """Bytes to write now, not much more than BULK at once."""
        if self.ready:
            self.signalled = True
            self.pump()
        self.signalled = False
        out = self._out
        if not out:
            return b""
        self._taken_id = self.last_opened_id
        if self.bulk >= BULK:
            return self._take_bulk()
        data = b"".join(out)
        out.clear()
        self.bulk = 0
        return data

    def _take_bulk(self) -> bytes:
        out = self._out
        size = count = 0
        while size < BULK and count < len(out):
            size += len(out[count])
            count += 1
        data = b"".join(out[:count])
        del out[:count]
        self.bulk = max(0, self.bulk - size)
        return data

    def write_control(self, frame: bytes) -> None:
        """Write a frame that answers the peer; one that reads no answers is not fed for ever."""
        self.write(frame)
        if self.paused:
            self.count_unread(len(frame))
        self.signal()

    def count_unread(self, size: int) -> None:
        """Count octets that flow although the transport is full."""
        self._unread += size
        if self._unread > _MAX_UNREAD:
            self.fail(ErrorCode.ENHANCE_YOUR_CALM, "answers are not read")

    def fail(self, code: ErrorCode, text: str) -> None:
        """End the connection with an error."""
        raise NotImplementedError

    def write_headers(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        """Write a header section."""
        size = len(block)
        if size <= self.peer_max_frame_size:
            self.write(
                frames.pack_header(size >> 8, size & 255, frames.HEADERS, 5 if end_stream else 4, stream_id)
                + block
            )
        else:
            self.write(frames.header_block(stream_id, block, end_stream, self.peer_max_frame_size))
        if self.paused:
            self.count_unread(size)
        if not self.signalled:
            self.signal()

    def pause_output(self) -> None:
        """Keep body bytes back."""
        self.paused = True

    def resume_output(self) -> None:
        """Let body bytes flow again."""
        self.paused = False
        self._unread = 0
        self.pump()

    # --- flow control -------------------------------------------------------------------------

    def make_ready(self, stream: H2Stream) -> None:
        """The stream has bytes and room in its window."""
        if not stream.queued:
            stream.queued = True
            self.ready.append(stream)

    def pump(self) -> None:
        """Send kept bytes, a piece a stream in turn, while the connection has room, and no further than until
        the output is as much as is taken at once."""
        if self._pumping:
            return
        ready = self.ready
        self._pumping = True
        try:
            while ready and self.peer_window > 0 and not self.paused and self.bulk < BULK:
                stream = ready.popleft()
                stream.queued = False
                stream.send_piece()
        finally:
            self._pumping = False

    def apply_initial_window(self, size: int) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE changed: every stream's window moves (RFC 9113 section 6.9.2)."""
        if size > frames.MAX_WINDOW:
            raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1")
        change = size - self.peer_initial_window
        self.peer_initial_window = size
        for stream in self.streams.values():
            if stream.send_window + change > frames.MAX_WINDOW:
                raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS overflow a stream's window")
        for stream in self.streams.values():
            stream.send_window += change
            if change > 0 and stream.has_sendable():
                self.make_ready(stream)

    def assign_id(self, stream: H2Stream, head: RequestHead) -> str:
        """Client side: give the stream the next id; returns why it cannot be opened, or ""."""
        raise NotImplementedError

    def released(self, stream: H2Stream) -> None:
        """The stream is over in both directions."""
        raise NotImplementedError

    def reset_stream(self, stream: H2Stream, code: int) -> None:
        """Send RST_STREAM and forget the stream."""
        raise NotImplementedError
