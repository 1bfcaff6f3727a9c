"""The spans of an exchange."""

from __future__ import annotations

from random import Random

from sidecar.config.resources import TracingConfig
from sidecar.protocol.events import RequestHead, ResponseHead
from sidecar.telemetry.tracing import KIND_SERVER, SpanSink, Tracer
from tests.support.exchange_rig import Rig, get


def test_heads_that_share_a_memo_have_their_own_user_agent_in_spans() -> None:
    rig = Rig()
    sink = SpanSink()
    rig.context.tracer = Tracer(TracingConfig(100.0, 100.0), {}, sink, Random(1), lambda: 0)

    def agent(head: RequestHead) -> object:
        rig.send(head)
        rig.upstream.handler.on_response(ResponseHead(200), True)
        rig.upstream.dead = True
        (server,) = [span for span in sink.take() if span.kind == KIND_SERVER]
        return dict(server.attributes).get("user_agent.original")

    head = get()
    assert agent(head) is None
    assert agent(head.with_fresh(((b"user-agent", b"one"),))) == b"one"
    assert agent(head.with_fresh(((b"user-agent", b"two"),))) == b"two"
    assert agent(head) is None
