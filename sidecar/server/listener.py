"""A listener and its ports: accepts connections, secures them, and hands them to a filter chain.

Owned by `listener_manager.py`, which binds, replaces and closes listeners as configuration changes.
"""

from __future__ import annotations

import asyncio
import logging

from sidecar.config.resources import ListenerConfig
from sidecar.net.connection import Connection
from sidecar.net.sockets import bind_listener
from sidecar.net.tls import TlsConfigError
from sidecar.server.chain import Chain
from sidecar.server.filter_chains import FilterChains
from sidecar.server.inspection import Inspection
from sidecar.server.listener_addresses import ListenerAddresses
from sidecar.telemetry.metrics import ListenerStats

logger = logging.getLogger(__name__)


class Listener:
    """Also the `ConnectionOwner` of what it accepts where all goes to one filter chain; else each has an
    `Inspection`. `replace` changes what new connections get; those that were accepted, even if not secured
    yet, keep what was there."""

    def __init__(
        self,
        config: ListenerConfig,
        chains: FilterChains,
        stats: ListenerStats,
        addresses: ListenerAddresses,
    ) -> None:
        """`addresses`: of all listeners."""
        self.config = config
        self.chains = chains
        self.stats = stats
        self.addresses = addresses
        self.inspecting: set[Connection] = set()
        """Connections that have no filter chain yet."""
        self._servers: list[asyncio.Server] = []
        self._securing: dict[Connection, Chain] = {}

    async def bind(self) -> None:
        """Raises OSError with a text that says which listener, which address, and what to do."""
        loop = asyncio.get_running_loop()
        config = self.config
        assert config.address is not None
        try:
            for address in (config.address, *config.additional_addresses) if config.bind_to_port else ():
                sock = bind_listener(address, config.name)
                self._servers.append(await loop.create_server(self._accept, sock=sock, backlog=1024))
        except OSError:
            self.stop_accepting()
            raise

    def replace(self, config: ListenerConfig, chains: FilterChains) -> FilterChains:
        """Go on with another configuration on the same sockets, so that no connection is lost. Returns the
        chains that were there."""
        old, self.chains = self.chains, chains
        self.config = config
        return old

    def _accept(self) -> Connection:
        self.stats.connections_opened += 1
        loop = asyncio.get_running_loop()
        only = self.chains.only
        if only is None or self.config.original_dst:
            return Connection(loop, Inspection(self), None, server_side=True)
        try:
            tls = only.tls() if only.tls is not None else None
        except TlsConfigError as error:
            # Raised from here it would end accepting for good.
            logger.error("listener %s drops a connection: %s", self.config.name, error)
            conn = Connection(loop, self, None, server_side=True)
            conn.abort(str(error))
            return conn
        conn = Connection(loop, self, tls, server_side=True)
        self._securing[conn] = only.chain
        return conn

    # --- ConnectionOwner -------------------------------------------------------------------------

    def on_secured(self, conn: Connection) -> None:
        self._securing.pop(conn).on_connection(conn)

    def on_unread(self, conn: Connection, data: bytes) -> None:
        raise AssertionError("a filter chain sets a codec as soon as the connection is secured")

    def on_lost(self, conn: Connection, reason: str) -> None:
        self._securing.pop(conn, None)
        only = self.chains.only
        if only is not None and only.tls is not None:
            self.note_tls_failure(reason)

    def note_tls_failure(self, reason: str) -> None:
        """A connection ended in its handshake."""
        self.stats.tls_failures += 1
        logger.warning("listener %s: %s", self.config.name, reason)

    def stop_accepting(self) -> None:
        """Close the ports; connections stay, those that are still shaking hands too."""
        for server in self._servers:
            server.close()
        self._servers = []

    def abort(self) -> None:
        """Drop the connections that no chain has yet."""
        for conn in [*self._securing, *self.inspecting]:
            conn.abort("listener closed")

    def __repr__(self) -> str:
        state = f"{len(self._servers)} ports"
        return f"<Listener {self.config.name} {self.config.address} {state} {self.chains!r}>"
