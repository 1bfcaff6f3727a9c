"""What load balancing is told of an attempt: how long the endpoint took, not how long a connection took."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.http.attempt import Attempt
from sidecar.http.router import RouterRequest
from sidecar.protocol.events import RequestHead, ResponseHead
from tests.support.virtual_clock import VirtualClock

HEAD = RequestHead(b"GET", b"http", b"users", b"/", ())


def a_request(clock: VirtualClock, tunnel: bool) -> RouterRequest:
    """One that has been routed, as far as an attempt needs it."""
    exchange: Any = SimpleNamespace(
        context=SimpleNamespace(now=clock.time),
        trace=SimpleNamespace(outgoing=lambda span_id: ()),
        head=HEAD,
        send_response=lambda head, end_stream: None,
    )
    router = RouterRequest(exchange)
    router.body_ended = True
    plan: Any = SimpleNamespace(
        tunnel=tunnel, grpc=False, route=SimpleNamespace(retry_policy=None, rewrite_path=bytes)
    )
    target: Any = SimpleNamespace(head=HEAD, response_operations=())
    router.plan, router.target = plan, target
    return router


def an_attempt(router: RouterRequest, clock: VirtualClock) -> Attempt:
    endpoint: Any = SimpleNamespace(name="users-1")
    return Attempt(router, endpoint, 1, "", clock.time())


def test_the_time_that_a_new_connection_took_does_not_count_as_the_endpoints_latency() -> None:
    clock = VirtualClock()
    router = a_request(clock, tunnel=False)
    attempt = an_attempt(router, clock)
    clock.advance(0.5)  # TCP, TLS and SETTINGS
    stream: Any = SimpleNamespace(send_request=lambda head, end_stream: None, incomplete=False)
    attempt.on_stream(stream, None)  # type: ignore[arg-type]
    clock.advance(0.003)
    attempt.on_response(ResponseHead(200), False)
    assert attempt.latency == pytest.approx(0.003)


def test_a_tunnels_latency_is_the_time_to_connect() -> None:
    clock = VirtualClock()
    router = a_request(clock, tunnel=True)
    attempt = an_attempt(router, clock)
    clock.advance(0.5)
    attempt.on_stream(SimpleNamespace(incomplete=False), None)  # type: ignore[arg-type]
    assert attempt.latency == pytest.approx(0.5)
