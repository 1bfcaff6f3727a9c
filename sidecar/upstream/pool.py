"""HTTP connections to one endpoint, and the requests that wait for one.

HTTP/2 and HTTP/1.1 differ in one number: how many requests a connection that is being made will serve.
Both keep a stack of connections on which a stream may be opened; the one that became free last is used
first, so that those not needed fall idle and are closed. Called by `endpoint.py`; everything is
callbacks, a task runs only while a connection is being made.
"""

from __future__ import annotations

from collections import OrderedDict

from mesh_api.names import MESH_ALPN
from sidecar.config.resources import ClusterConfig, SocketAddress
from sidecar.net.tls import TlsParameters
from sidecar.protocol.events import Codec
from sidecar.telemetry.metrics import ClusterStats
from sidecar.upstream.client_connection import ClientConnection, ConnectionState
from sidecar.upstream.context import ConnectionLimits, StreamWaiter, UpstreamContext

DEFAULT_IDLE_TIMEOUT = ClusterConfig(name="").idle_timeout
H1_IDLE_TIMEOUT = 1.0
"""Seconds, unless the cluster sets `idle_timeout`: an idle connection must go before the application drops
it, or a request that is sent at that moment is lost."""
KEEP_ALIVE_MARGIN = 0.5
"""Seconds before the end of what the application announced in `Keep-Alive: timeout`."""


class HttpPool:
    """`address` may change (LOGICAL_DNS): connections made from then on go there."""

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
        self._config = config
        self._tls = None if plaintext else config.tls
        self.http2 = config.http2
        self._limits = limits
        self._stats = stats
        self._time = context.loop.time
        self._idle_timeout = config.idle_timeout
        if config.http2 is None and config.idle_timeout == DEFAULT_IDLE_TIMEOUT:
            self._idle_timeout = H1_IDLE_TIMEOUT
        self._usable: list[ClientConnection] = []
        self._open: set[ClientConnection] = set()
        self._connecting: set[ClientConnection] = set()
        self._pending: OrderedDict[StreamWaiter, None] = OrderedDict()
        self._draining = False
        self._aborted = False

    # --- what the endpoint calls -----------------------------------------------------------------

    def acquire(self, waiter: StreamWaiter) -> None:
        """`waiter.on_stream` at once when a connection has room; else it waits for one that has."""
        usable = self._usable
        while usable:
            conn = usable[-1]
            codec = conn.codec
            if codec.available > 0:
                stream = codec.open_stream(waiter)
                if self.http2 is None:
                    usable.pop()
                    conn.listed = False
                conn.served = True
                conn.remaining -= 1
                if conn.remaining:
                    waiter.on_stream(stream, conn.peer)
                else:  # that was its last, by max_requests_per_connection
                    self._unlist(conn)
                    waiter.on_stream(stream, conn.peer)
                    self.connection_retired(conn)
                return
            # Full: it comes back with `connection_capacity`.
            usable.pop()
            conn.listed = False
        self._wait(waiter)

    def cancel(self, waiter: StreamWaiter) -> None:
        """Wait no longer; no callback comes."""
        if waiter in self._pending:
            del self._pending[waiter]
            self._count_pending(-1)

    def drain(self) -> None:
        """The endpoint is out of use: idle connections close now, busy ones when their streams have ended.
        Who waits already, or asks nevertheless (a retry that knows the old configuration), is served."""
        self._draining = True
        for conn in list(self._open):
            if not conn.codec.active_streams:
                self._close(conn)

    def abort(self) -> None:
        """Drop everything: streams are reset, who waits is told."""
        self._draining = self._aborted = True
        for conn in list(self._connecting):
            self._connecting.discard(conn)
            self._limits.connections -= 1
            conn.abort()
        for conn in list(self._open):
            if conn.codec.active_streams:
                conn.abort()
            else:
                self._close(conn)
        self._fail_pending(f"no connection to {self.address}: this side is shutting down")

    @property
    def connections(self) -> int:
        """Open ones and those being made."""
        return len(self._open) + len(self._connecting)

    @property
    def pending(self) -> int:
        return len(self._pending)

    # --- waiting ---------------------------------------------------------------------------------

    def _wait(self, waiter: StreamWaiter) -> None:
        limits = self._limits
        if limits.pending >= limits.max_pending:
            self._stats.pending_overflow += 1
            waiter.on_connect_failure(
                f"{self.address}: {limits.max_pending} requests wait for a connection already "
                "(circuit breaker max_pending_requests)",
                True,
            )
            return
        self._pending[waiter] = None
        self._count_pending(1)
        self._grow()

    def _count_pending(self, n: int) -> None:
        self._limits.pending += n
        self._stats.pending_active += n

    def _grow(self) -> None:
        """Start the connections that the waiting requests need."""
        if self._aborted:
            self._fail_pending(f"no connection to {self.address}: this side is shutting down")
            return
        # What an HTTP/2 peer will take is not known before its SETTINGS: one at a time.
        wanted = min(len(self._pending), 1) if self.http2 is not None else len(self._pending)
        limits = self._limits
        while len(self._connecting) < wanted:
            if limits.connections >= limits.max_connections and self._has_live():
                return  # served by those it has; an endpoint without any gets one whatever the limit
            if self.http2 is not None and any(self._grants_nothing(conn) for conn in self._open):
                return  # a peer that allows no streams would otherwise get connections without end
            conn = ClientConnection(self)
            self._connecting.add(conn)
            limits.connections += 1
            conn.open()

    def _has_live(self) -> bool:
        return bool(self._connecting) or any(c.state is ConnectionState.READY for c in self._open)

    @staticmethod
    def _grants_nothing(conn: ClientConnection) -> bool:
        codec = conn.codec
        if conn.state is not ConnectionState.READY or codec.should_close:
            return False
        return not codec.active_streams and codec.available <= 0

    def _serve(self) -> None:
        """Give waiting requests the streams that are free."""
        pending = self._pending
        while pending and self._usable:
            if self._usable[-1].codec.available <= 0:
                self._usable.pop().listed = False
                continue
            waiter, _ = pending.popitem(last=False)
            self._count_pending(-1)
            self.acquire(waiter)
        if pending:
            self._grow()

    def _fail_pending(self, reason: str) -> None:
        pending = list(self._pending)
        self._pending.clear()
        self._count_pending(-len(pending))
        for waiter in pending:
            waiter.on_connect_failure(reason, False)

    # --- what connections report -----------------------------------------------------------------

    def tls_parameters(self) -> TlsParameters | None:
        return self.context.tls.client(self._tls) if self._tls is not None else None

    def make_codec(self, conn: ClientConnection) -> Codec:
        if self.http2 is None:
            return self.context.make_h1(conn)
        return self.context.make_h2(conn, self.http2, trusted_peer=conn.peer.alpn == MESH_ALPN)

    def connection_ready(self, conn: ClientConnection) -> None:
        self._connecting.discard(conn)
        self._open.add(conn)
        self._stats.connections_opened += 1
        self._stats.connections_active += 1
        conn.remaining = self._config.max_requests_per_connection
        self.connection_capacity(conn)

    def connection_failed(self, conn: ClientConnection, reason: str) -> None:
        self._connecting.discard(conn)
        self._limits.connections -= 1
        self._stats.connect_failures += 1
        if not self._connecting:
            self._fail_pending(reason)

    def connection_capacity(self, conn: ClientConnection) -> None:
        if not conn.listed:
            conn.listed = True
            self._usable.append(conn)
        if self._pending:
            self._serve()
        if not conn.codec.active_streams:
            self._on_idle(conn)

    def connection_retired(self, conn: ClientConnection) -> None:
        self._unlist(conn)
        conn.retire()
        if self._pending:
            self._grow()

    def connection_lost(self, conn: ClientConnection, reason: str) -> None:
        self._open.discard(conn)
        self._unlist(conn)
        self._limits.connections -= 1
        self._stats.connections_active -= 1
        if not self._pending:
            return
        if conn.served or self._connecting:
            self._grow()
        else:
            # It came up, served nobody and went: trying at once again would go on for ever.
            self._fail_pending(f"{self.address} closed the connection before it took a request: {reason}")

    def _unlist(self, conn: ClientConnection) -> None:
        if conn.listed:
            conn.listed = False
            self._usable.remove(conn)

    # --- idle connections ------------------------------------------------------------------------

    def _on_idle(self, conn: ClientConnection) -> None:
        """No stream is open. A timer once armed is left alone and looks again when it fires, so that a
        busy connection costs no timer a request."""
        if conn.state is not ConnectionState.READY:
            return
        timeout = self._idle_timeout
        if self.http2 is None:
            announced: float | None = getattr(conn.codec, "keep_alive_timeout", None)
            if announced is not None:
                allowed = max(announced - KEEP_ALIVE_MARGIN, 0.0)
                timeout = min(timeout, allowed) if timeout else allowed
                if not timeout:
                    self._close(conn)
                    return
        if self._draining:
            self._close(conn)
        elif timeout:
            conn.idle_at = self._time() + timeout
            timer = conn.idle_timer
            if timer is None or timer.when() > conn.idle_at:
                if timer is not None:
                    timer.cancel()
                conn.idle_timer = self.context.loop.call_at(conn.idle_at, self._on_idle_timer, conn)

    def _on_idle_timer(self, conn: ClientConnection) -> None:
        conn.idle_timer = None
        if conn.codec.active_streams:
            return  # armed again when it falls idle
        if self._time() < conn.idle_at:
            conn.idle_timer = self.context.loop.call_at(conn.idle_at, self._on_idle_timer, conn)
        else:
            self._close(conn)

    def _close(self, conn: ClientConnection) -> None:
        self._unlist(conn)
        conn.close()

    def __repr__(self) -> str:
        return (
            f"<HttpPool {self.address} open={len(self._open)} connecting={len(self._connecting)} "
            f"pending={len(self._pending)}{' draining' if self._draining else ''}>"
        )
