"""Our gRPC client against grpcio's server, over real sockets and TLS."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sidecar.config.resources import SocketAddress
from sidecar.net.grpc_client import GrpcChannel, GrpcError
from sidecar.net.tls import TlsParameters
from tests.support.certs import make_ca
from tests.support.connections import client_tls, run
from tests.support.grpc_server import grpc_server

ECHO = "/test.Echo/Unary"
STREAM = "/test.Echo/Stream"


def _channel(port: int, tls: TlsParameters | None = None) -> GrpcChannel:
    address = SocketAddress("127.0.0.1", port)
    make = None if tls is None else lambda: tls
    return GrpcChannel(asyncio.get_running_loop(), [address], "control-plane:15010", make)


def _call(port: int, request: bytes, timeout: float = 5.0) -> bytes:
    async def main() -> bytes:
        channel = _channel(port)
        try:
            return await channel.unary(ECHO, request, timeout=timeout)
        finally:
            await channel.close()

    return run(main)


def _error(port: int, request: bytes = b"", timeout: float = 5.0) -> GrpcError:
    with pytest.raises(GrpcError) as caught:
        _call(port, request, timeout)
    return caught.value


def test_unary_call_over_tls_carries_metadata(tmp_path: Path) -> None:
    ca = make_ca()
    files = ca.write_files(tmp_path, dns=["localhost"])
    seen: dict[str, str] = {}

    def echo(request: bytes, context: Any) -> bytes:
        seen.update(context.invocation_metadata())
        assert 3.0 < context.time_remaining() <= 5.0
        return request[::-1]

    async def main(port: int) -> bytes:
        channel = _channel(port, client_tls(files, sni="localhost"))
        reply = await channel.unary(ECHO, b"abc", [(b"authorization", b"Bearer token")], timeout=5.0)
        await channel.close()
        return reply

    with grpc_server({ECHO: echo}, tls=ca.issue(dns=["localhost"])) as port:
        assert run(lambda: main(port)) == b"cba"
    assert seen["authorization"] == "Bearer token"


def test_messages_larger_than_every_window_pass_both_ways() -> None:
    with grpc_server({ECHO: lambda request, _: request * 2}) as port:
        assert _call(port, b"x" * 1_900_000) == b"x" * 3_800_000


def test_message_over_the_limit_is_refused() -> None:
    with grpc_server({ECHO: lambda *_: b"x" * (16 * 1024 * 1024 + 1)}) as port:
        error = _error(port)
    assert (error.code, error.message) == (
        8,
        f"127.0.0.1:{port}: received a message of 16777217 bytes; the limit is 16777216",
    )


def test_status_and_message_of_the_server_are_raised_decoded() -> None:
    def fail(_: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "nicht für dich: 100%")
        raise AssertionError

    with grpc_server({ECHO: fail}) as port:
        error = _error(port)
    assert (error.code, error.message) == (7, f"127.0.0.1:{port}: nicht für dich: 100%")


def test_unknown_method_is_unimplemented() -> None:
    with grpc_server() as port:
        assert _error(port).code == 12


def test_deadline_is_kept_and_reaches_the_server() -> None:
    cancelled = threading.Event()

    def hang(_: bytes, context: Any) -> bytes:
        context.add_callback(cancelled.set)
        cancelled.wait(30)
        return b""

    with grpc_server({ECHO: hang}) as port:
        error = _error(port, timeout=0.2)
        assert cancelled.wait(20)
    assert error.code == 4


def test_refused_connection_is_unavailable_and_names_the_address() -> None:
    error = _error(1)
    assert (error.code, error.message) == (14, "cannot connect to 127.0.0.1:1: connection refused")


def test_next_address_is_tried_when_the_first_is_dead() -> None:
    async def main(port: int) -> bytes:
        addresses = [SocketAddress("127.0.0.1", 1), SocketAddress("127.0.0.1", port)]
        channel = GrpcChannel(asyncio.get_running_loop(), addresses, "any", None)
        reply = await channel.unary(ECHO, b"a", timeout=5.0)
        await channel.close()
        return reply

    with grpc_server({ECHO: lambda request, _: request}) as port:
        assert run(lambda: main(port)) == b"a"


def test_stream_carries_messages_both_ways_until_cancelled() -> None:
    ended = threading.Event()

    def echo(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.add_callback(ended.set)
        for request in requests:
            yield request + b"!"

    async def main(port: int) -> None:
        channel = _channel(port)
        stream = await channel.stream(STREAM)
        for word in (b"one", b"two"):
            stream.send(word)
            assert await anext(stream) == word + b"!"
        stream.cancel()
        with pytest.raises(GrpcError) as caught:
            await anext(stream)
        assert caught.value.code == 1
        await asyncio.to_thread(ended.wait, 15)
        await channel.close()

    with grpc_server(streams={STREAM: echo}) as port:
        run(lambda: main(port))
        assert ended.is_set()


def test_stream_ends_when_the_server_ends_it_well() -> None:
    async def main(port: int) -> list[bytes]:
        channel = _channel(port)
        stream = await channel.stream(STREAM)
        messages = [message async for message in stream]
        await channel.close()
        return messages

    with grpc_server(streams={STREAM: lambda *_: iter([b"a", b"", b"b" * 100_000])}) as port:
        assert run(lambda: main(port)) == [b"a", b"", b"b" * 100_000]


def test_unread_messages_hold_the_server_back_and_lose_nothing() -> None:
    sent = [0]

    def flood(*_: Any) -> Iterator[bytes]:
        for number in range(400):
            sent[0] = number
            yield number.to_bytes(2, "big") * 8192

    async def main(port: int) -> None:
        channel = _channel(port)
        stream = await channel.stream(STREAM)
        await asyncio.sleep(0.5)
        assert sent[0] < 300  # 4.7 MB; 1 MiB may wait here, the rest in the two sockets and grpcio
        numbers = [int.from_bytes(message[:2], "big") async for message in stream]
        assert numbers == list(range(400))
        await channel.close()

    with grpc_server(streams={STREAM: flood}) as port:
        run(lambda: main(port))


def test_calls_fail_with_unavailable_when_the_server_goes_and_work_when_it_is_back() -> None:
    async def main() -> None:
        with grpc_server({ECHO: lambda request, _: request}, {STREAM: lambda requests, _: requests}) as port:
            channel = _channel(port)
            stream = await channel.stream(STREAM)
            stream.send(b"a")
            assert await anext(stream) == b"a"
        with pytest.raises(GrpcError) as caught:
            await anext(stream)
        assert caught.value.code in (1, 14)  # grpcio resets its calls with CANCEL before it closes
        with pytest.raises(GrpcError) as caught:
            await channel.unary(ECHO, b"", timeout=10.0)
        assert caught.value.code == 14
        with grpc_server({ECHO: lambda request, _: request}) as port:
            channel = _channel(port)
            assert await channel.unary(ECHO, b"again", timeout=10.0) == b"again"
            await channel.close()

    run(main)
