"""What a listener does with a secured connection: HTTP through a connection manager, or opaque TCP.

Made by `chain_factory.py` from a filter chain; a connection keeps the chain that it started with.
"""

from __future__ import annotations

import logging
from typing import Protocol as Interface

from mesh_api.names import MESH_ALPN
from sidecar.config.resources import ClientCert, Discovery, Http2Options, SocketAddress
from sidecar.http.context import Downstream, HttpContext
from sidecar.net.connection import Connection
from sidecar.protocol.events import Codec, ConnectionHandler, Field, RequestHead, Stream
from sidecar.protocol.h1 import H1Options, H1ServerCodec
from sidecar.protocol.h1_wire import ParsedRequest
from sidecar.protocol.h2 import H2Options
from sidecar.protocol.hpack import HeaderBlock
from sidecar.protocol.raw import RawCodec
from sidecar.protocol.sniff import Protocol
from sidecar.server.connection_manager import ConnectionManager
from sidecar.server.detect import DetectCodec
from sidecar.server.tcp_proxy import TcpProxy, TcpSession
from sidecar.telemetry.metrics import ListenerStats

logger = logging.getLogger(__name__)

H2_ALPN = ("h2", MESH_ALPN)
_MAX_H1_ADDRESSES = 16
"""Addresses of this listener whose heads are remembered; captured traffic may have very many."""


_MAX_CALLERS = 64
"""Identities whose header blocks are remembered."""


class MakeH2(Interface):
    """Makes an HTTP/2 codec; which engine is decided once, in app.py."""

    def __call__(self, client: bool, handler: ConnectionHandler, options: H2Options) -> Codec: ...


def h2_options(
    options: Http2Options,
    max_header_bytes: int = 65536,
    max_header_count: int = 100,
    trusted_peer: bool = False,
    extended_connect: bool = False,
    common_blocks: dict[bytes, HeaderBlock] | None = None,
) -> H2Options:
    """A codec's options from configuration."""
    return H2Options(
        max_concurrent_streams=options.max_concurrent_streams,
        initial_stream_window_size=options.initial_stream_window_size,
        initial_connection_window_size=options.initial_connection_window_size,
        max_frame_size=options.max_frame_size,
        max_header_bytes=max_header_bytes,
        max_header_count=max_header_count,
        enable_connect_protocol=extended_connect or options.allow_connect,
        keepalive_interval=options.keepalive_interval,
        trusted_peer=trusted_peer,
        common_blocks=common_blocks,
    )


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
        self._header_limit = context.config.max_request_headers_kb * 1024 or context.header_limit
        self._tunnel = tunnel
        self._capture = capture
        self.managers: set[ConnectionManager] = set()
        self._undecided: set[Connection] = set()
        self._h2: dict[tuple[str, tuple[Field, ...], bool], H2Options] = {}
        self._h1: dict[tuple[str, int], tuple[H1Options, dict[bytes, ParsedRequest]]] = {}
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

        codec = DetectCodec(self.context.clock, detected, lambda reason: self._undecided.discard(conn))
        self._undecided.add(conn)
        conn.set_codec(codec)
        if self.context.config.request_headers_timeout:
            codec.limit(self.context.config.request_headers_timeout)

    def serve(self, conn: Connection, protocol: Protocol, context: HttpContext | None = None) -> None:
        """Give the connection a codec and a manager, and a context of its own if it has one."""
        context = context or self.context
        stats = self.stats
        name = protocol.name.lower()
        stats.detected[name] = stats.detected.get(name, 0) + 1
        http2 = protocol is Protocol.HTTP2
        downstream = self._downstream(conn, http2)
        tunnel = self._on_tunnel if self._tunnel is not None else None
        manager = ConnectionManager(context, conn, downstream, stats, self.managers.discard, tunnel)
        self.managers.add(manager)
        if http2:
            options2 = self._h2_options(downstream, conn.peer.alpn == MESH_ALPN)
            conn.set_codec(self._make_h2(False, manager, options2))
        else:
            options, heads = self._h1_options(conn.peer.local)
            # What is made of a head once depends on the caller's identity, but not on its address.
            conn.set_codec(H1ServerCodec(manager, options, None if downstream.peer else heads))
        if self._drained is not None:
            # Accepted before the listener was replaced, or in the last moment. Not now: where the codec
            # follows another it gets the connection when this call has returned.
            self.context.clock.call_later(0.0, manager.drain, self._drained)

    def _h2_options(self, downstream: Downstream, trusted: bool) -> H2Options:
        """Options of connections from this caller, and the header blocks that they share."""
        caller = (downstream.peer, downstream.client_cert, trusted)
        known = self._h2.get(caller)
        if known is None:
            config = self.context.config
            known = h2_options(
                config.http2,
                self._header_limit,
                config.max_headers_count,
                trusted,
                self.context.in_mesh,
                common_blocks={},
            )
            if len(self._h2) >= _MAX_CALLERS:
                self._h2.clear()
            self._h2[caller] = known
        return known

    def _h1_options(self, local: tuple[str, int]) -> tuple[H1Options, dict[bytes, ParsedRequest]]:
        """Options of connections to this address, and the heads that they share."""
        known = self._h1.get(local)
        if known is None:
            config = self.context.config
            options = H1Options(
                max_header_bytes=self._header_limit,
                max_header_count=config.max_headers_count,
                default_authority=str(SocketAddress(*local)).encode(),
            )
            if len(self._h1) >= _MAX_H1_ADDRESSES:
                self._h1.clear()
            known = self._h1[local] = (options, {})
        return known

    def _downstream(self, conn: Connection, http2: bool) -> Downstream:
        peer = conn.peer
        config = self.context.config
        mode = config.client_cert
        identity = peer.uri_sans[0] if peer.uri_sans else ""
        added: tuple[Field, ...] = ()
        if identity and mode in (ClientCert.SANITIZE_SET, ClientCert.APPEND_FORWARD):
            value = f"By={conn.local_identity};Hash={peer.cert_sha256}"
            if config.client_cert_uri:
                value += f";URI={identity}"
            added = ((b"x-forwarded-client-cert", value.encode()),)
        keep = mode is ClientCert.ALWAYS_FORWARD_ONLY or (
            bool(identity) and mode in (ClientCert.FORWARD_ONLY, ClientCert.APPEND_FORWARD)
        )
        return Downstream(
            http2=http2,
            protocol="HTTP/2" if http2 else "HTTP/1.1",
            remote=peer.remote,
            peer=identity,
            client_cert=added,
            keep_client_cert=keep,
            trusted=http2 and bool(identity),
        )

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
