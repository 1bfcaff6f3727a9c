"""What the filter takes for an answer, for a request that was given up, and for neither."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.config.resources import AdaptiveConcurrency
from sidecar.filters.adaptive_concurrency import HEALTH_CHECKS_AT_ONCE, AdaptiveConcurrencyFilter
from sidecar.protocol.events import ResponseHead
from tests.support.exchange_rig import Rig, get, route

Release = tuple[float | None, bool]
"""The latency, and whether it was answered."""


class Filtered:
    """`released` is what the limit was told of each request that left it."""

    def __init__(self, timeout: float = 0.0) -> None:
        self.rig = Rig(route(timeout=timeout))
        self.filter = AdaptiveConcurrencyFilter(AdaptiveConcurrency())
        self.released: list[Release] = []
        self.filter.limit = self  # type: ignore[assignment]
        self.rig.context = replace(self.rig.context, filters=(self.filter,))

    def acquire(self) -> bool:
        return True

    def release(self, now: float, latency: float | None, answered: bool = True) -> None:
        self.released.append((latency, answered))


def test_an_answer_is_a_sample() -> None:
    filtered = Filtered()
    filtered.rig.send(get())
    filtered.rig.clock.advance(0.25)
    filtered.rig.upstream.handler.on_response(ResponseHead(200), True)
    assert filtered.released == [(0.25, True)]


def test_a_caller_who_leaves_has_waited_for_so_long() -> None:
    filtered = Filtered()
    stream, _ = filtered.rig.send(get())
    filtered.rig.clock.advance(0.5)
    stream.die()
    assert filtered.released == [(0.5, False)]


def test_so_has_one_whose_time_is_over() -> None:
    filtered = Filtered(timeout=2.0)
    filtered.rig.send(get())
    filtered.rig.clock.advance(2.0)
    assert filtered.released == [(2.0, False)]


def test_a_caller_who_leaves_amid_the_answer_was_answered() -> None:
    filtered = Filtered()
    stream, _ = filtered.rig.send(get())
    filtered.rig.upstream.handler.on_response(ResponseHead(200), False)
    stream.die()
    assert filtered.released == [(0.0, True)]


def test_a_caller_who_leaves_amid_the_request_tells_nothing() -> None:
    filtered = Filtered()
    stream, _ = filtered.rig.send(get(method=b"POST"), end_stream=False)
    filtered.rig.clock.advance(0.5)
    stream.die()
    assert filtered.released == [(None, True)]


@pytest.mark.parametrize("mode", ["fails", "overflow"])
def test_what_never_reached_the_application_tells_nothing(mode: str) -> None:
    filtered = Filtered()
    for endpoint in filtered.rig.cluster.endpoints:
        endpoint.mode = mode
    filtered.rig.send(get())
    assert filtered.released == [(None, True)]


def test_an_application_that_ends_the_stream_tells_nothing() -> None:
    filtered = Filtered()
    filtered.rig.send(get())
    filtered.rig.clock.advance(0.5)
    filtered.rig.upstream.die()
    assert filtered.released == [(None, True)]


def test_errors_of_the_application_tell_nothing() -> None:
    filtered = Filtered()
    filtered.rig.send(get())
    filtered.rig.upstream.handler.on_response(ResponseHead(500), True)
    assert filtered.released == [(None, True)]


def test_a_request_without_a_route_tells_nothing() -> None:
    filtered = Filtered()
    filtered.rig.routes.late = True
    stream, _ = filtered.rig.send(get())
    filtered.rig.clock.advance(0.5)
    stream.die()
    assert filtered.released == [(None, True)]


def test_health_checks_beyond_what_anybody_needs_are_requests_like_others() -> None:
    rig = Rig(route())
    limiter = AdaptiveConcurrencyFilter(AdaptiveConcurrency())
    rig.context = replace(rig.context, filters=(limiter,))
    for _ in range(HEALTH_CHECKS_AT_ONCE):
        rig.send(get((b"user-agent", b"kube-probe/1.32")))
    assert limiter.limit.in_flight == 0
    for _ in range(5):
        rig.send(get((b"user-agent", b"kube-probe/1.32")))
    assert limiter.limit.in_flight == 5
    for upstream in rig.upstreams:
        upstream.handler.on_response(ResponseHead(200), True)
    assert limiter.limit.in_flight == 0
