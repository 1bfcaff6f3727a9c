"""One sidecar between raw HTTP/2 clients and two applications that a test plays: `/app` is for the one of
HTTP/1.1, byte by byte, `/frames` for the one of HTTP/2, frame by frame. Anything else is answered 200."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import h2_frames as f
from tests.support.hostile import EVIL_H2, request
from tests.support.pairs import Peer, RawApp, ok
from tests.support.processes import eventually, loopback
from tests.support.raw import Raw, RawH2
from tests.support.sidecars import (
    APP,
    OUTBOUND,
    RETRY,
    Sidecar,
    address,
    bootstrap,
    cluster,
    http_filter,
    listener,
    route,
)

HELD = request("/app/held", "POST")
"""A request whose answer never comes."""
ECHO = request("/app/echo", "POST")
"""Answered with its own body."""


def echo(peer: Peer, head: bytes) -> None:
    """A body in chunks, as the sidecar writes one whose length it was not told."""
    assert b"\r\ntransfer-encoding: chunked\r\n" in head
    body = b""
    while size := int(peer.until(b"\r\n"), 16):
        body += peer.exactly(size + 2)[:-2]
    peer.until(b"\r\n")
    peer.send(ok(body))


def hold(peer: Peer, head: bytes) -> None:
    peer.rest()


class H2App(RawH2):
    """The application's end of one connection: has said hello and does nothing by itself but remember."""

    def __init__(self, sock: socket.socket, settings: dict[int, int] | None) -> None:
        Raw.__init__(self, sock)
        self.send(f.settings(settings) + f.frame(f.SETTINGS, f.ACK))

    def frames(self) -> list[f.Frame]:
        return f.parse_prefix(bytes(self.received[len(f.PREFACE) :]))

    def request(self, number: int = 1) -> int:
        """The stream of the request of that number, once it has come."""
        self.read_until(lambda: len(self.of(f.HEADERS)) >= number)
        return self.of(f.HEADERS)[number - 1].stream_id


class Hop:
    def __init__(self, directory: Path) -> None:
        self.host = loopback()
        self.at = (self.host, OUTBOUND)
        self.app = RawApp(self.host, APP)
        self.app.on("/app/held", hold)
        self.app.on("/app/echo", echo)
        self._listening = socket.create_server((self.host, EVIL_H2), backlog=64)
        self._listening.settimeout(10.0)
        self._serving = 0
        direct = {"name": "direct", "match": {"prefix": "/"}, "direct_response": {"status": 200}}
        retried = route("/frames", "frames", timeout="15s", retry_policy=RETRY)
        routes = [retried, route("/app", "app", timeout="15s"), direct]
        clusters = [
            cluster("app", [(self.host, APP)]),
            cluster("frames", [(self.host, EVIL_H2)], http2=True, connect_timeout="10s"),
        ]
        tree = bootstrap(self.host, [listener("out", address(*self.at), http_filter(routes))], clusters)
        self.sidecar = Sidecar("hop", tree, directory).ready()

    def client(self, settings: dict[int, int] | None = None) -> RawH2:
        return RawH2(socket.create_connection(self.at, 10.0), settings)

    def call(self, method: bytes = b"GET", body: bytes = b"") -> Peer:
        """A client of HTTP/1.1 that has asked the application of HTTP/2 for something."""
        peer = Peer(socket.create_connection(self.at, 10.0))
        length = b"content-length: %d\r\n" % len(body) if body else b""
        peer.send(method + b" /frames HTTP/1.1\r\nhost: a\r\n" + length + b"\r\n" + body)
        return peer

    @contextmanager
    def serving(self, settings: dict[int, int] | None = None) -> Iterator[H2App]:
        """The next connection to the application of HTTP/2."""
        sock, _ = self._listening.accept()
        self._serving += 1
        try:
            with H2App(sock, settings) as app:
                yield app
        finally:
            self._serving -= 1
        eventually(lambda: self.connections() <= self._serving, "the sidecar to notice that it was left")

    def connections(self) -> int:
        """To the application of HTTP/2."""
        return int(self.sidecar.stats("clusters", cluster="frames")["connections_active"])

    def stop(self) -> None:
        self.sidecar.stop()
        self.app.stop()
        self._listening.close()

    def __repr__(self) -> str:
        return f"<Hop {self.at}>"
