"""CONNECT requests to the outbound listener: what HTTP_PROXY makes gRPC and HTTPS clients send.

The tunnel is answered at once, then its first bytes decide: HTTP is routed like any other request, anything
else goes opaque to the tunnel's own destination, in the mesh or outside it. A client that stays silent
speaks a protocol whose server talks first.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import TcpProxyConfig
from sidecar.http.context import ClusterSource
from sidecar.net.connection import Connection
from sidecar.protocol.events import RequestHead, ResponseHead, Stream
from sidecar.protocol.h1 import H1ServerCodec
from sidecar.protocol.raw import RawCodec
from sidecar.protocol.sniff import Protocol
from sidecar.server.chain import HttpChain
from sidecar.server.detect import DetectCodec
from sidecar.server.tcp_proxy import TcpProxy
from sidecar.telemetry.access_log import AccessLog

SILENCE = 0.1
"""Seconds after which a silent tunnel is taken for opaque TCP."""


class ForwardProxy:
    """Takes CONNECT requests on HTTP/1.1 connections over."""

    def __init__(
        self, clusters: ClusterSource, random: Random, now: Callable[[], float], access_log: AccessLog | None
    ) -> None:
        config = TcpProxyConfig("forward_proxy", (), tunneling=True)
        self._proxy = TcpProxy(config, clusters, random, now, access_log)

    def __call__(self, chain: HttpChain, conn: Connection, stream: Stream, head: RequestHead) -> bool:
        if head.protocol or not isinstance(conn.codec, H1ServerCodec):
            return False
        stream.send_response(ResponseHead(200), False)

        def detected(protocol: Protocol) -> None:
            if protocol in (Protocol.HTTP1, Protocol.HTTP2):
                chain.serve(conn, protocol)
            else:
                self._tcp(chain, conn, head)

        def silent() -> None:
            chain.stats.detect_timeouts += 1

        conn.set_codec(DetectCodec(chain.context.clock, detected, _ignore, SILENCE, silent))
        return True

    def _tcp(self, chain: HttpChain, conn: Connection, head: RequestHead) -> None:
        chain.stats.detected["tcp"] = chain.stats.detected.get("tcp", 0) + 1
        codec = RawCodec(None)
        session = self._proxy.accept(codec.stream, conn.peer.remote, head.authority)
        conn.set_codec(codec)

        def found(routes: CompiledRoutes | str) -> None:
            cluster = "" if isinstance(routes, str) else default_cluster(routes)
            if cluster:
                session.connect(cluster)
            else:
                session.fail("NC", routes if isinstance(routes, str) else f"{routes.name} forwards nowhere")

        source = chain.context.routes
        routes = source.current(head)
        if routes is None:
            source.wait(head, found)
        else:
            found(routes)


def default_cluster(routes: CompiledRoutes) -> str:
    """Opaque bytes match no route: they go where the last, least specific one goes. "" when none forwards."""
    for host in reversed(routes.virtual_hosts):
        for route in reversed(host.routes):
            if route.action is not None:
                return route.action.clusters[0].name
    return ""


def _ignore(reason: str) -> None:
    """A tunnel that was closed before it carried anything leaves nothing to clean up."""
