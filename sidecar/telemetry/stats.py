"""What is counted: one object of plain integers for each route, cluster, endpoint and listener.

`metrics.py` makes them and reads them out; server, http and upstream increment their attributes.
Nothing here may read a clock, do I/O or raise on the request path.
"""

from __future__ import annotations

from bisect import bisect_left

from sidecar.telemetry.histogram import BINS, BOUNDS, quantile

INVALID_STATUS = -1
"""Recorded for a status outside 100..599, which counts as a server error (RFC 9110 section 15)."""

# Codes that are the server's fault (OpenTelemetry semantic conventions for gRPC server spans):
# UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
GRPC_FAILURES = frozenset({2, 4, 12, 13, 14, 15})
_GRPC_UNKNOWN = 2


class RouteStats:
    """Requests of one route in one direction, for one peer. Status 0: the caller left before an answer."""

    __slots__ = ("bins", "codes", "request_bytes", "response_bytes", "retries", "seconds", "timeouts")

    def __init__(self) -> None:
        self.codes: dict[tuple[int, int | None], int] = {}
        self.bins = [0] * BINS
        self.seconds = 0.0
        self.retries = 0
        self.timeouts = 0
        self.request_bytes = 0
        self.response_bytes = 0

    def record(self, status: int, grpc_status: int | None, seconds: float) -> None:
        """Count one finished request; `seconds` from its head's arrival to its end."""
        try:
            self.codes[status, grpc_status] += 1
        except KeyError:
            key = _bounded_code(status, grpc_status)
            self.codes[key] = self.codes.get(key, 0) + 1
        self.bins[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    @property
    def requests(self) -> int:
        return sum(self.codes.values())

    @property
    def failures(self) -> int:
        """Requests that ended in 5xx, or in a gRPC status that is the server's fault."""
        return sum(count for (status, grpc), count in self.codes.items() if _is_failure(status, grpc))

    def quantile(self, q: float) -> float:
        """Latency in seconds that the share `q` (0..1) of requests did not pass; 0.0 without requests."""
        return quantile(self.bins, q)

    def snapshot(self) -> dict[str, object]:
        requests, failures = self.requests, self.failures
        return {
            "requests": requests,
            "successes": requests - failures,
            "failures": failures,
            "success_rate": (requests - failures) / requests if requests else None,
            "retries": self.retries,
            "timeouts": self.timeouts,
            "request_bytes": self.request_bytes,
            "response_bytes": self.response_bytes,
            "p50_seconds": self.quantile(0.5) if requests else None,
            "p99_seconds": self.quantile(0.99) if requests else None,
            "codes": {code_name(*code): count for code, count in sorted(self.codes.items(), key=_code_order)},
        }

    def __repr__(self) -> str:
        return f"<RouteStats requests={self.requests} failures={self.failures} retries={self.retries}>"


def _bounded_code(status: int, grpc_status: int | None) -> tuple[int, int | None]:
    """Codes come from the wire: fold what no specification defines, so that they stay few."""
    if grpc_status is not None and not 0 <= grpc_status <= 16:
        grpc_status = _GRPC_UNKNOWN
    if status and not 100 <= status <= 599:
        status = INVALID_STATUS
    return status, grpc_status


def _is_failure(status: int, grpc_status: int | None) -> bool:
    return status >= 500 or status == INVALID_STATUS or grpc_status in GRPC_FAILURES


def _code_order(item: tuple[tuple[int, int | None], int]) -> tuple[int, int]:
    (status, grpc_status), _ = item
    return status, -1 if grpc_status is None else grpc_status


def code_name(status: int, grpc_status: int | None) -> str:
    name = "invalid" if status == INVALID_STATUS else str(status)
    return name if grpc_status is None else f"{name}/grpc-{grpc_status}"


class Counts:
    """Plain integer attributes named by `__slots__`, all starting at zero."""

    __slots__ = ()

    def __init__(self) -> None:
        for name in self._names():
            setattr(self, name, 0)

    def _names(self) -> tuple[str, ...]:
        names: tuple[str, ...] = self.__slots__
        return names

    def snapshot(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self._names()}

    def __repr__(self) -> str:
        counts = " ".join(f"{name}={value}" for name, value in self.snapshot().items() if value)
        return f"<{type(self).__name__} {counts or 'all zero'}>"


class ClusterStats(Counts):
    """What happened towards one cluster. Names in `_active` and `ejected` go up and down."""

    __slots__ = (
        "connect_failures",
        "connections_active",
        "connections_opened",
        "ejected",
        "ejections",
        "pending_active",
        "pending_overflow",
        "requests",
        "requests_active",
        "requests_overflow",
        "resets",
        "retries",
        "retry_overflow",
        "timeouts",
    )
    connect_failures: int
    connections_active: int
    connections_opened: int
    ejected: int
    ejections: int
    pending_active: int
    pending_overflow: int
    requests: int
    requests_active: int
    requests_overflow: int
    resets: int
    retries: int
    retry_overflow: int
    timeouts: int


class EndpointStats(Counts):
    """What happened towards one address of a cluster; attempts, so retries count again."""

    __slots__ = ("active", "failures", "requests")
    active: int
    failures: int
    requests: int


class ListenerStats(Counts):
    """What one listener accepted. `detected` counts connections by the protocol that they speak."""

    __slots__ = (
        "connections_active",
        "connections_opened",
        "detect_timeouts",
        "detected",
        "no_filter_chain_match",
        "not_redirected",
        "original_dst_passthrough",
        "protocol_errors",
        "requests",
        "streams_reset",
        "tcp_refused",
        "tls_failures",
    )
    connections_active: int
    connections_opened: int
    detect_timeouts: int
    detected: dict[str, int]
    no_filter_chain_match: int
    not_redirected: int
    original_dst_passthrough: int
    protocol_errors: int
    requests: int
    streams_reset: int
    tcp_refused: int
    tls_failures: int

    def __init__(self) -> None:
        super().__init__()
        self.detected = {}
