"""Attempts: which are made, what they are sent, what they leave behind."""

from __future__ import annotations

import pytest

from sidecar.config.resources import RetryPolicy, RouteMatch
from sidecar.http.router import KEPT_BODY_LIMIT
from sidecar.protocol.events import ErrorCode, RequestHead, ResponseHead
from tests.support.exchange_rig import RecordingStream, Rig, connect_request, get, grpc, route

OK = ResponseHead(200)
UNAVAILABLE = ResponseHead(503)
RETRY = RetryPolicy(
    retry_on=frozenset({"connect-failure", "refused-stream", "reset", "5xx", "unavailable"}), num_retries=2
)


def retrying(**changes: object) -> Rig:
    return Rig(route(RetryPolicy(RETRY.retry_on, **{"num_retries": 2, **changes})))  # type: ignore[arg-type]


def test_a_failure_inside_acquire_goes_to_the_next_endpoint() -> None:
    rig = retrying()
    rig.cluster.endpoints[0].mode = "fails"
    stream, _ = rig.send(get())
    rig.upstream.handler.on_response(OK, True)
    assert stream.heads[0].status == 200
    assert [name for name, _, _ in rig.cluster.finished] == ["users-0", "users-1"]
    assert [failed for _, _, failed in rig.cluster.finished] == [True, False]
    rig.assert_settled()


def test_an_overflow_inside_acquire_is_answered_and_blames_no_endpoint() -> None:
    rig = retrying()
    rig.cluster.endpoints[0].mode = "overflow"
    stream, exchange = rig.send(get())
    assert (stream.heads[0].status, exchange.flag) == (503, "UO")
    assert rig.cluster.finished == [("users-0", None, False)]
    rig.assert_settled()


def test_a_stream_that_dies_while_the_request_is_sent_leaves_the_body_to_the_next() -> None:
    rig = retrying()
    for endpoint in rig.cluster.endpoints:
        endpoint.mode = "waits"
    stream, exchange = rig.send(get(method=b"PUT"), end_stream=False)
    exchange.on_data(b"abc", False)
    exchange.on_data(b"def", True)
    first = rig.cluster.endpoints[0]
    first.on_send = lambda: first.streams[0].die(ErrorCode.REFUSED_STREAM, processed=False)
    first.connect()
    assert stream.consumed == 0
    rig.cluster.endpoints[1].connect()
    assert stream.consumed == 6
    assert (rig.upstream.body, rig.upstream.ended) == (b"abcdef", 1)
    rig.upstream.handler.on_response(OK, True)
    rig.assert_settled()


def test_a_body_is_sent_again_whole_and_given_back_once() -> None:
    rig = retrying()
    stream, exchange = rig.send(get(method=b"PUT"), end_stream=False)
    exchange.on_data(b"abc", False)
    rig.upstream.die()
    exchange.on_data(b"def", False)
    exchange.on_trailers(((b"checksum", b"1"),))
    assert rig.upstream.body == b"abcdef"
    assert rig.upstream.trailers == ((b"checksum", b"1"),)
    rig.upstream.handler.on_response(OK, True)
    assert stream.consumed == 6
    rig.assert_settled()


CONTINUE = ResponseHead(100)
EXPECT = (b"expect", b"100-continue")


def test_a_body_is_not_sent_again_before_the_next_endpoint_has_asked_for_it() -> None:
    rig = retrying()
    stream, exchange = rig.send(get(EXPECT, method=b"PUT"), end_stream=False)
    rig.upstream.handler.on_informational(CONTINUE)
    exchange.on_data(b"abc", False)
    rig.upstream.die()
    second = rig.upstream
    exchange.on_data(b"def", False)
    exchange.on_trailers(((b"checksum", b"1"),))
    assert (len(second.heads), second.body, second.ended) == (1, b"", 0)
    assert (stream.consumed, rig.budget.held) == (3, 6)
    second.handler.on_informational(CONTINUE)
    assert (second.body, second.trailers, second.ended) == (b"abcdef", ((b"checksum", b"1"),), 1)
    assert stream.consumed == 6
    assert [head.status for head in stream.informational] == [100]  # the caller's own, once
    second.handler.on_response(OK, True)
    rig.assert_settled()


def test_a_caller_that_was_told_to_continue_waits_for_the_next_endpoint_too() -> None:
    rig = retrying()
    _, exchange = rig.send(get(EXPECT, method=b"PUT"), end_stream=False)
    rig.upstream.handler.on_informational(CONTINUE)
    rig.upstream.die()
    exchange.on_data(b"abc", True)
    assert rig.upstream.body == b""
    rig.upstream.handler.on_informational(CONTINUE)
    assert (rig.upstream.body, rig.upstream.ended) == (b"abc", 1)
    rig.upstream.handler.on_response(OK, True)
    rig.assert_settled()


def test_an_endpoint_that_answers_instead_of_100_gets_none_of_the_body() -> None:
    rig = retrying()
    stream, exchange = rig.send(get(EXPECT, method=b"PUT"), end_stream=False)
    rig.upstream.handler.on_informational(CONTINUE)
    exchange.on_data(b"abc", False)
    rig.upstream.die()
    second = rig.upstream
    second.handler.on_response(ResponseHead(417), False)
    exchange.on_data(b"def", True)
    second.handler.on_data(b"no", True)
    assert (second.body, second.resets) == (b"", [ErrorCode.NO_ERROR])
    assert (stream.heads[0].status, stream.body, stream.consumed) == (417, b"no", 6)
    rig.assert_settled()


@pytest.mark.parametrize(("head", "told"), [(get(EXPECT, method=b"PUT"), False), (get(method=b"PUT"), True)])
def test_a_body_that_waited_for_no_100_does_not_wait_the_next_time(head: RequestHead, told: bool) -> None:
    """The caller did not, or said nothing of it; there may never be a 100."""
    rig = retrying()
    _, exchange = rig.send(head, end_stream=False)
    if told:
        rig.upstream.handler.on_informational(CONTINUE)
    exchange.on_data(b"abc", True)
    rig.upstream.die()
    assert (rig.upstream.body, rig.upstream.ended) == (b"abc", 1)
    rig.upstream.handler.on_response(OK, True)
    rig.assert_settled()


def test_a_body_that_is_too_large_to_keep_is_not_sent_again() -> None:
    rig = retrying()
    stream, exchange = rig.send(get(method=b"PUT"), end_stream=False)
    for _ in range(3):
        exchange.on_data(b"x" * (KEPT_BODY_LIMIT // 2), False)
    assert exchange.router.kept_size == 0
    rig.upstream.die()
    assert (stream.heads[0].status, len(rig.upstreams)) == (503, 1)
    rig.assert_settled()


def test_a_body_that_waited_for_a_connection_is_kept_no_longer_than_its_limit_allows() -> None:
    rig = retrying()
    for endpoint in rig.cluster.endpoints:
        endpoint.mode = "waits"
    _, exchange = rig.send(get(method=b"PUT"), end_stream=False)
    exchange.on_data(b"x" * (KEPT_BODY_LIMIT + 1), True)
    assert rig.budget.held == KEPT_BODY_LIMIT + 1
    rig.cluster.endpoints[0].connect()
    assert exchange.router.kept == []
    assert rig.budget.held == 0
    rig.upstream.handler.on_response(OK, True)
    rig.assert_settled()


def test_a_response_that_is_retried_while_the_body_is_coming_does_not_leave_its_stream_open() -> None:
    rig = retrying()
    _, exchange = rig.send(get(method=b"PUT"), end_stream=False)
    first = rig.upstream
    first.handler.on_response(UNAVAILABLE, True)
    assert first.resets == [ErrorCode.NO_ERROR]
    exchange.on_data(b"body", True)
    assert rig.upstream.body == b"body"
    rig.upstream.handler.on_response(OK, True)
    rig.assert_settled()


def test_a_retried_response_with_a_body_is_cut() -> None:
    rig = retrying()
    rig.send(get())
    first = rig.upstream
    first.handler.on_response(UNAVAILABLE, False)
    assert first.resets == [ErrorCode.CANCEL]
    rig.upstream.handler.on_response(OK, True)
    rig.assert_settled()


def test_the_last_response_is_passed_on_when_retries_are_used_up() -> None:
    rig = retrying(num_retries=1)
    stream, _ = rig.send(get())
    rig.upstream.handler.on_response(UNAVAILABLE, True)
    rig.upstreams[1].handler.on_response(UNAVAILABLE, True)
    assert stream.heads[0].status == 503
    rig.assert_settled()


def test_a_client_that_leaves_during_back_off_gets_no_other_attempt() -> None:
    rig = retrying(num_retries=5)
    rig.cluster.endpoints.pop()
    stream, _ = rig.send(get())
    rig.upstream.die()
    assert rig.clock.pending == 1
    stream.die()
    rig.clock.advance(10.0)
    assert len(rig.upstreams) == 1
    rig.assert_settled()


def test_back_off_begun_by_a_route_that_came_at_once_can_be_cancelled() -> None:
    rig = retrying()
    rig.cluster.endpoints.pop()
    rig.cluster.endpoints[0].mode = "fails"
    rig.routes.late = rig.routes.at_once = True
    stream, _ = rig.send(get())
    assert rig.clock.pending == 1
    stream.die()
    rig.assert_settled()


def test_a_thousand_retries_have_a_bounded_back_off() -> None:
    rig = retrying(num_retries=2000, back_off_base=0.001, back_off_max=0.002)
    rig.cluster.endpoints.pop()
    rig.cluster.endpoints[0].mode = "fails"
    rig.cluster.retry_budget.max_concurrent = 10
    stream, _ = rig.send(get())
    rig.clock.advance(10.0)
    assert stream.heads[0].status == 503
    assert len(rig.cluster.finished) == 2001
    rig.assert_settled()


def test_a_client_that_leaves_while_the_route_is_awaited_stops_waiting() -> None:
    rig = Rig()
    rig.routes.late = True
    stream, _ = rig.send(get())
    stream.die()
    rig.assert_settled()


def test_no_route_in_time_is_answered_with_the_reason() -> None:
    rig = Rig()
    rig.routes.late = True
    rig.routes.table = "the control plane has not answered"
    stream, _ = rig.send(get())
    rig.routes.arrive()
    assert (stream.heads[0].status, stream.body) == (503, b"the control plane has not answered\n")
    rig.assert_settled()


def test_the_mesh_is_told_by_a_refusal_that_nothing_was_processed() -> None:
    rig = Rig(inbound=True, trusted=True)
    for endpoint in rig.cluster.endpoints:
        endpoint.mode = "fails"
    stream, _ = rig.send(get())
    assert stream.resets == [ErrorCode.REFUSED_STREAM]
    assert stream.heads == []
    rig.assert_settled()


@pytest.mark.parametrize("inbound", [False, True])
def test_a_request_that_cannot_be_written_is_the_callers_error_and_tried_once(inbound: bool) -> None:
    rig = Rig(route(RETRY), inbound=inbound, trusted=inbound)
    first = rig.cluster.endpoints[0]
    first.on_send = lambda: first.streams[0].die(ErrorCode.INTERNAL_ERROR, processed=False, remote=False)
    stream, exchange = rig.send(get())
    assert stream.heads[0].status == 400
    assert stream.body == b"not sent to upstream users-0 (10.0.0.1:users-0): it died\n"
    assert (exchange.flag, len(rig.upstreams)) == ("DPE", 1)
    assert rig.cluster.finished == [("users-0", None, False)]
    assert rig.cluster.stats.resets == 0
    rig.assert_settled()


def test_the_mesh_is_told_by_an_error_that_something_may_have_been_processed() -> None:
    rig = Rig(inbound=True, trusted=True)
    stream, _ = rig.send(get())
    rig.upstream.die()
    assert stream.resets == [ErrorCode.INTERNAL_ERROR]
    rig.assert_settled()


def test_a_status_of_absurd_length_is_no_grpc_status() -> None:
    rig = Rig()
    stream, exchange = rig.send(grpc())
    rig.upstream.handler.on_response(OK, False)
    rig.upstream.handler.on_trailers(((b"grpc-status", b"9" * 6000),))
    assert exchange.grpc_status is None
    assert stream.ended == 1
    rig.assert_settled()


def test_informational_heads_pass() -> None:
    rig = Rig()
    stream, _ = rig.send(get())
    rig.upstream.handler.on_informational(ResponseHead(103))
    assert [head.status for head in stream.informational] == [103]
    rig.upstream.handler.on_response(OK, True)
    rig.assert_settled()


def test_a_tunnels_early_bytes_follow_the_connection() -> None:
    rig = Rig(route(match=RouteMatch(connect=True)))
    rig.cluster.endpoints[0].mode = "waits"
    stream, exchange = rig.send(connect_request(), end_stream=False)
    exchange.on_data(b"early", False)
    assert stream.heads == []
    rig.cluster.endpoints[0].connect()
    assert stream.heads[0].status == 200
    assert rig.upstream.body == b"early"
    assert exchange.router.attempts[0].status == 200
    stream.die()
    rig.assert_settled()


@pytest.mark.parametrize("full", [True, False])
def test_a_cluster_that_takes_nothing_answers_503(full: bool) -> None:
    rig = Rig(endpoints=2 if full else 0)
    rig.cluster.full = full
    stream, exchange = rig.send(get())
    assert (stream.heads[0].status, exchange.flag) == (503, "UO" if full else "UH")
    rig.assert_settled()


def test_a_route_to_an_unknown_cluster_answers_503() -> None:
    rig = Rig()
    del rig.clusters["users"]
    stream, exchange = rig.send(get())
    assert (stream.heads[0].status, exchange.flag) == (503, "NC")
    rig.assert_settled()


def test_slow_readers_hold_back_their_upstream_alone() -> None:
    rig = Rig()
    stream, _ = rig.send(get(), room=4)
    upstream: RecordingStream = rig.upstream
    upstream.handler.on_response(OK, False)
    upstream.handler.on_data(b"0123456789", False)
    assert upstream.consumed == 4
    stream.take(5)
    assert upstream.consumed == 9
    stream.take()
    upstream.handler.on_data(b"", True)
    assert upstream.consumed == 10
    rig.assert_settled()
