"""A short response waits until it is whole, for a moment: what has not been passed on can be asked for again.

Servers often write head and body one after the other. One that ends in between leaves a caller with half a
response, although nothing forbids to send the request to another endpoint. Made by the router for an
`Attempt` whose response is `incomplete` when it begins, and which has taken the whole request: a server that
refuses an upload may cut the connection, and its answer has to get through. What is at hand as a whole is
passed on at once, what has no length (an event stream, a gRPC call) as it comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.protocol.events import ResponseHead

if TYPE_CHECKING:
    from sidecar.http.attempt import Attempt

SHORT_RESPONSE = 16384
"""Bytes of `content-length`: what a server writes in one piece, and a frame of HTTP/2 carries."""
HELD_SECONDS = 0.05
"""From the head on. Longer than a busy machine takes between two writes of a process."""


def is_short(head: ResponseHead) -> bool:
    length = head.get(b"content-length")
    return length is not None and len(length) <= 5 and int(length) <= SHORT_RESPONSE


class HeldResponse:
    """The head of a response and what has come of its body."""

    __slots__ = ("_attempt", "_body", "_head", "_timeouts")

    def __init__(self, attempt: Attempt, head: ResponseHead) -> None:
        self._attempt = attempt
        self._head = head
        self._body = bytearray()
        context = attempt.router.exchange.context
        self._timeouts = context.timeouts_of(HELD_SECONDS)
        self._timeouts.begin(self, context.now())

    def keep(self, data: bytes) -> None:
        """More of the body. Its credit is not given back yet."""
        self._body += data
        self._attempt.router.exchange.hold(len(data))

    def take(self) -> tuple[ResponseHead, bytes]:
        """All of it; the wait is over."""
        self._timeouts.end(self)
        if self._body:
            self._attempt.router.exchange.hold(-len(self._body))
        return self._head, bytes(self._body)

    def on_timeout(self, _: float) -> None:
        self._attempt.pass_held()
