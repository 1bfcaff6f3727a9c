"""Redirected connections that arrive at the outbound listener: the application knows of no proxy.

What they are for is told by their original destination alone, never by a Host that they may send: the
application looked a name up, and the address is its answer. `tunnel.py` finds out what they carry; to a
destination that discovery does not know they pass through unread.
"""

from __future__ import annotations

from dataclasses import replace

from sidecar.config.resources import SocketAddress
from sidecar.net.connection import Connection
from sidecar.protocol.events import RequestHead
from sidecar.server.chain import HttpChain
from sidecar.server.route_sources import DestinationRoutes, OnDemandRoutes
from sidecar.server.tcp_proxy import TcpProxy
from sidecar.server.tunnel import Tunnel


class CapturedConnections:
    """Takes redirected connections of an on-demand listener. `proxy` carries what is opaque."""

    def __init__(self, proxy: TcpProxy, routes: OnDemandRoutes) -> None:
        self._proxy = proxy
        self._routes = routes

    def __call__(self, chain: HttpChain, conn: Connection, destination: SocketAddress) -> None:
        name = str(destination)
        context = replace(chain.context, routes=DestinationRoutes(self._routes, name))
        head = RequestHead(b"CONNECT", b"", name.encode(), b"")
        Tunnel(self._proxy, chain, conn, context, head, captured=True).start()

    def __repr__(self) -> str:
        return f"<CapturedConnections sessions={len(self._proxy.sessions)}>"
