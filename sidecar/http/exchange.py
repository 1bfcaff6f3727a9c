"""One request and its response, seen from downstream: the handler of the downstream stream.

Made by `server/connection_manager.py` for each request; it hands the request to the router and passes the
answer back. Driven by callbacks alone: no task, nothing awaited. When the exchange is over it is counted,
logged and traced, once.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.http.context import Downstream, HttpContext
from sidecar.http.local_reply import GRPC_UNAVAILABLE, LocalReply, grpc_status_of, render
from sidecar.http.record import record_exchange
from sidecar.http.router import RouterRequest
from sidecar.protocol.events import ErrorCode, Field, RequestHead, Reset, ResponseHead, Stream


class Exchange:
    """Shape: head, then body and trailers in; head, body and trailers out; either side may end it."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "context",
        "details",
        "done",
        "downstream",
        "flag",
        "grpc_status",
        "head",
        "idle_looks",
        "idle_mark",
        "on_done",
        "request_ended",
        "response_ended",
        "router",
        "start_ns",
        "started",
        "status",
        "stream",
        "trace",
    )

    def __init__(
        self,
        context: HttpContext,
        downstream: Downstream,
        stream: Stream,
        head: RequestHead,
        on_done: Callable[[Exchange], None],
    ) -> None:
        self.context = context
        self.downstream = downstream
        self.stream = stream
        self.head = head
        self.on_done = on_done
        self.started = context.now()
        self.trace = context.tracer.start(head.fields, head.fresh, head.memo)
        self.start_ns = context.tracer.now_ns() if self.trace.sampled else 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.status = 0
        """0 until a response head was sent."""
        self.grpc_status: int | None = None
        self.flag = ""
        self.details = ""
        self.request_ended = False
        self.response_ended = False
        self.done = False
        self.idle_mark = -1
        self.idle_looks = 0
        """Progress at the last look for idleness, and how many looks in a row found no change."""
        self.router = RouterRequest(self)

    def start(self, end_stream: bool) -> None:
        """Route it. Called once, after `stream.handler` was set."""
        self.request_ended = end_stream
        self.router.start(end_stream)

    # --- from downstream -------------------------------------------------------------------------

    def on_data(self, data: bytes, end_stream: bool) -> None:
        self.bytes_in += len(data)
        self.request_ended = end_stream
        self.router.on_request_data(data, end_stream)
        if end_stream and self.response_ended:
            self._finish()

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        self.request_ended = True
        self.router.on_request_trailers(fields)
        if self.response_ended:
            self._finish()

    def on_sent(self, n: int) -> None:
        self.router.on_response_sent(n)

    def on_reset(self, reset: Reset) -> None:
        if self.done:
            return
        self.flag = "DC"
        self.details = f"downstream ended the stream: {reset.reason}"
        self.router.cancel()
        self._finish()

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        raise AssertionError("a server's stream receives no response")

    def on_informational(self, head: ResponseHead) -> None:
        raise AssertionError("a server's stream receives no response")

    # --- from the router -------------------------------------------------------------------------

    def send_informational(self, head: ResponseHead) -> None:
        self.stream.send_informational(head)

    def send_response(self, head: ResponseHead, end_stream: bool) -> None:
        self.status = head.status
        self.stream.send_response(head, end_stream)
        if end_stream:
            self._end_response()

    def send_data(self, data: bytes, end_stream: bool) -> int:
        self.bytes_out += len(data)
        accepted = self.stream.send_data(data, end_stream)
        if end_stream:
            self._end_response()
        return accepted

    def send_trailers(self, fields: tuple[Field, ...]) -> None:
        self.stream.send_trailers(fields)
        self._end_response()

    def reply(self, reply: LocalReply) -> None:
        """Answer here. Once a response has been started the stream can only be cut short: gRPC calls get
        their status in trailers, others a reset."""
        if self.done:
            return
        self.flag = reply.flag
        self.details = reply.text
        grpc = self.router.grpc
        if self.status == 0:
            head, body = render(reply, grpc)
            if grpc:
                self.grpc_status = grpc_status_of(reply)
            self.send_response(head, not body)
            if body:
                self.send_data(body if self.head.method != b"HEAD" else b"", True)
        elif grpc and self.downstream.http2:
            self.grpc_status = GRPC_UNAVAILABLE
            self.send_trailers(
                ((b"grpc-status", b"%d" % GRPC_UNAVAILABLE), (b"grpc-message", b"upstream connection lost"))
            )
        else:
            self.refuse(ErrorCode.INTERNAL_ERROR, reply)

    def refuse(self, code: ErrorCode, reply: LocalReply) -> None:
        """Reset the downstream stream instead of answering; `reply` says why, for log and metrics."""
        if self.done:
            return
        self.flag = reply.flag
        self.details = reply.text
        self.stream.reset(code)
        if self.status == 0:
            self.status = reply.status
        self._finish()

    def _end_response(self) -> None:
        self.response_ended = True
        if self.request_ended:
            self._finish()
        elif self.head.method != b"CONNECT":
            # RFC 9113 section 8.1: a complete response may come before the request has ended.
            self.router.cancel()
            self.stream.reset(ErrorCode.NO_ERROR)
            self._finish()

    def _finish(self) -> None:
        if self.done:
            return
        self.done = True
        record_exchange(self)
        self.on_done(self)

    def __repr__(self) -> str:
        return f"<Exchange {self.head!r} status={self.status} {self.router!r}{' done' if self.done else ''}>"
