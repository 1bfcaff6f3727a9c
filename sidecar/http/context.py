"""What the exchanges of one HTTP connection manager share, and what they know of their connection.

Made by `server/chain_factory.py` for each listener and by `server/chain.py` for each connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import HttpConnectionManagerConfig
from sidecar.http.buffer_budget import BufferBudget
from sidecar.http.filter_chain import HttpFilter
from sidecar.protocol.events import Field, RequestHead
from sidecar.runtime.timeouts import Timeouts
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import Metrics, RouteStats
from sidecar.telemetry.tracing import Tracer, Untraced
from sidecar.upstream.cluster import Cluster


class TimerHandle(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """The part of an event loop that measures time; tests put a virtual one in its place."""

    def time(self) -> float: ...
    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> TimerHandle: ...


class RouteSource(Protocol):
    """Where a request's route table comes from: the listener itself, RDS, or discovery by authority."""

    def current(self, head: RequestHead) -> CompiledRoutes | None:
        """The table to use, or None while it is not known yet."""

    def wait(self, head: RequestHead, callback: Callable[[CompiledRoutes | str], None]) -> Callable[[], None]:
        """Ask for it; the callback gets the table, or a text that says why there is none. Returns a
        function that stops waiting."""


class ClusterSource(Protocol):
    """The part of the cluster manager that the router needs."""

    def get(self, name: str) -> Cluster | None: ...


@dataclass(slots=True)
class HttpContext:
    config: HttpConnectionManagerConfig
    inbound: bool
    clusters: ClusterSource
    routes: RouteSource
    tracer: Tracer | Untraced
    metrics: Metrics
    access_log: AccessLog | None
    clock: Clock
    now: Callable[[], float]
    """Monotonic seconds with full resolution (an event loop's own time is cached)."""
    random: Random
    budget: BufferBudget
    filters: tuple[HttpFilter, ...] = ()
    header_limit: int = 65536
    """Bytes of a request's header section, unless the configuration has a limit of its own."""
    timeouts: dict[float, Timeouts] = field(default_factory=dict)
    """Of requests and connections, by their seconds; from `timeouts_of`."""
    direction: str = field(init=False)
    websocket: bool = field(init=False)
    """Upgrades to WebSocket are taken: always in the mesh, elsewhere when `upgrade_configs` says so."""

    def __post_init__(self) -> None:
        self.direction = "inbound" if self.inbound else "outbound"
        self.websocket = self.in_mesh or "websocket" in self.config.upgrades

    def timeouts_of(self, seconds: float) -> Timeouts:
        """Those that last so long; there are as many as the configuration has lengths."""
        known = self.timeouts.get(seconds)
        if known is None:
            known = self.timeouts[seconds] = Timeouts(self.clock, self.now, seconds)
        return known

    @property
    def in_mesh(self) -> bool:
        """A sidecar's own inbound or outbound listener, not one that a static bootstrap designed."""
        return self.inbound or self.config.on_demand


@dataclass(slots=True)
class Downstream:
    """One downstream connection, as its exchanges see it."""

    http2: bool
    protocol: str
    """`HTTP/1.1` or `HTTP/2`, for logs and spans."""
    remote: tuple[str, int]
    peer: str = ""
    """Verified SPIFFE id of the caller, "" on plain connections."""
    client_cert: tuple[Field, ...] = ()
    """The x-forwarded-client-cert field to add to every request."""
    keep_client_cert: bool = False
    """Pass on the x-forwarded-client-cert that the caller sent."""
    trusted: bool = False
    """The peer is another sidecar: local failures become stream resets that it may act upon."""
    stats: dict[tuple[str, str], RouteStats] = field(default_factory=dict)
