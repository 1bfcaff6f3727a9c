"""Timeouts: from when they count, what they end, whom they blame."""

from __future__ import annotations

import pytest

from sidecar.config.resources import RetryPolicy
from sidecar.protocol.events import ErrorCode, RequestHead, ResponseHead
from tests.support.exchange_rig import Rig, get, grpc, route

OK = ResponseHead(200)


def test_the_routes_timeout_counts_from_the_arrival_of_a_request_without_body() -> None:
    rig = Rig(route(timeout=5.0))
    rig.routes.late = True
    stream, _ = rig.send(get())
    rig.clock.advance(3.0)
    rig.routes.arrive()
    rig.clock.advance(1.9)
    assert stream.heads == []
    rig.clock.advance(0.1)
    assert stream.heads[0].status == 504
    rig.assert_settled()


def test_a_route_that_comes_too_late_is_a_timeout() -> None:
    rig = Rig(route(timeout=5.0))
    rig.routes.late = True
    stream, _ = rig.send(get())
    rig.clock.advance(9.0)
    rig.routes.arrive()
    rig.clock.advance(0.0)
    assert stream.heads[0].status == 504
    rig.assert_settled()


def test_the_routes_timeout_of_an_upload_counts_from_its_end() -> None:
    rig = Rig(route(timeout=5.0))
    stream, exchange = rig.send(get(method=b"POST"), end_stream=False)
    rig.clock.advance(60.0)
    exchange.on_data(b"body", True)
    rig.clock.advance(4.9)
    assert stream.heads == []
    rig.clock.advance(0.1)
    assert stream.heads[0].status == 504
    rig.assert_settled()


def test_a_stream_that_both_sides_keep_open_has_no_timeout() -> None:
    rig = Rig(route(timeout=5.0))
    _, exchange = rig.send(grpc(), end_stream=False)
    rig.upstream.handler.on_response(OK, False)
    rig.clock.advance(600.0)
    assert rig.done == []
    exchange.on_data(b"", True)
    rig.upstream.handler.on_trailers(((b"grpc-status", b"0"),))
    rig.assert_settled()


def test_an_endpoint_that_does_not_answer_in_time_is_to_blame() -> None:
    rig = Rig(route(timeout=5.0))
    rig.send(get())
    rig.clock.advance(5.0)
    assert rig.cluster.finished == [("users-0", None, True)]
    assert rig.upstreams[0].resets == [ErrorCode.CANCEL]
    assert rig.cluster.stats.timeouts == 1
    rig.assert_settled()


def test_an_endpoint_that_answers_for_too_long_is_not_to_blame() -> None:
    rig = Rig(route(timeout=5.0))
    rig.send(get())
    rig.upstream.handler.on_response(OK, False)
    rig.clock.advance(5.0)
    assert rig.cluster.finished == [("users-0", 0.0, False)]
    rig.assert_settled()


def test_a_grpc_callers_deadline_counts_from_arrival_and_travels_once() -> None:
    rig = Rig(route(timeout=0.0, grpc_timeout_max=0.0))
    rig.routes.late = True
    stream, _ = rig.send(grpc((b"grpc-timeout", b"10S")), end_stream=False)
    rig.clock.advance(4.0)
    rig.routes.arrive()
    assert rig.upstream.heads[0].get_all(b"grpc-timeout") == [b"6000000u"]
    rig.clock.advance(6.0)
    assert stream.heads[0].get(b"grpc-status") == b"4"
    rig.assert_settled()


def test_a_grpc_callers_deadline_ends_the_wait_for_a_route() -> None:
    rig = Rig(route(timeout=0.0, grpc_timeout_max=0.0))
    rig.routes.late = True
    stream, exchange = rig.send(grpc((b"grpc-timeout", b"500m")), end_stream=False)
    rig.clock.advance(0.49)
    assert stream.heads == []
    rig.clock.advance(0.01)
    assert stream.heads[0].get(b"grpc-status") == b"4"
    assert stream.heads[0].get(b"grpc-message") == b"no route for users was known within 0.5 s (grpc-timeout)"
    assert exchange.flag == "UT"
    assert [(stats.requests, stats.timeouts) for stats in exchange.downstream.stats.values()] == [(1, 1)]
    rig.assert_settled()


def test_a_route_that_ignores_deadlines_ends_the_one_that_the_wait_for_it_had() -> None:
    rig = Rig(route(timeout=5.0, grpc_timeout_max=None))
    rig.routes.late = True
    stream, _ = rig.send(grpc((b"grpc-timeout", b"500m")))
    rig.clock.advance(0.4)
    rig.routes.arrive()
    rig.clock.advance(4.5)
    assert stream.heads == []
    rig.upstream.handler.on_response(OK, True)
    rig.assert_settled()


@pytest.mark.parametrize("head", [grpc((b"grpc-timeout", b"0n")), get((b"grpc-timeout", b"1m"))])
def test_nothing_else_ends_the_wait_for_a_route(head: RequestHead) -> None:
    rig = Rig()
    rig.routes.late = True
    rig.send(head)
    assert rig.clock.pending == 0
    rig.routes.arrive()
    rig.upstream.handler.on_response(OK, True)
    rig.assert_settled()


@pytest.mark.parametrize("fresh", [True, False])
def test_a_grpc_callers_deadline_travels_once_wherever_it_stood(fresh: bool) -> None:
    rig = Rig(route(timeout=0.0, grpc_timeout_max=0.0))
    field = ((b"grpc-timeout", b"1S"),)
    rig.send(grpc(fresh=field) if fresh else grpc(*field))
    assert rig.upstream.heads[0].get_all(b"grpc-timeout") == [b"1000000u"]
    rig.clock.advance(1.0)
    rig.assert_settled()


def test_a_routes_own_timeout_is_not_told_to_the_upstream() -> None:
    rig = Rig(route(timeout=5.0))
    rig.send(grpc())
    assert rig.upstream.heads[0].get(b"grpc-timeout") is None
    rig.clock.advance(5.0)
    rig.assert_settled()


def test_a_deadline_that_the_route_ignores_passes_as_it_is() -> None:
    rig = Rig(route(timeout=5.0, grpc_timeout_max=None))
    rig.send(grpc((b"grpc-timeout", b"1S")))
    assert rig.upstream.heads[0].get_all(b"grpc-timeout") == [b"1S"]
    rig.clock.advance(5.0)
    rig.assert_settled()


@pytest.mark.parametrize("asked", [b"0n", b"30S"])
def test_the_route_caps_what_a_grpc_caller_asks_for(asked: bytes) -> None:
    rig = Rig(route(timeout=0.0, grpc_timeout_max=2.0))
    rig.send(grpc((b"grpc-timeout", asked)))
    assert rig.upstream.heads[0].get_all(b"grpc-timeout") == [b"2000000u"]
    rig.clock.advance(2.0)
    rig.assert_settled()


PER_TRY = RetryPolicy(frozenset({"5xx"}), num_retries=1, per_try_timeout=1.0)


def test_a_try_that_takes_too_long_goes_to_another_endpoint() -> None:
    rig = Rig(route(PER_TRY))
    rig.send(get())
    rig.clock.advance(1.0)
    assert [len(e.streams) for e in rig.cluster.endpoints] == [1, 1]
    rig.upstream.handler.on_response(OK, True)
    rig.clock.advance(5.0)
    assert rig.done[0].status == 200
    rig.assert_settled()


def test_a_try_counts_from_the_end_of_the_request() -> None:
    rig = Rig(route(PER_TRY))
    _, exchange = rig.send(get(method=b"PUT"), end_stream=False)
    rig.clock.advance(30.0)
    exchange.on_data(b"body", True)
    assert len(rig.upstreams) == 1
    rig.clock.advance(1.0)
    assert len(rig.upstreams) == 2
    rig.upstream.handler.on_response(OK, True)
    rig.assert_settled()


def test_a_stream_that_has_begun_to_answer_has_no_time_for_a_try() -> None:
    rig = Rig(route(PER_TRY))
    _, exchange = rig.send(grpc(), end_stream=False)
    rig.upstream.handler.on_response(OK, False)
    exchange.on_data(b"message", True)
    rig.clock.advance(30.0)
    assert rig.done == []
    rig.upstream.handler.on_trailers(((b"grpc-status", b"0"),))
    rig.assert_settled()
