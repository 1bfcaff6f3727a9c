"""A connection to a known destination until it is known what it carries.

Where discovery knows, it is believed: a destination declared to be TCP is joined at once, for one declared to
be HTTP the client's first bytes are awaited. Otherwise the first of three things decides while the
destination is already being dialled: the client's first bytes, the server's, or a short silence. HTTP is
routed like any other request, anything else goes opaque to the destination, in the mesh or outside it.

Made by `forward_proxy.py` for CONNECT requests and by `captured.py` for redirected connections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from mesh_api.names import OPAQUE_PORTS
from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import Route, RouteAction
from sidecar.http.context import HttpContext
from sidecar.net.connection import Connection
from sidecar.protocol.events import RequestHead
from sidecar.protocol.raw import RawCodec
from sidecar.protocol.sniff import Protocol
from sidecar.server.detect import DetectCodec
from sidecar.server.route_sources import PASSTHROUGH_TABLE, OverdueRoutes
from sidecar.server.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from sidecar.server.chain import HttpChain

SILENCE = 0.1
"""Seconds after which a silent client of a destination of unknown protocol is taken for opaque TCP."""


class Tunnel:
    """The opaque session and its codec are there from the start, but the connection gets that codec only when
    the tunnel turns out to be opaque."""

    def __init__(
        self,
        proxy: TcpProxy,
        chain: HttpChain,
        conn: Connection,
        context: HttpContext,
        head: RequestHead,
        captured: bool = False,
    ) -> None:
        """`head`: a CONNECT for the destination, whose table `context.routes` has. HTTP is served with that
        context. `captured`: nobody asked for a proxy, so what is outside the mesh is not looked at."""
        self._chain = chain
        self._conn = conn
        self._context = context
        self._head = head
        self._captured = captured
        self._detect = DetectCodec(self._detected, self._closed, self._silent)
        self._raw = RawCodec(None)
        self._session = proxy.accept(self._raw.stream, conn.peer.remote, head.authority)
        self._cluster = ""
        self._answered = False
        self._early: Protocol | None = None
        """What the first bytes say, while discovery has not answered; it may know better."""
        self._stop_waiting: Callable[[], None] | None = None

    def start(self) -> None:
        self._raw.on_output = self._on_server
        self._conn.set_codec(self._detect)
        source = self._context.routes
        routes = source.current(self._head)
        if routes is None:
            self._stop_waiting = source.wait(self._head, self._on_routes)
        else:
            self._on_routes(routes)

    def _on_routes(self, routes: CompiledRoutes | str) -> None:
        """Discovery has answered: trust what is declared, else dial while the first bytes are awaited."""
        self._stop_waiting = None
        self._answered = True
        declared = Protocol.NEED_MORE
        if isinstance(routes, str):
            self._session.fail("NC", routes)
            self._context = replace(self._context, routes=OverdueRoutes(self._context.routes, routes))
        elif self._choose(routes):
            declared = self._declared(routes)
        if self._early is not None:
            self._hand_over(Protocol.OTHER if declared is Protocol.OTHER else self._early)
        elif declared is Protocol.OTHER:
            self._detect.decide(Protocol.OTHER)
        elif declared is Protocol.NEED_MORE:
            self._session.connect(self._cluster)
            self._detect.limit(self._context.timeouts_of(SILENCE), self._context.now())

    def _choose(self, routes: CompiledRoutes) -> bool:
        """Where this connection goes if it is opaque, decided once. False: discovery says nothing of that."""
        route = tunnel_route(routes, self._context.random)
        if route is not None and route.action is not None:
            self._cluster = pick_cluster(route.action, self._context.random)
        elif route is not None:
            self._chain.stats.tcp_refused += 1
            reason = route.direct_response.body.decode() if route.direct_response is not None else ""
            self._session.fail("NC", f"refused by route {route.name}: {reason or 'it forwards nowhere'}")
        else:
            self._session.fail("NC", f"{routes.name} forwards nowhere")
        return route is not None

    def _declared(self, routes: CompiledRoutes) -> Protocol:
        if self._captured and routes.name == PASSTHROUGH_TABLE:
            self._chain.stats.original_dst_passthrough += 1
            return Protocol.OTHER
        return declared_protocol(routes, self._head.authority)

    def _on_server(self) -> None:
        """The dialled server has sent something, or could not be reached; that a client hears only when it
        is known to want opaque TCP."""
        if not self._raw.should_close:
            self._detect.decide(Protocol.OTHER)

    def _silent(self) -> None:
        self._chain.stats.detect_timeouts += 1

    def _detected(self, protocol: Protocol) -> None:
        if self._answered:
            self._hand_over(protocol)
        else:
            self._early = protocol

    def _hand_over(self, protocol: Protocol) -> None:
        chain = self._chain
        if protocol in (Protocol.HTTP1, Protocol.HTTP2):
            self._leave()
            chain.serve(self._conn, protocol, self._context)
            return
        chain.stats.detected["tcp"] = chain.stats.detected.get("tcp", 0) + 1
        self._conn.set_codec(self._raw)
        if self._cluster and not self._session.tried:
            self._session.connect(self._cluster)

    def _closed(self, reason: str) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._stop_waiting is not None:
            self._stop_waiting()
            self._stop_waiting = None
        self._session.abandon()

    def __repr__(self) -> str:
        return f"<Tunnel to {self._head.authority.decode('latin-1')} {self._detect!r} {self._session!r}>"


def declared_protocol(routes: CompiledRoutes, authority: bytes) -> Protocol:
    """What a destination speaks by what discovery says: OTHER (opaque), HTTP1 (HTTP of any version) or
    NEED_MORE.

    A route table says it by its routes: `connect_matcher` alone is TCP, none of them HTTP, both unknown.
    What is unknown is opaque on the ports of protocols whose servers speak first or that look like nothing.
    """
    connect = [route.config.match.connect for host in routes.virtual_hosts for route in host.routes]
    if not any(connect):
        return Protocol.HTTP1
    port = authority.rpartition(b":")[2]
    if all(connect) or (port.isdigit() and int(port) in OPAQUE_PORTS):
        return Protocol.OTHER
    return Protocol.NEED_MORE


def tunnel_route(routes: CompiledRoutes, random: Random) -> Route | None:
    """What says where opaque bytes go: the first route for CONNECT that takes this connection; without one,
    the last, least specific one that forwards. None when none does."""
    found = [route for host in routes.virtual_hosts for route in host.routes]
    connect = [route.config for route in found if route.config.match.connect]
    for config in connect:
        share = config.match.runtime_fraction
        if share is None or random.random() < share:
            return config
    return next((route.config for route in reversed(found) if route.action is not None), None)


def pick_cluster(action: RouteAction, random: Random) -> str:
    """One of the clusters, by weight."""
    [picked] = random.choices([c.name for c in action.clusters], [c.weight for c in action.clusters])
    return picked
