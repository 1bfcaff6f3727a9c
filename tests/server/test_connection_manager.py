"""One downstream connection: exchanges, idleness, draining, tunnels that leave."""

from __future__ import annotations

from typing import Any, cast

import pytest

from sidecar.config.resources import HttpConnectionManagerConfig
from sidecar.net.connection import Connection
from sidecar.protocol.events import ErrorCode, RequestHead, ResponseHead, Stream
from sidecar.server.connection_manager import ANNOUNCE, ConnectionManager
from sidecar.telemetry.metrics import ListenerStats
from tests.support.exchange_rig import RecordingStream, Rig, connect_request, get


class FakeConnection:
    def __init__(self) -> None:
        self.codec = self
        self.drains: list[bool] = []
        self.closed = 0
        self.error = ""

    def drain(self, final: bool) -> None:
        self.drains.append(final)

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self, reason: str = "") -> None:
        self.closed += 1


class Managed:
    """A manager of a fake connection in a rig's surroundings."""

    def __init__(self, tunnels: bool = False, **config: Any) -> None:
        self.rig = rig = Rig(http2=config.pop("http2", True))
        rig.context.config = HttpConnectionManagerConfig("rig", **config)
        self.connection = FakeConnection()
        self.stats = ListenerStats()
        self.gone: list[ConnectionManager] = []
        self.manager = ConnectionManager(
            rig.context,
            cast(Connection, self.connection),
            rig.downstream,
            self.stats,
            self.gone.append,
            self._take if tunnels else None,
        )

    def _take(self, connection: Connection, stream: Stream, head: RequestHead) -> bool:
        return True

    def request(self, head: RequestHead, end_stream: bool = True, room: int = 1 << 40) -> RecordingStream:
        stream = RecordingStream(room)
        self.manager.on_request(cast(Stream, stream), head, end_stream)
        return stream


def test_an_idle_connection_is_closed_in_two_phases() -> None:
    managed = Managed(idle_timeout=10.0)
    managed.rig.clock.advance(10.0)
    assert managed.connection.drains == [False]
    managed.rig.clock.advance(ANNOUNCE)
    assert managed.connection.drains == [False, True]
    managed.rig.clock.advance(60.0)
    assert managed.connection.drains == [False, True]


def test_a_connection_is_idle_from_the_end_of_its_last_exchange() -> None:
    managed = Managed(idle_timeout=10.0)
    managed.rig.clock.advance(4.0)
    managed.request(get())
    managed.rig.clock.advance(30.0)
    assert managed.connection.drains == []
    managed.rig.upstream.handler.on_response(ResponseHead(200), True)
    managed.rig.clock.advance(9.0)
    assert managed.connection.drains == []
    managed.rig.clock.advance(6.0)
    assert managed.connection.drains == [False, True]


def test_a_silent_stream_is_ended_after_its_time_and_not_before() -> None:
    managed = Managed(stream_idle_timeout=10.0)
    stream = managed.request(get())
    managed.rig.clock.advance(10.0)
    assert stream.heads == []
    managed.rig.clock.advance(5.0)
    assert stream.heads[0].status == 504
    assert managed.rig.log.records[0].flags == "SI"


def test_a_client_that_reads_slowly_is_not_idle() -> None:
    managed = Managed(stream_idle_timeout=10.0)
    stream = managed.request(get(), room=0)
    managed.rig.upstream.handler.on_response(ResponseHead(200), False)
    managed.rig.upstream.handler.on_data(b"x" * 100, True)
    for _ in range(20):
        managed.rig.clock.advance(5.0)
        stream.take(5)
    assert stream.resets == []
    assert managed.manager.exchanges == set()


def test_a_client_that_reads_nothing_of_a_whole_response_is_cut() -> None:
    managed = Managed(stream_idle_timeout=10.0)
    stream = managed.request(get(), room=0)
    managed.rig.upstream.handler.on_response(ResponseHead(200), False)
    managed.rig.upstream.handler.on_data(b"x" * 100, True)
    managed.rig.clock.advance(20.0)
    assert stream.resets == [ErrorCode.INTERNAL_ERROR]
    assert managed.manager.exchanges == set()


def test_a_connection_that_became_a_tunnel_is_nobodys_to_watch() -> None:
    managed = Managed(tunnels=True, idle_timeout=10.0)
    managed.request(connect_request(), end_stream=False)
    assert managed.gone == [managed.manager]
    assert managed.stats.connections_active == 0
    managed.manager.on_closed("the same connection, later")
    assert len(managed.gone) == 1
    managed.rig.clock.advance(60.0)
    assert managed.connection.drains == []


def test_past_the_deadline_of_a_drain_those_who_have_no_answer_get_one() -> None:
    managed = Managed()
    waiting, begun = managed.request(get()), managed.request(get())
    managed.rig.cluster.endpoints[1].streams[0].handler.on_response(ResponseHead(200), False)
    managed.manager.abort()
    assert waiting.heads[0].status == 503
    assert begun.resets == [ErrorCode.INTERNAL_ERROR]
    assert managed.connection.closed == 1
    assert managed.manager.exchanges == set()


@pytest.mark.parametrize("http2", [True, False])
def test_while_the_process_buffers_too_much_requests_are_turned_away_and_none_is_stalled(http2: bool) -> None:
    managed = Managed(http2=http2)
    budget = managed.rig.budget
    budget.limit = 99
    slow = managed.request(get(), room=0)
    managed.rig.upstream.handler.on_response(ResponseHead(200), False)
    managed.rig.upstream.handler.on_data(b"x" * 100, False)
    assert (budget.held, budget.exceeded) == (100, True)
    refused = managed.request(get())
    assert refused.heads[0].status == 503
    assert managed.rig.log.records[0].flags == "OM"
    slow.take(1)
    assert not budget.exceeded
    served = managed.request(get())
    assert (served.heads, served.resets) == ([], [])
    slow.die()
    assert budget.held == 0


def test_who_leaves_is_counted() -> None:
    managed = Managed()
    managed.request(get()).die()
    assert (managed.stats.requests, managed.stats.streams_reset) == (1, 1)
    assert managed.manager.exchanges == set()
