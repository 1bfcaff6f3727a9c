"""Listeners on real loopback sockets, with chains that only count."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
import uvloop

from sidecar.config.resources import (
    FilterChainConfig,
    ListenerConfig,
    SocketAddress,
    TcpProxyConfig,
    TlsConfig,
)
from sidecar.identity.tls_contexts import TlsContexts
from sidecar.net.connection import Connection
from sidecar.net.sockets import bind_listener
from sidecar.net.tls import TlsConfigError
from sidecar.protocol.raw import RawCodec
from sidecar.runtime.tasks import spawn
from sidecar.server import listener_manager
from sidecar.server.listener_manager import ListenerManager
from sidecar.telemetry.metrics import Metrics

ENDED = asyncio.Event()
ENDED.set()


class Greeter:
    """Handler of a connection's stream: says its chain's name, then waits for the end."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class CountingChain:
    def __init__(self, config: FilterChainConfig) -> None:
        network = config.network
        assert isinstance(network, TcpProxyConfig)
        self.name = network.stat_prefix
        self.drains: list[bool] = []
        self.aborted = 0
        self.active = 0
        self.connections = 0

    def on_connection(self, conn: Connection, destination: SocketAddress | None = None) -> None:
        codec = RawCodec(None)
        codec.stream.handler = cast(Any, Greeter())
        conn.set_codec(codec)
        codec.stream.send_data(self.name.encode(), True)

    def drain(self, final: bool) -> None:
        self.drains.append(final)

    def abort(self) -> None:
        self.aborted += 1
        self.active = self.connections = 0


class Certificates:
    def __init__(self) -> None:
        self.problem = ""

    def server(self, config: TlsConfig) -> Any:
        if self.problem:
            raise TlsConfigError(self.problem)
        return None


class Setup:
    def __init__(self) -> None:
        self.chains: list[CountingChain] = []
        self.tls = Certificates()
        self.manager = ListenerManager(self._make, cast(TlsContexts, self.tls), Metrics())

    def _make(self, config: ListenerConfig, chain: FilterChainConfig) -> Any:
        self.chains.append(CountingChain(chain))
        return self.chains[-1]

    async def apply(self, *configs: ListenerConfig) -> list[str]:
        return await self.manager.apply({config.name: config for config in configs})

    def port(self, name: str = "web") -> int:
        server = self.manager.listeners[name]._servers[0]
        port: int = server.sockets[0].getsockname()[1]
        return port


def listener(says: str, name: str = "web", port: int = 0, tls: bool = False, inbound: bool = False) -> Any:
    chain = FilterChainConfig(TcpProxyConfig(says, ()), TlsConfig() if tls else None)
    return ListenerConfig(name, SocketAddress("127.0.0.1", port), (chain,), inbound=inbound)


async def ask(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def run(test: Callable[[Setup], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        setup = Setup()
        try:
            async with asyncio.timeout(10):
                await test(setup)
        finally:
            setup.manager.close()
            await asyncio.sleep(0.05)

    uvloop.run(main())


def test_an_unchanged_listener_is_left_alone() -> None:
    async def test(setup: Setup) -> None:
        assert await setup.apply(listener("one")) == []
        assert await setup.apply(listener("one")) == []
        assert len(setup.chains) == 1
        assert setup.chains[0].drains == []

    run(test)


def test_a_changed_listener_keeps_its_socket_and_drains_its_old_connections() -> None:
    async def test(setup: Setup) -> None:
        await setup.apply(listener("one"))
        port = setup.port()
        assert await ask(port) == b"one"
        await setup.apply(listener("two"))
        assert setup.port() == port
        assert await ask(port) == b"two"
        assert setup.chains[0].drains == [False]

    run(test)


def test_a_change_that_cannot_be_bound_leaves_the_old_listener_serving() -> None:
    async def test(setup: Setup) -> None:
        await setup.apply(listener("one"))
        port = setup.port()
        taken = bind_listener(SocketAddress("127.0.0.1", 0))
        with taken:
            (problem,) = await setup.apply(listener("two", port=taken.getsockname()[1]))
        assert "the address is in use" in problem
        assert await ask(port) == b"one"
        assert setup.chains[0].drains == []

    run(test)


def test_a_change_without_its_certificate_leaves_the_old_listener_serving() -> None:
    async def test(setup: Setup) -> None:
        await setup.apply(listener("one"))
        setup.tls.problem = "no certificate yet"
        assert await setup.apply(listener("two", tls=True)) == ["listener web: no certificate yet"]
        assert await ask(setup.port()) == b"one"

    run(test)


def test_a_missing_certificate_drops_a_connection_and_not_the_listener(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(setup: Setup) -> None:
        await setup.apply(listener("one", tls=True))
        setup.tls.problem = "the certificate is gone"
        for _ in range(2):
            assert await ask(setup.port()) == b""
        setup.tls.problem = ""
        assert await ask(setup.port()) == b"one"

    with caplog.at_level(logging.ERROR):
        run(test)
    assert caplog.messages[0] == "listener web drops a connection: the certificate is gone"


def test_a_removed_listener_closes_its_port_and_drains() -> None:
    async def test(setup: Setup) -> None:
        await setup.apply(listener("one"))
        port = setup.port()
        await setup.apply()
        with pytest.raises(ConnectionRefusedError):
            await ask(port)
        assert setup.chains[0].drains == [False]

    run(test)


def test_nothing_changes_once_draining_has_begun() -> None:
    async def test(setup: Setup) -> None:
        await setup.apply(listener("one"))
        await setup.manager.drain(0.0, ENDED)
        assert await setup.apply(listener("two"), listener("more", name="more")) == []
        assert len(setup.chains) == 1

    run(test)


def test_draining_announces_waits_for_what_is_in_flight_and_cuts_the_rest() -> None:
    async def test(setup: Setup) -> None:
        await setup.apply(listener("in", name="in", inbound=True), listener("out", name="out"))
        inbound, outbound = setup.chains
        inbound.active = 1
        outbound.active = 2
        assert await setup.manager.drain(0.1, ENDED) == 3
        assert (inbound.drains, outbound.drains) == ([False, True], [False, True])
        assert (inbound.aborted, outbound.aborted) == (1, 1)

    run(test)


def test_ports_stay_open_while_the_end_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects meanwhile has not heard of it yet."""
    monkeypatch.setattr(listener_manager, "ANNOUNCE", 60.0)

    async def test(setup: Setup) -> None:
        await setup.apply(listener("in", name="in", inbound=True))
        [chain] = setup.chains
        chain.active = 1
        draining = spawn(setup.manager.drain(60.0, ENDED), "drain")
        while not chain.drains:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await ask(setup.port("in")) == b"in"
        assert chain.drains == [False]
        draining.cancel()

    run(test)


def test_outbound_listeners_serve_until_the_applications_have_ended() -> None:
    async def test(setup: Setup) -> None:
        await setup.apply(listener("in", name="in", inbound=True), listener("out", name="out"))
        inbound, outbound = setup.chains
        ended = asyncio.Event()
        draining = spawn(setup.manager.drain(60.0, ended), "drain")
        while inbound.drains != [False, True]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await ask(setup.port("out")) == b"out"
        assert outbound.drains == []
        ended.set()
        assert await draining == 0
        assert outbound.drains == [False, True]

    run(test)


def test_applications_that_do_not_end_are_cut_off_at_the_deadline() -> None:
    async def test(setup: Setup) -> None:
        await setup.apply(listener("out", name="out"))
        setup.chains[0].active = 1
        assert await setup.manager.drain(0.1, asyncio.Event()) == 1
        assert (setup.chains[0].drains, setup.chains[0].aborted) == ([False, True], 1)

    run(test)


def test_connections_of_a_replaced_listener_are_drained_and_cut_with_the_others() -> None:
    async def test(setup: Setup) -> None:
        await setup.apply(listener("one"))
        setup.chains[0].active = setup.chains[0].connections = 1
        await setup.apply(listener("two"))
        await setup.apply(listener("three"))
        assert await setup.manager.drain(0.1, ENDED) == 1
        assert setup.chains[0].drains[-1] is True
        assert setup.chains[0].aborted == 1

    run(test)


def test_an_announcement_leaves_listeners_open() -> None:
    async def test(setup: Setup) -> None:
        await setup.apply(listener("one"))
        setup.manager.announce()
        assert setup.chains[0].drains == [False]
        assert await ask(setup.port()) == b"one"

    run(test)
