"""What a TCP session tells its cluster about the endpoint: seconds to connect for a success, blame only for
what was never established."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from sidecar.config.resources import EndpointConfig, SocketAddress, TcpProxyConfig, WeightedCluster
from sidecar.http.buffer_budget import BufferBudget
from sidecar.net.peer import PeerInfo
from sidecar.protocol.events import ErrorCode, Reset
from sidecar.protocol.raw import RawCodec
from sidecar.server.tcp_proxy import TcpProxy, TcpSession, TcpUpstream
from sidecar.telemetry.access_log import AccessRecord
from sidecar.telemetry.metrics import ListenerStats
from tests.support.virtual_clock import VirtualClock


class Endpoint:
    name = "db-1"
    address = SocketAddress("10.0.0.1", 5432)
    config = EndpointConfig(address)
    waiter: Any = None

    def acquire_tcp(self, waiter: Any) -> None:
        self.waiter = waiter

    def cancel(self, waiter: Any) -> None:
        self.waiter = None


@dataclass
class Cluster:
    """Of one endpoint; `finished` are the calls of `finish`."""

    name: str = "db"
    endpoint: Endpoint = field(default_factory=Endpoint)
    finished: list[tuple[float | None, bool]] = field(default_factory=list)

    def pick(self, tried: list[Any]) -> Endpoint:
        return self.endpoint

    def begin(self, endpoint: Any) -> bool:
        return True

    def finish(self, endpoint: Any, latency: float | None, failed: bool) -> None:
        self.finished.append((latency, failed))

    def why_none(self) -> str:
        return ""


class Records:
    def __init__(self) -> None:
        self.written: list[AccessRecord] = []

    def write(self, record: AccessRecord) -> None:
        self.written.append(record)


class Rig:
    def __init__(self) -> None:
        self.now = 100.0
        self.clock = VirtualClock()
        self.cluster = Cluster()
        clusters: Any = {"db": self.cluster}
        config = TcpProxyConfig("tcp", (WeightedCluster("db", 1),), idle_timeout=60.0)
        self.budget = BufferBudget(100_000)
        self.stats = ListenerStats()
        self.proxy = TcpProxy(
            config, clusters, Random(1), self.clock, lambda: self.now, None, self.budget, self.stats
        )
        self.downstream = RawCodec(None)
        self.upstream = RawCodec(None)
        self.session: TcpSession = self.proxy.accept(self.downstream.stream, ("127.0.0.1", 1))
        self.session.connect("db")

    def establish(self) -> None:
        waiter: TcpUpstream = self.cluster.endpoint.waiter
        self.now += 0.25
        waiter.on_stream(self.upstream.open_stream(waiter), PeerInfo(("10.0.0.1", 5432), ("10.0.0.2", 1)))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_session_that_ended_well_reports_how_long_connecting_took(rig: Rig) -> None:
    rig.establish()
    rig.now += 60
    rig.downstream.receive_eof()
    rig.upstream.receive_eof()
    assert rig.cluster.finished == [(0.25, False)]


def test_an_established_session_that_is_reset_blames_nobody(rig: Rig) -> None:
    rig.establish()
    rig.upstream.connection_lost("connection reset by peer")
    assert rig.cluster.finished == [(0.25, False)]


def test_a_connection_that_cannot_be_made_is_the_endpoints_fault(rig: Rig) -> None:
    rig.cluster.endpoint.waiter.on_connect_failure("refused", False)
    assert rig.cluster.finished == [(None, True)]


def test_a_stream_that_was_refused_is_the_reason_when_no_endpoint_is_left(rig: Rig) -> None:
    log: Any = Records()
    rig.proxy.access_log = log
    rig.cluster.endpoint.waiter.on_reset(Reset(ErrorCode.REFUSED_STREAM, "REFUSED_STREAM", processed=False))
    [record] = log.written
    assert record.flags == "UH"
    assert record.details == (
        "no endpoint of cluster db is left to try: db-1 refused the connection: REFUSED_STREAM"
    )


def test_a_caller_that_leaves_while_connecting_says_nothing_about_the_endpoint(rig: Rig) -> None:
    rig.session.on_reset(Reset(ErrorCode.CANCEL, "gone"))
    assert rig.cluster.finished == [(None, False)]


def test_an_abandoned_session_is_counted_out_and_dials_no_longer(rig: Rig) -> None:
    rig.session.abandon()
    assert rig.cluster.finished == [(None, False)]
    assert rig.cluster.endpoint.waiter is None
    assert rig.proxy.sessions == set()


def test_a_session_is_an_open_connection_of_its_listener_until_it_ends(rig: Rig) -> None:
    abandoned = rig.proxy.accept(RawCodec(None).stream, ("127.0.0.1", 2))
    cut = rig.proxy.accept(RawCodec(None).stream, ("127.0.0.1", 3))
    rig.establish()
    assert rig.stats.connections_active == 3
    abandoned.abandon()
    assert rig.stats.connections_active == 2
    cut.fail("UF", "nobody is there")
    cut.fail("UF", "nobody is there")
    assert rig.stats.connections_active == 1
    rig.downstream.receive_eof()
    assert rig.stats.connections_active == 1
    rig.upstream.receive_eof()
    assert rig.stats.connections_active == 0


def test_a_session_on_which_nothing_moves_for_the_idle_timeout_is_cut(rig: Rig) -> None:
    rig.establish()
    rig.clock.advance(91)
    assert rig.session.done
    assert rig.downstream.should_close
    assert rig.upstream.should_close


def test_a_session_that_moves_a_byte_now_and_then_is_not_idle(rig: Rig) -> None:
    rig.establish()
    for _ in range(10):
        rig.clock.advance(29)
        rig.downstream.receive(b"x")
    assert not rig.session.done


def test_the_look_for_idle_sessions_ends_with_the_last_session(rig: Rig) -> None:
    rig.session.on_reset(Reset(ErrorCode.CANCEL, "gone"))
    rig.clock.advance(120)
    assert rig.clock.pending == 0


def test_what_waits_in_either_direction_is_in_the_process_budget(rig: Rig) -> None:
    rig.downstream.receive(b"early")
    assert rig.budget.held == 5
    rig.establish()
    assert rig.budget.held == 0
    rig.upstream.pause_output()
    rig.downstream.pause_output()
    rig.downstream.receive(bytes(1000))
    rig.upstream.receive(bytes(20_000))
    assert rig.budget.held == 21_000
    rig.downstream.resume_output()
    assert rig.budget.held == 1000
    rig.upstream.resume_output()
    assert rig.budget.held == 0


def test_a_session_that_is_cut_gives_back_what_it_held(rig: Rig) -> None:
    rig.establish()
    rig.upstream.pause_output()
    rig.downstream.receive(bytes(1000))
    rig.session.on_reset(Reset(ErrorCode.CANCEL, "gone"))
    assert rig.budget.held == 0
    rig.session.on_sent(10)
    assert rig.budget.held == 0


def test_no_session_is_begun_past_the_budget(rig: Rig) -> None:
    rig.budget.add(100_001)
    codec = RawCodec(None)
    session = rig.proxy.accept(codec.stream, ("127.0.0.1", 2))
    session.connect("db")
    assert session.done
    assert codec.should_close
    assert not rig.session.done
