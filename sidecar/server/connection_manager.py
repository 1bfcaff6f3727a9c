"""One downstream HTTP connection: makes an exchange of every request, watches for idleness, drains.

Made by `detect.py` once the protocol is known; it is the codec's `ConnectionHandler`. It knows nothing of
routes or clusters.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.http.context import Downstream, HttpContext, TimerHandle
from sidecar.http.exchange import Exchange
from sidecar.http.local_reply import LocalReply
from sidecar.net.connection import Connection
from sidecar.protocol.events import ErrorCode, RequestHead, Stream
from sidecar.telemetry.metrics import ListenerStats

TunnelHandler = Callable[[Connection, Stream, RequestHead], bool]
"""Takes a CONNECT request over (True), or leaves it to the routes (False)."""


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
        self._budget = context.budget
        self._on_closed = on_closed
        self._on_tunnel = on_tunnel
        self.exchanges: set[Exchange] = set()
        self._idle_since = context.now()
        self._timer: TimerHandle | None = None
        config = context.config
        periods = [t for t in (config.idle_timeout, config.stream_idle_timeout) if t]
        if periods:
            self._period = min(periods) / 2
            self._timer = context.clock.call_later(self._period, self._sweep)

    # --- ConnectionHandler -----------------------------------------------------------------------

    def on_request(self, stream: Stream, head: RequestHead, end_stream: bool) -> None:
        self.stats.requests += 1
        if (
            head.method == b"CONNECT"
            and self._on_tunnel is not None
            and self._on_tunnel(self.connection, stream, head)
        ):
            return
        exchange = Exchange(self.context, self.downstream, stream, head, self._on_exchange_done)
        stream.handler = exchange
        self.exchanges.add(exchange)
        if self._budget.exceeded:
            exchange.shed()
        else:
            exchange.start(end_stream)

    def on_ready(self) -> None:
        """Nothing to do: a server may answer before the client's SETTINGS."""

    def on_capacity(self) -> None:
        """Nothing to do: a server opens no streams."""

    def on_goaway(self) -> None:
        """The client will open no more streams; the codec closes when the last one has ended."""

    def on_closed(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._on_closed(self)

    # --- idleness --------------------------------------------------------------------------------

    def _on_exchange_done(self, exchange: Exchange) -> None:
        self.exchanges.discard(exchange)
        if not self.exchanges:
            self._idle_since = self.context.now()

    def _sweep(self) -> None:
        """Twice in an idle period: what has not moved between two looks after that period is idle. No
        timer is touched while requests flow."""
        config = self.context.config
        self._timer = self.context.clock.call_later(self._period, self._sweep)
        if not self.exchanges:
            if config.idle_timeout and self.context.now() - self._idle_since >= config.idle_timeout:
                self.drain(final=True)
            return
        if config.stream_idle_timeout:
            self._sweep_streams(config.stream_idle_timeout)

    def _sweep_streams(self, limit: float) -> None:
        looks_allowed = max(2, round(limit / self._period))
        for exchange in list(self.exchanges):
            moved = exchange.bytes_in + exchange.bytes_out + exchange.status
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
        codec = self.connection.codec
        if codec is not None:
            codec.drain(final)
            self.connection.flush()

    def abort(self) -> None:
        """The drain deadline has passed: answer what can still be answered and close."""
        for exchange in list(self.exchanges):
            text = "the sidecar's drain deadline has passed"
            exchange.router.cancel(text)
            exchange.refuse(ErrorCode.CANCEL, LocalReply(503, "DT", text))
        self.connection.close()

    def __repr__(self) -> str:
        return f"<ConnectionManager from {self.downstream.remote} exchanges={len(self.exchanges)}>"
