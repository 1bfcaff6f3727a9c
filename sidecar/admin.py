"""The admin port: a small HTTP/1 server for the answers of `admin_pages.py`.

`app.py` starts it first and stops it last. It shares the data plane's codec and connections, and
nothing that a request of the mesh could occupy: it must answer whatever the load. Everybody who reaches
the port may read; only who is on the same host, or in the same pod, controls the sidecar.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address

from sidecar.admin_pages import TEXT, AdminPages, AdminResponse, AdminSources
from sidecar.net.connection import Connection
from sidecar.net.sockets import Address, bind_listener
from sidecar.protocol.events import ErrorCode, Field, RequestHead, Reset, ResponseHead, Stream
from sidecar.protocol.h1 import H1Options, H1ServerCodec
from sidecar.runtime.tasks import spawn

__all__ = ["AdminServer", "AdminSources"]

_log = logging.getLogger(__name__)

IDLE_TIMEOUT = 60.0
"""Seconds after which a connection without a request is closed."""
MAX_CONNECTIONS = 64
"""Past it the oldest connection is closed, so that clients that stay cannot lock others out."""
_PIECE = 65536
PROBE_PREFIX = "/app-health/"
"""Below it are the probes of the pod's applications."""

AnswerProbe = Callable[[str], Awaitable[tuple[int, str]]]
"""Status and text for the path of a probe."""


class AdminServer:
    """Answers from `sources`, and `probe` for those who ask how the applications are."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sources: AdminSources, probe: AnswerProbe | None = None
    ) -> None:
        self._loop = loop
        self._probe = probe
        self._pages = AdminPages(sources)
        self._servers: list[asyncio.Server] = []
        self._connections: dict[_AdminConnection, None] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self.port = 0

    async def start(self, *addresses: Address) -> None:
        """Bind and serve; `port` is that of the last. Raises ListenError."""
        for address in addresses:
            sock = bind_listener(address, "admin")
            self.port = sock.getsockname()[1]
            self._servers.append(
                await self._loop.create_server(lambda: Connection(self._loop, self, None, True), sock=sock)
            )
        self._sweep()

    def close(self) -> None:
        """Stop listening and close every connection once its answer is out."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.leave()

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(IDLE_TIMEOUT / 2, self._sweep)
        oldest = self._loop.time() - IDLE_TIMEOUT
        for connection in list(self._connections):
            if connection.last_used < oldest:
                connection.driver.abort("idle")

    # --- ConnectionOwner

    def on_secured(self, conn: Connection) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            next(iter(self._connections)).driver.abort("too many connections")
        connection = _AdminConnection(self._loop, conn, self._pages, self._probe, self._connections.pop)
        self._connections[connection] = None
        conn.set_codec(connection.codec)

    def on_unread(self, conn: Connection, data: bytes) -> None:
        """Never called: the codec is set first."""

    def on_lost(self, conn: Connection, reason: str) -> None:
        """Never called: the codec is set first."""

    def __repr__(self) -> str:
        return f"<AdminServer port={self.port} connections={len(self._connections)}>"


class _AdminConnection:
    """`ConnectionHandler` of one client."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        driver: Connection,
        pages: AdminPages,
        probe: AnswerProbe | None,
        on_closed: Callable[[_AdminConnection, None], object],
    ) -> None:
        self.driver = driver
        self.codec = H1ServerCodec(self, H1Options())
        self.last_used = loop.time()
        self._loop = loop
        self._pages = pages
        self._probe = probe
        self._on_closed = on_closed

    def leave(self) -> None:
        self.codec.drain(True)
        self.driver.flush()

    def on_request(self, stream: Stream, head: RequestHead, end_stream: bool) -> None:
        self.last_used = self._loop.time()
        method = head.method.decode("latin-1")
        path = head.path.decode("latin-1")
        if self._probe is not None and method == "GET" and path.startswith(PROBE_PREFIX):
            answer = _Answer(self._loop, stream)
            spawn(_answer_probe(answer, self._probe(path)), f"probe {path}")
            return
        origin = head.get(b"origin") is not None
        response = self._pages.respond(method, path, origin, self._foreign())
        _Answer(self._loop, stream).start(response, head_only=method == "HEAD")

    def _foreign(self) -> bool:
        """Whether the client is elsewhere: who is here comes from loopback or from the address it calls."""
        peer = self.driver.peer
        return peer.remote[0] != peer.local[0] and not ip_address(peer.remote[0]).is_loopback

    def on_ready(self) -> None:
        """Client side only."""

    def on_capacity(self) -> None:
        """Client side only."""

    def on_goaway(self) -> None:
        """Client side only."""

    def on_closed(self, reason: str) -> None:
        self._on_closed(self, None)

    def __repr__(self) -> str:
        return f"<_AdminConnection {self.codec!r}>"


async def _answer_probe(answer: _Answer, asked: Awaitable[tuple[int, str]]) -> None:
    status, text = await asked
    answer.start(AdminResponse(status, TEXT, f"{text}\n".encode()), head_only=False)


class _Answer:
    """Sends one response; stream handler of the request. Long ones go in pieces, the next only when the
    client has taken the last."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Stream) -> None:
        self._loop = loop
        self._stream = stream
        self._body: Iterator[str] = iter(())
        self._status = 0
        self._unsent = 0
        self._over = False
        stream.handler = self

    def start(self, response: AdminResponse, head_only: bool) -> None:
        """Once. Nobody hears it when the client has gone."""
        if self._over:
            return
        self._status = response.status
        fields: list[Field] = [
            (b"content-type", response.content_type.encode()),
            (b"cache-control", b"no-store"),
        ]
        if response.allow:
            fields.append((b"allow", response.allow.encode()))
        if isinstance(response.body, bytes):
            fields.append((b"content-length", b"%d" % len(response.body)))
        self._stream.send_response(ResponseHead(response.status, tuple(fields)), head_only)
        if head_only:
            return
        if isinstance(response.body, bytes):
            self._stream.send_data(response.body, True)
        else:
            self._body = response.body
            self._send_pieces()

    def _send_pieces(self) -> None:
        if self._over or self._unsent:
            return
        try:
            data = self._next_piece()
        except Exception:
            _log.exception("admin response failed after it had begun")
            self._over = True
            self._stream.reset(ErrorCode.INTERNAL_ERROR)
            return
        self._unsent = len(data) - self._stream.send_data(data, self._over)
        if not self._over and not self._unsent:
            self._loop.call_soon(self._send_pieces)

    def _next_piece(self) -> bytes:
        pieces, size = [], 0
        for text in self._body:
            pieces.append(text)
            size += len(text)
            if size >= _PIECE:
                break
        else:
            self._over = True
        return "".join(pieces).encode()

    def on_sent(self, n: int) -> None:
        self._unsent -= n
        if not self._unsent and not self._over:
            self._loop.call_soon(self._send_pieces)

    def on_data(self, data: bytes, end_stream: bool) -> None:
        """A body that came with the request: nothing here reads one."""
        self._stream.consume(len(data))

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        """Nothing here reads them."""

    def on_reset(self, reset: Reset) -> None:
        self._over = True

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        """Client side only."""

    def on_informational(self, head: ResponseHead) -> None:
        """Client side only."""

    def __repr__(self) -> str:
        return f"<_Answer {self._status} unsent={self._unsent} over={self._over}>"
