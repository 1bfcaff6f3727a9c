"""What is held against an endpoint (outlier detection, latency), and what retries cost and wait for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from sidecar.config.resources import RetryPolicy
from sidecar.protocol.events import ErrorCode, Reset, ResponseHead
from sidecar.upstream.retry_budget import RetryBudget
from tests.support.exchange_rig import Rig, get, grpc, route

RETRIED = frozenset({"5xx", "connect-failure"})


def blamed(rig: Rig) -> list[bool]:
    """Of each attempt that has ended, in order."""
    return [failed for _, _, failed in rig.cluster.finished]


@pytest.mark.parametrize(("status", "failed"), [(200, False), (404, False), (500, True), (503, True)])
@pytest.mark.parametrize("body", [b"", b"body"])
def test_an_endpoint_is_blamed_for_its_5xx(status: int, failed: bool, body: bytes) -> None:
    rig = Rig()
    rig.send(get())
    handler = rig.upstream.handler
    handler.on_response(ResponseHead(status), not body)
    if body:
        handler.on_data(body, True)
    assert blamed(rig) == [failed]
    rig.assert_settled()


@pytest.mark.parametrize(("status", "failed"), [(b"0", False), (b"5", False), (b"14", True)])
@pytest.mark.parametrize("alone", [True, False])
def test_an_endpoint_is_blamed_for_being_unavailable_to_grpc(
    status: bytes, failed: bool, alone: bool
) -> None:
    rig = Rig()
    rig.send(grpc())
    handler = rig.upstream.handler
    fields = ((b"grpc-status", status),)
    if alone:
        handler.on_response(ResponseHead(200, fields), True)
    else:
        handler.on_response(ResponseHead(200), False)
        handler.on_trailers(fields)
    assert blamed(rig) == [failed]
    rig.assert_settled()


def test_an_endpoint_that_breaks_off_amid_its_answer_is_blamed() -> None:
    rig = Rig()
    rig.send(get())
    handler = rig.upstream.handler
    handler.on_response(ResponseHead(200), False)
    handler.on_data(b"half of it", False)
    rig.upstream.die()
    assert blamed(rig) == [True]
    rig.assert_settled()


@pytest.mark.parametrize(
    ("processed", "code", "failed"),
    [
        (True, ErrorCode.CANCEL, True),
        (False, ErrorCode.REFUSED_STREAM, True),
        (False, ErrorCode.CANCEL, False),
    ],
    ids=["reset", "refused", "never sent"],
)
def test_an_endpoint_is_blamed_for_what_it_was_sent(processed: bool, code: ErrorCode, failed: bool) -> None:
    """What was never sent, since the connection had closed before, says nothing of who was behind it."""
    rig = Rig()
    rig.send(get())
    rig.upstream.die(code, processed)
    assert blamed(rig) == [failed]
    rig.assert_settled()


def test_what_this_side_could_not_send_is_nobodys_fault() -> None:
    rig = Rig()
    rig.send(get())
    upstream = rig.upstream
    upstream.dead = True
    upstream.handler.on_reset(Reset(ErrorCode.INTERNAL_ERROR, "too long", processed=False, remote=False))
    assert blamed(rig) == [False]
    rig.assert_settled()


@pytest.mark.parametrize("end_stream", [True, False])
def test_an_answer_that_is_dropped_for_another_attempt_is_held_against_its_endpoint(end_stream: bool) -> None:
    rig = Rig(route(RetryPolicy(RETRIED)))
    stream, _ = rig.send(get())
    rig.upstream.handler.on_response(ResponseHead(503), end_stream)
    rig.upstreams[1].handler.on_response(ResponseHead(200), True)
    assert blamed(rig) == [True, False]
    assert stream.heads[0].status == 200
    rig.assert_settled()


def test_each_request_adds_to_the_retry_budget_and_no_retry_does() -> None:
    rig = Rig(route(RetryPolicy(RETRIED, num_retries=5)))
    rig.cluster.retry_budget = RetryBudget(100.0, 0.0)
    stream, _ = rig.send(get())
    for attempt in range(2):
        rig.upstreams[attempt].handler.on_response(ResponseHead(503), True)
    assert len(rig.upstreams) == 2
    assert rig.cluster.stats.retry_overflow == 1
    assert stream.heads[0].status == 503
    rig.assert_settled()


class Half(Random):
    def random(self) -> float:
        return 0.5


def test_back_off_doubles_up_to_its_maximum_and_is_drawn_at_random_below() -> None:
    rig = Rig(route(RetryPolicy(RETRIED, num_retries=6, back_off_base=0.1, back_off_max=1.0)), endpoints=1)
    rig.context = replace(rig.context, random=Half())
    endpoint = rig.cluster.endpoints[0]
    endpoint.mode = "fails"
    begun: list[float] = []
    acquire = endpoint.acquire

    def acquired(waiter: object) -> None:
        begun.append(rig.clock.time())
        acquire(waiter)

    endpoint.acquire = acquired  # type: ignore[method-assign]
    rig.send(get())
    rig.clock.advance(10.0)
    pauses = [later - earlier for earlier, later in pairwise(begun)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.5, 0.5])
    rig.assert_settled()
