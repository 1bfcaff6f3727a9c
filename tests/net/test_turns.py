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
from sidecar.protocol.events import BULK, RequestHead, ResponseHead, Stream
from sidecar.protocol.h1 import H1Options, H1ServerCodec
from tests.support.certs import make_ca
from tests.support.codec_events import ConnectionLog
from tests.support.connections import (
    HalfClosingCodec,
    Owner,
    RecordingCodec,
    Server,
    TurnCodec,
    client_tls,
    run,
    server_tls,
    until,
)


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


def test_a_peer_that_has_ended_its_half_gets_all_of_the_output() -> None:
    async def main() -> None:
        codec, reader = BulkCodec(50), TurnCodec()
        async with Server(Owner(lambda: codec)) as server:
            address = SocketAddress("127.0.0.1", server.port)
            client = await connect(asyncio.get_running_loop(), address, Owner(lambda: reader), None, 5.0)
            client.write_eof()
            await until(lambda: reader.eof, 10.0)
            assert len(reader.received) == 50 * BULK

    run(main)


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


class BehindCodec(RecordingCodec):
    """Takes a byte of what it received in each later turn."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.left = 0
        self._fails = fails

    @property
    def behind(self) -> bool:
        return self.left > 0

    def receive(self, data: bytes) -> None:
        super().receive(data)
        self.left += len(data)

    def catch_up(self) -> None:
        if self._fails:
            raise ValueError("a bug")
        self.left -= 1
        self.calls.append("caught up")

    def drain(self, final: bool) -> None:
        self.calls.append("drained")

    def connection_lost(self, reason: str) -> None:
        super().connection_lost(reason)
        self.calls.append("lost")


def test_a_codec_that_is_behind_catches_up_without_further_input() -> None:
    async def main() -> None:
        codec = BehindCodec()
        async with Server(Owner(lambda: codec)) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(bytes(30))
            await until(lambda: codec.calls.count("caught up") == 30)
            writer.close()

    run(main)


def test_what_servers_have_said_before_their_connection_broke_is_taken_what_clients_have_is_not() -> None:
    async def main() -> None:
        asked, answered = BehindCodec(), BehindCodec()
        async with Server(Owner(lambda: asked)) as server:
            loop = asyncio.get_running_loop()
            address = SocketAddress("127.0.0.1", server.port)
            ours = await connect(loop, address, Owner(lambda: answered), None, 5.0)
            await until(lambda: asked.calls)
            for connection, codec in ((server.connections[0], asked), (ours, answered)):
                codec.left = 30
                connection.abort()
            await until(lambda: asked.lost and answered.lost)
        assert asked.calls == ["start", "lost"]
        assert answered.calls == ["start", "drained", *["caught up"] * 30, "lost"]

    run(main)


def test_a_codec_that_fails_in_a_later_turn_ends_its_connection() -> None:
    async def main() -> None:
        codec = BehindCodec(fails=True)
        errors: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with Server(Owner(lambda: codec)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert codec.lost == "internal error"
            assert [str(error["exception"]) for error in errors] == ["a bug"]

    run(main)


def test_a_codec_that_fails_when_its_connection_breaks_hears_of_that() -> None:
    async def main() -> None:
        codec = BehindCodec(fails=True)
        errors: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with Server(Owner(RecordingCodec)) as server:
            address = SocketAddress("127.0.0.1", server.port)
            ours = await connect(asyncio.get_running_loop(), address, Owner(lambda: codec), None, 5.0)
            codec.left = 1
            ours.abort()
            await until(lambda: codec.lost)
            assert [str(error["exception"]) for error in errors] == ["a bug"]

    run(main)


def test_a_codec_that_takes_over_in_a_later_turn_keeps_the_connection() -> None:
    chunks = (
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"1\r\nx\r\n" * 2500
        + b"0\r\n\r\n"
    )
    connect_ahead = b"CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n\r\nahead"

    async def main() -> None:
        echo = HalfClosingCodec(echo=True)

        def on_request(stream: Stream, head: RequestHead) -> None:
            if head.method == b"CONNECT":
                server.connections[0].set_codec(echo)
            else:
                stream.send_response(ResponseHead(204), True)

        owner = Owner(lambda: H1ServerCodec(ConnectionLog(on_request), H1Options()))
        async with Server(owner) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(chunks + connect_ahead)
            answer = await reader.readuntil(b"ahead")
            assert answer.startswith(b"HTTP/1.1 204 ")
            writer.write(b" and more")
            await reader.readuntil(b" and more")
            writer.close()

    run(main)
