"""Peers of opaque connections that vanish, or only seem to, while bytes are on their way to them."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct

import pytest

from sidecar.config.resources import SocketAddress
from sidecar.net import loop_shared, peer_watch
from sidecar.net.connect import connect
from sidecar.net.connection import Connection
from sidecar.net.loop_shared import shared_of
from tests.support.connections import HalfClosingCodec, Owner, RecordingCodec, run, until
from tests.support.netns import Namespace
from tests.support.pod_network import pod_network

SIZE = 8_000_000
"""Bytes that no socket's buffers hold."""


class OpaqueCodec(HalfClosingCodec):
    opaque = True


async def dial(codec: RecordingCodec, host: str, port: int) -> Connection:
    loop = asyncio.get_running_loop()
    return await connect(loop, SocketAddress(host, port), Owner(lambda: codec), None, 5.0)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What every look has found. They come every 20 ms; a peer is given up after 0.2 s."""
    found: list[float] = []
    unacknowledged_for = peer_watch.unacknowledged_for

    def look(sock: socket.socket) -> float:
        found.append(unacknowledged_for(sock))
        return found[-1]

    monkeypatch.setattr(loop_shared, "LOOK_INTERVAL", 0.02)
    monkeypatch.setattr(peer_watch, "GIVE_UP", 0.2)
    monkeypatch.setattr(peer_watch, "unacknowledged_for", look)
    return found


def test_a_reader_that_has_stopped_is_waited_for(looks: list[float]) -> None:
    codec = OpaqueCodec()

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            connection = await dial(codec, *listening.getsockname())
            codec.write(bytes(SIZE))
            await until(lambda: len(looks) > 20)  # twice the time after which a peer is given up
            assert codec.lost is None
            reader, _ = listening.accept()
            with reader:
                reader.setblocking(False)
                got = 0
                while got < SIZE:
                    got += len(await asyncio.get_running_loop().sock_recv(reader, 1 << 20))
                connection.abort()

    run(main)
    assert max(looks) < 0.2


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
def test_a_host_that_falls_off_the_network_is_given_up(looks: list[float]) -> None:
    codec = OpaqueCodec()

    async def main() -> None:
        with pod_network("app") as network:
            host = network.pods["app"]
            with Namespace(f"{network.mark}-app").listener(host, 8081) as listening:
                await dial(codec, host, 8081)
                with listening.accept()[0] as peer:
                    peer.sendall(b"hello")
                    await until(lambda: bytes(codec.received) == b"hello")
                    network.cut("app")
                    codec.write(b"lost")
                    await until(lambda: codec.lost is not None)

    run(main)
    assert codec.lost is not None
    assert codec.lost.startswith("the peer has vanished: it has acknowledged nothing for ")


@pytest.mark.parametrize(
    ("unacknowledged", "since_data", "since_ack", "seconds"),
    [(0, 90_000, 90_000, 0.0), (1, 90_000, 61_000, 61.0), (1, 1_000, 90_000, 1.0)],
    ids=["nothing is on its way", "silent", "only data comes"],
)
def test_silence_counts_while_something_is_unacknowledged(
    unacknowledged: int, since_data: int, since_ack: int, seconds: float
) -> None:
    class Socket:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            assert (level, option, size) == (socket.IPPROTO_TCP, socket.TCP_INFO, 60)
            return struct.pack("24x I 24x II", unacknowledged, since_data, since_ack)

    assert peer_watch.unacknowledged_for(Socket()) == seconds


def test_opaque_connections_alone_are_watched_and_only_while_they_are_open() -> None:
    async def main() -> None:
        watches = shared_of(asyncio.get_running_loop()).looks
        with socket.create_server(("127.0.0.1", 0)) as listening:
            other = await dial(RecordingCodec(), *listening.getsockname())
            assert watches.waiting == 0
            opaque = await dial(OpaqueCodec(), *listening.getsockname())
            assert watches.waiting == 1
            opaque.abort()
            other.abort()
            await until(lambda: watches.waiting == 0)

    run(main)


def test_an_opaque_peer_is_given_up_when_an_idle_one_would_be() -> None:
    assert peer_watch.GIVE_UP == 60.0
