"""When an exchange is over, who is told, and what is given back."""

from __future__ import annotations

import pytest

from sidecar.config.resources import DirectResponse, Redirect, Route, RouteMatch
from sidecar.protocol.events import ErrorCode, RequestHead, ResponseHead
from tests.support.exchange_rig import RecordingStream, Rig, connect_request, get, grpc, route

OK = ResponseHead(200)
TUNNELS = route(match=RouteMatch(connect=True))


def test_a_plain_exchange_ends_with_the_response() -> None:
    rig = Rig()
    stream, _ = rig.send(get())
    rig.upstream.handler.on_response(OK, False)
    rig.upstream.handler.on_data(b"hello", True)
    assert (stream.heads[0].status, stream.body, stream.ended) == (200, b"hello", 1)
    assert rig.upstreams[0].consumed == 5
    rig.assert_settled()


def test_an_exchange_is_not_over_before_the_downstream_has_taken_the_last_byte() -> None:
    rig = Rig()
    stream, _ = rig.send(get(), room=3)
    rig.upstream.handler.on_response(OK, False)
    rig.upstream.handler.on_data(b"hello", True)
    assert rig.done == []
    assert rig.budget.held == 2
    stream.take()
    rig.assert_settled()


def test_an_early_response_reaches_an_http2_client_whole_before_its_upload_is_cut() -> None:
    rig = Rig()
    stream, _ = rig.send(get(method=b"POST"), end_stream=False, room=3)
    rig.upstream.handler.on_response(ResponseHead(413), False)
    rig.upstream.handler.on_data(b"too large", True)
    assert (stream.ended, stream.resets) == (1, [])
    assert rig.upstreams[0].resets == [ErrorCode.NO_ERROR]
    stream.take()
    assert stream.resets == [ErrorCode.NO_ERROR]
    rig.assert_settled()


def test_an_early_response_to_an_http1_client_leaves_the_rest_of_the_body_to_the_codec() -> None:
    rig = Rig(http2=False)
    rig.cluster.endpoints[0].room = rig.cluster.endpoints[1].room = 0
    stream, exchange = rig.send(get(method=b"POST"), end_stream=False)
    exchange.on_data(b"part of it", False)
    assert stream.consumed == 0
    rig.upstream.handler.on_response(ResponseHead(413), True)
    assert stream.resets == []
    assert stream.consumed == len(b"part of it")  # or the codec would never read the rest
    rig.assert_settled()


def test_body_that_comes_after_an_early_response_is_dropped_and_given_back() -> None:
    rig = Rig(http2=False)
    stream, exchange = rig.send(get(method=b"POST"), end_stream=False, room=0)
    rig.upstream.handler.on_response(ResponseHead(413), False)
    rig.upstream.handler.on_data(b"no", True)
    exchange.on_data(b"still coming", True)
    assert stream.consumed == len(b"still coming")
    stream.take()
    rig.assert_settled()


def test_a_local_reply_while_the_body_is_coming_gives_all_of_it_back() -> None:
    rig = Rig(http2=False)
    for endpoint in rig.cluster.endpoints:
        endpoint.mode = "waits"
    stream, exchange = rig.send(get(method=b"POST"), end_stream=False)
    exchange.on_data(b"body", False)
    rig.cluster.endpoints[0].fail()
    assert stream.heads[0].status == 503
    assert stream.consumed == 4
    rig.assert_settled()


def test_a_tunnel_whose_server_ends_first_is_counted_out_when_the_client_ends() -> None:
    rig = Rig(TUNNELS)
    stream, exchange = rig.send(connect_request(), end_stream=False)
    assert stream.heads[0].status == 200
    upstream = rig.upstream
    upstream.handler.on_data(b"bye", True)
    assert rig.done == []
    exchange.on_data(b"last words", True)
    assert (upstream.body, upstream.ended, upstream.resets) == (b"last words", 1, [])
    rig.assert_settled()


def test_a_tunnel_whose_client_ends_first_goes_on_until_the_server_ends() -> None:
    rig = Rig(TUNNELS)
    stream, exchange = rig.send(connect_request(), end_stream=False)
    exchange.on_data(b"", True)
    rig.upstream.handler.on_data(b"much", False)
    assert rig.done == []
    rig.upstream.handler.on_data(b" later", True)
    assert (stream.body, stream.ended) == (b"much later", 1)
    rig.assert_settled()


def test_a_refused_tunnel_is_over_although_the_client_has_not_ended_its_side() -> None:
    rig = Rig(route(match=RouteMatch(prefix="/")))
    head = get(method=b"CONNECT")
    head.protocol = b"websocket"
    stream, _ = rig.send(head, end_stream=False)
    rig.upstream.handler.on_response(ResponseHead(403), True)
    assert stream.resets == [ErrorCode.NO_ERROR]
    rig.assert_settled()


def test_an_upgraded_connection_outlives_the_routes_timeout() -> None:
    rig = Rig(route(timeout=5.0))
    head = get(method=b"CONNECT")
    head.protocol = b"websocket"
    _, exchange = rig.send(head, end_stream=False)
    rig.upstream.handler.on_response(OK, False)
    rig.clock.advance(60.0)
    assert rig.done == []
    exchange.on_data(b"", True)
    rig.clock.advance(60.0)
    rig.upstream.handler.on_data(b"", True)
    rig.assert_settled()


def test_an_upload_that_the_upstream_has_not_taken_is_cut_when_its_response_is_complete() -> None:
    rig = Rig()
    for endpoint in rig.cluster.endpoints:
        endpoint.room = 0
    stream, exchange = rig.send(get(method=b"POST"), end_stream=False)
    exchange.on_data(b"body", True)
    upstream = rig.upstream
    upstream.handler.on_response(OK, True)
    assert upstream.resets == [ErrorCode.NO_ERROR]
    assert stream.ended == 1
    rig.assert_settled()


def test_a_lost_upstream_in_mid_response_ends_a_grpc_call_with_its_status_in_trailers() -> None:
    rig = Rig()
    stream, exchange = rig.send(grpc())
    rig.upstream.handler.on_response(OK, False)
    rig.upstream.die()
    assert stream.trailers is not None
    assert stream.trailers[0] == (b"grpc-status", b"14")
    assert exchange.grpc_status == 14
    rig.assert_settled()


def test_a_grpc_call_that_passes_its_time_in_mid_response_ends_with_deadline_exceeded() -> None:
    rig = Rig(route(timeout=1.0))
    stream, _ = rig.send(grpc())
    rig.upstream.handler.on_response(OK, False)
    rig.clock.advance(1.0)
    assert stream.trailers is not None
    assert stream.trailers[0] == (b"grpc-status", b"4")
    rig.assert_settled()


def test_a_lost_upstream_in_mid_response_resets_other_calls() -> None:
    rig = Rig()
    stream, _ = rig.send(get())
    rig.upstream.handler.on_response(OK, False)
    rig.upstream.die()
    assert stream.resets == [ErrorCode.INTERNAL_ERROR]
    assert rig.log.records[0].flags == "UR"
    rig.assert_settled()


def test_a_client_that_leaves_takes_the_attempt_with_it() -> None:
    rig = Rig()
    stream, _ = rig.send(get())
    stream.die()
    assert rig.upstreams[0].resets == [ErrorCode.CANCEL]
    assert rig.cluster.finished[0][1:] == (None, False)
    assert rig.log.records[0].flags == "DC"
    rig.assert_settled()


def test_a_response_head_that_the_codec_cannot_write_counts_against_the_upstream() -> None:
    rig = Rig(http2=False)
    stream, _ = rig.send(get())
    stream.on_send = lambda: stream.die(ErrorCode.INTERNAL_ERROR, remote=False)
    rig.upstream.handler.on_response(OK, False)
    assert (rig.log.records[0].flags, rig.log.records[0].status) == ("UPE", 502)
    rig.assert_settled()


@pytest.mark.parametrize("status", [204, 304])
def test_a_direct_response_without_content_has_no_content_fields(status: int) -> None:
    rig = Rig(Route("r", RouteMatch(prefix="/"), direct_response=DirectResponse(status)))
    stream, _ = rig.send(get())
    assert stream.heads[0].fields == ()
    assert stream.ended == 1
    rig.assert_settled()


def test_head_gets_the_length_of_a_local_reply_and_none_of_its_bytes() -> None:
    rig = Rig(Route("r", RouteMatch(prefix="/"), direct_response=DirectResponse(200, b"hello")))
    stream, _ = rig.send(get(method=b"HEAD"))
    assert stream.heads[0].get(b"content-length") == b"5"
    assert (stream.body, stream.ended) == (b"", 1)
    rig.assert_settled()


def test_a_redirect_is_counted_under_its_routes_name() -> None:
    rig = Rig(Route("away", RouteMatch(prefix="/"), redirect=Redirect(host="elsewhere")))
    rig.send(get())
    assert rig.log.records[0].route == "away"
    assert ("away", "unknown") in rig.downstream.stats


def over_budget(rig: Rig, head: RequestHead) -> RecordingStream:
    rig.budget.add(rig.budget.limit + 1)
    stream, exchange = rig.send_shed(head)
    assert exchange.flag == "OM"
    rig.budget.add(-rig.budget.limit - 1)
    return stream


def test_past_the_budget_of_the_process_another_sidecar_may_go_elsewhere() -> None:
    for head in (get(), grpc()):
        stream = over_budget(Rig(inbound=True, trusted=True), head)
        assert (stream.heads, stream.resets) == ([], [ErrorCode.REFUSED_STREAM])


@pytest.mark.parametrize("http2", [True, False])
def test_past_the_budget_of_the_process_an_application_is_told(http2: bool) -> None:
    stream = over_budget(Rig(http2=http2), get())
    assert stream.heads[0].status == 503
    assert b"the sidecar buffers" in stream.body
    stream = over_budget(Rig(http2=http2), grpc())
    assert (stream.heads[0].status, stream.heads[0].get(b"grpc-status")) == (200, b"14")
