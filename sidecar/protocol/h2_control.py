"""The connection-wide half of HTTP/2: settings, windows, PING, GOAWAY, resets, opening and closing.

`H2Codec` adds the frames that carry messages. Sections are those of RFC 9113.
"""

from __future__ import annotations

from functools import lru_cache

from sidecar.protocol import h2_frames as frames
from sidecar.protocol.events import ConnectionHandler, ErrorCode, RequestHead, Reset, StreamHandler
from sidecar.protocol.h2_sender import ConnectionFailure, H2Options, H2Sender
from sidecar.protocol.h2_stream import DONE, HEAD, SENT_CREDIT, H2Stream

_MAX_DEBT = 1000
_RESET_BURST = 500
_RESETS_A_SECOND = 50
_RESET_AGE = 1.0
"""Seconds after which a reset is no haste: its sender has waited for the response and given up."""
_SETTINGS_COST = 4
_WINDOWS_MOVED = 32
"""Streams whose windows one unit of debt moves."""
_TINY_WINDOW = 64
"""Octets below which an increment that body bytes wait for is an attack, not a reader (RFC 9293 section
3.8.6.2: silly windows): the DATA frame that it draws costs more than it carries."""
_MAX_CLOSED = 1024
_MAX_DEBUG = 256

_OPEN = 0
_EXPECT_SETTINGS = 1
_EXPECT_CONTINUATION = 2


@lru_cache(maxsize=64)
def _opening(
    client: bool, stream_window: int, frame: int, header_bytes: int, streams: int, connect: bool, window: int
) -> bytes:
    """What a connection begins with: the client's preface, SETTINGS, and its window where that is larger."""
    values = {
        frames.SETTINGS_INITIAL_WINDOW_SIZE: stream_window,
        frames.SETTINGS_MAX_FRAME_SIZE: frame,
        frames.SETTINGS_MAX_HEADER_LIST_SIZE: header_bytes,
    }
    if client:
        values[frames.SETTINGS_ENABLE_PUSH] = 0
    else:
        values[frames.SETTINGS_MAX_CONCURRENT_STREAMS] = streams
        if connect:
            values[frames.SETTINGS_ENABLE_CONNECT_PROTOCOL] = 1
    octets = (frames.PREFACE if client else b"") + frames.settings(values)
    if window > frames.DEFAULT_WINDOW:
        octets += frames.window_update(0, window - frames.DEFAULT_WINDOW)
    return octets


class H2Control(H2Sender):
    """Connection state and every frame but HEADERS, CONTINUATION and DATA."""

    def __init__(self, client: bool, handler: ConnectionHandler, options: H2Options) -> None:
        super().__init__(client, handler, options)
        self.failed = False
        """Nothing more is read: a connection error, or the socket is gone."""
        self.refusing = False
        """No new streams from the peer, or none opened here."""
        self.peer_enables_connect_protocol = False
        self.continued_id = 0
        self.heard = False
        self._asked = False
        """Whether anything came since `check_alive` last looked, and whether it has sent a PING then."""
        self._gate = _EXPECT_SETTINGS
        self._ready = False
        self._settings_acked = False
        self._peer_max_streams = frames.MAX_STREAM_ID
        self._next_id = 1
        self._goaway_announced = False
        self._closing = False
        """`should_close` when the last stream has ended."""
        self._closed: dict[int, bool] = {}
        """Streams ended by RST_STREAM lately -> whether the peer sent it."""
        self._forgotten_id = 0
        self._resets_left = float(_RESET_BURST)
        self._resets_time = 0.0
        self._resets_id = 0
        """When the last hasty reset came, and the highest stream then."""
        self._aged_id = self._aging_id = 0
        self._aging_time = 0.0
        self.connection_window = max(frames.DEFAULT_WINDOW, options.initial_connection_window_size)
        self.connection_update_threshold = self.connection_window // 2
        self.receive_window = self.connection_window
        # Until our SETTINGS are acknowledged, the peer may go by the default (section 6.9.3).
        self.new_stream_window = max(frames.DEFAULT_WINDOW, options.initial_stream_window_size)

    # --- opening ------------------------------------------------------------------------------

    def start(self) -> None:
        """Queue the preface and SETTINGS, and enlarge the connection's window."""
        options = self.options
        self.write(
            _opening(
                self.client,
                options.initial_stream_window_size,
                options.max_frame_size,
                options.max_header_bytes,
                options.max_concurrent_streams,
                options.enable_connect_protocol,
                self.connection_window,
            )
        )
        self.signal()

    @property
    def available(self) -> int:
        """Client side: how many more streams may be opened now."""
        if not self._ready or self.refusing or self.failed:
            return 0
        # Asked twice a request; `min` and `max` would cost more than all the rest.
        limit = self.options.max_concurrent_streams
        if self._peer_max_streams < limit:
            limit = self._peer_max_streams
        free = limit - self.active_streams
        ids_left = (frames.MAX_STREAM_ID - self._next_id) // 2 + 1
        if ids_left < free:
            free = ids_left
        return free if free > 0 else 0

    def open_stream(self, handler: StreamHandler) -> H2Stream:
        """Client side; only while `available` > 0. The id is given by `send_request`."""
        stream = H2Stream(self, 0, HEAD, self.new_stream_window)
        stream.handler = handler
        self.active_streams += 1
        return stream

    def assign_id(self, stream: H2Stream, head: RequestHead) -> str:
        """Give the stream the next id; returns why it cannot be opened, or ""."""
        if self.refusing or self.failed:
            return "the connection is going away"
        if head.protocol and not self.peer_enables_connect_protocol:
            return "the peer does not offer extended CONNECT (RFC 8441)"
        stream_id = self._next_id
        stream.id = self.last_opened_id = stream_id
        stream.send_window = self.peer_initial_window
        stream.receive_window = self.new_stream_window
        self._next_id = stream_id + 2
        self.streams[stream_id] = stream
        if self._next_id > frames.MAX_STREAM_ID:
            self.refusing = True
            self._closing = True
            self.handler.on_goaway()
        return ""

    # --- order of frames ----------------------------------------------------------------------

    def _check_gate(self, kind: int, flags: int, stream_id: int) -> None:
        if self._gate == _EXPECT_CONTINUATION:
            if kind != frames.CONTINUATION or stream_id != self.continued_id:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "header block is interrupted (section 4.3)")
        elif kind != frames.SETTINGS or flags & frames.ACK:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "connection does not begin with SETTINGS")
        else:
            self._gate = _OPEN

    def expect_continuation(self, stream_id: int) -> None:
        """Accept nothing but CONTINUATION on this stream next; 0: anything."""
        self.continued_id = stream_id
        self._gate = _EXPECT_CONTINUATION if stream_id else _OPEN

    def incur(self, cost: int, what: str) -> None:
        """Count work without progress."""
        self.debt += cost
        if self.debt > _MAX_DEBT:
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what}")

    def _count_reset(self, stream_id: int, what: str) -> None:
        """A server's stream was reset before its response, by the client or because of what it did. Unlike
        debt this is not worked off by reads: a request a packet costs as much as many in one. Time gives
        resets back, and every stream that was opened since gives half a one."""
        now = self.options.clock()
        if now - self._aging_time >= _RESET_AGE:
            self._aged_id, self._aging_id, self._aging_time = self._aging_id, self.last_opened_id, now
        if stream_id <= self._aged_id:
            return
        earned = _RESETS_A_SECOND * (now - self._resets_time) + (self.last_opened_id - self._resets_id) / 4
        self._resets_left = min(_RESET_BURST, self._resets_left + earned) - 1
        self._resets_time, self._resets_id = now, self.last_opened_id
        if self._resets_left < 0:
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what}")

    def check_not_idle(self, stream_id: int, what: str) -> None:
        """Section 5.1: most frames on an idle stream are a connection error."""
        if stream_id > self.last_opened_id or not stream_id & 1:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"{what} on idle stream {stream_id}")

    # --- control frames -----------------------------------------------------------------------

    def on_control_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Any frame but HEADERS, CONTINUATION and DATA."""
        if kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._on_rst_stream(stream_id, payload)
        elif kind == frames.PING:
            self._on_ping(flags, stream_id, payload)
        elif kind == frames.SETTINGS:
            self._on_settings(flags, stream_id, payload)
        elif kind == frames.GOAWAY:
            self._on_goaway(stream_id, payload)
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE although push is off")
        else:
            self.incur(1, "frames without effect")
            if kind == frames.PRIORITY:
                self._on_priority(stream_id, payload)

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 octets long")
        self.incur(1, "WINDOW_UPDATE frames")
        increment = int.from_bytes(payload, "big") & frames.MAX_WINDOW
        if not stream_id:
            if not increment:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.peer_window += increment
            if self.peer_window > frames.MAX_WINDOW:
                raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "connection's window above 2^31-1")
            if self.ready:
                self._pump_into(increment, self.peer_window)
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self.check_not_idle(stream_id, "WINDOW_UPDATE")
        elif not increment:
            self.stream_error(stream, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        elif stream.send_window + increment > frames.MAX_WINDOW:
            self.stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR, "stream's window above 2^31-1")
        else:
            stream.send_window += increment
            if stream.has_sendable():
                self.make_ready(stream)
                self._pump_into(increment, stream.send_window)

    def _pump_into(self, increment: int, window: int) -> None:
        """Bytes wait, and may have waited for this increment, with which the window is `window`."""
        if increment < _TINY_WINDOW and window <= increment:
            self.incur(SENT_CREDIT, "tiny windows")
        self.pump()

    def _on_rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 octets long")
        if not stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on stream 0")
        stream = self.streams.get(stream_id)
        if stream is None:
            self.check_not_idle(stream_id, "RST_STREAM")
            self.incur(1, "RST_STREAM frames")
            return
        if stream.local == HEAD and not self.client:
            # A server can only refuse what it was sent, and does so to all when its application is gone.
            self._count_reset(stream_id, "streams reset before their response")
        code = int.from_bytes(payload, "big")
        self.remember_closed(stream_id, True)
        self._end_stream(
            stream,
            Reset(code, f"peer reset the stream: {_code_name(code)}", code != ErrorCode.REFUSED_STREAM),
        )

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 octets long")
        self.incur(1, "PING frames")
        if not flags & frames.ACK:
            self.write_control(frames.ping_ack(payload))

    def _on_priority(self, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            stream = self.streams.get(stream_id)
            if stream is None:
                raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not 5 octets long")
            self.stream_error(stream, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not 5 octets long")

    # --- SETTINGS -----------------------------------------------------------------------------

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            self._on_settings_ack()
            return
        if len(payload) % 6:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS is not a multiple of 6 octets long")
        self.incur(_SETTINGS_COST + len(payload) // 60, "SETTINGS frames")
        before = self._peer_max_streams
        for key, value in frames.parse_settings(payload):
            self._apply_setting(key, value)
        self.write_control(frames.SETTINGS_ACK)
        self.pump()
        if self.client:
            if not self._ready:
                self._ready = True
                self.handler.on_ready()
            elif self._peer_max_streams > before:
                self.handler.on_capacity()

    def _apply_setting(self, key: int, value: int) -> None:
        if key == frames.SETTINGS_HEADER_TABLE_SIZE:
            self.encoder.set_max_size(value)
        elif key == frames.SETTINGS_ENABLE_PUSH:
            if value > (0 if self.client else 1):
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH of {value}")
        elif key == frames.SETTINGS_MAX_CONCURRENT_STREAMS:
            self._peer_max_streams = value
        elif key == frames.SETTINGS_INITIAL_WINDOW_SIZE:
            if value != self.peer_initial_window:
                self.incur(len(self.streams) // _WINDOWS_MOVED, "changes of SETTINGS_INITIAL_WINDOW_SIZE")
                self.apply_initial_window(value)
        elif key == frames.SETTINGS_MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME_SIZE <= value <= frames.MAX_FRAME_SIZE:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE of {value}")
            self.peer_max_frame_size = value
        elif key == frames.SETTINGS_ENABLE_CONNECT_PROTOCOL:
            if value > 1 or (self.peer_enables_connect_protocol and not value):
                raise ConnectionFailure(
                    ErrorCode.PROTOCOL_ERROR, "SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441)"
                )
            self.peer_enables_connect_protocol = bool(value)

    def _on_settings_ack(self) -> None:
        if self._settings_acked:
            self.incur(1, "SETTINGS acknowledgements")
            return
        self._settings_acked = True
        change = self.options.initial_stream_window_size - self.new_stream_window
        if change < 0:
            self.new_stream_window += change
            for stream in self.streams.values():
                stream.receive_window += change

    # --- GOAWAY -------------------------------------------------------------------------------

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 octets")
        self.incur(1, "GOAWAY frames")
        last_id = int.from_bytes(payload[:4], "big") & frames.MAX_STREAM_ID
        code = int.from_bytes(payload[4:8], "big")
        if not self.client:
            self.handler.on_goaway()
            return
        first = not self.refusing
        self.refusing = True
        self._closing = True
        debug = payload[8 : 8 + _MAX_DEBUG].decode("ascii", "backslashreplace")
        reset = Reset(code, f"peer went away before the request: {_code_name(code)} {debug}".rstrip(), False)
        for stream in [stream for number, stream in self.streams.items() if number > last_id]:
            self._end_stream(stream, reset)
        if first:
            self.handler.on_goaway()
        self._close_if_idle()

    def drain(self, final: bool) -> None:
        """Go away gracefully; see `Codec`. A client opens no more streams from the first call on."""
        if self.failed:
            return
        last_id = 0 if self.client else (self.last_opened_id if final else frames.MAX_STREAM_ID)
        if self.client:
            self.refusing = True
        if final or not self._goaway_announced:
            self._goaway_announced = True
            self.write(frames.goaway(last_id, ErrorCode.NO_ERROR, b""))
        if final:
            self.refusing = True
            self._closing = True
            self._close_if_idle()
        self.signal()

    # --- ends of streams ----------------------------------------------------------------------

    def released(self, stream: H2Stream) -> None:
        """The stream is over in both directions."""
        if self.streams.pop(stream.id, None) is None and stream.id:
            return
        stream.close()
        self.active_streams -= 1
        if self._closing:
            self._close_if_idle()
        if self.client and not self.failed:
            self.handler.on_capacity()

    def _end_stream(self, stream: H2Stream, reset: Reset) -> None:
        stream.close()
        if self.streams.pop(stream.id, None) is None:
            return
        self.active_streams -= 1
        stream.handler.on_reset(reset)
        if self._closing:
            self._close_if_idle()
        if self.client and not self.failed:
            self.handler.on_capacity()

    def _close_if_idle(self) -> None:
        if not self.streams and not self.should_close:
            self.should_close = True
            self.signal()

    def reset_stream(self, stream: H2Stream, code: int) -> None:
        """This side abandons the stream."""
        if stream.id in self.streams and not self.failed:
            self.remember_closed(stream.id, False)
            self.write_control(frames.rst_stream(stream.id, code))
        self.released(stream)

    def stream_error(self, stream: H2Stream, code: ErrorCode, text: str) -> None:
        """Section 5.4.2: reset the stream and tell its handler. Clients that provoke resets (CVE-2025-8671)
        run into debt like those that send them."""
        if not self.client:
            self._count_reset(stream.id, f"stream errors, the last: {text}")
        self.remember_closed(stream.id, False)
        self.write_control(frames.rst_stream(stream.id, code))
        self._end_stream(stream, Reset(code, text, remote=False))

    def refuse_malformed(self, stream_id: int, text: str) -> None:
        """Section 8.1.1: a request that never becomes a stream here."""
        self.incur(1, f"malformed requests, the last: {text}")
        self.remember_closed(stream_id, False)
        self.write_control(frames.rst_stream(stream_id, ErrorCode.PROTOCOL_ERROR))

    def remember_closed(self, stream_id: int, by_peer: bool) -> None:
        """Frames may still come on a stream that was reset (section 5.1)."""
        closed = self._closed
        closed[stream_id] = by_peer
        if len(closed) > _MAX_CLOSED:
            oldest = next(iter(closed))
            del closed[oldest]
            self._forgotten_id = max(self._forgotten_id, oldest)

    def on_closed_stream_frame(self, stream_id: int) -> None:
        """HEADERS or DATA on a stream that has ended (section 5.1, closed)."""
        by_peer = self._closed.get(stream_id)
        if by_peer is None and stream_id > self._forgotten_id:
            raise ConnectionFailure(ErrorCode.STREAM_CLOSED, f"frame on ended stream {stream_id}")
        self.incur(1, "frames on ended streams")
        if by_peer:
            self.write_control(frames.rst_stream(stream_id, ErrorCode.STREAM_CLOSED))

    # --- ends of the connection ---------------------------------------------------------------

    def fail(self, code: ErrorCode, text: str) -> None:
        """Section 5.4.1: GOAWAY, reset every stream, close."""
        if self.failed:
            return
        self.failed = True
        self.error = text
        last_id = 0 if self.client else self.last_opened_id
        self.write(frames.goaway(last_id, code, text.encode()))
        self.should_close = True
        self._reset_all(Reset(code, f"connection error: {text}", remote=False))
        if self.client and not self.refusing:
            self.refusing = True
            self.handler.on_goaway()
        self.signal()

    def _reset_all(self, reset: Reset) -> None:
        unsent = Reset(reset.code, reset.reason, processed=False, remote=False)
        for stream in list(self.streams.values()):
            self._end_stream(stream, unsent if self.client and stream.id > self._taken_id else reset)

    def receive_eof(self) -> None:
        """The peer sends no more: streams whose message is incomplete are lost, others may be answered."""
        if self.failed:
            return
        self._closing = True
        self.refusing = True
        reset = Reset(ErrorCode.CANCEL, "peer closed the connection")
        for stream in [stream for stream in self.streams.values() if stream.remote != DONE]:
            self._end_stream(stream, reset)
        self._close_if_idle()

    @property
    def keepalive_interval(self) -> float:
        """See `Keepalive`."""
        return self.options.keepalive_interval

    def check_alive(self) -> bool:
        """Called every `keepalive_interval`. A peer that has open streams and has said nothing since the last
        call is sent a PING; False when it has not answered that since the call before."""
        if self.heard or not self.active_streams or self.failed:
            self.heard = self._asked = False
            return True
        if self._asked:
            return False
        self._asked = True
        self.write(frames.KEEPALIVE_PING)
        self.signal()
        return True

    def connection_lost(self, reason: str) -> None:
        """The socket is gone."""
        self.failed = True
        self.should_close = True
        self._reset_all(Reset(ErrorCode.CANCEL, f"connection lost: {reason}", remote=False))
        self.handler.on_closed(reason)

    def __repr__(self) -> str:
        states = [name for name in ("failed", "refusing", "should_close", "paused") if getattr(self, name)]
        return (
            f"<{type(self).__name__} {'client' if self.client else 'server'} streams={self.active_streams} "
            f"last_id={self.last_opened_id} windows={self.peer_window}/{self.receive_window} "
            f"debt={self.debt} {' '.join(states) or 'open'}>"
        )


def _code_name(code: int) -> str:
    return ErrorCode(code).name if code in ErrorCode._value2member_map_ else f"error code {code:#x}"
