"""What every codec speaks: message heads, streams, and the handlers that receive their events.

HTTP/1.1, HTTP/2 and opaque TCP all appear to the rest of the sidecar as a `Codec` that carries
`Stream`s. A codec is sans-IO: bytes in through `receive`, callbacks out, bytes to write from
`take_output`. It never sees a socket, a clock or a task.

Flow control. Each body byte that a handler receives through `on_data` must be given back with
`Stream.consume(n)` once the other side has accepted it; until then the codec counts it against the
stream's limit and the peer is not allowed to send more than that. `Stream.send_data` returns how many
bytes were accepted at once; the rest is kept by the stream, and `StreamHandler.on_sent(n)` reports
it when it leaves. Forwarding is therefore `source.consume(sink.send_data(data))` plus
`on_sent = source.consume`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

BULK = 196608
"""From so many bytes on, a codec may give its output in several calls of `take_output`. More at once falls
out of the caches, less is more calls."""

Field = tuple[bytes, bytes]
"""One header field: lower-case name, value without surrounding white space."""


class NeverIndexed(tuple[bytes, bytes]):
    """A field that its sender marked as never to be indexed (RFC 7541 section 6.2.3).

    Equal to the plain pair. Whoever forwards it must encode it in the same way, which the encoder does
    as long as the object is passed on.
    """

    __slots__ = ()


class NeverIndexedValue(bytes):
    """The path or the authority of a request that came as such a field."""

    __slots__ = ()


class ErrorCode(IntEnum):
    """HTTP/2 error codes (RFC 9113 section 7); HTTP/1 and TCP map theirs onto them."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class RequestHead:
    """The head of a request, the same for every protocol. Immutable; may be shared between requests.

    `fields` are the regular fields that a decoder found in its table: for a client that repeats itself
    the same tuple comes back each time. `fresh` are the fields that followed as literals (trace
    contexts, request ids). Together, in this order, they are the header section. Neither holds
    pseudo-header fields, `host` (it became `authority`) or connection-specific fields.

    `memo` belongs to whoever forwards the request: a place to remember what was derived from everything
    but `path` and `fresh`. Heads that differ only in these may share it.
    """

    __slots__ = ("authority", "fields", "fresh", "memo", "method", "path", "protocol", "scheme")

    def __init__(
        self,
        method: bytes,
        scheme: bytes,
        authority: bytes,
        path: bytes,
        fields: tuple[Field, ...] = (),
        fresh: tuple[Field, ...] = (),
        protocol: bytes = b"",
        memo: dict[Any, Any] | None = None,
    ) -> None:
        self.method = method
        self.scheme = scheme
        self.authority = authority
        self.path = path  # b"" for CONNECT without :protocol
        self.fields = fields
        self.fresh = fresh
        self.protocol = protocol  # RFC 8441 :protocol, b"" when absent
        self.memo: dict[Any, Any] = {} if memo is None else memo

    def get(self, name: bytes) -> bytes | None:
        """First value of the field, or None."""
        return _first(self.fields, self.fresh, name)

    def get_all(self, name: bytes) -> list[bytes]:
        """All values of the field in order."""
        return [v for n, v in self.fields if n == name] + [v for n, v in self.fresh if n == name]

    def with_fresh(self, fresh: tuple[Field, ...]) -> RequestHead:
        """The same head with other fresh fields, sharing the memo."""
        return self.vary(self.path, fresh)

    def vary(self, path: bytes, fresh: tuple[Field, ...]) -> RequestHead:
        """The same head with another path and other fresh fields, sharing the memo."""
        return RequestHead(
            self.method, self.scheme, self.authority, path, self.fields, fresh, self.protocol, self.memo
        )

    def __repr__(self) -> str:
        target = f"{self.scheme.decode()}://{self.authority.decode('latin-1')}{self.path.decode('latin-1')}"
        method = self.method.decode("latin-1")
        return f"<RequestHead {method} {target} fields={len(self.fields)}+{len(self.fresh)}>"


class ResponseHead:
    """The head of a response; `fields`, `fresh` and `memo` as in `RequestHead`."""

    __slots__ = ("fields", "fresh", "memo", "status")

    def __init__(
        self,
        status: int,
        fields: tuple[Field, ...] = (),
        fresh: tuple[Field, ...] = (),
        memo: dict[Any, Any] | None = None,
    ) -> None:
        self.status = status
        self.fields = fields
        self.fresh = fresh
        self.memo: dict[Any, Any] = {} if memo is None else memo

    def get(self, name: bytes) -> bytes | None:
        """First value of the field, or None."""
        return _first(self.fields, self.fresh, name)

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} fields={len(self.fields)}+{len(self.fresh)}>"


def _first(fields: tuple[Field, ...], fresh: tuple[Field, ...], name: bytes) -> bytes | None:
    for n, v in fields:
        if n == name:
            return v
    for n, v in fresh:
        if n == name:
            return v
    return None


@dataclass(frozen=True, slots=True)
class Reset:
    """Why a stream ended before its message did."""

    code: ErrorCode | int
    reason: str
    """For logs and local replies: what happened, in words."""
    processed: bool = True
    """False when the peer has certainly not handed the request to its application, so that it may be
    sent again whatever its method: REFUSED_STREAM, a GOAWAY below the stream's id (RFC 9113 section
    8.7), or the request never left."""
    remote: bool = True
    """True when the peer ended it, False when this side did (error found here, connection lost).

    With INTERNAL_ERROR and not `processed`: the request cannot be written in the protocol of this connection,
    and on no other one like it."""


class StreamHandler(Protocol):
    """Receives what happens on one stream. Called synchronously from `Codec.receive`.

    After the stream has ended in both directions, or after `on_reset`, no more calls come.
    """

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        """Client side: the final response head."""

    def on_informational(self, head: ResponseHead) -> None:
        """Client side: a 1xx head (never 101)."""

    def on_data(self, data: bytes, end_stream: bool) -> None:
        """Body bytes; `data` may be empty when `end_stream` is set."""

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        """The trailer section; ends the message."""

    def on_sent(self, n: int) -> None:
        """`n` body bytes that `send_data` had kept were accepted by the transport."""

    def on_reset(self, reset: Reset) -> None:
        """The stream is gone: by RST_STREAM, GOAWAY, lost connection or protocol error."""


class Stream(Protocol):
    """One request and its response on a connection, from either end."""

    handler: StreamHandler
    incomplete: bool
    """Client side, in `on_response`: the length of the body is known, and more of it is to come than is at
    hand. HTTP/2 does not look whose the bytes at hand are."""

    def send_request(self, head: RequestHead, end_stream: bool) -> None:
        """Client side, once, first."""

    def send_response(self, head: ResponseHead, end_stream: bool) -> None:
        """Server side, once."""

    def send_informational(self, head: ResponseHead) -> None:
        """Server side, before `send_response`."""

    def send_data(self, data: bytes, end_stream: bool) -> int:
        """Queue body bytes; returns how many were accepted at once (the rest comes as `on_sent`)."""

    def send_trailers(self, fields: tuple[Field, ...]) -> None:
        """End the message with a trailer section, after all queued data."""

    def reset(self, code: ErrorCode) -> None:
        """Abandon the stream in both directions. No callback follows. Idempotent."""

    def consume(self, n: int) -> None:
        """Give back `n` received body bytes: the peer may send as many more."""


class ConnectionHandler(Protocol):
    """Receives what concerns a connection as a whole; the codec's owner implements it."""

    def on_request(self, stream: Stream, head: RequestHead, end_stream: bool) -> None:
        """Server side: a new request. Must set `stream.handler` before it returns (or reset it)."""

    def on_ready(self) -> None:
        """Client side: the peer's SETTINGS have come (HTTP/2), or at once (HTTP/1, TCP)."""

    def on_capacity(self) -> None:
        """Client side: `Codec.available` may have grown: a stream ended or the peer raised its limit."""

    def on_goaway(self) -> None:
        """The peer is going away, or the connection cannot take another stream: open no more here."""

    def on_closed(self, reason: str) -> None:
        """The connection has ended; every open stream has had its `on_reset`."""


class Codec(Protocol):
    """One connection's protocol. `sidecar/net/connection.py` drives it."""

    on_output: Callable[[], None]
    """Set by the driver; called when bytes become available outside of `receive`."""
    on_read_pause: Callable[[bool], None]
    """Set by the driver; True: stop reading from the socket (HTTP/1 and TCP back-pressure)."""
    should_close: bool
    """Close the socket once the output taken so far is written."""
    error: str
    """Why the codec ended the connection: what the peer did wrong. Empty while it did nothing wrong."""

    @property
    def active_streams(self) -> int:
        """Streams that have not ended."""

    @property
    def available(self) -> int:
        """Client side: how many more streams may be opened now."""

    def start(self) -> None:
        """Queue what the protocol says first (HTTP/2: preface and SETTINGS)."""

    def open_stream(self, handler: StreamHandler) -> Stream:
        """Client side; only while `available` > 0."""

    def receive(self, data: bytes) -> None:
        """Bytes from the peer. Never raises for anything a peer can send."""

    def receive_eof(self) -> None:
        """The peer has sent its last byte (FIN or close_notify)."""

    def take_output(self) -> bytes:
        """Bytes to write now, b"" when there are none. Fewer than BULK of them are all; more may follow."""

    def pause_output(self) -> None:
        """The transport's buffer is full: keep body bytes back (control frames still flow)."""

    def resume_output(self) -> None:
        """The transport has drained: body bytes may flow again."""

    def connection_lost(self, reason: str) -> None:
        """The socket is gone: reset every stream, then `ConnectionHandler.on_closed`."""

    def drain(self, final: bool) -> None:
        """Go away gracefully. `final` False announces it (HTTP/2: GOAWAY with the highest id; HTTP/1:
        `Connection: close` on the next response); True refuses new streams and closes when idle."""
