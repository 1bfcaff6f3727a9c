"""CONNECT requests to the outbound listener: what HTTP_PROXY makes gRPC and HTTPS clients send.

The tunnel is answered at once; `tunnel.py` finds out what it carries.
"""

from __future__ import annotations

from sidecar.net.connection import Connection
from sidecar.protocol.events import RequestHead, ResponseHead, Stream
from sidecar.protocol.h1 import H1ServerCodec
from sidecar.server.chain import HttpChain
from sidecar.server.tcp_proxy import TcpProxy
from sidecar.server.tunnel import Tunnel


class ForwardProxy:
    """Takes CONNECT requests on HTTP/1.1 connections over. `proxy` carries what is opaque."""

    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy

    def __call__(self, chain: HttpChain, conn: Connection, stream: Stream, head: RequestHead) -> bool:
        if head.protocol or not isinstance(conn.codec, H1ServerCodec):
            return False
        stream.send_response(ResponseHead(200), False)
        Tunnel(self._proxy, chain, conn, chain.context, head).start()
        return True

    @property
    def active(self) -> int:
        """Opaque sessions that have not ended."""
        return len(self._proxy.sessions)

    def abort(self) -> None:
        """Cut the opaque sessions."""
        self._proxy.abort()

    def __repr__(self) -> str:
        return f"<ForwardProxy sessions={self.active}>"
