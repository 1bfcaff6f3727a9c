"""All listeners of the sidecar: builds their filter chains, binds them, replaces and drains them.

Called by app.py with the static listeners and by discovery with the others. A listener whose configuration
has not changed is left alone; a changed one takes new connections at once while its old connections are
drained in two phases, and lose nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from sidecar.config.resources import ListenerConfig
from sidecar.identity.tls_contexts import TlsContexts
from sidecar.net.tls import TlsParameters
from sidecar.server.chain import Chain
from sidecar.server.listener import Listener
from sidecar.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

ANNOUNCE = 1.0
"""Seconds between the two GOAWAYs: more than a round trip, so that streams on their way are served."""


class ListenerManager:
    """`make_chain` turns a listener's configuration into what serves its connections."""

    def __init__(
        self, make_chain: Callable[[ListenerConfig], Chain], tls: TlsContexts, metrics: Metrics
    ) -> None:
        self._make_chain = make_chain
        self._tls = tls
        self._metrics = metrics
        self.listeners: dict[str, Listener] = {}
        self._retired: list[Chain] = []
        self.draining = False

    async def apply(self, configs: Mapping[str, ListenerConfig]) -> list[str]:
        """Make these the listeners that exist. Returns what went wrong, a text each; the others are up."""
        for name in [n for n in self.listeners if n not in configs]:
            logger.info("listener %s removed", name)
            self._retire(self.listeners.pop(name))
        problems = []
        for name, config in configs.items():
            old = self.listeners.get(name)
            if old is not None and old.config == config:
                continue
            try:
                await self._replace(old, config)
            except (OSError, ValueError) as error:
                problems.append(f"listener {name}: {error}")
        return problems

    async def _replace(self, old: Listener | None, config: ListenerConfig) -> None:
        chain = self._make_chain(config)
        tls = self._tls_of(config)
        if old is not None and old.config.address == config.address:
            old.stop_accepting()
        listener = Listener(config, chain, self._metrics.listener(config.name), tls)
        await listener.bind()
        logger.info("listener %s bound to %s", config.name, config.address)
        self.listeners[config.name] = listener
        if old is not None:
            self._retire(old)

    def _tls_of(self, config: ListenerConfig) -> Callable[[], TlsParameters] | None:
        tls = config.filter_chains[0].tls
        if tls is None:
            return None
        self._tls.server(tls)  # fails here, before the port is bound, when a file is missing or wrong
        return lambda: self._tls.server(tls)

    def _retire(self, listener: Listener) -> None:
        """Old connections finish what they do; new ones go to the successor."""
        listener.stop_accepting()
        chain = listener.chain
        chain.drain(final=False)
        self._retired.append(chain)
        asyncio.get_running_loop().call_later(ANNOUNCE, self._retire_finally, chain)

    def _retire_finally(self, chain: Chain) -> None:
        chain.drain(final=True)
        self._retired.remove(chain)

    # --- the end of the process ------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Requests and TCP sessions in flight."""
        return sum(chain.active for chain in self._chains())

    def _chains(self) -> list[Chain]:
        return [listener.chain for listener in self.listeners.values()] + self._retired

    async def drain(self, deadline: float) -> int:
        """Inbound listeners first, then the others, so that the application can make calls until its last
        request is answered. Each announces, then refuses and waits for what is in flight. What is left
        after `deadline` seconds is cut; returns how many requests and sessions that were."""
        self.draining = True
        end = asyncio.get_running_loop().time() + deadline
        listeners = list(self.listeners.values())
        for inbound in (True, False):
            group = [listener for listener in listeners if listener.config.inbound is inbound]
            if group:
                await self._drain_group(group, self._retired if inbound else [], end)
        left = self.active
        for chain in self._chains():
            chain.abort()
        return left

    async def _drain_group(self, listeners: list[Listener], retired: list[Chain], end: float) -> None:
        loop = asyncio.get_running_loop()
        chains = [listener.chain for listener in listeners] + retired
        for chain in chains:
            chain.drain(final=False)
        await asyncio.sleep(max(0.0, min(ANNOUNCE, (end - loop.time()) / 2)))
        for listener in listeners:
            listener.stop_accepting()
        for chain in chains:
            chain.drain(final=True)
        while any(chain.active for chain in chains) and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # for some seconds, once in a process' life

    def __repr__(self) -> str:
        return f"<ListenerManager {list(self.listeners.values())!r} draining={self.draining}>"
