"""Short responses are passed on whole, so that one that breaks in the middle can still be asked for again."""

from __future__ import annotations

import pytest

from sidecar.config.resources import RetryPolicy
from sidecar.http.exchange import Exchange
from sidecar.http.held_response import HELD_SECONDS, SHORT_RESPONSE
from sidecar.protocol.events import ErrorCode, Field, ResponseHead
from tests.support.exchange_rig import Rig, get, route

RETRY = RetryPolicy(frozenset({"connect-failure", "refused-stream", "reset"}), num_retries=2)


def begin(rig: Rig, head: ResponseHead) -> None:
    """The head of a response whose body is still on its way."""
    rig.upstream.incomplete = True
    rig.upstream.handler.on_response(head, False)


def ok(length: bytes | None = b"10", *fields: Field) -> ResponseHead:
    return ResponseHead(200, () if length is None else ((b"content-length", length), *fields))


def test_a_get_whose_response_breaks_between_head_and_body_goes_to_another_endpoint() -> None:
    rig = Rig(route(RETRY))
    stream, _ = rig.send(get())
    begin(rig, ok())
    rig.upstream.die()
    begin(rig, ok())
    rig.upstream.handler.on_data(b"0123456789", True)
    assert [head.status for head in stream.heads] == [200]
    assert stream.body == b"0123456789"
    assert [(name, failed) for name, _, failed in rig.cluster.finished] == [
        ("users-0", True),
        ("users-1", False),
    ]
    rig.assert_settled()


def test_a_get_whose_response_breaks_within_its_body_starts_anew() -> None:
    rig = Rig(route(RETRY))
    stream, _ = rig.send(get())
    begin(rig, ok())
    rig.upstream.handler.on_data(b"012", False)
    assert rig.budget.held == 3
    rig.upstream.die()
    assert rig.budget.held == 0
    begin(rig, ok())
    rig.upstream.handler.on_data(b"abcdefghij", True)
    assert stream.body == b"abcdefghij"
    rig.assert_settled()


def test_a_response_that_came_in_pieces_leaves_as_one() -> None:
    rig = Rig()
    stream, exchange = rig.send(get())
    upstream = rig.upstream
    begin(rig, ok())
    sends = []
    stream.on_send = lambda: sends.append(stream.body)
    upstream.handler.on_data(b"01234", False)
    upstream.handler.on_data(b"56789", False)
    assert (stream.heads, upstream.consumed, rig.budget.held) == ([], 0, 10)
    upstream.handler.on_data(b"", True)
    assert sends == [b"", b"0123456789"]
    assert (upstream.consumed, stream.ended, exchange.bytes_out) == (10, 1, 10)
    rig.assert_settled()


def test_trailers_let_go_of_what_was_held() -> None:
    rig = Rig()
    stream, _ = rig.send(get())
    begin(rig, ok())
    rig.upstream.handler.on_data(b"0123456789", False)
    rig.upstream.handler.on_trailers(((b"checksum", b"1"),))
    assert (len(stream.heads), stream.body, stream.trailers) == (1, b"0123456789", ((b"checksum", b"1"),))
    rig.assert_settled()


def test_a_response_that_takes_its_time_is_passed_on_as_it_comes() -> None:
    rig = Rig(route(RETRY))
    stream, exchange = rig.send(get())
    upstream = rig.upstream
    begin(rig, ok())
    upstream.handler.on_data(b"01", False)
    rig.clock.advance(HELD_SECONDS * 0.9)
    assert stream.heads == []
    rig.clock.advance(HELD_SECONDS * 0.1)
    assert (len(stream.heads), stream.body, upstream.consumed) == (1, b"01", 2)
    upstream.handler.on_data(b"2", False)
    assert stream.body == b"012"
    upstream.die()
    assert (stream.resets, exchange.flag) == ([ErrorCode.INTERNAL_ERROR], "UR")
    rig.assert_settled()


@pytest.mark.parametrize("length", [None, b"%d" % (SHORT_RESPONSE + 1), b"1000000000000", b"0000001"])
def test_a_response_of_unknown_or_great_length_does_not_wait(length: bytes | None) -> None:
    rig = Rig()
    stream, _ = rig.send(get())
    begin(rig, ok(length))
    assert len(stream.heads) == 1
    rig.upstream.handler.on_data(b"x", True)
    rig.assert_settled()


def test_a_response_that_is_whole_when_it_begins_does_not_wait() -> None:
    rig = Rig()
    stream, _ = rig.send(get())
    rig.upstream.handler.on_response(ok(), False)
    assert (len(stream.heads), rig.clock.pending) == (1, 0)
    rig.upstream.handler.on_data(b"0123456789", True)
    rig.assert_settled()


def test_the_longest_short_response_waits() -> None:
    rig = Rig()
    stream, _ = rig.send(get())
    begin(rig, ok(b"%d" % SHORT_RESPONSE))
    assert stream.heads == []
    rig.upstream.handler.on_data(b"x" * SHORT_RESPONSE, True)
    assert len(stream.body) == SHORT_RESPONSE
    rig.assert_settled()


def test_an_answer_to_an_upload_that_is_still_coming_does_not_wait() -> None:
    """Its sender may stop on reading it."""
    rig = Rig()
    stream, exchange = rig.send(get(method=b"POST"), end_stream=False)
    begin(rig, ok())
    assert len(stream.heads) == 1
    exchange.on_data(b"rest", True)
    rig.upstream.handler.on_data(b"0123456789", True)
    rig.assert_settled()


def test_a_post_whose_response_breaks_is_told_so_in_place_of_half_a_response() -> None:
    rig = Rig(route(RETRY))
    stream, exchange = rig.send(get(method=b"POST"))
    begin(rig, ok())
    rig.upstream.die()
    assert stream.heads[0].status == 503
    assert b"not sent again: POST may have been processed" in stream.body
    assert exchange.flag == "UR"
    rig.assert_settled()


def test_a_callers_sidecar_is_told_that_the_response_broke() -> None:
    rig = Rig(inbound=True, trusted=True)
    stream, _ = rig.send(get())
    begin(rig, ok())
    rig.upstream.handler.on_data(b"012", False)
    rig.upstream.die()
    assert (stream.heads, stream.resets) == ([], [ErrorCode.INTERNAL_ERROR])
    rig.assert_settled()


def test_a_caller_that_leaves_ends_the_wait() -> None:
    rig = Rig()
    stream, _ = rig.send(get())
    begin(rig, ok())
    rig.upstream.handler.on_data(b"012", False)
    stream.die()
    assert rig.upstreams[0].resets == [ErrorCode.CANCEL]
    rig.assert_settled()


def test_a_caller_that_leaves_on_the_head_gets_no_body() -> None:
    rig = Rig()
    stream, _ = rig.send(get())
    begin(rig, ok())
    stream.on_send = stream.die
    rig.upstream.handler.on_data(b"0123456789", True)
    assert stream.body == b""
    rig.assert_settled()


def test_a_timeout_of_the_route_answers_in_place_of_what_was_held() -> None:
    rig = Rig(route(timeout=HELD_SECONDS / 2))
    stream, _ = rig.send(get())
    begin(rig, ok())
    rig.clock.advance(HELD_SECONDS / 2)
    assert [head.status for head in stream.heads] == [504]
    assert b"the response did not end within" in stream.body
    rig.assert_settled()


def test_a_slow_reader_gives_back_what_was_held_as_it_reads() -> None:
    rig = Rig()
    stream, exchange = rig.send(get(), room=4)
    upstream = rig.upstream
    begin(rig, ok())
    upstream.handler.on_data(b"01234", False)
    rig.clock.advance(HELD_SECONDS)
    assert (upstream.consumed, rig.budget.held) == (4, 1)
    upstream.handler.on_data(b"56789", False)
    stream.take()
    assert (upstream.consumed, exchange.unsent) == (10, 0)
    upstream.handler.on_data(b"", True)
    rig.assert_settled()


@pytest.mark.parametrize("trusted", [False, True])
def test_who_has_begun_to_answer_a_post_cannot_call_it_unprocessed(trusted: bool) -> None:
    """RFC 9113 section 8.7 forbids it; a request is not sent twice because a peer does it all the same."""
    rig = Rig(route(RETRY), inbound=trusted, trusted=trusted)
    stream, _ = rig.send(get(method=b"POST"))
    begin(rig, ok())
    rig.upstream.die(ErrorCode.REFUSED_STREAM, processed=False)
    assert len(rig.upstreams) == 1
    if trusted:
        assert stream.resets == [ErrorCode.INTERNAL_ERROR]
    else:
        assert stream.heads[0].status == 503
    rig.assert_settled()


def test_a_try_that_has_begun_to_answer_is_not_late() -> None:
    rig = Rig(route(RetryPolicy(RETRY.retry_on, num_retries=2, per_try_timeout=1.0)))
    stream, _ = rig.send(get())
    rig.clock.advance(1.0 - HELD_SECONDS / 2)
    begin(rig, ok())
    rig.clock.advance(HELD_SECONDS * 0.9)
    rig.upstream.handler.on_data(b"0123456789", True)
    assert (stream.heads[0].status, len(rig.upstreams)) == (200, 1)
    rig.assert_settled()


def test_an_answer_to_an_upload_that_the_server_does_not_read_does_not_wait() -> None:
    rig = Rig(route(RETRY))
    rig.cluster.endpoints[0].room = 3
    stream, exchange = rig.send(get(method=b"PUT"), end_stream=False)
    exchange.on_data(b"upload", True)
    begin(rig, ResponseHead(413, ((b"content-length", b"10"),)))
    assert stream.heads[0].status == 413
    rig.upstream.die()
    rig.assert_settled()


class Told:
    """A filter that writes down what it hears."""

    def __init__(self) -> None:
        self.statuses: list[int] = []

    def on_request(self, exchange: Exchange) -> None:
        return None

    def on_response(self, exchange: Exchange) -> None:
        assert exchange.router.attempt is not None
        self.statuses.append(exchange.router.attempt.status)


def test_filters_hear_of_a_response_when_its_head_has_come() -> None:
    rig = Rig()
    told = Told()
    rig.context.filters = (told,)
    rig.send(get())
    begin(rig, ok())
    assert told.statuses == [200]
    rig.upstream.handler.on_data(b"0123456789", True)
    assert told.statuses == [200]
    rig.assert_settled()


def test_the_span_of_a_try_that_broke_off_has_no_status() -> None:
    rig = Rig(route(RETRY))
    _, exchange = rig.send(get())
    begin(rig, ok())
    first = exchange.router.attempts[0]
    rig.upstream.die()
    assert (first.status, first.outcome) == (0, "it died")
    rig.upstream.handler.on_response(ok(), False)
    rig.upstream.handler.on_data(b"0123456789", True)
    rig.assert_settled()
