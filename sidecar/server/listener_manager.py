"""All listeners of the sidecar: builds their filter chains, binds them, replaces and drains them.

Called by app.py with the static listeners and by discovery with the others. A listener whose configuration
has not changed is left alone; a changed one takes new connections at once while its old connections are
drained in two phases, and lose nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from sidecar.config.resources import FilterChainConfig, ListenerConfig
from sidecar.identity.tls_contexts import TlsContexts
from sidecar.net.tls import TlsConfigError
from sidecar.server.chain import Chain
from sidecar.server.connection_manager import ANNOUNCE
from sidecar.server.filter_chains import FilterChain, FilterChains
from sidecar.server.listener import Listener
from sidecar.server.listener_addresses import ListenerAddresses
from sidecar.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

FLUSH = 2.0
"""Seconds, at least, for connections to close and what they have written to leave."""


class ListenerManager:
    """`make_chain` turns a filter chain's configuration into what serves its connections."""

    def __init__(
        self,
        make_chain: Callable[[ListenerConfig, FilterChainConfig], Chain],
        tls: TlsContexts,
        metrics: Metrics,
    ) -> None:
        self._make_chain = make_chain
        self._tls = tls
        self._metrics = metrics
        self.listeners: dict[str, Listener] = {}
        self.addresses = ListenerAddresses()
        self._retired: list[FilterChains] = []
        self.draining = False

    async def apply(self, configs: Mapping[str, ListenerConfig]) -> list[str]:
        """Make these the listeners that exist. Returns what went wrong, a text each; the others are up, and
        where a change failed the old one is. Once draining has begun nothing changes any more."""
        if self.draining:
            return []
        for name in [n for n in self.listeners if n not in configs]:
            logger.info("listener %s removed", name)
            listener = self.listeners.pop(name)
            listener.stop_accepting()
            self._retire(listener.chains)
        problems = []
        for name, config in configs.items():
            old = self.listeners.get(name)
            if old is not None and old.config == config:
                continue
            try:
                await self._replace(old, config)
            except (OSError, ValueError, TlsConfigError) as error:
                problems.append(f"listener {name}: {error}")
        self.addresses.update(self.listeners.values())
        return problems

    async def _replace(self, old: Listener | None, config: ListenerConfig) -> None:
        """Whatever fails here leaves the old one as it is."""
        chains = self._make_chains(config)
        if old is not None and _ports(old.config) == _ports(config):
            self._retire(old.replace(config, chains))
            logger.info("listener %s changed", config.name)
            return
        stats = self._metrics.listener(config.direction, config.name)
        listener = Listener(config, chains, stats, self.addresses)
        await listener.bind()
        if self.draining:
            listener.stop_accepting()
            return
        logger.info(
            "listener %s %s %s", config.name, "bound to" if config.bind_to_port else "for", config.address
        )
        self.listeners[config.name] = listener
        if old is not None:
            old.stop_accepting()
            self._retire(old.chains)

    def _make_chains(self, config: ListenerConfig) -> FilterChains:
        default = config.default_filter_chain
        return FilterChains(
            [self._make_one(config, each) for each in config.filter_chains],
            self._make_one(config, default) if default is not None else None,
        )

    def _make_one(self, config: ListenerConfig, chain: FilterChainConfig) -> FilterChain:
        made = self._make_chain(config, chain)
        tls = chain.tls
        if tls is None:
            return FilterChain(made, None, chain.match)
        self._tls.server(tls)  # fails here, before the port is bound, when a file is missing or wrong
        return FilterChain(made, lambda: self._tls.server(tls), chain.match)

    def _retire(self, chains: FilterChains) -> None:
        """Old connections finish what they do; new ones go to the successor."""
        self._retired = [old for old in self._retired if old.connections]
        self._retired.append(chains)
        chains.drain(final=False)
        asyncio.get_running_loop().call_later(ANNOUNCE, chains.drain, True)

    # --- the end of the process ------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Requests and TCP sessions in flight."""
        return sum(chain.active for chain in self._chains())

    def _chains(self) -> list[FilterChains]:
        return [listener.chains for listener in self.listeners.values()] + self._retired

    def announce(self) -> None:
        """Tell all clients to go elsewhere soon, and go on serving those who stay or come nevertheless."""
        for chain in self._chains():
            chain.drain(final=False)

    async def drain(self, deadline: float, ended: asyncio.Event) -> int:
        """Inbound listeners first, then, when the applications have `ended`, the others, so that these can
        make calls until their last request is answered. Each announces, then refuses and waits for what is
        in flight. What is left after `deadline` seconds is cut; returns how many requests and sessions that
        were."""
        self.draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        listeners = list(self.listeners.values())
        retired = list(self._retired)
        for inbound in (True, False):
            if not inbound and not ended.is_set():
                logger.info(
                    "inbound listeners have drained; the others stay until the applications have ended"
                )
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(end):
                        await ended.wait()
            group = [listener for listener in listeners if listener.config.inbound is inbound]
            if group or retired:
                await self._drain_group(group, retired, end)
                retired = []
        left = self.active
        for listener in listeners:
            listener.abort()
        chains = self._chains()
        for chain in chains:
            chain.abort()
        # The last bytes are on their way from the sockets' buffers.
        end = max(end, loop.time() + FLUSH)
        while any(chain.connections for chain in chains) and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return left

    async def _drain_group(self, listeners: list[Listener], retired: list[FilterChains], end: float) -> None:
        loop = asyncio.get_running_loop()
        chains = [listener.chains for listener in listeners] + retired
        for chain in chains:
            chain.drain(final=False)
        await asyncio.sleep(max(0.0, min(ANNOUNCE, (end - loop.time()) / 2)))
        for listener in listeners:
            listener.stop_accepting()
        for chain in chains:
            chain.drain(final=True)
        while any(chain.active for chain in chains) and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # for some seconds, once in a process' life

    def close(self) -> None:
        """Close all ports and connections at once."""
        self.draining = True
        for listener in self.listeners.values():
            listener.stop_accepting()
            listener.abort()
        for chain in self._chains():
            chain.abort()

    def __repr__(self) -> str:
        return f"<ListenerManager {list(self.listeners.values())!r} draining={self.draining}>"


def _ports(config: ListenerConfig) -> tuple[object, ...]:
    """What its sockets are made of."""
    return config.bind_to_port, config.address, config.additional_addresses
