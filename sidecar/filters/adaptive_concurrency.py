"""Overload protection: what is over the application's limit is answered 503 at once.

An HTTP filter (Envoy `AdaptiveConcurrency`), put by the control plane before the router of inbound listeners.
A queue would only make every answer late. Health checks pass (`health_checks.py`). `concurrency_limit.py`
learns the limit.

A request holds a place until its response head, and only that time is measured: what streams afterwards
(server-sent events, gRPC streams, WebSocket, CONNECT) holds none. A head that came before the request had
ended tells nothing, since the client has decided when. Another attempt after a head (`http/held_response.py`)
has no place.

A request that was given up, by its caller or by a time-out of its route, has waited for so long at least. It
leaves its place, though the application very likely works on: answers that come too late show that as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.config.resources import AdaptiveConcurrency
from sidecar.filters.concurrency_limit import ConcurrencyLimit
from sidecar.filters.health_checks import is_health_check
from sidecar.http.local_reply import LocalReply

if TYPE_CHECKING:
    from sidecar.http.exchange import Exchange

GRPC_RESOURCE_EXHAUSTED = 8
HEALTH_CHECKS_AT_ONCE = 64
"""Beyond, they are requests like others: anybody can name himself a health check."""
_GIVEN_UP = ("DC", "UT")
"""Response flags: by the caller, by a time-out. With others the application failed, or was never reached."""


class AdaptiveConcurrencyFilter:
    """The filter; one for each listener, so for each port of the application."""

    def __init__(self, config: AdaptiveConcurrency) -> None:
        self.limit = ConcurrencyLimit(config)
        self._health_checks: set[Exchange] = set()
        """Those on their way."""

    def on_request(self, exchange: Exchange) -> LocalReply | None:
        if is_health_check(exchange.head) and len(self._health_checks) < HEALTH_CHECKS_AT_ONCE:
            self._health_checks.add(exchange)
            return None
        limit = self.limit
        if limit.acquire():
            return None
        return LocalReply(
            503,
            "UO",
            f"the application is overloaded: {limit.in_flight} requests are in flight, as many as it "
            "answers in good time (adaptive concurrency); try again later",
            GRPC_RESOURCE_EXHAUSTED,
            ((b"retry-after", b"1"),),
        )

    def on_response(self, exchange: Exchange) -> None:
        if self._health_checks and exchange in self._health_checks:
            self._health_checks.remove(exchange)
            return
        attempt = exchange.router.attempt
        now = exchange.context.now()
        latency = None
        answered = True
        if attempt is not None and exchange.request_ended:
            if attempt.status == 0:
                answered = exchange.flag[:2] not in _GIVEN_UP
                latency = None if answered else now - attempt.started
            elif attempt.status < 500:
                latency = attempt.latency
        self.limit.release(now, latency, answered)

    def __repr__(self) -> str:
        return f"<AdaptiveConcurrencyFilter {self.limit!r}>"
