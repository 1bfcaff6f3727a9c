"""One request and its response, seen from downstream: the handler of the downstream stream.

Made by `server/connection_manager.py` for each request; it hands the request to the router and passes the
answer back. Driven by callbacks alone: no task, nothing awaited. When the exchange is over it is counted,
logged and traced, once; it is not over before the downstream has accepted the last byte.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.http.context import Downstream, HttpContext
from sidecar.http.filter_chain import HttpFilter, admit
from sidecar.http.local_reply import LocalReply, grpc_status_of, grpc_trailers, render
from sidecar.http.record import record_exchange
from sidecar.http.router import RouterRequest
from sidecar.protocol.events import ErrorCode, Field, RequestHead, Reset, ResponseHead, Stream

UNCOUNTED = 1024
"""A body up to this size that is kept for another try costs no more than the exchange itself."""

_LOCAL_RESETS: dict[int, str] = {ErrorCode.PROTOCOL_ERROR: "DPE", ErrorCode.INTERNAL_ERROR: "UPE"}
"""Response flags (Envoy) by the code of a reset that our own codec made: who broke the protocol."""


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
        "held",
        "idle_looks",
        "idle_mark",
        "on_done",
        "passed",
        "request_ended",
        "response_ended",
        "router",
        "start_ns",
        "started",
        "status",
        "stream",
        "trace",
        "unsent",
        "upload_stopped",
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
        self.unsent = 0
        """Response bytes that have come and that the downstream has not taken."""
        self.held = 0
        """What `context.budget` counts of this exchange."""
        self.status = 0
        """0 until a response head was sent."""
        self.grpc_status: int | None = None
        self.flag = ""
        self.details = ""
        self.request_ended = False
        self.response_ended = False
        self.upload_stopped = False
        """The response was complete first: what still comes of the request is dropped."""
        self.done = False
        self.idle_mark = -1
        self.idle_looks = 0
        """Progress at the last look for idleness, and how many looks in a row found no change."""
        self.passed: tuple[HttpFilter, ...] = ()
        """Filters that let the request pass and wait to hear of its answer."""
        self.router = RouterRequest(self)

    def start(self, end_stream: bool) -> None:
        """Ask the filters, then route it. Called once, after `stream.handler` was set."""
        self.request_ended = end_stream
        if self.context.filters:
            self.passed, reply = admit(self.context.filters, self)
            if reply is not None:
                self.reply(reply)
                return
        self.router.start(end_stream)

    # --- from downstream -------------------------------------------------------------------------

    def on_data(self, data: bytes, end_stream: bool) -> None:
        self.bytes_in += len(data)
        if end_stream:
            self.request_ended = True
        if self.upload_stopped:
            if data:
                self.stream.consume(len(data))
            return
        self.router.on_request_data(data, end_stream)
        if self.held or self.router.kept_size > UNCOUNTED or self.router.consumed != self.bytes_in:
            self.count_held()
        if end_stream and self.response_ended:
            self._settle()

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        self.request_ended = True
        if self.upload_stopped:
            return
        self.router.on_request_trailers(fields)
        if self.response_ended:
            self._settle()

    def on_sent(self, n: int) -> None:
        self.unsent -= n
        self.router.on_response_sent(n)
        self.count_held()
        if self.response_ended:
            self._settle()

    def on_reset(self, reset: Reset) -> None:
        if self.done:
            return
        self.flag = "DC"
        if not reset.remote:
            self.flag = _LOCAL_RESETS.get(reset.code, "DC")
            if self.flag == "UPE":
                self.status = 502  # which the codec has answered in our place
        self.details = f"downstream stream ended: {reset.reason}"
        self.router.cancel()
        self._finish()

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        raise AssertionError("a server's stream receives no response")

    def on_informational(self, head: ResponseHead) -> None:
        raise AssertionError("a server's stream receives no response")

    # --- from the router -------------------------------------------------------------------------

    @property
    def tunnel(self) -> bool:
        """A CONNECT that was granted: its two directions end each on its own."""
        return self.head.method == b"CONNECT" and 200 <= self.status < 300

    def send_informational(self, head: ResponseHead) -> None:
        self.stream.send_informational(head)

    def send_response(self, head: ResponseHead, end_stream: bool) -> None:
        self.status = head.status
        if self.passed:
            self.tell_filters()
        self.stream.send_response(head, end_stream)
        if end_stream:
            self._end_response()

    def send_data(self, data: bytes, end_stream: bool) -> int:
        size = len(data)
        self.bytes_out += size
        accepted = self.stream.send_data(data, end_stream)
        if accepted != size:
            self.unsent += size - accepted
            self.count_held()
        if end_stream:
            self._end_response()
        return accepted

    def hold(self, n: int) -> None:
        """The router holds `n` more bytes of the response; fewer, when below 0."""
        self.unsent += n
        self.count_held()

    def send_trailers(self, fields: tuple[Field, ...]) -> None:
        self.stream.send_trailers(fields)
        self._end_response()

    def reply(self, reply: LocalReply) -> None:
        """Answer here. Once a response has been started the stream can only be cut short: gRPC calls get
        their status in trailers, others a reset."""
        if self.done:
            return
        grpc = self.router.grpc
        if self.status == 0:
            self.flag = reply.flag
            self.details = reply.text
            head, body = render(reply, grpc)
            if grpc:
                self.grpc_status = grpc_status_of(reply)
            bodiless = not body or self.head.method == b"HEAD"
            self.send_response(head, bodiless)
            if not bodiless and not self.done:
                self.send_data(body, True)
        elif grpc and self.downstream.http2 and not self.response_ended:
            self.flag = reply.flag
            self.details = reply.text
            self.grpc_status = grpc_status_of(reply)
            self.send_trailers(grpc_trailers(reply))
        else:
            self.refuse(ErrorCode.INTERNAL_ERROR, reply)

    def refuse(self, code: ErrorCode, reply: LocalReply) -> None:
        """Reset the downstream stream instead of answering; `reply` says why, for log and metrics."""
        if self.done:
            return
        self.flag = reply.flag
        self.details = reply.text
        self.router.cancel(reply.text)
        self.stream.reset(code)
        if self.status == 0:
            self.status = reply.status
        self._finish()

    def unavailable(self, reply: LocalReply) -> None:
        """The request was certainly not processed: another sidecar may send it elsewhere, so it is told."""
        if self.context.inbound and self.downstream.trusted:
            self.refuse(ErrorCode.REFUSED_STREAM, reply)
        else:
            self.reply(reply)

    def shed(self) -> None:
        """Turn it away, in place of `start`: too much is buffered in this process already."""
        self.unavailable(LocalReply(503, "OM", self.context.budget.describe()))

    def _end_response(self) -> None:
        if self.done:
            return  # the stream died in the call that was to end it
        self.response_ended = True
        if not self.tunnel:
            # RFC 9113 section 8.1: a complete response may come before the request has ended, or has left.
            # What is still on its way is thrown away.
            if not self.request_ended:
                self.upload_stopped = True
                self.router.cancel()
            left = self.bytes_in - self.router.consumed
            if left:
                self.router.consumed = self.bytes_in
                self.stream.consume(left)
        self._settle()

    def _settle(self) -> None:
        """It is over when both messages have ended and the downstream has accepted every byte."""
        if self.unsent or self.done:
            return
        if self.request_ended:
            self._finish()
        elif self.upload_stopped:
            if self.downstream.http2:  # HTTP/1 codecs deal with the rest of a body themselves
                self.stream.reset(ErrorCode.NO_ERROR)
            self._finish()

    def _finish(self) -> None:
        if self.done:
            return
        if self.passed:
            self.tell_filters()
        self.router.finish()
        if self.held:
            self.context.budget.add(-self.held)
            self.held = 0
        self.done = True
        record_exchange(self)
        self.on_done(self)
        # No callback comes any more. Without these circles nothing is left for the garbage collector, which
        # would take a sixth of a request's time.
        self.router.release()
        del self.stream

    def tell_filters(self) -> None:
        """The response has begun, or there is none: those that have not heard of it yet do now."""
        passed, self.passed = self.passed, ()
        for each in passed:
            each.on_response(self)

    def count_held(self) -> None:
        """Report to the process-wide budget what is buffered here: bytes that one side has sent and the
        other has not accepted, and the body that is kept for another try."""
        if self.done:
            return
        router = self.router
        held = self.unsent + max(self.bytes_in - router.consumed, router.kept_size if router.kept else 0)
        if held != self.held:
            self.context.budget.add(held - self.held)
            self.held = held

    def __repr__(self) -> str:
        return f"<Exchange {self.head!r} status={self.status} {self.router!r}{' done' if self.done else ''}>"
