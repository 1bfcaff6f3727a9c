"""A small gRPC client on the sidecar's own HTTP/2 codec: unary calls and bidirectional streams.

For the sidecar's own calls to the control plane (`identity/ca_client.py`, `xds/client.py`), so that it
need not carry grpcio. It never touches the traffic of applications.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from sidecar.net.connect import connect
from sidecar.net.connection import Connection
from sidecar.net.connection_types import ConnectError
from sidecar.net.grpc_messages import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    OK,
    UNAVAILABLE,
    UNKNOWN,
    Deframer,
    GrpcError,
    frame,
    status_of_fields,
    status_of_http,
    status_of_reset,
)
from sidecar.net.sockets import Address
from sidecar.net.tls import TlsConfigError, TlsParameters
from sidecar.protocol.events import (
    Codec,
    ConnectionHandler,
    ErrorCode,
    Field,
    RequestHead,
    Reset,
    ResponseHead,
    Stream,
)
from sidecar.protocol.h2 import H2Codec, H2Options

__all__ = ["GrpcChannel", "GrpcError", "GrpcStream"]

CONNECT_TIMEOUT = 5.0
MAX_QUEUED = 1024 * 1024
"""Bytes of messages that nobody has taken yet, past which the server may not send more."""

_FIELDS: tuple[Field, ...] = (
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"pilotfish"),
)


class GrpcStream:
    """One call. Iterate over it for the messages; it ends, or raises GrpcError, with the server's status."""

    def __init__(self, codec: Codec, address: str) -> None:
        self._address = address
        self._deframer = Deframer()
        self._messages: deque[bytes] = deque()
        self._queued = 0
        self._unconsumed = 0
        self._status: tuple[int, str] | None = None
        self._sent_last = False
        self._waiter: asyncio.Future[None] | None = None
        self._stream: Stream = codec.open_stream(self)

    def start(self, head: RequestHead) -> None:
        """For `GrpcChannel`."""
        self._stream.send_request(head, end_stream=False)

    def send(self, message: bytes, last: bool = False) -> None:
        """Queue a message; `last` also ends this side. Ignored once the call has ended: iterating says so."""
        if self._status is None:
            self._sent_last = last
            self._stream.send_data(frame(message), last)

    def cancel(self) -> None:
        """Give the call up; iterating then raises GrpcError with code 1."""
        self._end(CANCELLED, "cancelled by this side", reset=True)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._messages:
            if self._status is not None:
                code, message = self._status
                if code == OK:
                    raise StopAsyncIteration
                raise GrpcError(code, f"{self._address}: {message}")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message_bytes = self._messages.popleft()
        self._queued -= len(message_bytes)
        self._consume()
        return message_bytes

    # --- StreamHandler

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        content_type = head.get(b"content-type") or b""
        status = status_of_fields(head.fields + head.fresh)
        if end_stream and status is not None:
            self._end(*status)  # trailers-only
        elif head.status != 200 or not content_type.startswith(b"application/grpc"):
            self._end(*status_of_http(head.status), reset=not end_stream)
        elif end_stream:
            self._end(UNKNOWN, "the server ended the call without grpc-status")

    def on_informational(self, head: ResponseHead) -> None:
        """gRPC has no use for 1xx."""

    def on_data(self, data: bytes, end_stream: bool) -> None:
        if self._status is not None:
            return
        self._unconsumed += len(data)
        for message in self._deframer.receive(data):
            self._messages.append(message)
            self._queued += len(message)
        if self._deframer.error is not None:
            self._end(*self._deframer.error, reset=True)
            return
        self._consume()
        if end_stream:
            self._end(UNKNOWN, "the server ended the call without grpc-status")
        elif self._messages:
            self._wake()

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        status = status_of_fields(fields)
        if status is None:
            self._end(UNKNOWN, "the server ended the call without grpc-status")
        elif status[0] == OK and self._deframer.partial:
            self._end(INTERNAL, "the server ended the call within a message")
        else:
            self._end(*status)

    def on_sent(self, n: int) -> None:
        """What this side sends is small and waits in the codec."""

    def on_reset(self, reset: Reset) -> None:
        self._end(*status_of_reset(reset))

    # --- inside

    def _consume(self) -> None:
        # A message may be larger than the window, so what is not a whole message yet is always taken.
        if self._unconsumed and self._queued <= MAX_QUEUED and self._status is None:
            n, self._unconsumed = self._unconsumed, 0
            self._stream.consume(n)

    def _end(self, code: int, message: str, reset: bool = False) -> None:
        if self._status is not None:
            return
        self._status = (code, message)
        if reset or not self._sent_last:
            self._stream.reset(ErrorCode.CANCEL)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __repr__(self) -> str:
        return f"<GrpcStream {self._address} queued={len(self._messages)} status={self._status}>"


class _ChannelConnection:
    """Owner of the channel's connection and handler of its codec."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, make_codec: Callable[[ConnectionHandler], Codec]
    ) -> None:
        self._make_codec = make_codec
        self.ready: asyncio.Future[Codec] = loop.create_future()
        self.closed = asyncio.Event()
        self.usable = True
        self._codec: Codec | None = None

    def _lost(self, reason: str) -> None:
        self.usable = False
        if not self.ready.done():
            self.ready.set_exception(ConnectError(reason, "tcp"))

    # --- ConnectionOwner

    def on_secured(self, conn: Connection) -> None:
        self._codec = self._make_codec(self)
        conn.set_codec(self._codec)

    def on_unread(self, conn: Connection, data: bytes) -> None:
        raise AssertionError("the codec is set as soon as the connection is secured")

    def on_lost(self, conn: Connection, reason: str) -> None:
        self._lost(reason)

    # --- ConnectionHandler

    def on_request(self, stream: Stream, head: RequestHead, end_stream: bool) -> None:
        raise AssertionError("a client's connection receives no requests")

    def on_ready(self) -> None:
        if self._codec is not None and not self.ready.done():
            self.ready.set_result(self._codec)

    def on_capacity(self) -> None:
        """`GrpcChannel` looks at `available` when it opens a stream."""

    def on_goaway(self) -> None:
        self.usable = False

    def on_closed(self, reason: str) -> None:
        self.closed.set()
        self._lost(reason)

    def __repr__(self) -> str:
        return f"<_ChannelConnection usable={self.usable} codec={self._codec!r}>"


def _make_h2(handler: ConnectionHandler) -> Codec:
    return H2Codec(True, handler, H2Options())


class GrpcChannel:
    """Calls to one service over one connection, made when needed to the first address that answers."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        addresses: Sequence[Address],
        authority: str,
        tls: Callable[[], TlsParameters] | None,
        make_codec: Callable[[ConnectionHandler], Codec] = _make_h2,
    ) -> None:
        """`tls` is asked for each new connection; None: plain text. `make_codec`: another HTTP/2 engine."""
        self._loop = loop
        self._addresses = tuple(addresses)
        self._authority = authority.encode("ascii")
        self._tls = tls
        self._make_codec = make_codec
        self._lock = asyncio.Lock()
        self._current: tuple[_ChannelConnection, Connection, Codec, str] | None = None

    async def unary(
        self,
        path: str,
        request: bytes,
        metadata: Sequence[Field] = (),
        timeout: float = 10.0,  # noqa: ASYNC109 (it also goes to the server)
    ) -> bytes:
        """Call `path` ("/package.Service/Method") within `timeout` seconds. Raises GrpcError."""
        deadline = (b"grpc-timeout", b"%dm" % max(1, min(99_999_999, round(timeout * 1000))))
        stream: GrpcStream | None = None
        try:
            async with asyncio.timeout(timeout):
                stream = await self.stream(path, (*metadata, deadline))
                stream.send(request, last=True)
                replies = [reply async for reply in stream]
        except TimeoutError:
            names = ", ".join(map(str, self._addresses))
            raise GrpcError(DEADLINE_EXCEEDED, f"{names}: no answer to {path} within {timeout:g} s") from None
        finally:
            if stream is not None:
                stream.cancel()  # has no effect on a call that has ended
        if len(replies) != 1:
            raise GrpcError(INTERNAL, f"{stream!r}: {len(replies)} replies to the unary call {path}")
        return replies[0]

    async def stream(self, path: str, metadata: Sequence[Field] = ()) -> GrpcStream:
        """Begin a call with any number of messages either way. Raises GrpcError when nothing answers."""
        codec, address = await self._acquire()
        stream = GrpcStream(codec, address)
        scheme = b"http" if self._tls is None else b"https"
        head = RequestHead(b"POST", scheme, self._authority, path.encode("ascii"), _FIELDS, tuple(metadata))
        stream.start(head)
        return stream

    async def close(self) -> None:
        """End the connection, and return when it has; calls in flight fail with UNAVAILABLE."""
        async with self._lock:
            if self._current is not None:
                owner, connection, _, _ = self._current
                self._current = None
                connection.close("channel closed")
                await owner.closed.wait()

    async def _acquire(self) -> tuple[Codec, str]:
        async with self._lock:
            if self._current is not None:
                owner, _, codec, address = self._current
                if owner.usable and codec.available > 0:
                    return codec, address
                codec.drain(True)  # its last calls end in peace
                self._current = None
            return await self._connect()

    async def _connect(self) -> tuple[Codec, str]:
        reasons = []
        for address in self._addresses:
            owner = _ChannelConnection(self._loop, self._make_codec)
            try:
                tls = self._tls() if self._tls is not None else None
                connection = await connect(self._loop, address, owner, tls, CONNECT_TIMEOUT)
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        codec = await owner.ready
                except BaseException:
                    connection.abort()
                    raise
            except ConnectError as error:
                reasons.append(error.reason)
            except TlsConfigError as error:
                reasons.append(f"{address}: {error}")
            except TimeoutError:
                reasons.append(f"{address}: no HTTP/2 SETTINGS came within {CONNECT_TIMEOUT:g} s")
            else:
                self._current = (owner, connection, codec, str(address))
                return codec, str(address)
        raise GrpcError(UNAVAILABLE, "; ".join(reasons) or "no address to connect to")

    def __repr__(self) -> str:
        state = "idle" if self._current is None else f"connected to {self._current[3]}"
        return f"<GrpcChannel {', '.join(map(str, self._addresses))} {state}>"
