"""Opaque TCP: one connection for each stream."""

from __future__ import annotations

import asyncio

from sidecar.config.resources import ClusterConfig, SocketAddress
from sidecar.upstream.context import ConnectionLimits
from sidecar.upstream.tcp_pool import TcpPool
from tests.support.fake_upstream import FakeNetwork, Waiter, make_context, settle
from tests.support.virtual_clock import VirtualClock

ADDRESS = SocketAddress("10.0.0.1", 5432)


class Rig:
    def __init__(self, max_connections: int = 10) -> None:
        self.clock = VirtualClock()
        self.network = FakeNetwork(self.clock)
        context = make_context(self.clock, self.network)
        self.limits = ConnectionLimits(max_connections, 10)
        self.stats = context.metrics.cluster("c")
        self.pool = TcpPool(context, ClusterConfig("c"), ADDRESS, True, self.limits, self.stats)

    def acquire(self) -> Waiter:
        waiter = Waiter()
        self.pool.acquire(waiter)
        return waiter


def test_each_stream_has_a_connection_of_its_own_that_ends_with_it() -> None:
    async def main() -> None:
        rig = Rig()
        first, second = rig.acquire(), rig.acquire()
        await settle()
        assert first.stream is not None
        assert second.stream is not None
        assert first.stream.codec is not second.stream.codec
        first.end()
        assert rig.acquire().stream is None
        await settle()
        assert len(rig.network.connections) == 3
        rig.network.connections[1].lose("connection reset by peer")
        rig.clock.advance(0)
        assert len(second.resets) == 1
        assert (rig.pool.connections, rig.limits.connections, rig.stats.connections_active) == (2, 2, 2)

    asyncio.run(main())


def test_max_connections_is_an_overflow() -> None:
    async def main() -> None:
        rig = Rig(max_connections=1)
        rig.acquire()
        refused = rig.acquire()
        assert [overflow for _, overflow in refused.failures] == [True]
        assert "max_connections" in refused.failures[0][0]
        await settle()

    asyncio.run(main())


def test_a_connect_failure_fails_its_own_waiter() -> None:
    async def main() -> None:
        rig = Rig()
        good = rig.acquire()
        await settle()
        rig.network.fail[ADDRESS.host] = "no route to host"
        bad = rig.acquire()
        await settle()
        assert bad.failures == [("cannot connect to 10.0.0.1:5432: no route to host", False)]
        assert good.failures == []
        assert rig.limits.connections == 1

    asyncio.run(main())


def test_cancelling_stops_connecting() -> None:
    async def main() -> None:
        rig = Rig()
        rig.network.hold.add(ADDRESS.host)
        waiter = rig.acquire()
        await settle()
        rig.pool.cancel(waiter)
        await settle()
        assert rig.network.cancelled == 1
        assert rig.network.connections == []
        assert (waiter.failures, rig.limits.connections) == ([], 0)

    asyncio.run(main())


def test_aborting_resets_streams_and_tells_waiters() -> None:
    async def main() -> None:
        rig = Rig()
        open_one = rig.acquire()
        await settle()
        rig.network.hold.add(ADDRESS.host)
        waiting = rig.acquire()
        await settle()
        rig.pool.abort()
        await settle()
        rig.clock.advance(0)
        assert len(open_one.resets) == 1
        assert waiting.failures == [("no connection to 10.0.0.1:5432: this side is shutting down", False)]
        assert rig.limits.connections == 0

    asyncio.run(main())
