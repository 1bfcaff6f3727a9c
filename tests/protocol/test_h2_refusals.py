"""A server that refuses everything for a while, as a sidecar does whose application is gone."""

from __future__ import annotations

from sidecar.protocol.events import ErrorCode
from tests.support import h2_frames as f
from tests.support.h2_frames import client


def test_a_server_that_refuses_thousands_of_requests_keeps_its_connection() -> None:
    connection = client(peer_settings={3: 10_000})
    recorders = [connection.request() for _ in range(3000)]
    connection.take()
    connection.say(b"".join(f.rst_stream(2 * i + 1, ErrorCode.REFUSED_STREAM) for i in range(3000)))
    assert not connection.codec.should_close
    assert {r.reset.processed for r in recorders if r.reset is not None} == {False}
    assert all(r.reset is not None and r.reset.code == ErrorCode.REFUSED_STREAM for r in recorders)


def test_a_server_that_resets_what_nobody_asked_for_runs_into_debt() -> None:
    connection = client(peer_settings={3: 10_000})
    connection.request()
    connection.take()
    connection.say(f.rst_stream(1, ErrorCode.CANCEL) * 3000)
    assert connection.codec.should_close
