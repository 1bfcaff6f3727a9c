"""What a filter chain makes of who calls: identity, what the application is told of it, a codec's options.

Used by `chain.py` for every connection, and remembered: callers come back. What the codecs remember of heads
is shared by connections whose heads mean the same, down to the caller's identity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mesh_api.names import MESH_ALPN
from sidecar.config.resources import ClientCert, Http2Options, SocketAddress
from sidecar.http.context import Downstream, HttpContext
from sidecar.net.connection import Connection
from sidecar.protocol.events import Field
from sidecar.protocol.h1 import H1Options
from sidecar.protocol.h1_wire import ParsedRequest
from sidecar.protocol.h2 import H2Options
from sidecar.protocol.hpack import HeaderBlock

MAX_CALLERS = 64
_MAX_H1_ADDRESSES = 16
"""Addresses of this listener whose heads are remembered; captured traffic may have very many."""


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


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever has shown one certificate, or none."""

    identity: str
    client_cert: tuple[Field, ...]
    keep_client_cert: bool
    h2_options: H2Options
    alone: H2Options
    """The same for connections that share nothing: each has a destination of its own, and equal octets mean
    something else on it."""

    def downstream(self, remote: tuple[str, int], http2: bool) -> Downstream:
        """One of its connections."""
        return Downstream(
            http2,
            "HTTP/2" if http2 else "HTTP/1.1",
            remote,
            self.identity,
            self.client_cert,
            self.keep_client_cert,
            http2 and bool(self.identity),
        )


class Callers:
    def __init__(self, context: HttpContext) -> None:
        self._context = context
        self._header_limit = context.config.max_request_headers_kb * 1024 or context.header_limit
        self._known: dict[tuple[str, str, bool], Caller] = {}
        self._h1: dict[tuple[str, int], tuple[H1Options, dict[bytes, ParsedRequest]]] = {}

    def of(self, conn: Connection) -> Caller:
        """Whose connection it is."""
        trusted = conn.peer.alpn == MESH_ALPN
        key = (conn.peer.cert_sha256, conn.local_identity, trusted)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MAX_CALLERS:
                self._known.clear()
            known = self._known[key] = self._new(conn, trusted)
        return known

    def _new(self, conn: Connection, trusted: bool) -> Caller:
        peer, config = conn.peer, self._context.config
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
        options = h2_options(
            config.http2,
            self._header_limit,
            config.max_headers_count,
            trusted,
            self._context.in_mesh,
            common_blocks={},
        )
        return Caller(identity, added, keep, options, replace(options, common_blocks=None))

    def h1(self, local: tuple[str, int]) -> tuple[H1Options, dict[bytes, ParsedRequest]]:
        """Options of HTTP/1 connections to this address, and heads that those without an identity share."""
        known = self._h1.get(local)
        if known is None:
            options = H1Options(
                max_header_bytes=self._header_limit,
                max_header_count=self._context.config.max_headers_count,
                default_authority=str(SocketAddress(*local)).encode(),
            )
            if len(self._h1) >= _MAX_H1_ADDRESSES:
                self._h1.clear()
            known = self._h1[local] = (options, {})
        return known

    def __repr__(self) -> str:
        return f"<Callers known={len(self._known)}>"
