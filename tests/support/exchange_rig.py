"""An exchange between two sides in memory: streams that record what they are told and accept what they may,
a cluster that counts, time that is moved by hand. Nothing here decides what is right; tests do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from random import Random
from typing import Any, cast

from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import (
    HttpConnectionManagerConfig,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
)
from sidecar.http.buffer_budget import BufferBudget
from sidecar.http.context import Downstream, HttpContext
from sidecar.http.exchange import Exchange
from sidecar.net.peer import PeerInfo
from sidecar.protocol.events import ErrorCode, Field, RequestHead, Reset, ResponseHead, StreamHandler
from sidecar.telemetry.metrics import ClusterStats, Metrics
from sidecar.telemetry.tracing import Untraced
from sidecar.upstream.retry_budget import RetryBudget
from tests.support.virtual_clock import VirtualClock

PEER = PeerInfo(("127.0.0.1", 1), ("127.0.0.1", 2))


class RecordingStream:
    """A `Stream` from either end. `room`: bytes that `send_data` accepts at once; `take` accepts more later.
    `heads`, `body`, `trailers`, `ended` are what was sent; `consumed` what was given back."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.handler: StreamHandler = cast(StreamHandler, None)
        self.incomplete = False
        self.room = room
        self.heads: list[Any] = []
        self.informational: list[ResponseHead] = []
        self.body = b""
        self.trailers: tuple[Field, ...] | None = None
        self.ended = 0
        """How often the sending direction was ended."""
        self.unaccepted = 0
        self.consumed = 0
        self.resets: list[int] = []
        self.dead = False
        self.on_send: Callable[[], None] = lambda: None
        """Called inside each `send_*`, as a codec may call back from there."""

    def send_request(self, head: RequestHead, end_stream: bool) -> None:
        self._head(head, end_stream)

    def send_response(self, head: ResponseHead, end_stream: bool) -> None:
        self._head(head, end_stream)

    def _head(self, head: Any, end_stream: bool) -> None:
        if not self.dead:
            self.heads.append(head)
            self.ended += end_stream
            self.on_send()

    def send_informational(self, head: ResponseHead) -> None:
        self.informational.append(head)

    def send_data(self, data: bytes, end_stream: bool) -> int:
        if self.dead:
            return len(data)
        assert not self.ended, "data after the end"
        assert self.heads, "data before the head"
        self.body += data
        self.ended += end_stream
        accepted = min(self.room, len(data)) if not self.unaccepted else 0
        self.room -= accepted
        self.unaccepted += len(data) - accepted
        self.on_send()
        return accepted

    def send_trailers(self, fields: tuple[Field, ...]) -> None:
        if not self.dead:
            assert not self.ended, "trailers after the end"
            self.trailers = fields
            self.ended += 1
            self.on_send()

    def reset(self, code: ErrorCode) -> None:
        if not self.dead:
            self.resets.append(code)
            self.dead = True

    def consume(self, n: int) -> None:
        assert n > 0
        self.consumed += n

    # --- the peer

    def take(self, n: int | None = None) -> None:
        """The peer reads `n` more bytes of those that were kept, all by default."""
        n = self.unaccepted if n is None else min(n, self.unaccepted)
        if n and not self.dead:
            self.unaccepted -= n
            self.handler.on_sent(n)

    def die(self, code: int = ErrorCode.CANCEL, processed: bool = True, remote: bool = True) -> None:
        if not self.dead:
            self.dead = True
            self.handler.on_reset(Reset(code, "it died", processed, remote))


class RecordingEndpoint:
    """`mode`: `ready` gives a stream at once, `waits` when the test calls `connect`, `fails` and `overflow`
    answer from inside `acquire`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = f"10.0.0.1:{name}"
        self.mode = "ready"
        self.room = 1 << 40
        self.waiters: list[Any] = []
        self.streams: list[RecordingStream] = []
        self.tcp = 0
        self.on_send: Callable[[], None] = lambda: None

    def acquire(self, waiter: Any) -> None:
        if self.mode == "ready":
            self._give(waiter)
        elif self.mode == "waits":
            self.waiters.append(waiter)
        else:
            waiter.on_connect_failure(f"{self.name} {self.mode}", self.mode == "overflow")

    def acquire_grpc(self, waiter: Any) -> None:
        self.acquire(waiter)

    def acquire_tcp(self, waiter: Any) -> None:
        self.tcp += 1
        self.acquire(waiter)

    def cancel(self, waiter: Any) -> None:
        if waiter in self.waiters:
            self.waiters.remove(waiter)

    def connect(self) -> None:
        self._give(self.waiters.pop(0))

    def fail(self) -> None:
        self.waiters.pop(0).on_connect_failure(f"{self.name} refused", False)

    def _give(self, waiter: Any) -> None:
        stream = RecordingStream(self.room)
        stream.handler = waiter
        stream.on_send = self.on_send
        if waiter.router.plan.tunnel:
            stream.heads.append(None)  # TCP has none
        self.streams.append(stream)
        waiter.on_stream(stream, PEER)


class RecordingCluster:
    """Picks round robin, an endpoint that was not tried first; counts what begins and what finishes."""

    def __init__(self, endpoints: int = 2) -> None:
        self.name = "users"
        self.endpoints = [RecordingEndpoint(f"users-{i}") for i in range(endpoints)]
        self.stats = ClusterStats()
        self.retry_budget = RetryBudget(20.0, 10.0)
        self.full = False
        self.active = 0
        self.finished: list[tuple[str, float | None, bool]] = []
        self._turn = itertools.count()

    def pick(self, tried: Collection[Any]) -> Any:
        left = [e for e in self.endpoints if e not in tried] or self.endpoints
        return left[next(self._turn) % len(left)] if left else None

    def begin(self, endpoint: Any) -> bool:
        if self.full:
            return False
        self.active += 1
        return True

    def finish(self, endpoint: Any, latency: float | None, failed: bool) -> None:
        self.active -= 1
        self.finished.append((endpoint.name, latency, failed))

    def why_none(self) -> str:
        return "it has no endpoints"

    @property
    def config(self) -> Any:
        return type("Config", (), {"circuit_breakers": type("Breakers", (), {"max_requests": 1})})


class RecordingRoutes:
    """A route source: the table at once, or, with `late`, when the test calls `arrive`."""

    def __init__(self, table: CompiledRoutes) -> None:
        self.table: CompiledRoutes | str = table
        self.late = False
        self.at_once = False
        """`wait` calls back before it returns."""
        self.waiting: list[Callable[[CompiledRoutes | str], None]] = []

    def current(self, head: RequestHead) -> Any:
        return None if self.late else self.table

    def wait(self, head: RequestHead, callback: Callable[[CompiledRoutes | str], None]) -> Callable[[], None]:
        if self.at_once:
            callback(self.table)
            return lambda: None
        self.waiting.append(callback)
        return lambda: self.waiting.remove(callback)

    def arrive(self) -> None:
        self.waiting.pop()(self.table)


class Log:
    """An access log that keeps the records."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def write(self, record: Any) -> None:
        self.records.append(record)


def table(*routes: Route) -> CompiledRoutes:
    return CompiledRoutes(RouteConfiguration("table", (VirtualHost("all", ("*",), routes),)))


def route(
    retry: RetryPolicy | None = None, timeout: float = 0.0, match: RouteMatch | None = None, **more: Any
) -> Route:
    """To cluster `users`."""
    clusters = more.pop("clusters", (WeightedCluster("users", 1),))
    action = RouteAction(
        clusters, timeout=timeout, retry_policy=retry, grpc_timeout_max=more.pop("grpc_timeout_max", None)
    )
    return Route("route", match or RouteMatch(prefix="/"), action, **more)


def get(*fields: Field, fresh: tuple[Field, ...] = (), method: bytes = b"GET") -> RequestHead:
    return RequestHead(method, b"http", b"users", b"/", fields, fresh)


def grpc(*fields: Field, fresh: tuple[Field, ...] = ()) -> RequestHead:
    return get((b"content-type", b"application/grpc"), *fields, fresh=fresh, method=b"POST")


def connect_request() -> RequestHead:
    return RequestHead(b"CONNECT", b"", b"users:80", b"")


class Rig:
    """One HTTP connection manager's surroundings; `send` makes an exchange."""

    def __init__(
        self,
        *routes: Route,
        http2: bool = True,
        inbound: bool = False,
        trusted: bool = False,
        endpoints: int = 2,
        client_cert: tuple[Field, ...] = (),
        keep_client_cert: bool = False,
    ) -> None:
        self.clock = VirtualClock()
        self.cluster = RecordingCluster(endpoints)
        self.routes = RecordingRoutes(table(*(routes or (route(),))))
        self.log = Log()
        self.metrics = Metrics()
        self.budget = BufferBudget()
        clusters: dict[str, Any] = {"users": self.cluster}
        self.clusters = clusters
        self.downstream = Downstream(
            http2,
            "HTTP/2" if http2 else "HTTP/1.1",
            ("127.0.0.1", 5),
            trusted=trusted,
            client_cert=client_cert,
            keep_client_cert=keep_client_cert,
        )
        self.context = HttpContext(
            config=HttpConnectionManagerConfig("rig"),
            inbound=inbound,
            clusters=cast(Any, clusters),
            routes=cast(Any, self.routes),
            tracer=Untraced(),
            metrics=self.metrics,
            access_log=cast(Any, self.log),
            clock=self.clock,
            now=self.clock.time,
            random=Random(7),
            budget=self.budget,
        )
        self.done: list[Exchange] = []

    def send(
        self, head: RequestHead, end_stream: bool = True, room: int = 1 << 40
    ) -> tuple[RecordingStream, Exchange]:
        """A request arrives; the downstream stream and the exchange."""
        stream, exchange = self._exchange(head, room)
        exchange.start(end_stream)
        return stream, exchange

    def send_shed(self, head: RequestHead) -> tuple[RecordingStream, Exchange]:
        """A request arrives while too much is buffered."""
        stream, exchange = self._exchange(head, 1 << 40)
        exchange.shed()
        return stream, exchange

    def _exchange(self, head: RequestHead, room: int) -> tuple[RecordingStream, Exchange]:
        stream = RecordingStream(room)
        exchange = Exchange(self.context, self.downstream, stream, head, self.done.append)
        stream.handler = exchange
        return stream, exchange

    @property
    def upstreams(self) -> list[RecordingStream]:
        """All streams that endpoints gave, in the endpoints' order."""
        return [stream for endpoint in self.cluster.endpoints for stream in endpoint.streams]

    @property
    def upstream(self) -> RecordingStream:
        """The one that is alive."""
        (stream,) = [s for s in self.upstreams if not s.dead]
        return stream

    def assert_settled(self, exchanges: int = 1) -> None:
        """Everything that was begun has ended, once."""
        assert len(self.done) == len(self.log.records) == exchanges
        assert self.cluster.active == 0
        assert self.cluster.retry_budget.active == 0
        assert self.budget.held == 0
        timeouts = self.context.timeouts.values()
        assert sum(each.waiting for each in timeouts) == 0
        assert self.clock.pending <= len(timeouts)  # each looks once more whether anybody waits
        assert not any(endpoint.waiters for endpoint in self.cluster.endpoints)
        assert not self.routes.waiting
