"""One destination: its endpoints, who of them takes the next request, and the limits that hold for all.

Owned by `cluster_manager.py`; the router (and the TCP proxy) picks an endpoint, begins, acquires a stream
from the endpoint, and finishes. Picking, beginning and finishing are on the path of every request: no
tasks, no timers, no allocation there. Longer than most files because what a request does and what
discovery and ejection do act on the same few attributes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from math import inf

from sidecar.config.resources import (
    ClusterConfig,
    Discovery,
    EndpointConfig,
    EndpointsConfig,
    Health,
    LbPolicy,
    SocketAddress,
)
from sidecar.upstream.context import ConnectionLimits, UpstreamContext
from sidecar.upstream.dns import DnsRefresher, is_name, with_addresses
from sidecar.upstream.endpoint import Endpoint, EndpointIdentity, identity
from sidecar.upstream.host import Ejection
from sidecar.upstream.load_balancer import LeastRequest, LoadBalancer, RoundRobin
from sidecar.upstream.locality import Locality, LocalityBalancer
from sidecar.upstream.original_dst import OriginalDestinations
from sidecar.upstream.outlier_detection import PROBE_INTERVAL, OutlierDetector
from sidecar.upstream.peak_ewma import PeakEwma, observe
from sidecar.upstream.retry_budget import RetryBudget


class Cluster:
    """`config` never changes; endpoints do. `stats_name` replaces the names of cluster and endpoints in
    metrics where they come from the wire."""

    def __init__(self, context: UpstreamContext, config: ClusterConfig, stats_name: str = "") -> None:
        self.name = config.name
        self.config = config
        self.stats = context.metrics.cluster(stats_name or config.name)
        breakers = config.circuit_breakers
        self.retry_budget = RetryBudget(
            breakers.retry_budget_percent, breakers.min_retries_per_second, breakers.max_retries
        )
        self.endpoints: list[Endpoint] = []
        self.active = 0
        """Requests in flight."""
        self.begun = 0
        """Requests since it was made."""
        self._context = context
        self._stats_name = stats_name
        self._time = context.loop.time
        self._max_requests = breakers.max_requests
        self._limits = ConnectionLimits(breakers.max_connections, breakers.max_pending_requests)
        self._balancer = LocalityBalancer(self._balancer_factory(), context.random.random)
        self._measures_latency = config.lb_policy is LbPolicy.PEAK_EWMA
        self._detector = None
        if config.outlier_detection is not None and config.discovery is not Discovery.ORIGINAL_DST:
            self._detector = OutlierDetector(config.outlier_detection)
        self._return_timer: asyncio.TimerHandle | None = None
        self._counted_out = 0
        self._probes: list[Endpoint] = []
        self._removed: list[Endpoint] = []
        self._dns: dict[str, DnsRefresher] = {}
        self._original: OriginalDestinations | None = None
        if config.discovery is Discovery.ORIGINAL_DST:
            self._original = OriginalDestinations(lambda address: self._make(EndpointConfig(address)))
        if config.endpoints is not None:
            self.set_endpoints(config.endpoints)

    def _balancer_factory(self) -> Callable[[], LoadBalancer[Endpoint]]:
        random = self._context.random.random
        policy = self.config.lb_policy
        if policy is LbPolicy.PEAK_EWMA:
            return lambda: PeakEwma(random, self._time)
        if policy is LbPolicy.LEAST_REQUEST:
            return lambda: LeastRequest(random)
        return lambda: RoundRobin(random)

    # --- a request -------------------------------------------------------------------------------

    def pick(self, tried: Collection[Endpoint]) -> Endpoint | None:
        """Who takes the next attempt: usable and not in `tried`; one that is draining or ejected (in this
        order) only when no such one is left, a tried one only when none of these is, an unhealthy one only
        when there are no others. None when there are no endpoints at all."""
        if self._probes and not tried:
            probe = self._due_probe()
            if probe is not None:
                return probe
        return self._balancer.pick(tried)

    def pick_for(self, destination: SocketAddress, tried: Collection[Endpoint]) -> Endpoint | None:
        """As `pick`, for a connection that was redirected on its way to `destination`."""
        if self._original is None:
            return self.pick(tried)
        return self._original.endpoint(destination)

    def begin(self, endpoint: Endpoint) -> bool:
        """Count an attempt in. False: the circuit breaker `max_requests` says no (do not `finish` then)."""
        stats = self.stats
        if self.active >= self._max_requests:
            stats.requests_overflow += 1
            return False
        self.active += 1
        self.begun += 1
        stats.requests += 1
        stats.requests_active += 1
        endpoint.active += 1
        endpoint_stats = endpoint.stats
        endpoint_stats.requests += 1
        endpoint_stats.active += 1
        return True

    def finish(self, endpoint: Endpoint, latency: float | None, failed: bool) -> None:
        """Count it out. `latency`: seconds until the response head, None when none came. `failed`: the
        endpoint is to blame (5xx, reset, connect failure, time-out). Neither (the caller left, a circuit
        breaker said no) says nothing about the endpoint."""
        self.active -= 1
        self.stats.requests_active -= 1
        endpoint.active -= 1
        endpoint_stats = endpoint.stats
        endpoint_stats.active -= 1
        if failed:
            endpoint_stats.failures += 1
        elif latency is None:
            return
        if self._measures_latency:
            observe(endpoint, latency, failed, self._time())
        detector = self._detector
        if detector is None:
            return
        if failed:
            now = self._time()
            if detector.record_failure(endpoint, now, self._balancer.usable):
                self._ejected()
            elif detector.probe_early(endpoint, now):
                self._rebuild()
        elif endpoint.notable and detector.record_success(endpoint, self._time()):
            self._rebuild()

    def why_none(self) -> str:
        """Why `pick` answers None, in words."""
        if self._original is not None:
            return "it is of type ORIGINAL_DST, and the connection was not redirected by a TCP listener"
        errors = [f"cannot resolve {dns.host}: {dns.error}" for dns in self._dns.values() if dns.error]
        if errors:
            return "; ".join(errors)
        return (
            "discovery lists no endpoints"
            if self.config.discovery is Discovery.EDS
            else "it has no endpoints"
        )

    # --- ejection --------------------------------------------------------------------------------

    def _ejected(self) -> None:
        self.stats.ejections += 1
        self._rebuild()

    def _rebuild(self) -> None:
        """An endpoint has joined, left, changed, was ejected or has returned."""
        self._balancer.rebuild()
        detector = self._detector
        if detector is None:
            return
        self.stats.ejected += detector.out - self._counted_out
        self._counted_out = detector.out
        serving = self._balancer.priority
        self._probes = [
            endpoint
            for endpoint in self.endpoints
            if endpoint.ejection is Ejection.PROBING
            and endpoint.health is Health.HEALTHY
            and endpoint.priority <= serving
        ]
        if self._return_timer is not None:
            self._return_timer.cancel()
            self._return_timer = None
        due = detector.next_return
        if due < inf:
            self._return_timer = self._context.loop.call_at(due, self._on_return)

    def _on_return(self) -> None:
        self._return_timer = None
        assert self._detector is not None
        self._detector.release_due(self._time())
        self._rebuild()

    def _due_probe(self) -> Endpoint | None:
        now = self._time()
        for endpoint in self._probes:
            if not endpoint.active or now >= endpoint.next_probe:
                endpoint.next_probe = now + PROBE_INTERVAL
                return endpoint
        return None

    # --- endpoints -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to resolve names (DNS clusters). Until a name is resolved, connecting resolves it."""
        config = self.config
        if config.discovery not in (Discovery.STRICT_DNS, Discovery.LOGICAL_DNS) or config.endpoints is None:
            return
        changed = self._on_logical if config.discovery is Discovery.LOGICAL_DNS else self._on_strict
        names = [e.address.host for locality in config.endpoints.localities for e in locality.endpoints]
        for name in dict.fromkeys(names):
            if is_name(name):
                loop, random = self._context.loop, self._context.random
                self._dns[name] = DnsRefresher(
                    loop, name, config.dns_refresh_rate, random, changed, config.dns_lookup_family
                )
        for refresher in self._dns.values():
            refresher.start()

    def _on_strict(self, name: str, addresses: tuple[str, ...]) -> None:
        assert self.config.endpoints is not None
        resolved = {dns.host: dns.addresses for dns in self._dns.values() if dns.addresses}
        self.set_endpoints(with_addresses(self.config.endpoints, resolved))

    def _on_logical(self, name: str, addresses: tuple[str, ...]) -> None:
        for endpoint in self.endpoints:
            if endpoint.config.address.host == name and endpoint.address.host not in addresses:
                endpoint.resolve_to(SocketAddress(addresses[0], endpoint.address.port))

    def set_endpoints(self, config: EndpointsConfig) -> None:
        """Those that stay keep connections, latency and ejection; those that leave finish their streams."""
        old = {identity(endpoint.config): endpoint for endpoint in self.endpoints}
        current: dict[EndpointIdentity, Endpoint] = {}
        localities: list[Locality[Endpoint]] = []
        for locality in config.localities:
            if locality.weight <= 0:
                continue
            hosts: list[Endpoint] = []
            for wanted in locality.endpoints:
                key = identity(wanted)
                if key in current:
                    continue
                endpoint = current[key] = old.get(key) or self._make(wanted)
                endpoint.config = wanted
                endpoint.weight = max(wanted.weight, 1)
                endpoint.priority = locality.priority
                endpoint.locality = "/".join(
                    filter(None, (locality.region, locality.zone, locality.sub_zone))
                )
                hosts.append(endpoint)
            if hosts:
                localities.append(Locality(locality.priority, locality.weight, tuple(hosts)))
        self.endpoints = list(current.values())
        self._remove([endpoint for key, endpoint in old.items() if key not in current])
        self._balancer.update(localities)
        if self._detector is not None:
            self._detector.update(self.endpoints)
        self._rebuild()

    def _make(self, config: EndpointConfig) -> Endpoint:
        name = self._stats_name or config.hostname or str(config.address)
        if self._original is not None:
            name = "original_dst"  # what clients dial is no label
        stats = self._context.metrics.endpoint(self._stats_name or self.name, name)
        return Endpoint(self._context, self.config, config, self._limits, self.stats, stats)

    def _remove(self, endpoints: list[Endpoint]) -> None:
        names = {endpoint.name for endpoint in self.endpoints}
        self._removed = [endpoint for endpoint in self._removed if endpoint.connections]
        for endpoint in endpoints:
            if not self._stats_name and endpoint.name not in names:
                self._context.metrics.remove_endpoint(self.name, endpoint.name)
            self._removed.append(endpoint)
            endpoint.drain()

    # --- the end ---------------------------------------------------------------------------------

    def drain(self) -> None:
        """Replaced or removed: streams finish, idle connections close, nothing runs in the background."""
        self._stop()
        for endpoint in self._all():
            endpoint.drain()

    def abort(self) -> None:
        """Drop all connections."""
        self._stop()
        for endpoint in self._all() + self._removed:
            endpoint.abort()

    def _all(self) -> list[Endpoint]:
        return self.endpoints if self._original is None else self._original.endpoints()

    def _stop(self) -> None:
        for refresher in self._dns.values():
            refresher.stop()
        if self._return_timer is not None:
            self._return_timer.cancel()
            self._return_timer = None
        # Its ejections end with it; the counters may live on in a successor's hands.
        self.stats.ejected -= self._counted_out
        self._counted_out = 0
        self._detector = None
        self._probes = []

    @property
    def connections(self) -> int:
        """Open and being made, those of removed endpoints included."""
        return sum(endpoint.connections for endpoint in self._all() + self._removed)

    @property
    def busy(self) -> bool:
        return bool(self.active or self.connections)

    def describe(self) -> dict[str, object]:
        """For the admin port's `/clusters`: JSON-ready. Times in seconds, latency in milliseconds."""
        now = self._time()
        return {
            "name": self.name,
            "discovery": self.config.discovery.value,
            "lb_policy": self.config.lb_policy.value,
            "protocol": "HTTP/1.1" if self.config.http2 is None else "HTTP/2",
            "tls": self.config.tls is not None,
            "requests_active": self.active,
            "connections": self.connections,
            "pending": self._limits.pending,
            "draining_endpoints": sum(1 for endpoint in self._removed if endpoint.connections),
            "dns_errors": {dns.host: dns.error for dns in self._dns.values() if dns.error},
            "endpoints": [endpoint.describe(now) for endpoint in self._all()],
        }

    def __repr__(self) -> str:
        return (
            f"<Cluster {self.name} endpoints={len(self.endpoints)} usable={self._balancer.usable} "
            f"active={self.active} connections={self.connections}>"
        )
