"""An upstream side in memory: a network that connects when told to, codecs without bytes, waiters.

Streams are opened, ended and limited as the codec contract says; time is a `VirtualClock`. Tasks (connecting)
run on the real loop, so tests are coroutines that call `settle()` where a task must get its turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, cast

from sidecar.config.resources import Http2Options, SocketAddress, TlsConfig
from sidecar.net.connection import Connection
from sidecar.net.connection_types import ConnectError, ConnectionOwner
from sidecar.net.peer import PeerInfo
from sidecar.net.tls import TlsParameters
from sidecar.protocol.events import Codec, ConnectionHandler, ErrorCode, Reset, Stream, StreamHandler
from sidecar.telemetry.metrics import Metrics
from sidecar.upstream.cluster_manager import ClusterManager
from sidecar.upstream.context import UpstreamContext
from tests.support.virtual_clock import VirtualClock


def scenario(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Make a test of a coroutine function."""

    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


async def settle() -> None:
    """Let tasks run until they wait for something that only the test can give."""
    for _ in range(6):
        await asyncio.sleep(0)


class FakeStream:
    def __init__(self, codec: FakeCodec, handler: StreamHandler) -> None:
        self.codec = codec
        self.handler = handler
        self.open = True

    def end(self) -> None:
        """The response is complete."""
        self.codec.end_stream(self)

    def reset(self, code: ErrorCode) -> None:
        if self.open:
            self.codec.end_stream(self)


class FakeCodec:
    """`max_streams` streams at a time; ready at once, or, with `waits`, when the test calls `settings`."""

    on_output: Callable[[], None]
    on_read_pause: Callable[[bool], None]

    def __init__(self, handler: ConnectionHandler, max_streams: int, waits: bool) -> None:
        self.handler = handler
        self.max_streams = max_streams
        self.waits = waits
        self.ready = False
        self.draining = False
        self.lost = ""
        self.should_close = False
        self.trusted_peer = False
        self.keep_alive_timeout: float | None = None
        self.streams: list[FakeStream] = []
        self.connection: FakeConnection | None = None

    @property
    def active_streams(self) -> int:
        return len(self.streams)

    @property
    def available(self) -> int:
        if not self.ready or self.draining or self.lost:
            return 0
        return self.max_streams - len(self.streams)

    def start(self) -> None:
        if not self.waits:
            self.settings(self.max_streams)

    def settings(self, max_streams: int) -> None:
        """The peer's SETTINGS have come, the first or a later time."""
        first, self.ready, self.max_streams = not self.ready, True, max_streams
        if first:
            self.handler.on_ready()
        else:
            self.handler.on_capacity()

    def open_stream(self, handler: StreamHandler) -> Stream:
        assert self.available > 0, "open_stream without room"
        stream = FakeStream(self, handler)
        self.streams.append(stream)
        return cast(Stream, stream)

    def end_stream(self, stream: FakeStream) -> None:
        stream.open = False
        self.streams.remove(stream)
        if self.draining and not self.streams:
            assert self.connection is not None
            self.connection.close()
        else:
            self.handler.on_capacity()

    def goaway(self, unprocessed: int = 0) -> None:
        """The peer is going away and has not seen the last `unprocessed` streams."""
        self.handler.on_goaway()
        for stream in self.streams[len(self.streams) - unprocessed :]:
            stream.open = False
            self.streams.remove(stream)
            stream.handler.on_reset(Reset(ErrorCode.NO_ERROR, "GOAWAY", processed=False))

    def drain(self, final: bool) -> None:
        self.draining = final

    def connection_lost(self, reason: str) -> None:
        assert not self.lost
        self.lost = reason
        streams, self.streams = self.streams, []
        for stream in streams:
            stream.open = False
            stream.handler.on_reset(Reset(ErrorCode.INTERNAL_ERROR, reason, remote=False))
        self.handler.on_closed(reason)


class FakeConnection:
    """Loses its codec in a later turn of the clock's loop, as sockets do."""

    def __init__(self, clock: VirtualClock, owner: ConnectionOwner, peer: PeerInfo) -> None:
        self.peer = peer
        self.clock = clock
        self.owner = owner
        self.codec: FakeCodec | None = None
        self.ended = ""

    def set_codec(self, codec: Codec) -> None:
        self.codec = cast(FakeCodec, codec)
        self.codec.connection = self
        codec.start()

    def close(self, reason: str = "") -> None:
        self._end("closed", reason)

    def abort(self, reason: str = "") -> None:
        self._end("aborted", reason)

    def lose(self, reason: str) -> None:
        """The peer is gone."""
        self._end("lost", reason)

    def _end(self, how: str, reason: str) -> None:
        if not self.ended:
            self.ended = how
            self.clock.call_soon(self._lost, reason or how)

    def _lost(self, reason: str) -> None:
        if self.codec is not None:
            self.codec.connection_lost(reason)
        else:
            self.owner.on_lost(cast(Connection, self), reason)


class FakeNetwork:
    """`fail[host]`: the reason why connecting fails. `hold`: connecting waits for `release`."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.connections: list[FakeConnection] = []
        self.attempts: list[SocketAddress] = []
        self.secured_with: list[TlsParameters | None] = []
        self.fail: dict[str, str] = {}
        self.hold: set[str] = set()
        self.released = asyncio.Event()
        self.alpn = ""
        self.max_streams = 100
        self.waits_for_settings = False
        self.cancelled = 0

    async def connect(
        self,
        loop: asyncio.AbstractEventLoop,
        address: SocketAddress,
        owner: ConnectionOwner,
        tls: TlsParameters | None,
        timeout: float,  # noqa: ASYNC109 (the signature of `connect`)
        sources: tuple[str, ...] = (),
    ) -> Connection:
        self.attempts.append(address)
        self.secured_with.append(tls)
        try:
            await asyncio.sleep(0)
            if address.host in self.hold:
                await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if address.host in self.fail:
            raise ConnectError(f"cannot connect to {address}: {self.fail[address.host]}", "tcp")
        peer = PeerInfo((address.host, address.port), ("127.0.0.1", 1), alpn=self.alpn)
        connection = FakeConnection(self.clock, owner, peer)
        self.connections.append(connection)
        owner.on_secured(cast(Connection, connection))
        return cast(Connection, connection)

    def make_h2(self, handler: ConnectionHandler, options: Http2Options, trusted_peer: bool) -> Codec:
        codec = FakeCodec(handler, self.max_streams, self.waits_for_settings)
        codec.trusted_peer = trusted_peer
        return cast(Codec, codec)

    def make_single(self, handler: ConnectionHandler) -> Codec:
        return cast(Codec, FakeCodec(handler, 1, False))

    def codec(self, index: int = -1) -> FakeCodec:
        codec = self.connections[index].codec
        assert codec is not None
        return codec


class NoTls:
    def client(self, config: TlsConfig) -> TlsParameters:
        raise AssertionError("no TLS in this test")


class Waiter:
    """A StreamWaiter that keeps what it is told."""

    def __init__(self) -> None:
        self.stream: FakeStream | None = None
        self.peer: PeerInfo | None = None
        self.failures: list[tuple[str, bool]] = []
        self.resets: list[Reset] = []

    def on_stream(self, stream: Stream, peer: PeerInfo) -> None:
        assert self.stream is None
        assert stream.handler is self
        self.stream = cast(FakeStream, stream)
        self.peer = peer

    def on_connect_failure(self, reason: str, overflow: bool) -> None:
        self.failures.append((reason, overflow))

    def on_reset(self, reset: Reset) -> None:
        self.resets.append(reset)

    def end(self) -> None:
        assert self.stream is not None
        self.stream.end()

    def on_response(self, head: Any, end_stream: bool) -> None: ...
    def on_informational(self, head: Any) -> None: ...
    def on_data(self, data: bytes, end_stream: bool) -> None: ...
    def on_trailers(self, fields: Any) -> None: ...
    def on_sent(self, n: int) -> None: ...


def make_context(clock: VirtualClock, network: FakeNetwork, seed: int = 1) -> UpstreamContext:
    loop = cast(asyncio.AbstractEventLoop, clock)
    return UpstreamContext(
        loop,
        Metrics(),
        NoTls(),
        Random(seed),
        network.connect,
        network.make_h2,
        network.make_single,
        network.make_single,
    )


def make_manager(clock: VirtualClock, network: FakeNetwork, seed: int = 1) -> ClusterManager:
    context = make_context(clock, network, seed)
    return ClusterManager(
        context.loop,
        context.metrics,
        context.tls,
        context.random,
        make_h2=context.make_h2,
        make_h1=context.make_h1,
        make_raw=context.make_raw,
        connect=context.connect,
    )
