"""Run-time state of one address of a cluster: its connections, its counters, what balancing knows of it.

Made by `cluster.py`, which keeps it for as long as discovery names it, through changes of weight and
health. The router picks one from the cluster and asks it for a stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sidecar.config.resources import ClusterConfig, EndpointConfig, Health, Http2Options, SocketAddress
from sidecar.telemetry.metrics import ClusterStats, EndpointStats
from sidecar.upstream.context import ConnectionLimits, StreamWaiter, UpstreamContext
from sidecar.upstream.host import Ejection, Host
from sidecar.upstream.peak_ewma import latency
from sidecar.upstream.pool import HttpPool
from sidecar.upstream.tcp_pool import TcpPool

__all__ = ["Endpoint", "StreamWaiter", "identity"]

EndpointIdentity = tuple[SocketAddress, str, str, bool, bool]


def identity(config: EndpointConfig) -> EndpointIdentity:
    """What makes two configurations the same endpoint: all but weight and health. A Pod that got the
    address of another is a new endpoint, with none of the other's history."""
    return config.address, config.hostname, config.tunnel_authority, config.plaintext, config.http1


class Endpoint(Host):
    """`acquire(waiter)` gives the waiter a stream: at once when a ready connection has room, else when there
    is one, else `on_connect_failure`. `acquire_grpc` does so for a gRPC call, which is HTTP/2 by definition:
    an application in plain text gets it as such, whatever other requests are sent as."""

    __slots__ = (
        "_ended",
        "_grpc",
        "_make_grpc",
        "_tcp",
        "acquire",
        "acquire_grpc",
        "config",
        "locality",
        "name",
        "pool",
        "stats",
    )

    acquire: Callable[[StreamWaiter], None]
    acquire_grpc: Callable[[StreamWaiter], None]
    _make_grpc: Callable[[], HttpPool]

    def __init__(
        self,
        context: UpstreamContext,
        cluster: ClusterConfig,
        config: EndpointConfig,
        limits: ConnectionLimits,
        cluster_stats: ClusterStats,
        stats: EndpointStats,
    ) -> None:
        super().__init__()
        self.config = config
        self.locality = ""
        self.name = config.hostname or str(config.address)
        self.stats = stats
        self._tcp = TcpPool(context, cluster, config.address, config.plaintext, limits, cluster_stats)

        def pool_of(http2: Http2Options | None) -> HttpPool:
            own = cluster if cluster.http2 == http2 else replace(cluster, http2=http2)
            return HttpPool(context, own, config.address, config.plaintext, limits, cluster_stats)

        plain = cluster.tls is None or config.plaintext
        self.pool = pool_of(None if plain and config.http1 else cluster.http2)
        # Bound once: these are called for every request.
        self.acquire = self.acquire_grpc = self.pool.acquire
        self._grpc: HttpPool | None = None
        self._ended: Callable[[HttpPool], None] | None = None
        if plain and self.pool.http2 is None:
            # Made for the first call: few applications are asked for both.
            self._make_grpc = lambda: pool_of(cluster.http2 or Http2Options())
            self.acquire_grpc = self._acquire_grpc

    def _acquire_grpc(self, waiter: StreamWaiter) -> None:
        if self._grpc is None:
            self._grpc = self._make_grpc()
            self._grpc.address = self.address
            if self._ended is not None:
                self._ended(self._grpc)
        self._grpc.acquire(waiter)

    def _pools(self) -> tuple[HttpPool, ...]:
        return (self.pool,) if self._grpc is None else (self.pool, self._grpc)

    @property
    def address(self) -> SocketAddress:
        """Where new connections go."""
        return self.pool.address

    @property
    def ejected(self) -> bool:
        """Out by outlier detection, or being probed on its way back."""
        return bool(self.ejection)

    @property
    def health(self) -> Health:
        return self.config.health

    @property
    def connections(self) -> int:
        return sum(pool.connections for pool in self._pools()) + self._tcp.connections

    def acquire_tcp(self, waiter: StreamWaiter) -> None:
        """A fresh TCP connection as one stream."""
        self._tcp.acquire(waiter)

    def cancel(self, waiter: StreamWaiter) -> None:
        """The waiter, which has no stream yet, wants none any more."""
        for pool in self._pools():
            pool.cancel(waiter)
        self._tcp.cancel(waiter)

    def resolve_to(self, address: SocketAddress) -> None:
        """LOGICAL_DNS: connections made from now on go to this address; open ones stay."""
        self._tcp.address = address
        for pool in self._pools():
            pool.address = address

    def drain(self) -> None:
        """Out of use: idle connections close, streams finish."""
        self._ended = HttpPool.drain
        for pool in self._pools():
            pool.drain()

    def abort(self) -> None:
        """Drop all connections."""
        self._ended = HttpPool.abort
        for pool in self._pools():
            pool.abort()
        self._tcp.abort()

    def describe(self, now: float) -> dict[str, object]:
        """One row of `Cluster.describe`; `now` on the loop's clock."""
        ejected = self.ejection is Ejection.EJECTED
        return {
            "name": self.name,
            "address": str(self.address),
            "protocol": "HTTP/1.1" if self.pool.http2 is None else "HTTP/2",
            "locality": self.locality,
            "priority": self.priority,
            "weight": self.weight,
            "health": self.health.value,
            "ejection": self.ejection.name,
            "ejected_for": round(max(self.ejected_until - now, 0.0), 3) if ejected else 0.0,
            "consecutive_failures": self.consecutive_failures,
            "active": self.active,
            "latency_ms": round(latency(self, now) * 1000, 3) if self.latency_ewma else None,
            "connections": self.connections,
            "pending": sum(pool.pending for pool in self._pools()),
            "requests": self.stats.requests,
            "failures": self.stats.failures,
        }

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} {self.rank.name} active={self.active} connections={self.connections}>"
