"""Builds what serves a listener's connections from its configuration.

Called by the listener manager. Everything that needs compiling (routes, tracer, access log) is made here,
once; nothing is made per connection or per request.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from sidecar.config.dependency_manager import DependencyManager
from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import (
    FilterChainConfig,
    HttpConnectionManagerConfig,
    ListenerConfig,
    TcpProxyConfig,
    TracingConfig,
)
from sidecar.filters.registry import make_filters
from sidecar.http.buffer_budget import BufferBudget
from sidecar.http.context import Clock, HttpContext, RouteSource
from sidecar.server.captured import CapturedConnections
from sidecar.server.chain import Chain, HttpChain, MakeH2, TcpChain
from sidecar.server.forward_proxy import ForwardProxy
from sidecar.server.route_sources import OnDemandRoutes, RdsRoutes, StaticRoutes
from sidecar.server.tcp_proxy import TcpProxy
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import ListenerStats, Metrics
from sidecar.telemetry.tracing import Tracer, Untraced
from sidecar.upstream.cluster_manager import ClusterManager


class ChainFactory:
    """Callable with a listener and one of its chains. `tracer` and `access_log` hand out shared ones."""

    def __init__(
        self,
        clusters: ClusterManager,
        dependencies: DependencyManager,
        metrics: Metrics,
        tracer: Callable[[TracingConfig | None], Tracer | Untraced],
        access_log: Callable[[str], AccessLog],
        make_h2: MakeH2,
        clock: Clock,
        now: Callable[[], float],
        random: Random,
        budget: BufferBudget,
        header_limit: int,
    ) -> None:
        self._clusters = clusters
        self._dependencies = dependencies
        self._metrics = metrics
        self._tracer = tracer
        self._access_log = access_log
        self._make_h2 = make_h2
        self._clock = clock
        self._now = now
        self._random = random
        self._budget = budget
        self._header_limit = header_limit

    def __call__(self, config: ListenerConfig, chain: FilterChainConfig) -> Chain:
        network = chain.network
        stats = self._metrics.listener(config.direction, config.name)
        if isinstance(network, TcpProxyConfig):
            return TcpChain(self._tcp(network, stats, None))
        return self._http(config, network, stats)

    def _tcp(self, config: TcpProxyConfig, stats: ListenerStats, access_log: AccessLog | None) -> TcpProxy:
        return TcpProxy(
            config, self._clusters, self._random, self._clock, self._now, access_log, self._budget, stats
        )

    def _http(
        self, config: ListenerConfig, http: HttpConnectionManagerConfig, stats: ListenerStats
    ) -> HttpChain:
        access_log = self._access_log(http.access_log_path) if http.access_log else None
        routes = self._routes(http, config)
        context = HttpContext(
            config=http,
            inbound=config.inbound,
            clusters=self._clusters,
            routes=routes,
            tracer=self._tracer(http.tracing),
            metrics=self._metrics,
            access_log=access_log,
            clock=self._clock,
            now=self._now,
            random=self._random,
            budget=self._budget,
            header_limit=self._header_limit,
            filters=make_filters(http.filters),
        )
        tunnel = capture = None
        if isinstance(routes, OnDemandRoutes):
            opaque = TcpProxyConfig("outbound", (), idle_timeout=0.0, tunneling=True)
            proxy = self._tcp(opaque, stats, access_log)
            tunnel = ForwardProxy(proxy)
            capture = CapturedConnections(proxy, routes)
        return HttpChain(context, stats, self._make_h2, tunnel, capture)

    def _routes(self, http: HttpConnectionManagerConfig, config: ListenerConfig) -> RouteSource:
        if http.route_config is not None:
            return StaticRoutes(CompiledRoutes(http.route_config))
        if http.on_demand:
            own = {str(address) for address in (config.address, *config.additional_addresses)}
            return OnDemandRoutes(self._dependencies, self._clusters, own)
        return RdsRoutes(http.rds_route_name, self._dependencies)
