"""The driver over real sockets, plain and with TLS: half-close, closing, back-pressure, codec swaps."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Generic, TypeVar

import pytest

from sidecar.config.resources import SocketAddress
from sidecar.net.connect import connect
from sidecar.net.connection import Connection
from sidecar.net.connection_types import ConnectError
from sidecar.net.tls import TlsParameters
from tests.support.certs import make_ca
from tests.support.connections import (
    HalfClosingCodec,
    Owner,
    RecordingCodec,
    Server,
    client_tls,
    run,
    server_tls,
    until,
)

IDENTITY = "spiffe://cluster.local/ns/shop/sa/users"


C = TypeVar("C", bound=RecordingCodec)


class Pair(Generic[C]):
    """Two connected ends with recording codecs."""

    def __init__(self, tls: bool, directory: Path, make_codec: type[C], echo: bool = False) -> None:
        files = make_ca().write_files(directory, IDENTITY) if tls else None
        self.client, self.server = make_codec(), make_codec(echo)
        self.listener = Server(Owner(lambda: self.server), server_tls(files) if files else None)
        self._tls = client_tls(files) if files else None

    async def __aenter__(self) -> Pair[C]:
        await self.listener.__aenter__()
        self.client_connection = await dial(self.listener, Owner(lambda: self.client), self._tls)
        await until(lambda: self.listener.connections[0].codec)
        self.server_connection = self.listener.connections[0]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.client_connection.abort()
        await self.listener.__aexit__()


async def dial(server: Server, owner: Owner, tls: TlsParameters | None = None) -> Connection:
    address = SocketAddress("127.0.0.1", server.port)
    return await connect(asyncio.get_running_loop(), address, owner, tls, 5.0)


both = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@both
def test_large_messages_come_back_whole(tls: bool, tmp_path: Path) -> None:
    data = bytes(range(256)) * 8000

    async def main() -> None:
        async with Pair(tls, tmp_path, RecordingCodec, echo=True) as pair:
            pair.client.write(data)
            await until(lambda: len(pair.client.received) >= len(data))
            assert bytes(pair.client.received) == data

    run(main)


@both
def test_half_close_ends_one_direction_and_leaves_the_other(tls: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async with Pair(tls, tmp_path, HalfClosingCodec) as pair:
            pair.client.write(b"question")
            pair.client.want_eof = True
            await until(lambda: pair.server.eof)
            assert bytes(pair.server.received) == b"question"
            pair.server.write(b"x" * 300_000)
            await until(lambda: len(pair.client.received) == 300_000)
            assert not pair.client.eof
            pair.server.want_eof = True
            pair.server.on_output()
            await until(lambda: pair.client.eof)
            assert (pair.client.lost, pair.server.lost) == (None, None)

    run(main)


@both
def test_close_delivers_what_was_written_before(tls: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async with Pair(tls, tmp_path, RecordingCodec) as pair:
            pair.client.write(b"unread " * 1000)  # input that a plain close would answer with a reset
            pair.server.write(b"last words")
            pair.server.should_close = True
            await until(lambda: pair.client.lost is not None and pair.server.lost is not None)
            assert bytes(pair.client.received) == b"last words"
            assert pair.client.lost == "peer closed the connection"

    run(main)


@both
def test_abort_resets_the_peer(tls: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async with Pair(tls, tmp_path, RecordingCodec) as pair:
            pair.server_connection.abort("policy")
            await until(lambda: pair.client.lost and pair.server.lost)
            assert (pair.client.lost, pair.server.lost) == ("connection reset by peer", "policy")

    run(main)


@both
def test_codec_that_asks_for_abort_is_reset_not_closed(tls: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async with Pair(tls, tmp_path, RecordingCodec) as pair:
            pair.server.abort = True  # type: ignore[attr-defined]
            pair.server.should_close = True
            pair.server.on_output()
            await until(lambda: pair.client.lost)
            assert pair.client.lost == "connection reset by peer"

    run(main)


@both
def test_slow_reader_pauses_the_writer_and_resumes_it(tls: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async with Pair(tls, tmp_path, RecordingCodec) as pair:
            pair.server.on_read_pause(True)
            written = 0
            while not pair.client.paused:
                pair.client.write(b"x" * 65536)
                pair.client_connection.flush()
                written += 65536
                assert written < 50_000_000
                await asyncio.sleep(0)
            held = len(pair.server.received)
            await asyncio.sleep(0.05)
            assert len(pair.server.received) == held
            pair.server.on_read_pause(False)
            await until(lambda: not pair.client.paused)
            await until(lambda: len(pair.server.received) == written)
            assert pair.client.calls == ["start", "pause", "resume"]

    run(main)


def test_peer_that_never_reads_is_given_up_after_close(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sidecar.net.loop_shared.LINGER_INTERVAL", 0.02)

    async def main() -> None:
        async with Pair(False, tmp_path, RecordingCodec) as pair:
            pair.server.on_read_pause(True)
            while not pair.client.paused:
                pair.client.write(b"x" * 65536)
                pair.client_connection.flush()
                await asyncio.sleep(0)
            pair.client_connection.close()
            await until(lambda: pair.client.lost)

    run(main)


def test_output_of_one_loop_turn_is_written_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with Pair(False, tmp_path, RecordingCodec) as pair:
            takes: list[bytes] = []
            take = pair.client.take_output
            pair.client.take_output = lambda: takes.append(data := take()) or data  # type: ignore[method-assign,func-returns-value]
            for word in (b"a", b"b", b"c"):
                pair.client.write(word)
            await until(lambda: len(pair.server.received) == 3)
            assert takes == [b"abc"]

    run(main)


def test_bytes_before_a_codec_are_kept_for_it() -> None:
    async def main() -> None:
        owner, late = Owner(), RecordingCodec()
        async with Server(owner) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GE")
            await until(lambda: owner.unread)
            writer.write(b"T /")
            await until(lambda: len(owner.unread) == 2)
            assert owner.unread == [b"GE", b"GET /"]
            server.connections[0].set_codec(late)
            assert bytes(late.received) == b"GET /"
            writer.close()
            await until(lambda: late.eof)

    run(main)


def test_peer_that_leaves_before_a_codec_is_reported_to_the_owner() -> None:
    async def main() -> None:
        owner = Owner()
        async with Server(owner) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await until(lambda: owner.secured)
            writer.close()
            await until(lambda: owner.lost)
            assert owner.lost == ["peer closed the connection"]

    run(main)


def test_unread_bytes_are_bounded() -> None:
    async def main() -> None:
        owner = Owner()
        async with Server(owner) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"x" * 20_000_000)
            await until(lambda: owner.unread and len(owner.unread[-1]) >= 65536)
            await asyncio.sleep(0.1)
            assert 65536 <= len(server.connections[0].take_unread()) <= 65536 + 262144
            writer.transport.abort()

    run(main)


@both
def test_codec_swapped_in_mid_receive_gets_the_leftover_after_the_old_ones_output(
    tls: bool, tmp_path: Path
) -> None:
    async def main() -> None:
        async with Pair(tls, tmp_path, RecordingCodec) as pair:
            opaque = RecordingCodec()

            class Upgrading(RecordingCodec):
                def receive(self, data: bytes) -> None:
                    opaque.write(b"B")
                    pair.server_connection.set_codec(opaque)
                    self.write(b"A")  # after the swap was asked for, and still first on the wire
                    self.received += data

                def take_leftover(self) -> bytes:
                    return bytes(self.received[7:])

            pair.server_connection.set_codec(Upgrading())
            pair.client.write(b"upgradepayload")
            await until(lambda: len(pair.client.received) == 2)
            assert bytes(pair.client.received) == b"AB"
            assert bytes(opaque.received) == b"payload"
            assert pair.server_connection.codec is opaque

    run(main)


def test_error_in_a_codec_ends_its_own_connection_alone(tmp_path: Path) -> None:
    async def main() -> list[str]:
        errors: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, c: errors.append(repr(c.get("exception"))))

        class Broken(RecordingCodec):
            def receive(self, data: bytes) -> None:
                if data == b"bad":
                    raise ZeroDivisionError("bug")
                super().receive(data)

        codecs: list[Broken] = []

        def make() -> Broken:
            codecs.append(Broken(echo=True))
            return codecs[-1]

        async with Server(Owner(make)) as server:
            reader1, writer1 = await asyncio.open_connection("127.0.0.1", server.port)
            reader2, writer2 = await asyncio.open_connection("127.0.0.1", server.port)
            writer1.write(b"bad")
            await until(lambda: any(codec.lost for codec in codecs))
            writer2.write(b"good")
            assert await reader2.readexactly(4) == b"good"
            assert await reader1.read() == b""
            writer1.close()
            writer2.close()
        return errors

    assert run(main) == ["ZeroDivisionError('bug')"]


def test_connect_names_address_and_stage() -> None:
    async def attempt(host: str, port: int) -> ConnectError:
        loop = asyncio.get_running_loop()
        with pytest.raises(ConnectError) as caught:
            await connect(loop, SocketAddress(host, port), Owner(), None, 15.0)
        return caught.value

    refused = run(lambda: attempt("127.0.0.1", 1))
    assert (refused.stage, refused.reason) == ("tcp", "cannot connect to 127.0.0.1:1: connection refused")
    # Of a form that no resolver sends anywhere: the test needs no name server.
    unknown = run(lambda: attempt("no such host", 80))
    assert unknown.stage == "dns"
    assert unknown.reason.startswith("cannot connect to no such host:80: ")


def test_connect_gives_up_on_a_silent_server(tmp_path: Path) -> None:
    files = make_ca().write_files(tmp_path, IDENTITY)

    async def main() -> None:
        owner = Owner()
        async with Server(Owner()) as server:  # accepts, and never answers the TLS hello
            address = SocketAddress("127.0.0.1", server.port)
            with pytest.raises(ConnectError) as caught:
                await connect(asyncio.get_running_loop(), address, owner, client_tls(files), 0.1)
            text = f"cannot connect to {address}: the TLS handshake took more than 0.1 s"
            assert (caught.value.stage, caught.value.reason) == ("timeout", text)
            assert owner.lost == []

    run(main)


def test_small_writes_are_not_delayed_by_the_kernel(tmp_path: Path) -> None:
    async def main() -> None:
        async with Pair(False, tmp_path, RecordingCodec) as pair:
            for connection in (pair.client_connection, pair.server_connection):
                assert connection._transport is not None
                sock = connection._transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1

    run(main)


def test_reset_by_the_peer_is_named() -> None:
    async def main() -> None:
        codec = RecordingCodec()
        async with Server(Owner(lambda: codec)) as server:
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                await until(lambda: codec.calls)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await until(lambda: codec.lost)
            assert codec.lost == "connection reset by peer"

    run(main)


def test_a_codec_that_fails_on_what_was_read_before_it_ends_its_connection() -> None:
    class Broken(RecordingCodec):
        def receive(self, data: bytes) -> None:
            raise RuntimeError("a bug")

    async def main() -> None:
        owner = Owner()
        async with Server(owner) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"early")
            await until(lambda: owner.unread)
            codec = Broken()
            with pytest.raises(RuntimeError):
                server.connections[0].set_codec(codec)
            await until(lambda: codec.lost == "internal error")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(main)
