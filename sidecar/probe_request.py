"""One request of `probes.py` on a connection of its own, from the connection to the answer.

Owner of the connection, handler of its codec and of the only stream. It never sends anything twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.net.connection import Connection
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

MAX_BODY = 65536
"""A health answer is some bytes."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int = 0
    """Of HTTP; 0: nothing was asked."""
    fields: tuple[Field, ...] = ()
    body: bytes = b""
    trailers: tuple[Field, ...] = ()


class ProbeRequest:
    """`answered` has the answer, or an OSError that says what came instead. With a body the whole answer is
    awaited, otherwise its head is enough."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        head: RequestHead | None,
        body: bytes,
        make_codec: Callable[[ConnectionHandler], Codec] | None,
    ) -> None:
        self.answered: asyncio.Future[Answer] = loop.create_future()
        self._head = head
        self._body = body
        self._make_codec = make_codec
        self._codec: Codec | None = None
        self._stream: Stream | None = None
        self._response: ResponseHead | None = None
        self._received = bytearray()

    def __repr__(self) -> str:
        return f"<ProbeRequest {self._head!r} response={self._response!r}>"

    # --- ConnectionOwner

    def on_secured(self, conn: Connection) -> None:
        if self._make_codec is None:
            self._finish(())
            return
        self._codec = self._make_codec(self)
        conn.set_codec(self._codec)

    def on_unread(self, conn: Connection, data: bytes) -> None:
        """What a server says that was asked nothing."""

    def on_lost(self, conn: Connection, reason: str) -> None:
        self._fail(reason)

    # --- ConnectionHandler

    def on_request(self, stream: Stream, head: RequestHead, end_stream: bool) -> None:
        raise AssertionError("a client's connection receives no requests")

    def on_ready(self) -> None:
        assert self._head is not None
        if self._stream is not None:
            return
        if self._codec is None or not self._codec.available:
            self._fail("the server takes no request")
            return
        self._stream = self._codec.open_stream(self)
        self._stream.send_request(self._head, end_stream=not self._body)
        if self._body:
            self._stream.send_data(self._body, True)

    def on_capacity(self) -> None:
        """There is but one request."""

    def on_goaway(self) -> None:
        """The stream says whether the answer still comes."""

    def on_closed(self, reason: str) -> None:
        self._fail(reason)

    # --- StreamHandler

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        self._response = head
        if end_stream or not self._body:
            self._finish(())

    def on_informational(self, head: ResponseHead) -> None:
        """The answer follows."""

    def on_data(self, data: bytes, end_stream: bool) -> None:
        if self.answered.done():
            return
        self._received += data
        if self._stream is not None:
            self._stream.consume(len(data))
        if len(self._received) > MAX_BODY:
            self._fail(f"the answer exceeds {MAX_BODY} bytes")
        elif end_stream:
            self._finish(())

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        self._finish(fields)

    def on_sent(self, n: int) -> None:
        """What is sent is small."""

    def on_reset(self, reset: Reset) -> None:
        self._fail(reset.reason)

    # --- inside

    def _finish(self, trailers: tuple[Field, ...]) -> None:
        if self.answered.done():
            return
        head = self._response
        answer = Answer(trailers=trailers)
        if head is not None:
            answer = Answer(head.status, head.fields + head.fresh, bytes(self._received), trailers)
        self.answered.set_result(answer)

    def _fail(self, reason: str) -> None:
        if self.answered.done():
            return
        if self._stream is not None:
            self._stream.reset(ErrorCode.CANCEL)
        self.answered.set_exception(OSError(reason))
