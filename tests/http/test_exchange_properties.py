"""Random interleavings of what both sides and the clock may do to one exchange.

Whatever comes in whatever order: there is one record and at most one response, every received byte is given
back at most once (exactly once when the exchange ended well), and what was begun in the cluster, its retry
budget, the process' buffer budget and the clock has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config.resources import RetryPolicy
from sidecar.protocol.events import ErrorCode, RequestHead, ResponseHead
from tests.support.exchange_rig import RecordingEndpoint, RecordingStream, Rig, get, grpc, route

POLICY = RetryPolicy(
    frozenset({"connect-failure", "refused-stream", "reset", "5xx", "unavailable"}),
    num_retries=2,
    per_try_timeout=3.0,
)
HEADS = (
    *(get(), get(method=b"PUT"), get((b"expect", b"100-continue"), method=b"PUT"), get(method=b"POST")),
    *(grpc(), grpc((b"grpc-timeout", b"2S"))),
)
STEPS = 40
LENGTHS = st.sampled_from(((), ((b"content-length", b"9000"),)))
ROOMS = st.sampled_from((0, 3, 1 << 40))
MODES = st.lists(st.sampled_from(("ready", "ready", "waits", "fails", "overflow")), min_size=1, max_size=3)


class Upstream:
    """What one upstream stream has answered so far."""

    def __init__(self, stream: RecordingStream, number: int) -> None:
        self.stream = stream
        self.letter = b"%c" % (ord("A") + number)
        self.begun = False
        self.ended = False
        self.sent = 0

    @property
    def live(self) -> bool:
        """Callbacks may come."""
        over = self.ended and self.stream.ended and not self.stream.unaccepted
        return not self.stream.dead and not over


class OneExchange:
    """Everything that may happen to it next is in `possible`; each draws what it needs."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.head: RequestHead = self.draw(st.sampled_from(HEADS))
        http2 = self.draw(st.booleans())
        mesh = self.draw(st.booleans())
        modes = self.draw(MODES)
        self.rig = rig = Rig(
            route(POLICY if self.draw(st.sampled_from((True, True, False))) else None, timeout=8.0),
            http2=http2,
            inbound=mesh,
            trusted=mesh and http2,
            endpoints=len(modes),
        )
        upstream_room = self.draw(ROOMS)
        for endpoint, mode in zip(rig.cluster.endpoints, modes, strict=True):
            endpoint.mode = mode
            endpoint.room = upstream_room
        rig.routes.late = self.draw(st.booleans())
        self.received = 0
        self.sent_by_the_first_head = 0
        """Upstream streams that there were when one of them began to answer."""
        self.request_over = self.draw(st.booleans())
        self.known: dict[int, Upstream] = {}
        self.told: list[RecordingStream] = []
        self.may_have_body: list[RecordingStream] = []
        """Upstream streams that have said 100, and those that had begun when the first of them did."""
        self.stream, self.exchange = rig.send(self.head, self.request_over, self.draw(ROOMS))

    @property
    def upstreams(self) -> list[Upstream]:
        return [self.known.setdefault(id(s), Upstream(s, len(self.known))) for s in self.rig.upstreams]

    def possible(self) -> list[Callable[[], None]]:
        """Each as often as it is likely."""
        rig = self.rig
        actions: list[Callable[[], None]] = []
        if self.exchange.done:
            return actions
        if not self.request_over and not self.stream.dead:
            actions += [self.client_sends, self.client_sends, self.client_ends, self.client_sends_trailers]
        if self.stream.unaccepted:
            actions += [self.client_reads] * 2
        if rig.routes.waiting:
            actions += [rig.routes.arrive] * 2
        if self.waiting():
            actions += [self.a_connection_comes, self.a_connection_comes, self.a_connection_fails]
        for upstream in self.upstreams:
            if not upstream.live:
                continue
            if not upstream.begun:
                actions += [partial(self.answers, upstream)] * 2 + [partial(self.says_continue, upstream)]
            elif not upstream.ended:
                actions += [partial(self.sends, upstream)] * 3 + [partial(self.sends_trailers, upstream)]
            if upstream.stream.unaccepted:
                actions += [partial(self.reads, upstream)] * 2
            actions.append(partial(self.dies, upstream))
        if rig.clock.pending:
            actions.append(self.time_passes)
        actions.append(self.client_may_leave)
        return actions

    # --- downstream

    def client_sends(self) -> None:
        size = self.draw(st.integers(1, 40000))
        self.request_over = self.draw(st.booleans())
        self.received += size
        self.exchange.on_data(b"x" * size, self.request_over)

    def client_ends(self) -> None:
        self.request_over = True
        self.exchange.on_data(b"", True)

    def client_sends_trailers(self) -> None:
        self.request_over = True
        self.exchange.on_trailers(((b"a", b"b"),))

    def client_reads(self) -> None:
        self.stream.take(self.draw(st.integers(1, 20000)))

    def client_may_leave(self) -> None:
        if self.draw(st.integers(0, 9)) == 9:
            self.stream.die()

    # --- upstream

    def waiting(self) -> list[RecordingEndpoint]:
        return [e for e in self.rig.cluster.endpoints if e.waiters]

    def a_connection_comes(self) -> None:
        self.waiting()[0].connect()

    def a_connection_fails(self) -> None:
        self.waiting()[0].fail()

    def answers(self, upstream: Upstream) -> None:
        status = self.draw(st.sampled_from((200, 200, 404, 503)))
        upstream.begun = True
        self.sent_by_the_first_head = self.sent_by_the_first_head or len(self.rig.upstreams)
        upstream.ended = self.draw(st.booleans())
        upstream.stream.incomplete = not upstream.ended and self.draw(st.booleans())
        upstream.stream.handler.on_response(ResponseHead(status, self.draw(LENGTHS)), upstream.ended)

    def says_continue(self, upstream: Upstream) -> None:
        if not self.told:
            self.may_have_body = list(self.rig.upstreams)
        self.told.append(upstream.stream)
        upstream.stream.handler.on_informational(ResponseHead(100))

    def sends(self, upstream: Upstream) -> None:
        size = self.draw(st.integers(0, 40000))
        upstream.sent += size
        upstream.ended = self.draw(st.booleans())
        upstream.stream.handler.on_data(upstream.letter * size, upstream.ended)

    def sends_trailers(self, upstream: Upstream) -> None:
        upstream.ended = True
        upstream.stream.handler.on_trailers(((b"grpc-status", b"0"),))

    def reads(self, upstream: Upstream) -> None:
        upstream.stream.take(self.draw(st.integers(1, 20000)))

    def dies(self, upstream: Upstream) -> None:
        processed, remote = self.draw(st.booleans()), self.draw(st.booleans())
        code = ErrorCode.CANCEL if processed else ErrorCode.REFUSED_STREAM
        upstream.stream.die(code, processed, remote)

    def time_passes(self) -> None:
        self.rig.clock.advance(self.draw(st.sampled_from((0.01, 0.3, 1.0, 3.0))))

    # --- what must hold

    def check(self) -> None:
        self.bytes_are_given_back_once()
        self.no_post_that_was_answered_is_sent_again()
        self.no_body_is_sent_again_before_its_100()
        self.there_is_one_answer()
        self.it_is_the_answer_of_one_upstream()
        self.what_was_begun_is_under_way_or_over()

    def bytes_are_given_back_once(self) -> None:
        assert self.stream.consumed <= self.received
        for upstream in self.upstreams:
            assert upstream.stream.consumed <= upstream.sent

    def no_post_that_was_answered_is_sent_again(self) -> None:
        if self.head.method == b"POST" and self.sent_by_the_first_head:
            assert len(self.rig.upstreams) == self.sent_by_the_first_head

    def no_body_is_sent_again_before_its_100(self) -> None:
        if self.head is HEADS[2] and self.told:
            waiting = [s for s in self.rig.upstreams if s not in self.told and s not in self.may_have_body]
            assert all(not s.body and s.trailers is None for s in waiting)

    def there_is_one_answer(self) -> None:
        assert len(self.stream.heads) <= 1
        assert self.stream.ended <= 1
        assert len(self.rig.done) == len(self.rig.log.records) == self.exchange.done

    def it_is_the_answer_of_one_upstream(self) -> None:
        body = self.stream.body
        if not body or self.stream.heads[0].get(b"content-type"):
            return  # which only a local reply has here
        (upstream,) = [u for u in self.upstreams if u.letter == body[:1]]
        assert body == upstream.letter * len(body)
        if self.exchange.response_ended and not self.exchange.flag:
            assert len(body) == upstream.sent

    def what_was_begun_is_under_way_or_over(self) -> None:
        assert 0 <= self.rig.cluster.retry_budget.active <= 1
        if self.exchange.done:
            self.rig.assert_settled()
            well = not self.exchange.flag and not self.stream.dead
            if well and not any(u.stream.unaccepted for u in self.upstreams if u.live):
                assert self.stream.consumed == self.received
            return
        assert self.rig.cluster.active == sum(not a.ended for a in self.exchange.router.attempts) <= 1
        if not self.exchange.response_ended:
            live = any(u.live for u in self.upstreams)
            assert live or self.waiting() or self.rig.clock.pending or self.rig.routes.waiting


@settings(max_examples=500)
@given(st.data())
def test_whatever_happens_to_an_exchange_it_ends_once_and_leaves_nothing_behind(data: st.DataObject) -> None:
    one = OneExchange(data)
    one.check()
    for _ in range(STEPS):
        actions = one.possible()
        if not actions:
            break
        data.draw(st.sampled_from(actions))()
        one.check()
    one.stream.die()
    assert one.exchange.done, "the downstream's end has not ended the exchange"
    one.rig.assert_settled()
