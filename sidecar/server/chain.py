"""What a listener does with a secured connection: HTTP through a connection manager, or opaque TCP.

Made by `chain_factory.py` from a filter chain; a connection keeps the chain that it started with.
"""

from __future__ import annotations

import logging
from typing import Protocol as Interface

from mesh_api.names import MESH_ALPN
from sidecar.config.resources import Discovery, SocketAddress
from sidecar.http.context import HttpContext
from sidecar.net.connection import Connection
from sidecar.protocol.events import Codec, ConnectionHandler, RequestHead, Stream
from sidecar.protocol.h1 import H1ServerCodec
from sidecar.protocol.h2 import H2Options
from sidecar.protocol.raw import RawCodec
from sidecar.protocol.sniff import Protocol
from sidecar.server.callers import Callers
from sidecar.server.connection_manager import ConnectionManager
from sidecar.server.detect import DetectCodec
from sidecar.server.tcp_proxy import TcpProxy, TcpSession
from sidecar.telemetry.metrics import ListenerStats

logger = logging.getLogger(__name__)

H2_ALPN = ("h2", MESH_ALPN)


class MakeH2(Interface):
    """Makes an HTTP/2 codec; which engine is decided once, in app.py."""

    def __call__(self, client: bool, handler: ConnectionHandler, options: H2Options) -> Codec: ...


class Chain(Interface):
    def on_connection(self, conn: Connection, destination: SocketAddress | None = None) -> None:
        """A connection is secured and has no codec yet, or one that only looked at its first bytes.
        `destination`: where it was going before it was redirected; None: it was not."""

    def drain(self, final: bool) -> None:
        """As `Codec.drain`, for all connections, those that are still to come included."""

    def abort(self) -> None: ...
    @property
    def active(self) -> int:
        """Requests and TCP sessions that have not ended."""

    @property
    def connections(self) -> int:
        """Connections that are not closed, what they have written included."""


class Tunnel(Interface):
    """Takes over CONNECT requests of a forward proxy."""

    def __call__(self, chain: HttpChain, conn: Connection, stream: Stream, head: RequestHead) -> bool: ...
    def abort(self) -> None: ...
    @property
    def active(self) -> int:
        """Opaque sessions that have not ended."""


class Capture(Interface):
    """Takes over redirected connections of an outbound listener."""

    def __call__(self, chain: HttpChain, conn: Connection, destination: SocketAddress) -> None: ...


class HttpChain:
    """An HTTP connection manager and its connections."""

    def __init__(
        self,
        context: HttpContext,
        stats: ListenerStats,
        make_h2: MakeH2,
        tunnel: Tunnel | None,
        capture: Capture | None = None,
    ) -> None:
        self.context = context
        self.stats = stats
        self._make_h2 = make_h2
        self._callers = Callers(context)
        self._tunnel = tunnel
        self._capture = capture
        self.managers: set[ConnectionManager] = set()
        self._undecided: set[Connection] = set()
        self._drained: bool | None = None
        """How far draining has come: None not begun, else `final` of the last `drain`."""

    def on_connection(self, conn: Connection, destination: SocketAddress | None = None) -> None:
        codec = self.context.config.codec
        if destination is not None and self._capture is not None:
            self._capture(self, conn, destination)
        elif conn.peer.alpn in H2_ALPN or codec == "HTTP2":
            self.serve(conn, Protocol.HTTP2)
        elif conn.peer.alpn == "http/1.1" or codec == "HTTP1":
            self.serve(conn, Protocol.HTTP1)
        else:
            self.detect(conn)

    def detect(self, conn: Connection) -> None:
        """Sniff first."""

        def detected(protocol: Protocol) -> None:
            self._undecided.discard(conn)
            # What is neither preface nor request line gets HTTP/1's 400: it names the problem.
            self.serve(conn, Protocol.HTTP2 if protocol is Protocol.HTTP2 else Protocol.HTTP1)

        codec = DetectCodec(detected, lambda reason: self._undecided.discard(conn))
        self._undecided.add(conn)
        conn.set_codec(codec)
        if self.context.config.request_headers_timeout:
            context = self.context
            codec.limit(context.timeouts_of(context.config.request_headers_timeout), context.now())

    def serve(self, conn: Connection, protocol: Protocol, context: HttpContext | None = None) -> None:
        """Give the connection a codec and a manager, and a context of its own if it has one."""
        stats = self.stats
        name = protocol.name.lower()
        stats.detected[name] = stats.detected.get(name, 0) + 1
        http2 = protocol is Protocol.HTTP2
        caller = self._callers.of(conn)
        downstream = caller.downstream(conn.peer.remote, http2)
        tunnel = self._on_tunnel if self._tunnel is not None else None
        of_all = context or self.context
        manager = ConnectionManager(of_all, conn, downstream, stats, self.managers.discard, tunnel)
        self.managers.add(manager)
        if http2:
            options2 = caller.h2_options if of_all is self.context else caller.alone
            conn.set_codec(self._make_h2(False, manager, options2))
        else:
            options, heads = self._callers.h1(conn.peer.local)
            # What is made of a head once depends on the caller's identity, but not on its address.
            conn.set_codec(H1ServerCodec(manager, options, None if caller.identity else heads))
        if self._drained is not None:
            # Accepted before the listener was replaced, or in the last moment. Not now: where the codec
            # follows another it gets the connection when this call has returned.
            self.context.clock.call_later(0.0, manager.drain, self._drained)

    def _on_tunnel(self, conn: Connection, stream: Stream, head: RequestHead) -> bool:
        return self._tunnel is not None and self._tunnel(self, conn, stream, head)

    @property
    def active(self) -> int:
        tunnels = self._tunnel.active if self._tunnel is not None else 0
        return sum(len(manager.exchanges) for manager in self.managers) + tunnels

    def drain(self, final: bool) -> None:
        self._drained = final or bool(self._drained)
        for manager in list(self.managers):
            manager.drain(final)
        if final:
            for conn in list(self._undecided):
                conn.close("draining")

    def abort(self) -> None:
        for manager in list(self.managers):
            manager.abort()
        if self._tunnel is not None:
            self._tunnel.abort()

    @property
    def connections(self) -> int:
        tunnels = self._tunnel.active if self._tunnel is not None else 0
        return len(self.managers) + len(self._undecided) + tunnels

    def __repr__(self) -> str:
        return f"<HttpChain connections={len(self.managers)} active={self.active}>"


class TcpChain:
    """A TCP proxy and its sessions."""

    def __init__(self, proxy: TcpProxy) -> None:
        self.proxy = proxy
        self.stats = proxy.stats

    def on_connection(self, conn: Connection, destination: SocketAddress | None = None) -> None:
        self.serve(conn, self.dial(conn, destination)[0])

    def serve(self, conn: Connection, codec: RawCodec) -> None:
        """Join a connection with what `dial` has begun."""
        self.stats.detected["tcp"] = self.stats.detected.get("tcp", 0) + 1
        conn.set_codec(codec)

    def dial(self, conn: Connection, destination: SocketAddress | None) -> tuple[RawCodec, TcpSession]:
        """Begin the session of a connection that does not have its codec yet, and may never get it."""
        name = self.proxy.pick_cluster()
        cluster = self.proxy.clusters.get(name)
        if destination is None and cluster is not None and cluster.config.discovery is Discovery.ORIGINAL_DST:
            self.stats.not_redirected += 1
            text = "cluster %s goes by the original destination, but a connection from %s was not redirected"
            logger.warning(text, name, conn.peer.remote_text)
        codec = RawCodec(None)
        session = self.proxy.accept(codec.stream, conn.peer.remote)
        session.connect(name, destination)
        return codec, session

    @property
    def active(self) -> int:
        return len(self.proxy.sessions)

    @property
    def connections(self) -> int:
        return self.active

    def drain(self, final: bool) -> None:
        """Opaque TCP cannot be told to go: sessions last until they end or the deadline passes."""

    def abort(self) -> None:
        self.proxy.abort()

    def __repr__(self) -> str:
        return f"<TcpChain {self.proxy.config.stat_prefix} sessions={self.active}>"
