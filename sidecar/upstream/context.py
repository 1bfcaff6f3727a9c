"""What all clusters share: the loop, counters, certificates, and how connections and codecs are made.

Made once by `ClusterManager`. Tests put an in-memory `connect` and codecs in place of the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from sidecar.config.resources import Http2Options, SocketAddress, TlsConfig
from sidecar.net.connection import Connection
from sidecar.net.connection_types import ConnectionOwner
from sidecar.net.peer import PeerInfo
from sidecar.net.tls import TlsParameters
from sidecar.protocol.events import Codec, ConnectionHandler, Stream, StreamHandler
from sidecar.telemetry.metrics import Metrics


class StreamWaiter(StreamHandler, Protocol):
    """Who asks an endpoint for a stream, and then handles it. Told apart by identity, so it must hash."""

    def on_stream(self, stream: Stream, peer: PeerInfo) -> None:
        """A stream on a ready connection; its handler is the waiter, which must now send its request."""

    def on_connect_failure(self, reason: str, overflow: bool) -> None:
        """No connection could be made (connect, TLS, time-out, no SETTINGS), or, with `overflow`, a
        circuit breaker said no. `reason` names the address."""


class Connect(Protocol):
    """`sidecar.net.connection.connect`; raises ConnectError."""

    async def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: SocketAddress,
        owner: ConnectionOwner,
        tls: TlsParameters | None,
        timeout: float,  # noqa: ASYNC109 (as in the function that this describes)
        sources: tuple[str, ...] = (),
    ) -> Connection: ...


class ClientTls(Protocol):
    """The part of `TlsContexts` that is needed here. Raises TlsConfigError when a certificate is missing."""

    def client(self, config: TlsConfig) -> TlsParameters: ...


MakeCodec = Callable[[ConnectionHandler], Codec]


class MakeH2(Protocol):
    """Makes a client-side HTTP/2 codec; `trusted_peer`: the other end is a sidecar of the mesh."""

    def __call__(self, handler: ConnectionHandler, options: Http2Options, trusted_peer: bool) -> Codec: ...


@dataclass(frozen=True, slots=True)
class UpstreamContext:
    loop: asyncio.AbstractEventLoop
    metrics: Metrics
    tls: ClientTls
    random: Random
    connect: Connect
    make_h2: MakeH2
    make_h1: MakeCodec
    make_raw: MakeCodec


class ConnectionLimits:
    """Connections and waiting requests of one cluster, over all its endpoints, and their circuit breakers."""

    __slots__ = ("connections", "max_connections", "max_pending", "pending")

    def __init__(self, max_connections: int, max_pending: int) -> None:
        self.max_connections = max_connections
        self.max_pending = max_pending
        self.connections = 0
        """Open ones and those being made."""
        self.pending = 0

    def __repr__(self) -> str:
        return (
            f"<ConnectionLimits connections={self.connections}/{self.max_connections} "
            f"pending={self.pending}/{self.max_pending}>"
        )
