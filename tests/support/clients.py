"""Blocking clients of integration tests: HTTP/1.1 on `http.client`, HTTP/2 on the `h2` package."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

TIMEOUT = 30.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytearray
    trailers: dict[str, str] = field(default_factory=dict)
    reset: int | None = None
    """Error code of the RST_STREAM that ended it."""

    def json(self) -> Any:
        return json.loads(self.body)


def fetch(
    at: tuple[str, int],
    path: str = "/",
    method: str = "GET",
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One HTTP/1.1 request on a connection of its own."""
    connection = http.client.HTTPConnection(*at, timeout=TIMEOUT)
    try:
        connection.request(method, path, body, dict(headers or {}), encode_chunked=False)
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, fields, bytearray(response.read()))
    finally:
        connection.close()


class H2Client:
    """One connection with prior knowledge. Call from one thread; events are handled while waiting."""

    def __init__(
        self, at: tuple[str, int], sock: socket.socket | None = None, window: int | None = None
    ) -> None:
        """`window`: initial stream window; WINDOW_UPDATEs are sent for data unless `hold` has the stream."""
        self.sock = sock or socket.create_connection(at, TIMEOUT)
        self.sock.settimeout(TIMEOUT)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        if window is not None:
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.h2.increment_flow_control_window(2**24)
        self.answers: dict[int, Answer] = {}
        self.ended: set[int] = set()
        self.hold: set[int] = set()
        self.goaways: list[h2.events.ConnectionTerminated] = []
        self.closed = False
        self._unread = b""
        self.flush()

    def __enter__(self) -> H2Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.sock.close()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def send(
        self,
        path: str = "/",
        method: str = "GET",
        authority: str = "test",
        headers: Iterable[tuple[str, str]] = (),
        end: bool = True,
    ) -> int:
        """Starts a request; returns its stream."""
        stream = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path)]
        self.h2.send_headers(stream, [*pseudo, *headers], end_stream=end)
        self.answers[stream] = Answer(0, {}, bytearray())
        self.flush()
        return stream

    def data(self, stream: int, data: bytes, end: bool = False) -> None:
        """All of it, waiting for credit."""
        view = memoryview(data)
        while view:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(view))
            if not room:
                self.pump()
                continue
            self.h2.send_data(stream, bytes(view[:room]), end_stream=end and room == len(view))
            view = view[room:]
            self.flush()

    def trailers(self, stream: int, headers: Iterable[tuple[str, str]]) -> None:
        self.h2.send_headers(stream, list(headers), end_stream=True)
        self.flush()

    def pump(self) -> bool:
        """Reads once and handles it; False at the end of the connection."""
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            return False
        self._unread += data
        while len(self._unread) >= 9 and len(self._unread) >= (size := 9 + int.from_bytes(self._unread[:3])):
            # Frame by frame, because of what happens at a GOAWAY.
            frame, self._unread = self._unread[:size], self._unread[size:]
            for event in self.h2.receive_data(frame):
                self._on_event(event)
        self.flush()
        return True

    def _on_event(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            answer = self.answers[event.stream_id]
            answer.headers = dict(event.headers)
            answer.status = int(answer.headers.pop(":status"))
        elif isinstance(event, h2.events.DataReceived):
            self.answers[event.stream_id].body += event.data
            if event.stream_id not in self.hold:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            self.answers[event.stream_id].trailers = dict(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.answers[event.stream_id].reset = int(event.error_code)
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaways.append(event)
            # The package takes the connection for closed; streams that are open go on (RFC 9113 section 6.8).
            self.h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN

    def wait(self, stream: int) -> Answer:
        """Until the stream has ended."""
        while stream not in self.ended:
            assert self.pump(), f"the connection ended before stream {stream}: {self.goaways}"
        return self.answers[stream]

    def wait_head(self, stream: int) -> Answer:
        while not self.answers[stream].status:
            assert self.pump(), f"the connection ended before stream {stream}: {self.goaways}"
        return self.answers[stream]

    def wait_closed(self) -> None:
        while self.pump():
            pass

    def fetch(self, path: str = "/", method: str = "GET", **given: Any) -> Answer:
        return self.wait(self.send(path, method, **given))

    def __repr__(self) -> str:
        return f"<H2Client {len(self.answers)} streams, {len(self.ended)} ended>"
