"""Random interleavings of what both sides and the clock may do to one exchange.

Whatever comes in whatever order: there is one record and at most one response, every received byte is given
back at most once (exactly once when the exchange ended well), and what was begun in the cluster, its retry
budget, the process' buffer budget and the clock has ended.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.config.resources import RetryPolicy
from sidecar.protocol.events import ErrorCode, ResponseHead
from tests.support.exchange_rig import RecordingEndpoint, RecordingStream, Rig, get, grpc, route

POLICY = RetryPolicy(
    frozenset({"connect-failure", "refused-stream", "reset", "5xx", "unavailable"}),
    num_retries=2,
    per_try_timeout=3.0,
)


HEADS = (
    *(get(), get(method=b"PUT"), get((b"expect", b"100-continue"), method=b"PUT")),
    *(grpc(), grpc((b"grpc-timeout", b"2S"))),
)


class OneExchange(RuleBasedStateMachine):
    @initialize(
        head=st.sampled_from(HEADS),
        http2=st.booleans(),
        mesh=st.booleans(),
        retries=st.sampled_from((True, True, False)),
        bodiless=st.booleans(),
        late=st.booleans(),
        modes=st.lists(
            st.sampled_from(("ready", "ready", "waits", "fails", "overflow")), min_size=1, max_size=3
        ),
        rooms=st.tuples(st.sampled_from((0, 3, 1 << 40)), st.sampled_from((0, 3, 1 << 40))),
    )
    def arrive(
        self,
        head: object,
        http2: bool,
        mesh: bool,
        retries: bool,
        bodiless: bool,
        late: bool,
        modes: list[str],
        rooms: tuple[int, int],
    ) -> None:
        self.rig = rig = Rig(
            route(POLICY if retries else None, timeout=8.0),
            http2=http2,
            inbound=mesh,
            trusted=mesh and http2,
            endpoints=len(modes),
        )
        for endpoint, mode in zip(rig.cluster.endpoints, modes, strict=True):
            endpoint.mode = mode
            endpoint.room = rooms[0]
        rig.routes.late = late
        self.received = 0
        self.request_over = bodiless
        self.seen: dict[int, list[str]] = {}
        """What each upstream stream has answered."""
        self.expects = head is HEADS[2]
        self.told: list[RecordingStream] = []
        self.may_have_body: list[RecordingStream] = []
        """Upstream streams that have said 100, and those that had begun when the first of them did."""
        self.stream, self.exchange = rig.send(head, bodiless, rooms[1])  # type: ignore[arg-type]

    # --- downstream

    def client_may_send(self) -> bool:
        # An HTTP/1 codec takes the stream over when the exchange is done.
        return not self.request_over and not self.stream.dead and not self.exchange.done

    @precondition(client_may_send)
    @rule(size=st.integers(1, 40000), end=st.booleans())
    def client_sends(self, size: int, end: bool) -> None:
        self.received += size
        self.request_over = end
        self.exchange.on_data(b"x" * size, end)

    @precondition(client_may_send)
    @rule()
    def client_ends(self) -> None:
        self.request_over = True
        self.exchange.on_data(b"", True)

    @precondition(client_may_send)
    @rule()
    def client_sends_trailers(self) -> None:
        self.request_over = True
        self.exchange.on_trailers(((b"a", b"b"),))

    @precondition(lambda self: self.stream.unaccepted)
    @rule(n=st.integers(1, 20000))
    def client_reads(self, n: int) -> None:
        self.stream.take(n)

    @precondition(lambda self: not self.exchange.done)
    @rule(often=st.integers(0, 9))
    def client_leaves(self, often: int) -> None:
        if often == 9:
            self.stream.die()

    # --- upstream

    def live(self) -> list[RecordingStream]:
        return [s for s in self.rig.upstreams if not s.dead and not self.over(s)]

    def over(self, stream: RecordingStream) -> bool:
        """Both directions have ended: no callback comes."""
        return "end" in self.answers(stream) and bool(stream.ended) and not stream.unaccepted

    def answers(self, stream: RecordingStream) -> list[str]:
        return self.seen.setdefault(id(stream), [])

    def answering(self, begun: bool) -> list[RecordingStream]:
        return [
            s for s in self.live() if ("head" in self.answers(s)) is begun and "end" not in self.answers(s)
        ]

    def waiting(self) -> list[RecordingEndpoint]:
        return [e for e in self.rig.cluster.endpoints if e.waiters]

    @precondition(lambda self: self.rig.routes.waiting)
    @rule()
    def the_route_comes(self) -> None:
        self.rig.routes.arrive()

    @precondition(waiting)
    @rule(succeeds=st.booleans())
    def a_connection_is_decided(self, succeeds: bool) -> None:
        endpoint = self.waiting()[0]
        if succeeds:
            endpoint.connect()
        else:
            endpoint.fail()

    @precondition(lambda self: self.answering(False))
    @rule(status=st.sampled_from((200, 200, 404, 503)), end=st.booleans())
    def the_upstream_answers(self, status: int, end: bool) -> None:
        stream = self.answering(False)[0]
        self.answers(stream).extend(["head", "end"] if end else ["head"])
        stream.handler.on_response(ResponseHead(status), end)

    @precondition(lambda self: self.answering(False))
    @rule()
    def the_upstream_says_continue(self) -> None:
        stream = self.answering(False)[0]
        if not self.told:
            self.may_have_body = list(self.rig.upstreams)
        self.told.append(stream)
        stream.handler.on_informational(ResponseHead(100))

    @precondition(lambda self: self.answering(True))
    @rule(size=st.integers(0, 40000), end=st.booleans())
    def the_upstream_sends(self, size: int, end: bool) -> None:
        stream = self.answering(True)[0]
        if end:
            self.answers(stream).append("end")
        stream.handler.on_data(b"y" * size, end)

    @precondition(lambda self: self.answering(True))
    @rule()
    def the_upstream_sends_trailers(self) -> None:
        stream = self.answering(True)[0]
        self.answers(stream).append("end")
        stream.handler.on_trailers(((b"grpc-status", b"0"),))

    @precondition(lambda self: any(s.unaccepted for s in self.live()))
    @rule(n=st.integers(1, 20000))
    def the_upstream_reads(self, n: int) -> None:
        next(s for s in self.live() if s.unaccepted).take(n)

    @precondition(live)
    @rule(processed=st.booleans(), remote=st.booleans())
    def the_upstream_dies(self, processed: bool, remote: bool) -> None:
        self.live()[0].die(ErrorCode.CANCEL if processed else ErrorCode.REFUSED_STREAM, processed, remote)

    @rule(seconds=st.sampled_from((0.01, 0.3, 1.0, 3.0)))
    def time_passes(self, seconds: float) -> None:
        self.rig.clock.advance(seconds)

    # --- what must hold

    @invariant()
    def bytes_are_given_back_once(self) -> None:
        if hasattr(self, "rig"):
            assert self.stream.consumed <= self.received
            for stream in self.rig.upstreams:
                assert stream.consumed <= len(self.stream.body)

    @invariant()
    def no_body_is_sent_again_before_its_100(self) -> None:
        if hasattr(self, "rig") and self.expects and self.told:
            waiting = [s for s in self.rig.upstreams if s not in self.told and s not in self.may_have_body]
            assert all(not s.body and s.trailers is None for s in waiting)

    @invariant()
    def there_is_one_answer(self) -> None:
        if hasattr(self, "rig"):
            assert len(self.stream.heads) <= 1
            assert self.stream.ended <= 1
            assert len(self.rig.done) == len(self.rig.log.records) == self.exchange.done

    @invariant()
    def what_was_begun_is_under_way_or_over(self) -> None:
        if not hasattr(self, "rig"):
            return
        assert self.rig.cluster.active == sum(not a.ended for a in self.exchange.router.attempts) <= 1
        assert 0 <= self.rig.cluster.retry_budget.active <= 1
        if self.exchange.done:
            self.rig.assert_settled()
            well = not self.exchange.flag and not self.stream.dead
            if well and not any(s.unaccepted for s in self.live()):
                assert self.stream.consumed == self.received
        elif not self.exchange.response_ended:
            assert self.live() or self.waiting() or self.rig.clock.pending or self.rig.routes.waiting

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.stream.die()
            assert self.exchange.done or self.stream.dead
            if not self.exchange.done:
                raise AssertionError("the downstream's end has not ended the exchange")
            self.rig.assert_settled()


TestOneExchange = OneExchange.TestCase
TestOneExchange.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
