"""HTTPRoute, GRPCRoute and TCPRoute with a Service as parent (Gateway API v1, GEP-1294), validated.

A GRPCRoute is the same thing with matches written as service and method: `sources` turn those into
paths, and `GrpcMethod` keeps what Gateway API ranks them by. A TCPRoute has one rule, which matches
everything and has backends alone. Nothing here may know YAML or protobuf.
Times are seconds as float. `path` of a reference is where it stands in its object, for messages; it takes
no part in comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from control_plane.model.service import ServiceKey


class RouteKind(Enum):
    """The most specific one first: of several kinds on one port it alone counts (GEP-1294)."""

    GRPC = "GRPCRoute"
    HTTP = "HTTPRoute"
    TCP = "TCPRoute"


class PathKind(Enum):
    EXACT = "Exact"
    PREFIX = "PathPrefix"
    """Whole path elements: `/a` matches `/a` and `/a/b`, never `/ab`. No trailing slash, but for `/`."""
    RAW_PREFIX = "RawPrefix"
    """Bytes: what GRPCRoute's service match becomes (`/pkg.Service/`)."""
    REGEX = "RegularExpression"
    """Matches the whole path."""


@dataclass(frozen=True, slots=True)
class PathMatch:
    kind: PathKind = PathKind.PREFIX
    value: str = "/"


@dataclass(frozen=True, slots=True, order=True)
class ValueMatch:
    """Of a header or a query parameter."""

    name: str
    value: str
    regex: bool = False
    """The whole value must match."""


@dataclass(frozen=True, slots=True)
class GrpcMethod:
    """Lengths that rank a GRPCRoute's match; 0 where the field is unset."""

    service_length: int
    method_length: int


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """All parts must match. Headers and query parameters are sorted and unique by name, so that two
    matches that mean the same are equal."""

    path: PathMatch = PathMatch()
    method: str = ""
    headers: tuple[ValueMatch, ...] = ()
    query: tuple[ValueMatch, ...] = ()
    grpc: GrpcMethod | None = None


@dataclass(frozen=True, slots=True)
class HeaderModifier:
    """Names in lower case."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PathRewrite:
    """Replaces the whole path, or what a PathPrefix matched."""

    value: str
    prefix: bool


@dataclass(frozen=True, slots=True)
class Rewrite:
    hostname: str = ""
    path: PathRewrite | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    status: int = 302
    scheme: str = ""
    hostname: str = ""
    port: int = 0
    path: PathRewrite | None = None


@dataclass(frozen=True, slots=True)
class Filters:
    """What one `filters` list says; each kind may be there once."""

    request_headers: HeaderModifier | None = None
    response_headers: HeaderModifier | None = None
    rewrite: Rewrite | None = None
    redirect: Redirect | None = None


@dataclass(frozen=True, slots=True)
class BackendRef:
    namespace: str
    name: str
    port: int
    weight: int = 1
    filters: Filters = Filters()
    resolved: bool = True
    """False: it does not exist or may not be named, and its share of the requests is answered 500, of the
    connections refused."""
    kind: str = ""
    """Group and kind of what is no Service, for messages; nothing of that sort is ever resolved."""
    path: tuple[str | int, ...] = field(default=(), compare=False)

    @property
    def service(self) -> ServiceKey:
        return ServiceKey(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Retry:
    """`rules[].retry` (GEP-1731). Attempts beyond the first; back-off in seconds, None: the default."""

    codes: tuple[int, ...] = ()
    attempts: int | None = None
    backoff: float | None = None


@dataclass(frozen=True, slots=True)
class RouteRule:
    matches: tuple[RouteMatch, ...] = (RouteMatch(),)
    filters: Filters = Filters()
    backends: tuple[BackendRef, ...] = ()
    request_timeout: float = 0.0
    """The whole request, retries included; 0: none."""
    backend_timeout: float = 0.0
    """One attempt; 0: none."""
    retry: Retry | None = None


@dataclass(frozen=True, slots=True)
class ParentRef:
    """A Service whose traffic the route takes over."""

    namespace: str
    name: str
    port: int | None = None
    """None: every port."""
    section_name: str = ""
    """Name of a port; empty: every port."""
    path: tuple[str | int, ...] = field(default=(), compare=False)

    @property
    def service(self) -> ServiceKey:
        return ServiceKey(self.namespace, self.name)

    def covers(self, port: int, port_name: str) -> bool:
        """Whether the route takes over this port of the Service."""
        return self.port in (None, port) and self.section_name in ("", port_name)


@dataclass(frozen=True, slots=True)
class Route:
    kind: RouteKind
    namespace: str
    name: str
    parents: tuple[ParentRef, ...]
    rules: tuple[RouteRule, ...]
    created: str = ""
    """RFC 3339 time in UTC; empty where a file says none, which ranks as newest."""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.namespace}/{self.name}"

    @property
    def age_rank(self) -> tuple[bool, str, str, str]:
        """Sorts oldest first, then by namespace and name, as Gateway API breaks ties."""
        return (not self.created, self.created, self.namespace, self.name)
