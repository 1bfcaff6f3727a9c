"""One try of a request on one endpoint: the handler of the upstream stream.

Made by the router; passes everything on to it, and keeps what belongs to this try alone: the endpoint, its
span, its time-out, and how many body bytes the endpoint has taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.http.held_response import HeldResponse
from sidecar.net.peer import PeerInfo
from sidecar.protocol.events import ErrorCode, Field, Reset, ResponseHead, Stream
from sidecar.upstream.endpoint import Endpoint

if TYPE_CHECKING:
    from sidecar.http.context import TimerHandle
    from sidecar.http.router import RouterRequest


MAX_INFORMATIONAL = 256
"""1xx responses to one request: they are passed on at once, and no window bounds them."""


class Attempt:
    """`reason` says why this try was made, "" for the first."""

    __slots__ = (
        "accepted",
        "end_ns",
        "ended",
        "endpoint",
        "held",
        "informational",
        "latency",
        "number",
        "outcome",
        "reason",
        "router",
        "span_id",
        "start_ns",
        "started",
        "status",
        "stream",
        "timer",
    )

    def __init__(
        self, router: RouterRequest, endpoint: Endpoint, number: int, reason: str, started: float
    ) -> None:
        self.router = router
        self.endpoint = endpoint
        self.number = number
        self.reason = reason
        self.started = started
        self.start_ns = 0
        self.span_id = b""
        self.status = 0
        self.informational = 0
        self.outcome = ""
        """Why it failed, "" while it runs and when it succeeded."""
        self.accepted = 0
        self.latency: float | None = None
        """Seconds until the response head, None before."""
        self.ended = False
        self.held: HeldResponse | None = None
        """The response, as long as nothing of it was passed on."""
        self.end_ns = 0
        self.stream: Stream | None = None
        self.timer: TimerHandle | None = None

    # --- StreamWaiter ----------------------------------------------------------------------------

    def on_stream(self, stream: Stream, peer: PeerInfo) -> None:
        self.stream = stream
        self.router.on_stream(self, stream)

    def on_connect_failure(self, reason: str, overflow: bool) -> None:
        self.router.on_connect_failure(self, reason, overflow)

    # --- from upstream ---------------------------------------------------------------------------

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        self.router.on_response(self, head, end_stream)

    def on_informational(self, head: ResponseHead) -> None:
        self.informational += 1
        if self.informational > MAX_INFORMATIONAL:
            stream, self.stream = self.stream, None
            if stream is not None:
                stream.reset(ErrorCode.ENHANCE_YOUR_CALM)
            reason = f"more than {MAX_INFORMATIONAL} informational responses"
            self.router.on_upstream_reset(self, Reset(ErrorCode.PROTOCOL_ERROR, reason, remote=False))
            return
        self.router.on_informational(self, head)

    def on_data(self, data: bytes, end_stream: bool) -> None:
        if self.held is not None:
            if not end_stream:
                self.held.keep(data)
                return
            data = self._pass_held_head() + data
            if self.ended:
                return
        stream = self.stream
        n = self.router.on_response_data(self, data, end_stream)
        if n and stream is not None:
            stream.consume(n)

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        if self.held is not None:
            self.pass_held()
            if self.ended:
                return
        self.router.on_response_trailers(self, fields)

    def on_sent(self, n: int) -> None:
        self.router.on_request_sent(self, n)

    def on_reset(self, reset: Reset) -> None:
        self.stream = None
        self.router.on_upstream_reset(self, reset)

    # --- from the router -------------------------------------------------------------------------

    def pass_held(self) -> None:
        """Pass on what has come of the response, without waiting for the rest."""
        body = self._pass_held_head()
        if body and not self.ended:
            self.on_data(body, False)

    def _pass_held_head(self) -> bytes:
        """Returns what of the body has been held with it."""
        head, body = self.take_held()
        self.router.begin_response(self, head)
        return body

    def take_held(self) -> tuple[ResponseHead, bytes]:
        held, self.held = self.held, None
        assert held is not None
        return held.take()

    def cancel(self, outcome: str) -> None:
        """Give it up: no further callback comes."""
        self.outcome = outcome
        if self.timer is not None:
            self.timer.cancel()
        stream = self.stream
        if stream is None:
            self.endpoint.cancel(self)
        else:
            self.stream = None
            stream.reset(ErrorCode.CANCEL)

    def __repr__(self) -> str:
        state = self.outcome or ("streaming" if self.stream is not None else "waiting for a connection")
        return f"<Attempt {self.number} on {self.endpoint.name}: {state}>"
