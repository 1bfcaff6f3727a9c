"""HTTP connection pools: when connections are made, shared, retired, closed, and what waiters are told."""

from __future__ import annotations

from sidecar.config.resources import ClusterConfig, Http2Options, SocketAddress, TlsConfig
from sidecar.identity.tls_contexts import TlsConfigError
from sidecar.net.tls import TlsParameters
from sidecar.upstream.context import ConnectionLimits
from sidecar.upstream.pool import HttpPool
from tests.support.fake_upstream import FakeNetwork, NoTls, Waiter, make_context, scenario, settle
from tests.support.virtual_clock import VirtualClock

ADDRESS = SocketAddress("10.0.0.1", 8080)
H2 = ClusterConfig("c", http2=Http2Options(), connect_timeout=2.0)
H1 = ClusterConfig("c", connect_timeout=2.0)


class Rig:
    """A pool on a fake network, and what it counts."""

    def __init__(
        self,
        config: ClusterConfig,
        *,
        max_connections: int = 100,
        max_pending: int = 100,
        plaintext: bool = True,
    ) -> None:
        self.clock = VirtualClock()
        self.network = FakeNetwork(self.clock)
        self.context = make_context(self.clock, self.network)
        self.limits = ConnectionLimits(max_connections, max_pending)
        self.stats = self.context.metrics.cluster("c")
        self.pool = HttpPool(self.context, config, ADDRESS, plaintext, self.limits, self.stats)

    def acquire(self, n: int = 1) -> list[Waiter]:
        waiters = [Waiter() for _ in range(n)]
        for waiter in waiters:
            self.pool.acquire(waiter)
        return waiters

    async def acquired(self, n: int = 1) -> list[Waiter]:
        waiters = self.acquire(n)
        await settle()
        assert all(waiter.stream is not None for waiter in waiters)
        return waiters

    def ended(self, index: int = -1) -> str:
        """How a connection was ended by this side."""
        return self.network.connections[index].ended


# --- HTTP/2 --------------------------------------------------------------------------------------


@scenario
async def test_concurrent_requests_share_one_http2_connection() -> None:
    rig = Rig(H2)
    waiters = await rig.acquired(50)
    assert len(rig.network.connections) == 1
    assert {waiter.peer.remote for waiter in waiters if waiter.peer} == {("10.0.0.1", 8080)}
    assert (rig.stats.connections_opened, rig.stats.connections_active, rig.limits.pending) == (1, 1, 0)


@scenario
async def test_a_ready_connection_gives_its_stream_at_once() -> None:
    rig = Rig(H2)
    await rig.acquired()
    assert rig.acquire()[0].stream is not None


@scenario
async def test_a_second_connection_is_made_when_the_first_is_full() -> None:
    rig = Rig(H2)
    rig.network.max_streams = 10
    await rig.acquired(10)
    assert len(rig.network.connections) == 1
    await rig.acquired(5)
    assert [rig.network.codec(i).active_streams for i in (0, 1)] == [10, 5]


@scenario
async def test_many_waiters_get_as_many_connections_as_they_fill() -> None:
    rig = Rig(H2)
    rig.network.max_streams = 10
    rig.acquire(35)
    for _ in range(4):
        await settle()
    assert [rig.network.codec(i).active_streams for i in range(4)] == [10, 10, 10, 5]
    assert len(rig.network.connections) == 4


@scenario
async def test_a_freed_stream_goes_to_who_waits_longest() -> None:
    rig = Rig(H2, max_connections=1)
    rig.network.max_streams = 1
    (first,) = await rig.acquired()
    second, third = rig.acquire(2)
    assert rig.limits.pending == 2
    first.end()
    assert second.stream is not None
    assert third.stream is None
    second.end()
    assert third.stream is not None
    assert rig.limits.pending == 0


@scenario
async def test_a_connection_counts_as_made_when_its_settings_have_come() -> None:
    rig = Rig(H2)
    rig.network.waits_for_settings = True
    (waiter,) = rig.acquire()
    await settle()
    assert waiter.stream is None
    assert rig.stats.connections_opened == 0
    rig.network.codec().settings(100)
    assert waiter.stream is not None
    assert rig.stats.connections_opened == 1
    assert rig.clock.pending == 0


@scenario
async def test_settings_that_do_not_come_fail_the_connection() -> None:
    rig = Rig(H2)
    rig.network.waits_for_settings = True
    waiters = rig.acquire(3)
    await settle()
    rig.clock.advance(2.0)
    reason = "cannot connect to 10.0.0.1:8080: connected, but no HTTP/2 SETTINGS came within 2 s"
    assert [waiter.failures for waiter in waiters] == [[(reason, False)]] * 3
    assert rig.ended() == "aborted"
    assert (rig.stats.connect_failures, rig.limits.connections, rig.limits.pending) == (1, 0, 0)


@scenario
async def test_a_peer_that_refuses_our_certificate_after_the_handshake_is_a_connect_failure() -> None:
    rig = Rig(H2)
    rig.network.waits_for_settings = True
    (waiter,) = rig.acquire()
    await settle()
    rig.network.connections[0].lose("TLS alert: certificate required")
    rig.clock.advance(0)
    reason = "cannot connect to 10.0.0.1:8080: TLS alert: certificate required"
    assert waiter.failures == [(reason, False)]
    assert rig.limits.connections == 0


@scenario
async def test_after_goaway_streams_finish_and_new_requests_get_a_new_connection() -> None:
    rig = Rig(H2)
    first, second = await rig.acquired(2)
    rig.network.codec(0).goaway()
    (third,) = rig.acquire()
    assert third.stream is None
    await settle()
    assert len(rig.network.connections) == 2
    assert third.stream is not None
    assert third.stream.codec is rig.network.codec(1)
    first.end()
    assert rig.ended(0) == ""
    second.end()
    assert rig.ended(0) == "closed"
    rig.clock.advance(0)
    assert (rig.limits.connections, rig.stats.connections_active) == (1, 1)


@scenario
async def test_requests_that_goaway_left_unprocessed_can_go_again_at_once() -> None:
    rig = Rig(H2)
    waiters = await rig.acquired(3)
    again = Waiter()
    waiters[2].on_reset = lambda reset: rig.pool.acquire(again)  # type: ignore[method-assign]
    rig.network.codec(0).goaway(unprocessed=1)
    await settle()
    assert again.stream is not None
    assert again.stream.codec is rig.network.codec(1)


@scenario
async def test_a_lost_connection_resets_its_streams_and_who_waited_gets_another() -> None:
    rig = Rig(H2)
    rig.network.max_streams = 2
    active = await rig.acquired(2)
    rig.network.hold.add(ADDRESS.host)
    (waiting,) = rig.acquire()
    await settle()
    rig.network.connections[0].lose("connection reset by peer")
    rig.clock.advance(0)
    assert [len(waiter.resets) for waiter in active] == [1, 1]
    rig.network.released.set()
    await settle()
    assert waiting.stream is not None
    assert waiting.failures == []


@scenario
async def test_who_waits_at_the_limit_of_connections_gets_one_when_they_are_lost() -> None:
    rig = Rig(H1, max_connections=2)
    await rig.acquired(2)
    (waiting,) = rig.acquire()
    await settle()
    for connection in rig.network.connections[:2]:
        connection.lose("connection reset by peer")
    rig.clock.advance(0)
    await settle()
    assert waiting.stream is not None


@scenario
async def test_who_waits_at_the_limit_of_connections_gets_one_when_they_go_away() -> None:
    rig = Rig(H2, max_connections=1)
    rig.network.max_streams = 1
    await rig.acquired()
    (waiting,) = rig.acquire()
    await settle()
    assert len(rig.network.attempts) == 1
    rig.network.codec().goaway()
    await settle()
    assert waiting.stream is not None


@scenario
async def test_a_peer_that_allows_no_streams_gets_one_connection_only() -> None:
    rig = Rig(H2)
    rig.network.max_streams = 0
    waiters = rig.acquire(3)
    await settle()
    rig.acquire(2)
    await settle()
    assert len(rig.network.connections) == 1
    rig.network.codec().settings(10)
    assert all(waiter.stream is not None for waiter in waiters)


@scenario
async def test_a_peer_that_accepts_and_closes_is_not_dialled_in_a_loop() -> None:
    rig = Rig(H2)
    rig.network.max_streams = 0
    (waiter,) = rig.acquire()
    await settle()
    rig.network.connections[0].lose("connection reset by peer")
    rig.clock.advance(0)
    await settle()
    assert len(rig.network.attempts) == 1
    reason = "10.0.0.1:8080 closed the connection before it took a request: connection reset by peer"
    assert waiter.failures == [(reason, False)]


@scenario
async def test_another_sidecar_is_known_by_its_alpn() -> None:
    rig = Rig(H2)
    rig.network.alpn = "pilotfish-h2"
    await rig.acquired()
    assert rig.network.codec().trusted_peer
    other = Rig(H2)
    other.network.alpn = "h2"
    await other.acquired()
    assert not other.network.codec().trusted_peer


# --- HTTP/1.1 ------------------------------------------------------------------------------------


@scenario
async def test_each_http1_connection_serves_one_request_at_a_time() -> None:
    rig = Rig(H1)
    await rig.acquired(5)
    assert [rig.network.codec(i).active_streams for i in range(5)] == [1] * 5


@scenario
async def test_the_connection_that_was_used_last_is_used_again_first() -> None:
    rig = Rig(H1)
    first, second, third = await rig.acquired(3)
    second.end()
    third.end()
    first.end()
    taken = [waiter.stream.codec for waiter in rig.acquire(3) if waiter.stream]
    assert taken == [rig.network.codec(i) for i in (0, 2, 1)]
    assert len(rig.network.connections) == 3


@scenario
async def test_max_connections_makes_requests_wait() -> None:
    rig = Rig(H1, max_connections=2)
    first, _ = await rig.acquired(2)
    (waiting,) = rig.acquire()
    await settle()
    assert waiting.stream is None
    assert len(rig.network.connections) == 2
    first.end()
    assert waiting.stream is not None


@scenario
async def test_an_endpoint_without_connections_gets_one_whatever_others_hold() -> None:
    rig = Rig(H1, max_connections=1)
    rig.limits.connections = 1  # another endpoint's
    await rig.acquired()
    (waiting,) = rig.acquire()
    await settle()
    assert waiting.stream is None


@scenario
async def test_an_http1_connection_is_closed_after_a_second_without_requests() -> None:
    rig = Rig(H1)
    (waiter,) = await rig.acquired()
    rig.clock.advance(10.0)
    assert rig.ended() == ""
    waiter.end()
    rig.clock.advance(0.9)
    (again,) = rig.acquire()
    again.end()
    rig.clock.advance(0.9)
    assert rig.ended() == ""
    rig.clock.advance(0.2)
    assert rig.ended() == "closed"
    assert (rig.limits.connections, rig.stats.connections_active) == (0, 0)
    await rig.acquired()
    assert len(rig.network.connections) == 2


@scenario
async def test_an_idle_timeout_that_is_set_holds_for_http1_too() -> None:
    rig = Rig(ClusterConfig("c", idle_timeout=20.0))
    (waiter,) = await rig.acquired()
    waiter.end()
    rig.clock.advance(19.9)
    assert rig.ended() == ""
    rig.clock.advance(0.1)
    assert rig.ended() == "closed"


@scenario
async def test_keep_alive_timeout_of_the_application_closes_half_a_second_before_it() -> None:
    rig = Rig(ClusterConfig("c", idle_timeout=20.0))
    (waiter,) = await rig.acquired()
    rig.network.codec().keep_alive_timeout = 5.0
    waiter.end()
    rig.clock.advance(4.4)
    assert rig.ended() == ""
    rig.clock.advance(0.1)
    assert rig.ended() == "closed"


@scenario
async def test_a_keep_alive_timeout_shorter_than_before_moves_the_timer_forward() -> None:
    rig = Rig(ClusterConfig("c", idle_timeout=20.0))
    (waiter,) = await rig.acquired()
    waiter.end()
    (waiter,) = rig.acquire()
    rig.network.codec().keep_alive_timeout = 2.0
    waiter.end()
    rig.clock.advance(1.5)
    assert rig.ended() == "closed"


@scenario
async def test_a_keep_alive_timeout_too_short_to_use_closes_at_once() -> None:
    rig = Rig(H1)
    (waiter,) = await rig.acquired()
    rig.network.codec().keep_alive_timeout = 0.0
    waiter.end()
    assert rig.ended() == "closed"
    assert rig.acquire()[0].stream is None
    await settle()


@scenario
async def test_a_keep_alive_timeout_longer_than_ours_changes_nothing() -> None:
    rig = Rig(H1)
    (waiter,) = await rig.acquired()
    rig.network.codec().keep_alive_timeout = 60.0
    waiter.end()
    rig.clock.advance(1.0)
    assert rig.ended() == "closed"


# --- both ----------------------------------------------------------------------------------------


@scenario
async def test_an_http2_connection_is_closed_after_the_idle_timeout() -> None:
    rig = Rig(ClusterConfig("c", http2=Http2Options(), idle_timeout=30.0))
    one, other = await rig.acquired(2)
    one.end()
    rig.clock.advance(60.0)
    assert rig.ended() == ""
    other.end()
    rig.clock.advance(29.0)
    assert rig.ended() == ""
    rig.clock.advance(1.0)
    assert rig.ended() == "closed"


@scenario
async def test_no_idle_timeout_means_never() -> None:
    rig = Rig(ClusterConfig("c", http2=Http2Options(), idle_timeout=0.0))
    (waiter,) = await rig.acquired()
    waiter.end()
    rig.clock.advance(1e6)
    assert rig.ended() == ""


@scenario
async def test_a_connection_that_nobody_wants_any_more_is_closed_when_idle() -> None:
    rig = Rig(H1)
    (waiter,) = rig.acquire()
    rig.pool.cancel(waiter)
    assert rig.limits.pending == 0
    await settle()
    assert waiter.stream is None
    rig.clock.advance(1.0)
    assert rig.ended() == "closed"


@scenario
async def test_max_requests_per_connection_retires_it_after_the_last() -> None:
    rig = Rig(ClusterConfig("c", http2=Http2Options(), max_requests_per_connection=3))
    waiters = await rig.acquired(3)
    assert len(rig.network.connections) == 1
    await rig.acquired()
    assert len(rig.network.connections) == 2
    for waiter in waiters:
        assert rig.ended(0) == ""
        waiter.end()
    assert rig.ended(0) == "closed"


@scenario
async def test_a_connect_failure_fails_everyone_who_waits() -> None:
    rig = Rig(H2)
    rig.network.fail[ADDRESS.host] = "connection refused"
    waiters = rig.acquire(3)
    await settle()
    reason = "cannot connect to 10.0.0.1:8080: connection refused"
    assert [waiter.failures for waiter in waiters] == [[(reason, False)]] * 3
    assert (rig.stats.connect_failures, rig.limits.connections, rig.limits.pending) == (1, 0, 0)
    assert rig.stats.pending_active == 0


@scenario
async def test_waiters_fail_only_when_no_other_connection_is_on_its_way() -> None:
    rig = Rig(H1)
    rig.network.hold.add(ADDRESS.host)
    first = Waiter()
    rig.pool.acquire(first)
    await settle()
    rig.network.hold.clear()
    rig.network.fail[ADDRESS.host] = "connection refused"
    second = Waiter()
    rig.pool.acquire(second)
    await settle()
    assert rig.stats.connect_failures == 1
    assert first.failures == second.failures == []
    rig.network.fail.clear()
    rig.network.released.set()
    await settle()
    assert first.stream is not None
    assert second.stream is not None
    assert len(rig.network.attempts) == 3


@scenario
async def test_who_asks_again_when_told_of_a_failure_gets_a_new_attempt() -> None:
    rig = Rig(H2)
    rig.network.fail[ADDRESS.host] = "connection refused"
    again = Waiter()
    (waiter,) = rig.acquire()

    def retry(reason: str, overflow: bool) -> None:
        rig.network.fail.clear()
        rig.pool.acquire(again)

    waiter.on_connect_failure = retry  # type: ignore[method-assign]
    await settle()
    assert again.stream is not None


@scenario
async def test_too_many_waiters_overflow() -> None:
    rig = Rig(H2, max_pending=2)
    waiters = rig.acquire(3)
    assert [len(waiter.failures) for waiter in waiters] == [0, 0, 1]
    reason, overflow = waiters[2].failures[0]
    assert overflow
    assert "10.0.0.1:8080" in reason
    assert "max_pending_requests" in reason
    assert rig.stats.pending_overflow == 1
    await settle()
    assert waiters[1].stream is not None


@scenario
async def test_a_cancelled_waiter_hears_nothing_more() -> None:
    rig = Rig(H2)
    rig.network.fail[ADDRESS.host] = "connection refused"
    first, second = rig.acquire(2)
    rig.pool.cancel(first)
    rig.pool.cancel(first)
    await settle()
    assert first.failures == []
    assert len(second.failures) == 1
    assert rig.limits.pending == 0


@scenario
async def test_missing_certificates_are_a_connect_failure_that_says_so() -> None:
    rig = Rig(ClusterConfig("c", http2=Http2Options(), tls=TlsConfig(provider="mesh")), plaintext=False)

    class NoIdentity(NoTls):
        def client(self, config: TlsConfig) -> TlsParameters:
            raise TlsConfigError("no certificate yet from provider mesh")

    object.__setattr__(rig.context, "tls", NoIdentity())
    (waiter,) = rig.acquire()
    await settle()
    reason = "cannot connect to 10.0.0.1:8080: no certificate yet from provider mesh"
    assert waiter.failures == [(reason, False)]


@scenario
async def test_an_endpoint_outside_the_mesh_is_reached_without_tls() -> None:
    rig = Rig(ClusterConfig("c", http2=Http2Options(), tls=TlsConfig(provider="mesh")), plaintext=True)
    await rig.acquired()
    assert rig.network.secured_with == [None]


@scenario
async def test_draining_closes_idle_connections_and_lets_streams_finish() -> None:
    rig = Rig(H1)
    busy, idle = await rig.acquired(2)
    idle.end()
    rig.pool.drain()
    assert (rig.ended(0), rig.ended(1)) == ("", "closed")
    busy.end()
    assert rig.ended(0) == "closed"
    rig.clock.advance(0)
    assert (rig.pool.connections, rig.limits.connections) == (0, 0)


@scenario
async def test_a_draining_pool_still_serves_who_waits_and_closes_then() -> None:
    rig = Rig(H2)
    (waiter,) = rig.acquire()
    rig.pool.drain()
    await settle()
    assert waiter.stream is not None
    (late,) = rig.acquire()
    assert late.stream is not None
    waiter.end()
    assert rig.ended() == ""
    late.end()
    assert rig.ended() == "closed"


@scenario
async def test_aborting_resets_streams_tells_waiters_and_takes_no_more() -> None:
    rig = Rig(H1)
    (busy,) = await rig.acquired()
    rig.network.hold.add(ADDRESS.host)
    (waiting,) = rig.acquire()
    await settle()
    rig.pool.abort()
    await settle()
    rig.clock.advance(0)
    assert len(busy.resets) == 1
    assert rig.network.cancelled == 1
    reason = "no connection to 10.0.0.1:8080: this side is shutting down"
    assert waiting.failures == [(reason, False)]
    assert rig.acquire()[0].failures == [(reason, False)]
    assert (rig.pool.connections, rig.limits.connections, rig.limits.pending) == (0, 0, 0)
