"""How a listener with several filter chains tells its connections apart, on loopback and without rules."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from mesh_api.names import MESH_ALPN
from sidecar.config.resources import (
    FilterChainConfig,
    FilterChainMatch,
    ListenerConfig,
    SocketAddress,
    TcpProxyConfig,
    TlsConfig,
)
from sidecar.identity.tls_contexts import TlsContexts
from sidecar.net.connection import Connection
from sidecar.protocol.raw import RawCodec
from sidecar.runtime.tasks import spawn
from sidecar.server import inspection
from sidecar.server.listener_manager import ListenerManager
from sidecar.telemetry.metrics import Metrics
from tests.support.certs import make_ca
from tests.support.connections import until

SILENCE = 0.1


class Sink:
    """Handler of a connection's stream: answers its chain's name and all that came, at a full stop or at the
    client's end."""

    def __init__(self, name: str, codec: RawCodec) -> None:
        self.stream = codec.stream
        self.got = name.encode() + b":"

    def on_data(self, data: bytes, end_stream: bool) -> None:
        self.got += data
        self.stream.consume(len(data))
        if end_stream or data.endswith(b"."):
            self.stream.send_data(self.got, True)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Chain:
    active = connections = 0

    def __init__(self, config: FilterChainConfig) -> None:
        assert isinstance(config.network, TcpProxyConfig)
        self.name = config.network.stat_prefix

    def on_connection(self, conn: Connection, destination: SocketAddress | None = None) -> None:
        codec = RawCodec(None)
        codec.stream.handler = Sink(self.name, codec)  # type: ignore[assignment]
        conn.set_codec(codec)

    def drain(self, final: bool) -> None: ...

    def abort(self) -> None: ...


class Rig:
    def __init__(self, directory: Path) -> None:
        ca = make_ca()
        files = ca.write_files(directory, "spiffe://cluster.local/ns/a/sa/b", name="server")
        self.tls = TlsConfig(files.certificate, files.private_key, alpn=("mesh",))
        self.metrics = Metrics()
        self.manager = ListenerManager(self._make, TlsContexts({}), self.metrics)

    def _make(self, config: ListenerConfig, chain: FilterChainConfig) -> Any:
        return Chain(chain)

    async def listen(self, default: bool = True, continues: bool = True, **more: Any) -> tuple[str, int]:
        """Chain `mesh` for TLS with ALPN `mesh`, chain `plain` for the rest."""
        match = FilterChainMatch(transport_protocol="tls", application_protocols=("mesh",))
        config = ListenerConfig(
            "in",
            SocketAddress("127.0.0.1", 0),
            (FilterChainConfig(TcpProxyConfig("mesh", ()), self.tls, match),),
            default_filter_chain=FilterChainConfig(TcpProxyConfig("plain", ())) if default else None,
            inspect_tls=True,
            listener_filters_timeout=SILENCE,
            continue_on_timeout=continues,
            **more,
        )
        assert await self.manager.apply({"in": config}) == []
        address: tuple[str, int] = self.manager.listeners["in"]._servers[0].sockets[0].getsockname()
        return address

    @property
    def stats(self) -> Any:
        return self.metrics.listener("outbound", "in")


def run(
    directory: Path,
    test: Callable[[Rig], Coroutine[Any, Any, None]],
    make: Callable[[Path], Rig] = Rig,
) -> None:
    async def main() -> None:
        rig = make(directory)
        try:
            async with asyncio.timeout(10):
                await test(rig)
        finally:
            rig.manager.close()
            await asyncio.sleep(0.05)

    uvloop.run(main())


async def call(address: tuple[str, int], *parts: bytes, delay: float = 0.0) -> bytes:
    """Sends the parts, ends its half, and reads all."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        for part in parts:
            await asyncio.sleep(delay)
            writer.write(part)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()


async def call_tls(address: tuple[str, int], *alpn: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(alpn))
    reader, writer = await asyncio.open_connection(*address, ssl=context)
    try:
        writer.write(b"hi.")
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("parts", [(b"GET",), (b"\x00", b"\x16"), (b"\x16\x02",), ()])
def test_plain_bytes_go_to_the_default_chain_all_of_them(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    async def test(rig: Rig) -> None:
        assert await call(await rig.listen(), *parts) == b"plain:" + b"".join(parts)

    run(tmp_path, test)


def test_a_client_that_ends_in_the_middle_of_its_hello_is_plain(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert await call(await rig.listen(), HELLO_START) == b"plain:" + HELLO_START

    run(tmp_path, test)


def test_tls_with_the_protocol_of_the_mesh_is_ended_here(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        address = await rig.listen()
        assert await call_tls(address, "mesh") == b"mesh:hi."
        assert await call_tls(address, "other", "mesh") == b"mesh:hi."

    run(tmp_path, test)


def test_other_tls_goes_to_the_default_chain_as_it_came(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        hello = _hello("other")
        assert await call(await rig.listen(), hello[:9], hello[9:]) == b"plain:" + hello

    run(tmp_path, test)


def test_silence_decides_nothing_where_the_client_has_the_first_word(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        address = await rig.listen()
        assert await call(address, HELLO_START, b"x", delay=2 * SILENCE) == b"plain:" + HELLO_START + b"x"
        assert rig.stats.detect_timeouts == 1

    run(tmp_path, test)


def test_silence_ends_the_connection_where_the_configuration_says_so(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        reader, writer = await asyncio.open_connection(*await rig.listen(continues=False))
        assert await reader.read() == b""
        writer.close()
        assert rig.stats.detect_timeouts == 1

    run(tmp_path, test)


def test_what_no_chain_takes_is_closed_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(rig: Rig) -> None:
        address = await rig.listen(default=False)
        assert await call(address, b"GET") == b""
        with pytest.raises(OSError):
            await call_tls(address, "other")
        assert rig.stats.no_filter_chain_match == 2

    with caplog.at_level(logging.WARNING):
        run(tmp_path, test)
    assert [message.rpartition(": ")[2] for message in caplog.messages] == [
        "no filter chain takes plain text",
        "no filter chain takes TLS with ALPN other",
    ]


def test_a_failed_handshake_is_counted(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        hello = _hello("mesh")
        reader, writer = await asyncio.open_connection(*await rig.listen())
        writer.write(hello)
        await reader.read(1)
        writer.write(b"this is no record")
        await reader.read()
        writer.close()
        assert rig.stats.tls_failures == 1

    run(tmp_path, test)


def test_closing_the_listener_cuts_connections_that_have_no_chain_yet(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        reader, writer = await asyncio.open_connection(*await rig.listen())
        await asyncio.sleep(0.02)
        rig.manager.close()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()

    run(tmp_path, test)


def test_a_listener_has_all_its_addresses_or_none(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        host, port = await rig.listen(additional_addresses=(SocketAddress("127.0.0.2", 0),))
        servers = rig.manager.listeners["in"]._servers
        assert [server.sockets[0].getsockname()[0] for server in servers] == ["127.0.0.1", "127.0.0.2"]
        for server in servers:
            assert await call(server.sockets[0].getsockname(), b"x") == b"plain:x"
        taken = ListenerConfig(
            "other",
            SocketAddress("127.0.0.3", port),
            (FilterChainConfig(TcpProxyConfig("plain", ())),),
            additional_addresses=(SocketAddress(host, port),),
        )
        kept = rig.manager.listeners["in"].config
        [problem] = await rig.manager.apply({"in": kept, "other": taken})
        assert "the address is in use" in problem
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.3", port)

    run(tmp_path, test)


def test_a_listener_without_a_port_is_found_by_its_address(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        chain = FilterChainConfig(TcpProxyConfig("plain", ()))
        configs = [
            ListenerConfig("one", SocketAddress("10.0.0.1", 80), (chain,), bind_to_port=False),
            ListenerConfig("all", SocketAddress("0.0.0.0", 81), (chain,), bind_to_port=False),
            ListenerConfig("all6", SocketAddress("::", 81), (chain,), bind_to_port=False),
        ]
        assert await rig.manager.apply({config.name: config for config in configs}) == []

        def found(host: str, port: int) -> str | None:
            listener = rig.manager.addresses.find(SocketAddress(host, port))
            return listener.config.name if listener is not None else None

        assert found("10.0.0.1", 80) == "one"
        assert found("10.0.0.2", 80) is None
        assert (found("10.0.0.2", 81), found("fd00::1", 81)) == ("all", "all6")
        await rig.manager.apply({})
        assert found("10.0.0.1", 80) is None

    run(tmp_path, test)


class Early(Rig):
    """Listener `catch-all`, to which all connections were redirected on their way to `DESTINATION`."""

    DESTINATION = SocketAddress("10.0.0.9", 80)

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(directory)
        host, port = self.DESTINATION.host, self.DESTINATION.port
        patch.setattr(Connection, "original_destination", lambda conn: (host, port))
        self.catch_all = ListenerConfig(
            "catch-all",
            SocketAddress("127.0.0.1", 0),
            (FilterChainConfig(TcpProxyConfig("passed", ())),),
            original_dst=True,
            hand_off=True,
            inspect_tls=True,
        )

    async def listen(self, default: bool = True, continues: bool = True, **more: Any) -> tuple[str, int]:
        assert await self.manager.apply({"catch-all": self.catch_all}) == []
        listener = self.manager.listeners["catch-all"]
        address: tuple[str, int] = listener._servers[0].sockets[0].getsockname()
        return address

    async def tell(self) -> None:
        """Of the listener for the destination, which takes the mesh alone."""
        match = FilterChainMatch(transport_protocol="tls", application_protocols=(MESH_ALPN,))
        tls = replace(self.tls, alpn=(MESH_ALPN,))
        chain = FilterChainConfig(TcpProxyConfig("told", ()), tls, match)
        told = ListenerConfig("told", self.DESTINATION, (chain,), bind_to_port=False, inspect_tls=True)
        assert await self.manager.apply({"catch-all": self.catch_all, "told": told}) == []

    @property
    def waiting(self) -> int:
        return len(self.manager.addresses._waiting)

    def assert_settled(self) -> None:
        assert self.waiting == 0
        assert not any(listener.inspecting for listener in self.manager.listeners.values())


def run_early(
    directory: Path, patch: pytest.MonkeyPatch, test: Callable[[Early], Coroutine[Any, Any, None]]
) -> None:
    run(directory, lambda rig: test(cast(Early, rig)), lambda directory: Early(directory, patch))


def test_a_mesh_peer_waits_for_the_listener_of_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(rig: Early) -> None:
        address = await rig.listen()
        calls = [spawn(call_tls(address, MESH_ALPN, "h2"), "call") for _ in range(3)]
        await until(lambda: rig.waiting == 3)
        await rig.tell()
        assert await asyncio.gather(*calls) == [b"told:hi."] * 3
        assert rig.metrics.listener("outbound", "told").connections_opened == 3
        rig.assert_settled()

    run_early(tmp_path, monkeypatch, test)


def test_a_listener_that_has_come_before_the_hello_takes_a_mesh_peer_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(rig: Early) -> None:
        reader, writer = await asyncio.open_connection(*await rig.listen())
        await until(lambda: rig.manager.listeners["catch-all"].inspecting)
        await rig.tell()
        writer.write(_hello(MESH_ALPN))
        answer = await reader.read(6)
        writer.close()
        assert (answer[:1], answer[5:]) == (b"\x16", b"\x02")  # a ServerHello
        assert rig.waiting == 0
        assert not rig.manager.listeners["catch-all"].inspecting

    run_early(tmp_path, monkeypatch, test)


def test_other_listeners_that_come_meanwhile_are_none_of_its_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(rig: Early) -> None:
        waits = spawn(call_tls(await rig.listen(), MESH_ALPN), "call")
        await until(lambda: rig.waiting == 1)
        other = ListenerConfig("other", SocketAddress("10.0.0.9", 81), (), bind_to_port=False)
        assert await rig.manager.apply({"catch-all": rig.catch_all, "other": other}) == []
        assert rig.waiting == 1
        await rig.tell()
        assert await waits == b"told:hi."

    run_early(tmp_path, monkeypatch, test)


@pytest.mark.parametrize("alpn", ["h2", "http/1.1"])
def test_tls_of_others_waits_for_no_listener(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alpn: str
) -> None:
    async def test(rig: Early) -> None:
        hello = _hello(alpn)
        assert await call(await rig.listen(), hello) == b"passed:" + hello

    run_early(tmp_path, monkeypatch, test)


def test_a_mesh_peer_for_whom_no_listener_comes_is_closed_counted_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inspection, "LISTENER_WAIT", 0.1)

    async def test(rig: Early) -> None:
        with pytest.raises(OSError):
            await call_tls(await rig.listen(), MESH_ALPN)
        assert rig.metrics.listener("outbound", "catch-all").no_filter_chain_match == 1
        await rig.tell()
        rig.assert_settled()

    with caplog.at_level(logging.WARNING):
        run_early(tmp_path, monkeypatch, test)
    [message] = caplog.messages
    assert message.endswith(" to 10.0.0.9:80: no Service and no container port that discovery knows is there")


@pytest.mark.parametrize("half", [True, False])
def test_a_mesh_peer_that_leaves_while_it_waits_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    async def test(rig: Early) -> None:
        reader, writer = await asyncio.open_connection(*await rig.listen())
        writer.write(_hello(MESH_ALPN))
        await until(lambda: rig.waiting == 1)
        if half:
            writer.write_eof()
            assert await reader.read() == b""
        writer.close()
        await until(lambda: rig.waiting == 0)
        await rig.tell()
        await until(lambda: not rig.manager.listeners["catch-all"].inspecting)
        assert rig.metrics.listener("outbound", "told").connections_opened == 0
        rig.assert_settled()

    run_early(tmp_path, monkeypatch, test)


def _hello(alpn: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_alpn_protocols([alpn])
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


HELLO_START = _hello("mesh")[:20]
