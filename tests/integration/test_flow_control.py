"""Readers and writers that stall: what sidecars buffer for them is bounded, and nobody else waits."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.apps import start_app
from tests.support.clients import H2Client
from tests.support.processes import eventually
from tests.support.sidecars import APP, OUTBOUND, Pair, Sidecar

LARGE = 20_000_000
ALLOWED = 8.0
"""MiB that a sidecar may grow by while a stream is stalled."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("flow")
    with Pair(directory) as made, start_app(made.hosts[0], APP, "app", directory):
        made.start()
        with H2Client((made.host, OUTBOUND)) as client:
            for _ in range(50):
                assert client.fetch("/warm").status == 200
        yield made


def sidecars(pair: Pair) -> list[Sidecar]:
    return [pair.outbound, *pair.inbound]


def check_growth(pair: Pair, before: list[float]) -> None:
    grown = [sidecar.resident() - old for sidecar, old in zip(sidecars(pair), before, strict=True)]
    assert max(grown) < ALLOWED, grown


def settled(value: Callable[[], int]) -> int:
    """The value once it has not changed for half a second."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        now = value()
        if now != last:
            last, since = now, time.monotonic()
    return last


def sent(pair: Pair) -> int:
    """Memory of all sidecars in units of 64 KiB: changes while they take in more."""
    return sum(int(sidecar.resident() * 16) for sidecar in sidecars(pair))


def test_a_stream_that_is_not_read_stops_and_others_go_on(pair: Pair) -> None:
    """Same connections all the way: the caller gives credit for every stream but one."""
    before = [sidecar.resident() for sidecar in sidecars(pair)]
    with H2Client((pair.host, OUTBOUND)) as client:
        stalled = client.send(f"/bytes?n={LARGE}")
        client.hold.add(stalled)
        client.wait_head(stalled)
        for i in range(20):
            assert client.fetch(f"/{i}").status == 200
        settled(lambda: sent(pair))
        for i in range(20):
            assert client.fetch(f"/{i}").status == 200
        check_growth(pair, before)
        received = len(client.answers[stalled].body)
        assert received == 65535  # the window that was never given back
        client.h2.acknowledge_received_data(received, stalled)
        client.hold.discard(stalled)
        client.flush()
        assert len(client.wait(stalled).body) == LARGE
    check_growth(pair, before)


def test_a_client_that_stops_reading_its_socket_holds_up_nobody(pair: Pair) -> None:
    """HTTP/1.1 in, one shared HTTP/2 connection between the sidecars."""
    before = [sidecar.resident() for sidecar in sidecars(pair)]
    with socket.create_connection((pair.host, OUTBOUND), 30) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        stalled.sendall(f"GET /bytes?n={LARGE} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert stalled.recv(100).startswith(b"HTTP/1.1 200 ")
        settled(lambda: sent(pair))
        connection = http.client.HTTPConnection(pair.host, OUTBOUND, timeout=30)
        for i in range(20):
            connection.request("GET", f"/{i}")
            assert connection.getresponse().read()
        connection.request("GET", "/bytes?n=5000000")
        assert len(connection.getresponse().read()) == 5_000_000
        connection.close()
        check_growth(pair, before)
    idle(pair)


def idle(pair: Pair) -> None:
    """The application's stalled connection is let go of as well."""
    eventually(lambda: pair.inbound[0].stats("clusters", cluster="app")["requests_active"] == 0)
    eventually(lambda: pair.outbound.stats("clusters", cluster="peer")["requests_active"] == 0)


def test_an_upload_that_is_not_read_stops_and_others_go_on(pair: Pair) -> None:
    """The application takes no byte of the body."""
    before = [sidecar.resident() for sidecar in sidecars(pair)]
    with H2Client((pair.host, OUTBOUND)) as client:
        stalled = client.send("/stall", "POST", end=False)
        pushed = push(client, stalled, LARGE)
        assert pushed < LARGE / 2, pushed  # windows and kernel buffers, not the body
        for i in range(20):
            assert client.fetch(f"/{i}").status == 200
        other = client.send("/up", "POST", end=False)
        client.data(other, b"x" * 2_000_000, end=True)
        assert client.wait(other).json()["size"] == 2_000_000
        check_growth(pair, before)
        client.h2.reset_stream(stalled, 8)
        client.flush()
        idle(pair)


def push(client: H2Client, stream: int, size: int) -> int:
    """Sends until there was no credit for half a second; returns how much went out."""
    left, since = size, time.monotonic()
    client.sock.settimeout(0.1)
    piece = b"x" * 16384
    while left and time.monotonic() - since < 0.5:
        room = min(client.h2.local_flow_control_window(stream), len(piece), left)
        if room:
            client.h2.send_data(stream, piece[:room])
            left -= room
            since = time.monotonic()
            client.sock.settimeout(30)
            client.flush()
            client.sock.settimeout(0.1)
            continue
        try:
            client.pump()
        except TimeoutError:
            continue
    client.sock.settimeout(30)
    return size - left


def test_many_stalled_streams_stay_within_the_connection_s_window(pair: Pair) -> None:
    """Twenty at once on one connection: still a bounded sum, and a new connection is served."""
    before = [sidecar.resident() for sidecar in sidecars(pair)]
    with H2Client((pair.host, OUTBOUND)) as client:
        streams = [client.send("/bytes?n=5000000") for _ in range(20)]
        client.hold.update(streams)
        for stream in streams:
            client.wait_head(stream)
        settled(lambda: sent(pair))
        with H2Client((pair.host, OUTBOUND)) as other:
            assert other.fetch("/x").status == 200
        grown = [s.resident() - old for s, old in zip(sidecars(pair), before, strict=True)]
        assert max(grown) < 3 * ALLOWED, grown
    idle(pair)
