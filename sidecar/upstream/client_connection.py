"""One connection to an endpoint, from the decision to make it until it is gone.

Made by the pools, which decide what it is used for; here is only how it comes up and what state it is
in. It counts as made when the codec is ready (HTTP/2: the peer's SETTINGS have come), because a client
certificate that the peer refuses under TLS 1.3 shows up after the handshake.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Protocol, cast

from sidecar.config.resources import SocketAddress
from sidecar.identity.tls_contexts import TlsConfigError
from sidecar.net.connection import Connection
from sidecar.net.connection_types import ConnectError, Keepalive
from sidecar.net.peer import PeerInfo
from sidecar.net.tls import TlsParameters
from sidecar.protocol.events import Codec, RequestHead, Stream
from sidecar.runtime.tasks import spawn
from sidecar.upstream.context import UpstreamContext


class ConnectionState(Enum):
    CONNECTING = "connecting"
    READY = "ready"
    RETIRED = "retired"
    """Its streams finish, new ones go elsewhere."""
    CLOSED = "closed"


class ConnectionUser(Protocol):
    """The pool that a connection belongs to."""

    context: UpstreamContext
    address: SocketAddress
    connect_timeout: float
    source_addresses: tuple[str, ...]
    """As in `ClusterConfig`."""

    def tls_parameters(self) -> TlsParameters | None:
        """How to secure it, with the certificate of this moment. May raise TlsConfigError."""

    def make_codec(self, conn: ClientConnection) -> Codec:
        """TCP and TLS are up; `conn.peer` is known."""

    def connection_ready(self, conn: ClientConnection) -> None:
        """Streams may be opened."""

    def connection_failed(self, conn: ClientConnection, reason: str) -> None:
        """It never became ready; `reason` names the address. The last call about it."""

    def connection_capacity(self, conn: ClientConnection) -> None:
        """A stream has ended, or the peer takes more of them."""

    def connection_retired(self, conn: ClientConnection) -> None:
        """The peer takes no more streams on it."""

    def connection_lost(self, conn: ClientConnection, reason: str) -> None:
        """It was ready and is gone. The last call about it."""


class ClientConnection:
    """Owner of a `Connection` and handler of its codec; reports to its pool."""

    __slots__ = (
        "_connection",
        "_keepalive_timer",
        "_pool",
        "_settings_timer",
        "_task",
        "codec",
        "idle_at",
        "idle_timer",
        "listed",
        "peer",
        "remaining",
        "served",
        "state",
    )
    codec: Codec
    peer: PeerInfo

    def __init__(self, pool: ConnectionUser) -> None:
        self._pool = pool
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._settings_timer: asyncio.TimerHandle | None = None
        self._keepalive_timer: asyncio.TimerHandle | None = None
        self.state = ConnectionState.CONNECTING
        # The rest is the pool's.
        self.listed = False
        self.served = False
        self.remaining = 0
        self.idle_at = 0.0
        self.idle_timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Start connecting. `connection_ready` or `connection_failed` follows, not before this returns."""
        self._task = spawn(self._connect(), name=f"connect to {self._pool.address}")

    async def _connect(self) -> None:
        pool = self._pool
        loop = pool.context.loop
        deadline = loop.time() + pool.connect_timeout
        try:
            tls = pool.tls_parameters()
            connection = await pool.context.connect(
                loop, pool.address, self, tls, pool.connect_timeout, pool.source_addresses
            )
        except ConnectError as error:
            self._fail(error.reason)
            return
        except TlsConfigError as error:
            self._fail(self._explain(str(error)))
            return
        except BaseException as error:
            # Whatever it was, those who wait for this connection must hear of it.
            self._fail(self._explain(f"internal error: {error!r}"))
            raise
        if self.state is ConnectionState.CONNECTING:
            self._settings_timer = loop.call_at(deadline, self._on_settings_timeout)
        elif self.state is ConnectionState.CLOSED:
            connection.abort()

    def _on_settings_timeout(self) -> None:
        timeout = self._pool.connect_timeout
        self._fail(self._explain(f"connected, but no HTTP/2 SETTINGS came within {timeout:g} s"))

    def _explain(self, cause: str) -> str:
        return f"cannot connect to {self._pool.address}: {cause}"

    def _fail(self, reason: str) -> None:
        if self.state is not ConnectionState.CONNECTING:
            return
        self.state = ConnectionState.CLOSED
        self._cancel_timers()
        if self._connection is not None:
            self._connection.abort()
        self._pool.connection_failed(self, reason)

    def close(self) -> None:
        """An idle one: graceful. While connecting: give it up, no further call comes. With streams open
        these are lost, so use `retire` then."""
        if self.state is ConnectionState.CONNECTING:
            self.abort()
        elif self.state is not ConnectionState.CLOSED:
            self.state = ConnectionState.RETIRED
            self._cancel_timers()
            assert self._connection is not None
            self.codec.drain(True)
            self._connection.close()

    def abort(self) -> None:
        """Drop it now. Streams are reset; while connecting no further call comes."""
        if self.state is ConnectionState.CONNECTING:
            self.state = ConnectionState.CLOSED
            self._cancel_timers()
            if self._task is not None:
                self._task.cancel()
        if self._connection is not None:
            self._connection.abort()

    def retire(self) -> None:
        """No new streams; closes itself when the last one has ended."""
        if self.state is ConnectionState.READY:
            self.state = ConnectionState.RETIRED
            self.codec.drain(True)

    def _check_alive(self) -> None:
        """A host that is gone answers nothing, and TCP would go on asking it for a quarter of an hour."""
        codec = cast(Keepalive, self.codec)
        if codec.check_alive():
            loop = self._pool.context.loop
            self._keepalive_timer = loop.call_later(codec.keepalive_interval, self._check_alive)
        else:
            assert self._connection is not None
            reason = f"nothing came for {codec.keepalive_interval:g} s, not even an answer to PING"
            self._connection.abort(reason)

    def _cancel_timers(self) -> None:
        for timer in (self._settings_timer, self.idle_timer):
            if timer is not None:
                timer.cancel()
        self._settings_timer = self.idle_timer = None

    def _stop_keepalive(self) -> None:
        if self._keepalive_timer is not None:
            self._keepalive_timer.cancel()
            self._keepalive_timer = None

    # --- ConnectionOwner -------------------------------------------------------------------------

    def on_secured(self, conn: Connection) -> None:
        if self.state is ConnectionState.CLOSED:
            conn.abort()
            return
        self._connection = conn
        self.peer = conn.peer
        self.codec = self._pool.make_codec(self)
        conn.set_codec(self.codec)

    def on_unread(self, conn: Connection, data: bytes) -> None:
        raise AssertionError("the codec is set as soon as the connection is secured")

    def on_lost(self, conn: Connection, reason: str) -> None:
        self._fail(self._explain(reason))

    # --- ConnectionHandler -----------------------------------------------------------------------

    def on_request(self, stream: Stream, head: RequestHead, end_stream: bool) -> None:
        raise AssertionError("a client's connection receives no requests")

    def on_ready(self) -> None:
        if self.state is ConnectionState.CONNECTING:
            self.state = ConnectionState.READY
            self._cancel_timers()
            if hasattr(self.codec, "check_alive"):
                loop = self._pool.context.loop
                interval = cast(Keepalive, self.codec).keepalive_interval
                self._keepalive_timer = loop.call_later(interval, self._check_alive)
            self._pool.connection_ready(self)

    def on_capacity(self) -> None:
        if self.state is ConnectionState.READY:
            self._pool.connection_capacity(self)
        elif self.state is ConnectionState.RETIRED and not self.codec.active_streams:
            assert self._connection is not None
            self._connection.close()

    def on_goaway(self) -> None:
        if self.state is ConnectionState.READY:
            self._pool.connection_retired(self)
        elif self.state is ConnectionState.CONNECTING:
            self._fail(self._explain("the peer is going away"))

    def on_closed(self, reason: str) -> None:
        if self.state is ConnectionState.CONNECTING:
            self._fail(self._explain(reason))
        elif self.state is not ConnectionState.CLOSED:
            self.state = ConnectionState.CLOSED
            self._cancel_timers()
            self._stop_keepalive()
            self._pool.connection_lost(self, reason)

    def __repr__(self) -> str:
        return f"<ClientConnection to {self._pool.address} {self.state.value}>"
