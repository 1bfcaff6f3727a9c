"""One downstream HTTP connection: makes an exchange of every request, watches for idleness, drains.

Made by `chain.py` once the protocol is known; it is the codec's `ConnectionHandler`. It knows nothing of
routes or clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from sidecar.http.context import Downstream, HttpContext
from sidecar.http.exchange import Exchange
from sidecar.http.local_reply import LocalReply
from sidecar.net.connection import Connection
from sidecar.net.connection_types import Keepalive
from sidecar.protocol.events import RequestHead, Stream
from sidecar.runtime.timeouts import Timeouts
from sidecar.telemetry.metrics import ListenerStats

TunnelHandler = Callable[[Connection, Stream, RequestHead], bool]
"""Takes a CONNECT request over (True), or leaves it to the routes (False)."""

ANNOUNCE = 1.0
"""Seconds between the two GOAWAYs: more than a round trip, so that streams on their way are served."""


class AwaitsHeads(Protocol):
    """A codec that knows about request heads that do not end."""

    def awaited_head(self) -> int:
        """The number of the head that has begun and not ended, or of the connection's first; else -1."""

    def refuse_late_head(self) -> None:
        """Say so to the client and close."""


class ConnectionManager:
    def __init__(
        self,
        context: HttpContext,
        connection: Connection,
        downstream: Downstream,
        stats: ListenerStats,
        on_closed: Callable[[ConnectionManager], None],
        on_tunnel: TunnelHandler | None = None,
    ) -> None:
        self.context = context
        self.connection = connection
        self.downstream = downstream
        self.stats = stats
        stats.connections_active += 1
        self._budget = context.budget
        self._on_closed = on_closed
        self._on_tunnel = on_tunnel
        self.exchanges: set[Exchange] = set()
        self._draining = False
        self._closed = False
        self._idle_since = context.now()
        self._awaited = -1
        self._awaited_for = 0.0
        self._unasked = 0.0
        self._sweeps: Timeouts | None = None
        config = context.config
        periods = [t / 2 for t in (config.idle_timeout, config.stream_idle_timeout) if t]
        if config.request_headers_timeout:
            periods.append(config.request_headers_timeout)
        if downstream.http2:
            periods.append(config.http2.keepalive_interval)
        if periods:
            self._period = min(periods)
            self._sweeps = context.timeouts_of(self._period)
            self._sweeps.begin(self, self._idle_since)

    # --- ConnectionHandler -----------------------------------------------------------------------

    def on_request(self, stream: Stream, head: RequestHead, end_stream: bool) -> None:
        self.stats.requests += 1
        if (
            head.method == b"CONNECT"
            and self._on_tunnel is not None
            and self._on_tunnel(self.connection, stream, head)
        ):
            self.on_closed("it became a tunnel")
            return
        exchange = Exchange(self.context, self.downstream, stream, head, self._on_exchange_done)
        stream.handler = exchange
        self.exchanges.add(exchange)
        refusal = self._refused_upgrade(head) if head.protocol else None
        if self._budget.exceeded:
            exchange.shed()
        elif refusal is not None:
            exchange.reply(refusal)
        else:
            exchange.start(end_stream)

    def _refused_upgrade(self, head: RequestHead) -> LocalReply | None:
        protocol = head.protocol.decode("latin-1")
        if protocol.lower() != "websocket":
            return LocalReply(501, "", f"upgrade to {protocol} is not supported; websocket is")
        if self.context.websocket:
            return None
        return LocalReply(403, "", "upgrade to websocket is not enabled here; name it in upgrade_configs")

    def on_ready(self) -> None:
        """Nothing to do: a server may answer before the client's SETTINGS."""

    def on_capacity(self) -> None:
        """Nothing to do: a server opens no streams."""

    def on_goaway(self) -> None:
        """The client will open no more streams; the codec closes when the last one has ended."""

    def on_closed(self, reason: str) -> None:
        if self._sweeps is not None:
            self._sweeps.end(self)
            self._sweeps = None
        if not self._closed:
            self._closed = True
            self.stats.connections_active -= 1
            codec = self.connection.codec
            if codec is not None and codec.error:
                self.stats.protocol_errors += 1
            self._on_closed(self)

    # --- idleness --------------------------------------------------------------------------------

    def _on_exchange_done(self, exchange: Exchange) -> None:
        self.exchanges.discard(exchange)
        if exchange.flag == "DC":
            self.stats.streams_reset += 1
        if not self.exchanges:
            self._idle_since = self.context.now()

    def on_timeout(self, _: float) -> None:
        """Twice in an idle period: what has not moved between two looks after that period is idle. No
        timer is touched while requests flow."""
        config = self.context.config
        if self._sweeps is not None:
            self._sweeps.begin(self, self.context.now())
        if config.request_headers_timeout:
            self._sweep_head(config.request_headers_timeout)
        self._unasked += self._period
        interval = config.http2.keepalive_interval
        if self.downstream.http2 and self._unasked >= interval:
            self._unasked = 0.0
            codec = self.connection.codec
            if hasattr(codec, "check_alive") and not cast(Keepalive, codec).check_alive():
                self.connection.abort(f"nothing came for {interval:g} s, not even an answer to PING")
                return
        if not self.exchanges:
            idle = self.context.now() - self._idle_since
            if config.idle_timeout and idle >= config.idle_timeout and not self._draining:
                # A request may be on its way: it is served if it comes within a round trip.
                self.drain(final=False)
                self.context.clock.call_later(ANNOUNCE, self.drain, True)
            return
        if config.stream_idle_timeout:
            self._sweep_streams(config.stream_idle_timeout)

    def _sweep_head(self, limit: float) -> None:
        """A head that looks `limit` apart find incomplete is late; it has had less than twice as long."""
        codec = self.connection.codec
        if not hasattr(codec, "awaited_head"):
            return
        awaiting = cast(AwaitsHeads, codec)
        head = awaiting.awaited_head()
        if head != self._awaited:
            self._awaited = head
            self._awaited_for = 0.0
        elif head >= 0:
            self._awaited_for += self._period
            if self._awaited_for >= limit:
                awaiting.refuse_late_head()
                self.connection.flush()

    def _sweep_streams(self, limit: float) -> None:
        looks_allowed = max(2, round(limit / self._period))
        for exchange in list(self.exchanges):
            moved = exchange.bytes_in + exchange.bytes_out - exchange.unsent + exchange.status
            if exchange.idle_mark == moved:
                exchange.idle_looks += 1
                if exchange.idle_looks >= looks_allowed:
                    text = f"nothing was sent or received for {limit:g} s (stream_idle_timeout)"
                    exchange.router.cancel(text)
                    exchange.reply(LocalReply(504, "SI", text))
            else:
                exchange.idle_mark = moved
                exchange.idle_looks = 0

    # --- draining --------------------------------------------------------------------------------

    def drain(self, final: bool) -> None:
        """Two phases: announce, then refuse new streams and close when the last exchange has ended."""
        self._draining = True
        codec = self.connection.codec
        if codec is not None and not self._closed:
            codec.drain(final)
            self.connection.flush()

    def abort(self) -> None:
        """The drain deadline has passed: answer what can still be answered and close."""
        for exchange in list(self.exchanges):
            text = "the sidecar's drain deadline has passed"
            exchange.router.cancel(text)
            exchange.reply(LocalReply(503, "DT", text))
        self.connection.close()

    def __repr__(self) -> str:
        return f"<ConnectionManager from {self.downstream.remote} exchanges={len(self.exchanges)}>"
