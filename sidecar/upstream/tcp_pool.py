"""Opaque TCP to one endpoint: a connection of its own for each stream. Called by `endpoint.py`."""

from __future__ import annotations

from sidecar.config.resources import ClusterConfig, SocketAddress
from sidecar.net.tls import TlsParameters
from sidecar.protocol.events import Codec
from sidecar.telemetry.metrics import ClusterStats
from sidecar.upstream.client_connection import ClientConnection
from sidecar.upstream.context import ConnectionLimits, StreamWaiter, UpstreamContext


class TcpPool:
    """Not a pool of idle connections, which TCP cannot share; the counterpart of `HttpPool` all the same."""

    def __init__(
        self,
        context: UpstreamContext,
        config: ClusterConfig,
        address: SocketAddress,
        plaintext: bool,
        limits: ConnectionLimits,
        stats: ClusterStats,
    ) -> None:
        self.context = context
        self.address = address
        self.connect_timeout = config.connect_timeout
        self.source_addresses = config.source_addresses
        self._tls = None if plaintext else config.tls
        self._limits = limits
        self._stats = stats
        self._connecting: dict[ClientConnection, StreamWaiter] = {}
        self._open: set[ClientConnection] = set()

    def acquire(self, waiter: StreamWaiter) -> None:
        """Connect; `waiter.on_stream` gets a stream whose bytes are the connection's."""
        limits = self._limits
        if limits.connections >= limits.max_connections:
            waiter.on_connect_failure(
                f"{self.address}: {limits.max_connections} connections are open already "
                "(circuit breaker max_connections)",
                True,
            )
            return
        limits.connections += 1
        conn = ClientConnection(self)
        self._connecting[conn] = waiter
        conn.open()

    def cancel(self, waiter: StreamWaiter) -> None:
        """Connect no longer; no callback comes."""
        for conn, waiting in self._connecting.items():
            if waiting is waiter:
                del self._connecting[conn]
                self._limits.connections -= 1
                conn.abort()
                return

    def abort(self) -> None:
        """Drop everything: streams are reset, who waits is told."""
        for waiter in list(self._connecting.values()):
            self.cancel(waiter)
            waiter.on_connect_failure(f"no connection to {self.address}: this side is shutting down", False)
        for conn in list(self._open):
            conn.abort()

    @property
    def connections(self) -> int:
        """Open ones and those being made."""
        return len(self._open) + len(self._connecting)

    # --- what connections report -----------------------------------------------------------------

    def tls_parameters(self) -> TlsParameters | None:
        return self.context.tls.client(self._tls) if self._tls is not None else None

    def make_codec(self, conn: ClientConnection) -> Codec:
        return self.context.make_raw(conn)

    def connection_ready(self, conn: ClientConnection) -> None:
        waiter = self._connecting.pop(conn)
        self._open.add(conn)
        self._stats.connections_opened += 1
        self._stats.connections_active += 1
        waiter.on_stream(conn.codec.open_stream(waiter), conn.peer)

    def connection_failed(self, conn: ClientConnection, reason: str) -> None:
        waiter = self._connecting.pop(conn)
        self._limits.connections -= 1
        self._stats.connect_failures += 1
        waiter.on_connect_failure(reason, False)

    def connection_capacity(self, conn: ClientConnection) -> None:
        """Its one stream has ended, and the codec closes the connection."""

    def connection_retired(self, conn: ClientConnection) -> None:
        """It takes no second stream anyway."""

    def connection_lost(self, conn: ClientConnection, reason: str) -> None:
        self._open.discard(conn)
        self._limits.connections -= 1
        self._stats.connections_active -= 1

    def __repr__(self) -> str:
        return f"<TcpPool {self.address} open={len(self._open)} connecting={len(self._connecting)}>"
