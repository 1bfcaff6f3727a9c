"""What one connection may read in a turn of the loop: others must not wait for all that a peer has to say."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from pathlib import Path

import pytest

from sidecar.config.resources import SocketAddress
from sidecar.net import connection
from sidecar.net.connect import connect
from sidecar.net.tls import TlsSession
from sidecar.protocol.events import BULK
from tests.support.certs import make_ca
from tests.support.connections import Owner, Server, TurnCodec, client_tls, run, server_tls, until


def received_in_turns(folder: Path, record: bytes, records: int) -> list[tuple[int, int]]:
    """(turn, bytes) of each `receive` of a server whose peer has written `records` at once."""
    files = make_ca().write_files(folder, "spiffe://cluster.local/ns/shop/sa/users", ["localhost"])

    async def main() -> list[tuple[int, int]]:
        codec = TurnCodec()
        async with Server(Owner(lambda: codec), server_tls(files)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            session = TlsSession(client_tls(files), False)
            session.handshake(b"")
            writer.write(session.take_output())
            while session.handshake(await reader.read(65536)) is None:
                pass
            writer.write(session.take_output())
            await until(lambda: "start" in codec.calls)
            wire = b"".join(b"".join(session.encrypt(record)) for _ in range(records))
            codec.count_turns(len(record) * records)
            writer.write(wire)
            await until(lambda: len(codec.received) == len(record) * records, 10.0)
            assert bytes(codec.received) == record * records
            writer.close()
        return codec.sizes

    return run(main)


def test_tiny_records_are_taken_a_read_a_turn(tmp_path: Path) -> None:
    received = received_in_turns(tmp_path, b"x", 60_000)
    turns = [turn for turn, _ in received]
    assert len(set(turns)) == len(turns)
    # The first read is as large as any, the others are of 64 KiB, and may complete the record before them.
    assert max(size for _, size in received[1:]) <= 65536 // 23 + 1


def test_ordinary_records_are_taken_as_they_come(tmp_path: Path) -> None:
    received = received_in_turns(tmp_path, bytes(1000), 2000)
    assert max(size for _, size in received) > 65536


def test_a_peer_that_fills_every_read_has_four_a_turn() -> None:
    size = 32 << 20

    async def main() -> list[tuple[int, int]]:
        codec = TurnCodec()
        async with Server(Owner(lambda: codec)) as server:
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                await until(lambda: "start" in codec.calls)
                codec.count_turns(size)
                await asyncio.to_thread(sock.sendall, bytes(size))
                await until(lambda: len(codec.received) == size, 10.0)
        return codec.sizes

    reads = Counter(turn for turn, size in run(main) if size >= 65536)
    assert max(reads.values()) <= 4


class BulkCodec(TurnCodec):
    """Has more to say than is written in one turn, and then closes."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.left = parts
        self.taken: list[int] = []

    def take_output(self) -> bytes:
        if not self.left:
            return b""
        self.taken.append(self.turn)
        self.left -= 1
        self.should_close = not self.left
        return bytes(BULK)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_much_output_is_written_over_several_turns_and_all_of_it_before_the_end(
    tls: bool, tmp_path: Path
) -> None:
    files = make_ca().write_files(tmp_path, "spiffe://cluster.local/ns/shop/sa/users", ["localhost"])

    async def main() -> list[int]:
        codec, reader = BulkCodec(50), TurnCodec()
        async with Server(Owner(lambda: codec), server_tls(files) if tls else None) as server:
            address = SocketAddress("127.0.0.1", server.port)
            loop = asyncio.get_running_loop()
            codec.count_turns(1)
            await connect(loop, address, Owner(lambda: reader), client_tls(files) if tls else None, 5.0)
            await until(lambda: reader.eof, 10.0)
            assert bytes(reader.received) == bytes(50 * BULK)
            codec.received += b"x"
        return codec.taken

    assert max(Counter(run(main)).values()) <= 8


class PausingCodec(TurnCodec):
    """Wants no more, once, in the read with which its turn ends."""

    paused_at = 0

    def receive(self, data: bytes) -> None:
        super().receive(data)
        if not self.paused_at and len(data) >= 65536:
            self.paused_at = len(self.received)
            self.on_read_pause(True)


def test_a_codec_that_pauses_when_its_turn_ends_is_asked_before_more_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 32 << 20
    monkeypatch.setattr(connection, "READS_A_TURN", 1)

    async def main() -> None:
        codec = PausingCodec()
        async with Server(Owner(lambda: codec)) as server:
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                await until(lambda: "start" in codec.calls)
                sending = asyncio.get_running_loop().run_in_executor(None, sock.sendall, bytes(size))
                await until(lambda: codec.paused_at)
                await asyncio.sleep(0.05)
                assert len(codec.received) == codec.paused_at
                codec.on_read_pause(False)
                await sending
                await until(lambda: len(codec.received) == size, 10.0)

    run(main)
