"""Real sockets for tests: run a coroutine on uvloop, owners that record, a codec that echoes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from sidecar.net.connection import Connection
from sidecar.net.tls import TlsParameters
from sidecar.net.tls_context import TlsContext
from sidecar.protocol.events import Codec, StreamHandler
from tests.support.certs import CertificateFiles

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]], timeout: float = 20.0) -> T:
    """Run `main()` on a fresh uvloop, at most `timeout` seconds. An error that reached the loop's exception
    handler fails the test."""
    errors: list[dict[str, Any]] = []

    async def bounded() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with asyncio.timeout(timeout):
            return await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(bounded())
    assert not errors, errors
    return result


async def until(condition: Callable[[], object], timeout: float = 5.0) -> None:  # noqa: ASYNC109
    """Wait for `condition()`; TimeoutError after `timeout` seconds."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 (a test may wait for anything, not for events alone)
            await asyncio.sleep(0.002)


class RecordingCodec:
    """Keeps what comes; `write` sends, `echo=True` sends everything back."""

    def __init__(self, echo: bool = False) -> None:
        self.on_output: Callable[[], None] = lambda: None
        self.on_read_pause: Callable[[bool], None] = lambda _: None
        self.should_close = False
        self.active_streams = 0
        self.available = 0
        self.received = bytearray()
        self.calls: list[str] = []
        self.lost: str | None = None
        self.eof = False
        self.paused = False
        self._echo = echo
        self._output: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._output.append(data)
        self.on_output()

    def start(self) -> None:
        self.calls.append("start")

    def open_stream(self, handler: StreamHandler) -> Any:
        raise NotImplementedError

    def receive(self, data: bytes) -> None:
        self.received += data
        if self._echo:
            self._output.append(data)

    def receive_eof(self) -> None:
        self.eof = True

    def take_output(self) -> bytes:
        data, self._output = b"".join(self._output), []
        return data

    def pause_output(self) -> None:
        self.paused = True
        self.calls.append("pause")

    def resume_output(self) -> None:
        self.paused = False
        self.calls.append("resume")

    def connection_lost(self, reason: str) -> None:
        assert self.lost is None, "connection_lost came twice"
        self.lost = reason

    def drain(self, final: bool) -> None:
        self.should_close = final


class TurnCodec(RecordingCodec):
    """Notes in which turn of the loop it received, and how much; takes views, as HTTP/2 does."""

    takes_views = True

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        self.sizes: list[tuple[int, int]] = []

    def receive(self, data: bytes) -> None:
        self.sizes.append((self.turn, len(data)))
        super().receive(data)

    def count_turns(self, expected: int) -> None:
        """Count the turns until so many bytes have come."""
        self.turn += 1
        if len(self.received) < expected and self.lost is None:
            asyncio.get_running_loop().call_soon(self.count_turns, expected)


class HalfClosingCodec(RecordingCodec):
    """One that goes on in the other direction when the peer has ended its own."""

    def __init__(self, echo: bool = False) -> None:
        super().__init__(echo)
        self.want_eof = False


class Owner:
    """A connection owner that sets the codec that `make_codec` returns, and remembers what happened."""

    def __init__(self, make_codec: Callable[[], Codec | None] = lambda: None) -> None:
        self.make_codec = make_codec
        self.secured: list[Connection] = []
        self.unread: list[bytes] = []
        self.lost: list[str] = []

    def on_secured(self, conn: Connection) -> None:
        self.secured.append(conn)
        codec = self.make_codec()
        if codec is not None:
            conn.set_codec(codec)

    def on_unread(self, conn: Connection, data: bytes) -> None:
        self.unread.append(data)

    def on_lost(self, conn: Connection, reason: str) -> None:
        self.lost.append(reason)


class Server:
    """A listener on 127.0.0.1 whose connections belong to `owner`. Use as an async context manager."""

    def __init__(self, owner: Owner, tls: TlsParameters | None = None) -> None:
        self.owner = owner
        self.tls = tls
        self.connections: list[Connection] = []
        self.port = 0

    def _make(self) -> Connection:
        connection = Connection(asyncio.get_running_loop(), self.owner, self.tls, server_side=True)
        self.connections.append(connection)
        return connection

    async def __aenter__(self) -> Server:
        self._server = await asyncio.get_running_loop().create_server(self._make, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self.connections:
            connection.abort()
        await asyncio.sleep(0.01)


def server_tls(
    files: CertificateFiles, *, mutual: bool = True, alpn: tuple[str, ...] = ("h2",)
) -> TlsParameters:
    """Server parameters from files; with `mutual`, clients must show a certificate of the same CA."""
    context = TlsContext(server_side=True)
    context.use_identity(Path(files.certificate).read_bytes(), Path(files.private_key).read_bytes())
    if mutual:
        context.verify_peer(required=True)
        context.trust(Path(files.ca).read_bytes())
    context.set_alpn(alpn)
    return TlsParameters(context, alpn_required=alpn)


def client_tls(
    files: CertificateFiles,
    *,
    certificate: bool = True,
    alpn: tuple[str, ...] = ("h2",),
    sni: str | None = None,
) -> TlsParameters:
    """Client parameters from files; the peer's name is not checked."""
    context = TlsContext(server_side=False)
    context.verify_peer(required=True)
    context.trust(Path(files.ca).read_bytes())
    if certificate:
        context.use_identity(Path(files.certificate).read_bytes(), Path(files.private_key).read_bytes())
    context.set_alpn(alpn)
    return TlsParameters(context, server_hostname=sni, alpn_required=alpn)
