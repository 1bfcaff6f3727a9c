"""Counters of the data plane: plain integers on the request path, Prometheus text when scraped.

The stats objects are looked up once (per route, cluster, endpoint, listener) and kept by whoever counts;
after that counting is an attribute increment. Labels come from configuration and from the peer's
verified identity, never from the wire, and each kind has at most `max_series` label sets: what comes
later shares one series labelled `overflow`. Called by server, http and upstream to count, by admin to
read. Nothing here may read a clock, do I/O or raise on the request path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from sidecar.telemetry.prometheus import Family, labels, render, render_histogram
from sidecar.telemetry.stats import ClusterStats, EndpointStats, ListenerStats, RouteStats, code_name

__all__ = ["ClusterStats", "EndpointStats", "ListenerStats", "Metrics", "RouteStats"]

OVERFLOW = "overflow"

Collector = Callable[[], Iterable[Family]]


class _Stats(Protocol):
    def __init__(self) -> None: ...
    def snapshot(self) -> dict[str, object]: ...


S = TypeVar("S", bound=_Stats)


class _Table(Generic[S]):
    """Label values → stats of one kind, at most `limit` of them and then one for the overflow."""

    def __init__(self, make: type[S], names: tuple[str, ...], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._overflow_key = (OVERFLOW,) * len(names)
        self.names = names
        self.series: dict[tuple[str, ...], S] = {}

    def get(self, key: tuple[str, ...]) -> S:
        stats = self.series.get(key)
        if stats is None:
            if len(self.series) >= self._limit:
                key = self._overflow_key
            stats = self.series.setdefault(key, self._make())
        return stats

    def label_texts(self) -> list[tuple[str, S]]:
        return [
            (labels(dict(zip(self.names, key, strict=True))), stats) for key, stats in self.series.items()
        ]

    def snapshot(self) -> list[dict[str, object]]:
        return [
            {**dict(zip(self.names, key, strict=True)), **stats.snapshot()}
            for key, stats in self.series.items()
        ]


class Metrics:
    """Every counter of the process. `max_series` bounds the label sets of each kind."""

    def __init__(self, max_series: int = 2000) -> None:
        self._routes = _Table(RouteStats, ("direction", "route", "cluster", "peer"), max_series)
        self._clusters = _Table(ClusterStats, ("cluster",), max_series)
        self._endpoints = _Table(EndpointStats, ("cluster", "endpoint"), max_series)
        self._listeners = _Table(ListenerStats, ("direction", "listener"), max_series)
        self._collectors: list[Collector] = []

    def route(self, direction: str, route: str, cluster: str, peer: str) -> RouteStats:
        """`direction` is inbound or outbound; `peer` the other side's account, empty when unknown."""
        return self._routes.get((direction, route, cluster, peer))

    def cluster(self, name: str) -> ClusterStats:
        return self._clusters.get((name,))

    def endpoint(self, cluster: str, endpoint: str) -> EndpointStats:
        return self._endpoints.get((cluster, endpoint))

    def listener(self, direction: str, name: str) -> ListenerStats:
        return self._listeners.get((direction, name))

    def remove_cluster(self, name: str) -> None:
        """The cluster is gone: forget its series and those of its endpoints."""
        self._clusters.series.pop((name,), None)
        for key in [key for key in self._endpoints.series if key[0] == name]:
            del self._endpoints.series[key]

    def remove_endpoint(self, cluster: str, endpoint: str) -> None:
        """The endpoint is gone: forget its series, so that churn does not use up the limit."""
        self._endpoints.series.pop((cluster, endpoint), None)

    def register(self, collector: Collector) -> None:
        """Add families that `collector` makes at each scrape (process, exporters, certificates)."""
        self._collectors.append(collector)

    def prometheus_parts(self) -> Iterator[str]:
        """The exposition in pieces of bounded size, for a caller that lets others run in between."""
        yield from _route_parts(self._routes)
        for table, prefix, specs in (
            (self._clusters, "pilotfish_cluster", _CLUSTER_FAMILIES),
            (self._endpoints, "pilotfish_endpoint", _ENDPOINT_FAMILIES),
            (self._listeners, "pilotfish_listener", _LISTENER_FAMILIES),
        ):
            yield from _count_parts(table, prefix, specs)
        yield render(_detected(self._listeners))
        for family in self._collected():
            yield render(family)

    def prometheus_text(self) -> str:
        """All families in Prometheus text format 0.0.4."""
        return "".join(self.prometheus_parts())

    def _collected(self) -> Iterable[Family]:
        """A family may come from several collectors (two trace exporters): equal series add up."""
        merged: dict[str, tuple[Family, dict[str, float]]] = {}
        for collector in self._collectors:
            for family in collector():
                _, samples = merged.setdefault(family.name, (family, {}))
                for text, value in family.samples:
                    samples[text] = samples.get(text, 0) + value
        return [family._replace(samples=list(samples.items())) for family, samples in merged.values()]

    def snapshot(self) -> dict[str, list[dict[str, object]]]:
        """Everything that is counted, for `/stats`: lists of objects with labels and counts, JSON-ready."""
        return {
            "routes": self._routes.snapshot(),
            "clusters": self._clusters.snapshot(),
            "endpoints": self._endpoints.snapshot(),
            "listeners": self._listeners.snapshot(),
        }

    def __repr__(self) -> str:
        return (
            f"<Metrics routes={len(self._routes.series)} clusters={len(self._clusters.series)} "
            f"endpoints={len(self._endpoints.series)} listeners={len(self._listeners.series)}>"
        )


_ROUTE_FAMILIES = (
    (
        "failures",
        "failures_total",
        "Requests that ended in 5xx, or in a gRPC status that is the server's fault",
    ),
    ("retries", "retries_total", "Attempts after the first"),
    ("timeouts", "timeouts_total", "Requests that ended by a timeout"),
    ("request_bytes", "request_bytes_total", "Bytes of request bodies"),
    ("response_bytes", "response_bytes_total", "Bytes of response bodies"),
)

_CLUSTER_FAMILIES = (
    ("requests", "requests_total", "Attempts started"),
    ("requests_active", "requests_active", "Attempts in flight"),
    ("requests_overflow", "requests_overflow_total", "Requests refused by the circuit breaker for requests"),
    ("pending_active", "pending_requests", "Requests that wait for a connection"),
    (
        "pending_overflow",
        "pending_overflow_total",
        "Requests refused by the circuit breaker for waiting ones",
    ),
    ("retries", "retries_total", "Retries sent"),
    ("retry_overflow", "retry_overflow_total", "Retries refused by the retry budget or circuit breaker"),
    ("timeouts", "timeouts_total", "Attempts that ended by a timeout"),
    ("resets", "resets_total", "Streams that the upstream reset"),
    ("connections_opened", "connections_opened_total", "Connections made"),
    ("connections_active", "connections_active", "Connections open"),
    ("connect_failures", "connect_failures_total", "Connections that could not be made"),
    ("ejections", "ejections_total", "Endpoints taken out by outlier detection"),
    ("ejected", "endpoints_ejected", "Endpoints that are out now"),
)

_ENDPOINT_FAMILIES = (
    ("requests", "requests_total", "Attempts sent to the endpoint"),
    ("failures", "failures_total", "Attempts that failed there"),
    ("active", "requests_active", "Attempts in flight"),
)

_LISTENER_FAMILIES = (
    ("requests", "requests_total", "Requests received"),
    ("connections_opened", "connections_opened_total", "Connections accepted"),
    ("connections_active", "connections_active", "Connections open"),
    ("tls_failures", "tls_failures_total", "TLS handshakes that failed"),
    ("protocol_errors", "protocol_errors_total", "Connections closed for a protocol error"),
    ("streams_reset", "streams_reset_total", "Streams that the client reset"),
    ("detect_timeouts", "detect_timeouts_total", "Connections whose protocol was not known in time"),
    (
        "tcp_refused",
        "tcp_refused_total",
        "Opaque connections refused because no backend takes them",
    ),
    (
        "original_dst_passthrough",
        "original_dst_passthrough_total",
        "Captured connections to destinations that discovery does not know",
    ),
    (
        "not_redirected",
        "not_redirected_total",
        "Connections closed because they came to a port that only takes redirected ones",
    ),
    (
        "no_filter_chain_match",
        "no_filter_chain_match_total",
        "Connections closed because no filter chain takes them",
    ),
)


def _count_parts(table: _Table[Any], prefix: str, specs: tuple[tuple[str, str, str], ...]) -> Iterator[str]:
    series = table.label_texts()
    for attribute, name, help_text in specs:
        kind = "counter" if name.endswith("_total") else "gauge"
        value = attrgetter(attribute)
        yield render(
            Family(f"{prefix}_{name}", kind, help_text, [(text, value(stats)) for text, stats in series])
        )


def _route_parts(table: _Table[RouteStats]) -> Iterator[str]:
    series = table.label_texts()
    requests = [
        (f'{text},code="{code_name(status, None)}",grpc_status="{"" if grpc is None else grpc}"', count)
        for text, stats in series
        for (status, grpc), count in stats.codes.items()
    ]
    yield render(Family("pilotfish_requests_total", "counter", "Requests finished, by status", requests))
    yield from _count_parts(table, "pilotfish_request", _ROUTE_FAMILIES)
    yield from render_histogram(
        "pilotfish_request_duration_seconds",
        "Time from a request's head to the end of its response",
        ((text, stats.bins, stats.seconds) for text, stats in series),
    )


def _detected(table: _Table[ListenerStats]) -> Family:
    samples = [
        (f"{text},{labels({'protocol': protocol})}", count)
        for text, stats in table.label_texts()
        for protocol, count in stats.detected.items()
    ]
    return Family("pilotfish_listener_detected_total", "counter", "Connections by detected protocol", samples)
