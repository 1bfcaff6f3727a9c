"""All clusters, by name: keeps what has not changed, lets go gently of what has.

Made by `app.py`; configuration calls `apply` and `set_endpoints`, the router `get`. All on one loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random

from sidecar.config.resources import (
    CircuitBreakers,
    ClusterConfig,
    Discovery,
    EndpointConfig,
    EndpointsConfig,
    Http2Options,
    LocalityEndpoints,
    SocketAddress,
)
from sidecar.telemetry.metrics import Metrics
from sidecar.upstream.cluster import Cluster
from sidecar.upstream.context import ClientTls, Connect, MakeCodec, MakeH2, UpstreamContext

PASSTHROUGH = "passthrough"
"""Name in metrics of all destinations outside the mesh together."""
UNLIMITED = CircuitBreakers(2**32 - 1, 2**32 - 1, 2**32 - 1)
"""What the mesh was told nothing about is the application's own affair."""
PASSTHROUGH_IDLE = 60.0
"""Seconds; a destination outside the mesh that was not used for one to two of these is forgotten."""


class ClusterManager:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        tls: ClientTls,
        random: Random,
        make_h2: MakeH2,
        make_h1: MakeCodec,
        make_raw: MakeCodec,
        connect: Connect,
    ) -> None:
        """`make_*` make client-side codecs."""
        self._context = UpstreamContext(loop, metrics, tls, random, connect, make_h2, make_h1, make_raw)
        self._clusters: dict[str, Cluster] = {}
        self._assignments: dict[str, EndpointsConfig] = {}
        self._draining: list[Cluster] = []
        self._passthrough: dict[str, int] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None

    def get(self, name: str) -> Cluster | None:
        cluster = self._clusters.get(name)
        if cluster is None and name.startswith(PASSTHROUGH + "|"):
            # Forgotten while a route table still names it.
            _, protocol, address = name.split("|")
            host, _, port = address.rpartition(":")
            cluster = self.passthrough(host.strip("[]"), int(port), protocol == "h2")
        return cluster

    # --- configuration ---------------------------------------------------------------------------

    def apply(self, configs: Mapping[str, ClusterConfig]) -> None:
        """`configs` is the whole wanted set. A cluster whose configuration is equal stays as it is."""
        for name in [
            name for name in self._clusters if name not in configs and name not in self._passthrough
        ]:
            self._retire(self._clusters.pop(name))
            self._context.metrics.remove_cluster(name)
        self._assignments = {name: e for name, e in self._assignments.items() if name in configs}
        for name, config in configs.items():
            old = self._clusters.get(name)
            if old is not None and old.config == config:
                continue
            new = self._clusters[name] = self._make(config)
            if old is not None:
                self._retire(old)
                for endpoint in {e.name for e in old.endpoints} - {e.name for e in new.endpoints}:
                    self._context.metrics.remove_endpoint(name, endpoint)

    def _make(self, config: ClusterConfig) -> Cluster:
        cluster = Cluster(self._context, config)
        assignment = self._assignments.get(config.name)
        if config.discovery is Discovery.EDS and assignment is not None:
            cluster.set_endpoints(assignment)
        cluster.start()
        return cluster

    def set_endpoints(self, cluster: str, endpoints: EndpointsConfig) -> None:
        """EDS. May come before the cluster itself, in which case the next `apply` uses it."""
        self._assignments[cluster] = endpoints
        current = self._clusters.get(cluster)
        if current is not None and current.config.discovery is Discovery.EDS:
            current.set_endpoints(endpoints)

    def _retire(self, cluster: Cluster) -> None:
        cluster.drain()
        self._draining = [old for old in self._draining if old.busy]
        self._draining.append(cluster)

    # --- destinations outside the mesh -----------------------------------------------------------

    def passthrough(self, host: str, port: int, http2: bool) -> Cluster:
        """Plaintext to `host:port`, made on demand and forgotten when idle. A host name is resolved anew for
        each connection. Its name can be given to `get` at any time."""
        address = SocketAddress(host, port)
        name = f"{PASSTHROUGH}|{'h2' if http2 else 'h1'}|{address}"
        cluster = self._clusters.get(name)
        if cluster is None:
            endpoints = (LocalityEndpoints("", "", "", 0, 1, (EndpointConfig(address, plaintext=True),)),)
            config = ClusterConfig(
                name,
                endpoints=EndpointsConfig(name, endpoints),
                http2=Http2Options() if http2 else None,
                circuit_breakers=UNLIMITED,
            )
            cluster = self._clusters[name] = Cluster(self._context, config, stats_name=PASSTHROUGH)
            self._passthrough[name] = -1
            if self._sweep_timer is None:
                self._sweep_timer = self._context.loop.call_later(PASSTHROUGH_IDLE, self._sweep)
        return cluster

    def _sweep(self) -> None:
        self._sweep_timer = None
        for name, begun in list(self._passthrough.items()):
            cluster = self._clusters[name]
            if cluster.begun == begun and not cluster.busy:
                del self._clusters[name], self._passthrough[name]
                cluster.drain()
            else:
                self._passthrough[name] = cluster.begun
        if self._passthrough:
            self._sweep_timer = self._context.loop.call_later(PASSTHROUGH_IDLE, self._sweep)

    # --- the rest --------------------------------------------------------------------------------

    def describe(self) -> list[dict[str, object]]:
        """For the admin port's `/clusters`, JSON-ready."""
        return [cluster.describe() for cluster in self._clusters.values()]

    async def close(self) -> None:
        """Drop everything. Whoever wants requests to finish waits for them first."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        clusters = [*self._clusters.values(), *self._draining]
        self._clusters.clear()
        self._draining.clear()
        for cluster in clusters:
            cluster.abort()
        await asyncio.sleep(0)  # cancelled connects and aborted sockets end in the next turn

    def __repr__(self) -> str:
        return (
            f"<ClusterManager clusters={len(self._clusters)} passthrough={len(self._passthrough)} "
            f"draining={len(self._draining)}>"
        )
