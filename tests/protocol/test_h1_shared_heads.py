"""Heads that connections share: what is remembered of one request must not appear in another."""

from __future__ import annotations

from sidecar.protocol.events import RequestHead, ResponseHead, Stream
from sidecar.protocol.h1 import H1Options, H1ServerCodec
from sidecar.protocol.h1_wire import ParsedRequest

TRACE = b"00-11111111111111111111111111111111-1111111111111111-01"
PLAIN = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
TRACED = b"GET / HTTP/1.1\r\nhost: a\r\ntraceparent: " + TRACE + b"\r\n\r\n"


class Answering:
    """Answers every request with 204 and keeps its head."""

    def __init__(self) -> None:
        self.heads: list[RequestHead] = []

    def on_request(self, stream: Stream, head: RequestHead, end_stream: bool) -> None:
        self.heads.append(head)
        stream.handler = self  # type: ignore[assignment]
        stream.send_response(ResponseHead(204, ()), True)

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


def heads_of(
    *requests: bytes, shared: dict[bytes, ParsedRequest] | None = None, max_count: int = 100
) -> list[RequestHead]:
    handler = Answering()
    codec = H1ServerCodec(handler, H1Options(max_header_count=max_count), shared)  # type: ignore[arg-type]
    for request in requests:
        codec.receive(request)
        codec.take_output()
    return handler.heads


def test_a_trace_id_is_not_given_to_the_next_request_that_has_none() -> None:
    assert [head.fresh for head in heads_of(TRACED, PLAIN, TRACED)] == [
        ((b"traceparent", TRACE),),
        (),
        ((b"traceparent", TRACE),),
    ]


def test_a_trace_id_is_not_given_to_another_connection() -> None:
    shared: dict[bytes, ParsedRequest] = {}
    (traced,) = heads_of(TRACED, shared=shared)
    (plain,) = heads_of(PLAIN, shared=shared)
    assert (traced.fresh, plain.fresh) == (((b"traceparent", TRACE),), ())


def test_connections_share_what_is_remembered_of_equal_heads() -> None:
    shared: dict[bytes, ParsedRequest] = {}
    (first,) = heads_of(PLAIN, shared=shared)
    (second,) = heads_of(TRACED, shared=shared)
    assert first.memo is second.memo


def test_connections_that_share_nothing_remember_nothing_of_each_other() -> None:
    (first,) = heads_of(PLAIN)
    (second,) = heads_of(PLAIN)
    assert first.memo is not second.memo


def test_many_different_heads_do_not_pile_up() -> None:
    shared: dict[bytes, ParsedRequest] = {}
    for number in range(100):
        heads_of(b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % number, shared=shared)
    assert len(shared) <= 16
