"""A bound port: accepts connections, secures them, and hands them to the filter chain.

Owned by `listener_manager.py`, which binds, replaces and closes listeners as configuration changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sidecar.config.resources import ListenerConfig
from sidecar.net.connection import Connection
from sidecar.net.sockets import bind_listener
from sidecar.net.tls import TlsConfigError, TlsParameters
from sidecar.server.chain import Chain
from sidecar.telemetry.metrics import ListenerStats

logger = logging.getLogger(__name__)


class Listener:
    """Also the `ConnectionOwner` of what it accepts. `replace` changes what new connections get; those that
    were accepted, even if not secured yet, keep what was there."""

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
        self._securing: dict[Connection, Chain] = {}

    async def bind(self) -> None:
        """Raises OSError with a text that says which listener, which address, and what to do."""
        loop = asyncio.get_running_loop()
        assert self.config.address is not None
        sock = bind_listener(self.config.address, self.config.name)
        self._server = await loop.create_server(self._accept, sock=sock, backlog=1024)

    def replace(self, config: ListenerConfig, chain: Chain, tls: Callable[[], TlsParameters] | None) -> Chain:
        """Go on with another configuration on the same socket, so that no connection is lost. Returns the
        chain that was there."""
        old, self.chain = self.chain, chain
        self.config = config
        self._tls = tls
        return old

    def _accept(self) -> Connection:
        self.stats.connections_opened += 1
        loop = asyncio.get_running_loop()
        try:
            tls = self._tls() if self._tls is not None else None
        except TlsConfigError as error:
            # Raised from here it would end accepting for good.
            logger.error("listener %s drops a connection: %s", self.config.name, error)
            conn = Connection(loop, self, None, server_side=True)
            conn.abort(str(error))
            return conn
        conn = Connection(loop, self, tls, server_side=True)
        self._securing[conn] = self.chain
        return conn

    # --- ConnectionOwner -------------------------------------------------------------------------

    def on_secured(self, conn: Connection) -> None:
        self._securing.pop(conn).on_connection(conn)

    def on_unread(self, conn: Connection, data: bytes) -> None:
        raise AssertionError("a filter chain sets a codec as soon as the connection is secured")

    def on_lost(self, conn: Connection, reason: str) -> None:
        self._securing.pop(conn, None)
        if self._tls is not None:
            self.stats.tls_failures += 1
            logger.warning("listener %s: %s", self.config.name, reason)

    def stop_accepting(self) -> None:
        """Close the port; connections stay, those that are still shaking hands too."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def abort(self) -> None:
        """Drop the connections that no chain has yet."""
        for conn in list(self._securing):
            conn.abort("listener closed")

    def __repr__(self) -> str:
        state = "bound" if self._server is not None else "closed"
        return f"<Listener {self.config.name} {self.config.address} {state} {self.chain!r}>"
