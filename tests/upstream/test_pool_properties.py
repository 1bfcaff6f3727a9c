"""Whatever happens in whatever order, a pool's books are right and nobody waits in vain."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config.resources import ClusterConfig, Http2Options, SocketAddress
from sidecar.upstream.context import ConnectionLimits
from sidecar.upstream.pool import HttpPool
from tests.support.fake_upstream import FakeCodec, FakeNetwork, Waiter, make_context, settle
from tests.support.virtual_clock import VirtualClock

ADDRESS = SocketAddress("10.0.0.1", 80)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["acquire", "acquire", "burst"]), st.integers(2, 6)),
    st.tuples(st.sampled_from(["cancel", "end", "lose", "lose", "goaway", "goaway"]), st.integers(0, 9)),
    st.tuples(st.sampled_from(["settings", "wait", "fail", "heal"]), st.integers(0, 4)),
)


class Machine:
    def __init__(self, http2: bool, max_connections: int, max_requests: int) -> None:
        self.clock = VirtualClock()
        self.network = FakeNetwork(self.clock)
        self.network.max_streams = 3
        self.network.waits_for_settings = http2
        context = make_context(self.clock, self.network)
        config = ClusterConfig(
            "c", http2=Http2Options() if http2 else None, max_requests_per_connection=max_requests
        )
        self.limits = ConnectionLimits(max_connections, 8)
        self.stats = context.metrics.cluster("c")
        self.pool = HttpPool(context, config, ADDRESS, True, self.limits, self.stats)
        self.waiters: list[Waiter] = []
        self.cancelled: set[Waiter] = set()

    def codecs(self) -> list[FakeCodec]:
        live = (connection.codec for connection in self.network.connections if not connection.ended)
        return [codec for codec in live if codec is not None and not codec.lost]

    def waiting(self) -> list[Waiter]:
        return [w for w in self.waiters if not w.stream and not w.failures and w not in self.cancelled]

    def step(self, what: str, n: int) -> None:
        if what in ("acquire", "burst"):
            for _ in range(n):
                self.waiters.append(Waiter())
                self.pool.acquire(self.waiters[-1])
        elif what == "cancel" and (waiting := self.waiting()):
            self.cancelled.add(waiting[n % len(waiting)])
            self.pool.cancel(waiting[n % len(waiting)])
        elif what == "end" and (active := [w for w in self.waiters if w.stream and w.stream.open]):
            active[n % len(active)].end()
        elif what == "lose" and (codecs := self.codecs()):
            connection = codecs[n % len(codecs)].connection
            assert connection is not None
            connection.lose("reset")
            self.clock.advance(0)
        elif what == "goaway" and (codecs := [c for c in self.codecs() if c.ready and not c.draining]):
            codecs[n % len(codecs)].goaway()
        elif what == "settings" and self.network.waits_for_settings:
            for codec in self.codecs():
                if not codec.draining and n >= codec.active_streams:
                    codec.settings(n)
        elif what == "wait":
            self.clock.advance(0.4)
        elif what == "fail":
            self.network.fail[ADDRESS.host] = "refused"
        elif what == "heal":
            self.network.fail.clear()
        elif what == "drain":
            self.pool.drain()

    def check(self) -> None:
        self.clock.advance(0)
        waiting = self.waiting()
        assert self.pool.pending == self.limits.pending == self.stats.pending_active == len(waiting) <= 8
        assert self.pool.connections == self.limits.connections
        assert self.stats.connections_active == len(self.pool._open)
        assert all(len(w.failures) + (w.stream is not None) <= 1 for w in self.waiters)
        assert all(not w.stream and not w.failures for w in self.cancelled)
        if waiting:
            assert not any(codec.available > 0 for codec in self.codecs())
            assert self.pool.connections, "nobody is on the way for who waits"


@settings(max_examples=200, deadline=None)
@given(
    http2=st.booleans(),
    max_connections=st.sampled_from([1, 1, 2, 4]),
    max_requests=st.sampled_from([0, 0, 2]),
    steps=st.lists(STEPS, min_size=10, max_size=40),
    drained=st.lists(STEPS, max_size=6) | st.none(),
)
def test_books_are_right_and_nobody_waits_in_vain(
    http2: bool,
    max_connections: int,
    max_requests: int,
    steps: list[tuple[str, int]],
    drained: list[tuple[str, int]] | None,
) -> None:
    """`drained`: what happens after it was drained; None: it was not."""

    async def main() -> None:
        machine = Machine(http2, max_connections, max_requests)
        for what, n in steps if drained is None else [*steps, ("drain", 0), *drained]:
            machine.step(what, n)
            if what != "burst":
                await settle()
            machine.check()
        # In the end every waiter gets an answer, given a peer that works.
        machine.network.fail.clear()
        machine.network.waits_for_settings = False
        for _ in range(60):
            await settle()
            for codec in machine.codecs():
                if not codec.draining and (not codec.ready or codec.max_streams < 3):
                    codec.settings(3 if http2 else 1)
            for waiter in machine.waiters:
                if waiter.stream is not None and waiter.stream.open:
                    waiter.end()
            machine.check()
            if not machine.waiting():
                break
        assert machine.waiting() == []
        machine.pool.abort()
        await settle()
        machine.check()
        assert machine.limits.connections == 0

    asyncio.run(main())
