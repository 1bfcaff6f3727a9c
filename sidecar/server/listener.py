"""A bound port: accepts connections, secures them, and hands them to the filter chain.

Owned by `snapshot.py`, which binds, replaces and closes listeners as configuration changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sidecar.config.resources import ListenerConfig
from sidecar.net.connection import Connection
from sidecar.net.sockets import bind_listener
from sidecar.net.tls import TlsParameters
from sidecar.server.chain import Chain
from sidecar.telemetry.metrics import ListenerStats

logger = logging.getLogger(__name__)


class Listener:
    """Also the `ConnectionOwner` of what it accepts. `chain` may be replaced: connections keep theirs."""

    def __init__(
        self,
        config: ListenerConfig,
        chain: Chain,
        stats: ListenerStats,
        tls: Callable[[], TlsParameters] | None,
    ) -> None:
        self.config = config
        self.chain = chain
        self.stats = stats
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._securing: set[Connection] = set()

    async def bind(self) -> None:
        """Raises OSError with a text that says which listener, which address, and what to do."""
        loop = asyncio.get_running_loop()
        assert self.config.address is not None
        sock = bind_listener(self.config.address, self.config.name)
        self._server = await loop.create_server(self._accept, sock=sock, backlog=1024)

    def _accept(self) -> Connection:
        stats = self.stats
        stats.connections_opened += 1
        tls = self._tls() if self._tls is not None else None
        conn = Connection(asyncio.get_running_loop(), self, tls, server_side=True)
        self._securing.add(conn)
        return conn

    # --- ConnectionOwner -------------------------------------------------------------------------

    def on_secured(self, conn: Connection) -> None:
        self._securing.discard(conn)
        self.chain.on_connection(conn)

    def on_unread(self, conn: Connection, data: bytes) -> None:
        raise AssertionError("a filter chain sets a codec as soon as the connection is secured")

    def on_lost(self, conn: Connection, reason: str) -> None:
        self._securing.discard(conn)
        if self._tls is not None:
            self.stats.tls_failures += 1
            logger.warning("listener %s: %s", self.config.name, reason)

    def stop_accepting(self) -> None:
        """Close the port; connections stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for conn in list(self._securing):
            conn.abort("listener closed")

    def __repr__(self) -> str:
        state = "bound" if self._server is not None else "closed"
        return f"<Listener {self.config.name} {self.config.address} {state} {self.chain!r}>"
