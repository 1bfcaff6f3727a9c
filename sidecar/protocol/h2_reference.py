"""HTTP/2 on the `h2` package behind the codec interface: `--http2-engine h2`, and the oracle of the tests.

It answers the question "is it our codec?", so it is written to be obviously right and is about twenty
times as dear as `h2.py`. Header sections obey the same `field_rules`. What `h2` decides differently stays
so: a peer that opens too many streams, or sends too large a header list, loses its connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error, ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

from sidecar.protocol.events import (
    ConnectionHandler,
    ErrorCode,
    Field,
    RequestHead,
    Reset,
    ResponseHead,
    StreamHandler,
)
from sidecar.protocol.field_rules import MalformedError, request_head, response_head, trailer_section

if TYPE_CHECKING:
    from sidecar.protocol.h2 import H2Options

_HIGHEST_ID = 2**31 - 1


def _nothing() -> None:
    pass


def _ignore(_: bool) -> None:
    pass


class _Connection(H2Connection):
    """`h2` forbids every send after a GOAWAY has come; RFC 9113 section 6.8 lets open streams finish."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]


class H2ReferenceCodec:
    """One HTTP/2 connection, client or server side; constructor and attributes as `H2Codec`'s."""

    def __init__(self, client: bool, handler: ConnectionHandler, options: H2Options) -> None:
        self.on_output: Callable[[], None] = _nothing
        self.on_read_pause: Callable[[bool], None] = _ignore
        self.should_close = False
        self.active_streams = 0
        self.client = client
        self.handler = handler
        self.options = options
        self.peer_enables_connect_protocol = False
        self.paused = False
        self.streams: dict[int, H2ReferenceStream] = {}
        self.connection = _Connection(H2Configuration(client_side=client, header_encoding=None))
        self._out: list[bytes] = []
        self._receiving = False
        self._ready = False
        self._refusing = False
        self._highest_id = 0
        self._taken_id = 0
        self._unreturned = 0

    def __repr__(self) -> str:
        side = "client" if self.client else "server"
        state = "closing" if self.should_close else "draining" if self._refusing else "open"
        return f"<H2ReferenceCodec {side} {state} streams={self.active_streams}>"

    # --- the driver's side

    def start(self) -> None:
        options, connection = self.options, self.connection
        values = {
            SettingCodes.INITIAL_WINDOW_SIZE: options.initial_stream_window_size,
            SettingCodes.MAX_FRAME_SIZE: options.max_frame_size,
            SettingCodes.MAX_HEADER_LIST_SIZE: options.max_header_bytes,
        }
        if self.client:
            values[SettingCodes.ENABLE_PUSH] = 0
        else:
            values[SettingCodes.MAX_CONCURRENT_STREAMS] = options.max_concurrent_streams
            if options.enable_connect_protocol:
                values[SettingCodes.ENABLE_CONNECT_PROTOCOL] = 1
        connection.local_settings = Settings(client=self.client, initial_values=values)
        connection.max_inbound_frame_size = options.max_frame_size
        connection.decoder.max_header_list_size = options.max_header_bytes
        connection.initiate_connection()
        larger = options.initial_connection_window_size - 65535
        if larger > 0:
            connection.increment_flow_control_window(larger)
        self.wrote()

    @property
    def available(self) -> int:
        if not self._ready or self._refusing or self.should_close:
            return 0
        limit = min(
            self.connection.remote_settings.max_concurrent_streams, self.options.max_concurrent_streams
        )
        return max(0, limit - self.active_streams)

    def open_stream(self, handler: StreamHandler) -> H2ReferenceStream:
        """The stream gets its id in `send_request`."""
        stream = H2ReferenceStream(self, 0)
        stream.handler = handler
        self.active_streams += 1
        return stream

    def receive(self, data: bytes) -> None:
        if self.should_close:
            return
        self._receiving = True
        try:
            for event in self.connection.receive_data(data):
                self._dispatch(event)
        except H2Error as error:
            self._fail(str(error) or type(error).__name__)
        self._receiving = False

    def receive_eof(self) -> None:
        """HTTP/2 knows no half-closed connection."""
        self.should_close = True

    def take_output(self) -> bytes:
        self._collect()
        data = b"".join(self._out)
        self._out.clear()
        if data:
            self._taken_id = self._highest_id
        return data

    def pause_output(self) -> None:
        self.paused = True

    def resume_output(self) -> None:
        self.paused = False
        self._pump()

    def connection_lost(self, reason: str) -> None:
        self.should_close = True
        self._reset_all(reason)
        self.handler.on_closed(reason)

    def drain(self, final: bool) -> None:
        self._refusing = True
        self._goaway(self._highest_id if final and not self.client else 0 if final else _HIGHEST_ID)
        if not final and not self.client:
            self._refusing = False  # Only announced: what is on its way is still served.
        elif not self.active_streams:
            self.should_close = True
        self.wrote()

    # --- for streams

    def wrote(self) -> None:
        """There is output: have the driver take it, unless it will anyway."""
        if not self._receiving:
            self.on_output()

    def opened(self, stream: H2ReferenceStream) -> None:
        """A client's stream has its id."""
        self.streams[stream.id] = stream
        self._highest_id = max(self._highest_id, stream.id)

    def forget(self, stream: H2ReferenceStream) -> None:
        """The stream has ended in both directions, or was reset."""
        self.streams.pop(stream.id, None)
        self.active_streams -= 1
        if self._refusing and not self.active_streams:
            self.should_close = True
        elif self.client and not self._refusing:
            self.handler.on_capacity()

    # --- events

    def _dispatch(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._on_request(event)
            case RemoteSettingsChanged():
                self._on_settings()
            case WindowUpdated():
                self._pump()
            case ConnectionTerminated():
                self._on_goaway(event)
            case DataReceived():
                self._on_data(event)
            case ResponseReceived() | InformationalResponseReceived() | TrailersReceived() | StreamReset():
                stream = self.streams.get(event.stream_id)
                if stream is not None:
                    self._on_stream_event(stream, event)

    def _on_request(self, event: RequestReceived) -> None:
        self._highest_id = max(self._highest_id, event.stream_id)
        if self._refusing:
            self.connection.reset_stream(event.stream_id, ErrorCode.REFUSED_STREAM)
            return
        try:
            head, _ = request_head(_plain(event.headers), self.options.enable_connect_protocol)
        except MalformedError:
            self.connection.reset_stream(event.stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        stream = H2ReferenceStream(self, event.stream_id)
        self.streams[event.stream_id] = stream
        self.active_streams += 1
        stream.remote_done = event.stream_ended is not None
        if len(head.fields) > self.options.max_header_count:
            stream.send_response(ResponseHead(431, ((b"content-length", b"0"),)), True)
            if not stream.remote_done:
                stream.reset(ErrorCode.NO_ERROR)
            return
        self.handler.on_request(stream, head, stream.remote_done)

    def _on_stream_event(
        self,
        stream: H2ReferenceStream,
        event: ResponseReceived | InformationalResponseReceived | TrailersReceived | StreamReset,
    ) -> None:
        if isinstance(event, StreamReset):
            code = int(event.error_code)
            who = "peer reset the stream" if event.remote_reset else "stream error by the peer"
            stream.fail(
                Reset(code, f"{who}: {_name(code)}", code != ErrorCode.REFUSED_STREAM, event.remote_reset)
            )
            return
        fields = _plain(event.headers or ())
        try:
            if isinstance(event, TrailersReceived):
                trailers = trailer_section(fields)
                stream.remote_done = True
                stream.handler.on_trailers(trailers)
            else:
                head, _ = response_head(fields)
                if len(fields) - 1 > self.options.max_header_count:
                    raise MalformedError(f"more than {self.options.max_header_count} header fields")
                if isinstance(event, InformationalResponseReceived):
                    stream.handler.on_informational(head)
                    return
                stream.remote_done = event.stream_ended is not None
                stream.handler.on_response(head, stream.remote_done)
        except MalformedError as error:
            stream.abandon(ErrorCode.PROTOCOL_ERROR)
            stream.fail(Reset(ErrorCode.PROTOCOL_ERROR, str(error), remote=False))
            return
        stream.finish_if_done()

    def _on_data(self, event: DataReceived) -> None:
        # The connection's credit returns at once: held back, one stalled reader would starve every stream.
        self._unreturned += event.flow_controlled_length
        if self._unreturned >= self.options.initial_connection_window_size // 2:
            self.connection.increment_flow_control_window(self._unreturned)
            self._unreturned = 0
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        padding = event.flow_controlled_length - len(event.data)
        if padding:
            stream.consume(padding)
        stream.remote_done = event.stream_ended is not None
        stream.handler.on_data(event.data, stream.remote_done)
        stream.finish_if_done()

    def _on_settings(self) -> None:
        settings = self.connection.remote_settings
        self.peer_enables_connect_protocol = bool(settings.get(SettingCodes.ENABLE_CONNECT_PROTOCOL, 0))
        self._pump()
        if not self.client:
            return
        if self._ready:
            self.handler.on_capacity()
        else:
            self._ready = True
            self.handler.on_ready()

    def _on_goaway(self, event: ConnectionTerminated) -> None:
        first = not self._refusing
        self._refusing = True
        last = event.last_stream_id or 0
        if self.client:
            for stream in [stream for stream in self.streams.values() if stream.id > last]:
                reason = f"peer is going away: {_name(int(event.error_code or 0))}"
                stream.fail(Reset(ErrorCode.REFUSED_STREAM, reason, processed=False))
        if first:
            self.handler.on_goaway()
        if not self.active_streams:
            self.should_close = True

    # --- output

    def _pump(self) -> None:
        for stream in list(self.streams.values()):
            stream.pump()

    def _goaway(self, last_stream_id: int) -> None:
        self._collect()
        frame = GoAwayFrame(0, last_stream_id=last_stream_id, error_code=ErrorCode.NO_ERROR)
        self._out.append(frame.serialize())

    def _collect(self) -> None:
        data = self.connection.data_to_send()
        if data:
            self._out.append(data)

    def _fail(self, reason: str) -> None:
        """A connection error; `h2` has queued the GOAWAY."""
        self.should_close = True
        self._reset_all(f"HTTP/2 connection error: {reason}")

    def _reset_all(self, reason: str) -> None:
        for stream in list(self.streams.values()):
            taken = not self.client or stream.id <= self._taken_id
            code = ErrorCode.CANCEL if taken else ErrorCode.REFUSED_STREAM
            stream.fail(Reset(code, reason, processed=taken, remote=False))


class H2ReferenceStream:
    """One request and its response; `events.Stream` has the contract."""

    handler: StreamHandler

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
        if codec._refusing or codec.should_close:
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


def _plain(headers: Iterable[tuple[bytes, bytes]]) -> list[Field]:
    """Without the subclasses that hpack returns."""
    return [(bytes(name), bytes(value)) for name, value in headers]


def _name(code: int) -> str:
    return ErrorCode(code).name if code in ErrorCode._value2member_map_ else f"code {code:#x}"
