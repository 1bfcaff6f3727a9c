"""HTTP/2 on the `h2` package behind the codec interface: `--http2-engine h2`, and the oracle of the tests.

It answers the question "is it our codec?", so it is written to be obviously right and is about twenty
times as dear as `h2.py`. Header sections obey the same `field_rules`. What `h2` decides differently stays
so: a peer that opens too many streams, or sends too large a header list, loses its connection.
"""

from __future__ import annotations

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
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

from sidecar.protocol.events import (
    ConnectionHandler,
    ErrorCode,
    Field,
    Reset,
    ResponseHead,
    StreamHandler,
)
from sidecar.protocol.field_rules import MalformedError, request_head, response_head, trailer_section
from sidecar.protocol.h2_reference_stream import H2ReferenceStream

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
        self.error = ""
        self.active_streams = 0
        self.client = client
        self.handler = handler
        self.options = options
        self.peer_enables_connect_protocol = False
        self.paused = False
        self.streams: dict[int, H2ReferenceStream] = {}
        self._unsent: set[H2ReferenceStream] = set()
        self.connection = _Connection(H2Configuration(client_side=client, header_encoding=None))
        self._out: list[bytes] = []
        self._receiving = False
        self._ready = False
        self.refusing = False
        """No stream is opened, or accepted, any more."""
        self._highest_id = 0
        self._taken_id = 0
        self._unreturned = 0

    def __repr__(self) -> str:
        side = "client" if self.client else "server"
        state = "closing" if self.should_close else "draining" if self.refusing else "open"
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
        if not self._ready or self.refusing or self.should_close:
            return 0
        limit = min(
            self.connection.remote_settings.max_concurrent_streams, self.options.max_concurrent_streams
        )
        return max(0, limit - self.active_streams)

    def open_stream(self, handler: StreamHandler) -> H2ReferenceStream:
        """The stream gets its id in `send_request`."""
        stream = H2ReferenceStream(self, 0)
        stream.handler = handler
        self._unsent.add(stream)
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
        self.refusing = True
        self._goaway(self._highest_id if final and not self.client else 0 if final else _HIGHEST_ID)
        if not final and not self.client:
            self.refusing = False  # Only announced: what is on its way is still served.
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
        self._unsent.discard(stream)
        self.streams[stream.id] = stream
        self._highest_id = max(self._highest_id, stream.id)

    def forget(self, stream: H2ReferenceStream) -> None:
        """The stream has ended in both directions, or was reset."""
        self._unsent.discard(stream)
        self.streams.pop(stream.id, None)
        self.active_streams -= 1
        if self.refusing and not self.active_streams:
            self.should_close = True
        elif self.client and not self.refusing:
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
        if self.refusing:
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
        first = not self.refusing
        self.refusing = True
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
        self.error = reason
        self.should_close = True
        self._reset_all(f"HTTP/2 connection error: {reason}")

    def _reset_all(self, reason: str) -> None:
        for stream in [*self.streams.values(), *self._unsent]:
            taken = not self.client or 0 < stream.id <= self._taken_id
            code = ErrorCode.CANCEL if taken else ErrorCode.REFUSED_STREAM
            stream.fail(Reset(code, reason, processed=taken, remote=False))


def _plain(headers: Iterable[tuple[bytes, bytes]]) -> list[Field]:
    """Without the subclasses that hpack returns."""
    return [(bytes(name), bytes(value)) for name, value in headers]


def _name(code: int) -> str:
    return ErrorCode(code).name if code in ErrorCode._value2member_map_ else f"code {code:#x}"
