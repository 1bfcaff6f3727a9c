"""OpenTelemetry's semantic conventions for HTTP and gRPC spans, and the mesh's own attributes.

http/ builds a sampled request's spans with these; nothing is called for an unsampled one. Queries never
leave in a span: they carry secrets, and `url.path` is defined without them.
"""

from __future__ import annotations

from functools import lru_cache

from sidecar.telemetry.stats import GRPC_FAILURES
from sidecar.telemetry.tracing import (
    KIND_SERVER,
    STATUS_ERROR,
    STATUS_UNSET,
    Attribute,
    AttributeSet,
)

_METHODS = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH", b"QUERY")
)

# Status code names of gRPC's core specification; `error.type` takes the name.
_GRPC_NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


def span_name(method: bytes, path: bytes, grpc: bool, route: str = "") -> str:
    """Of low cardinality: `Service/Method` for gRPC, otherwise the method and the route's name, if any."""
    if grpc:
        return path.lstrip(b"/").decode("utf-8", "backslashreplace")
    name = method.decode() if method in _METHODS else "HTTP"
    return f"{name} {route}" if route else name


@lru_cache(maxsize=4096)
def mesh_attributes(route: str, cluster: str, endpoint: str = "") -> AttributeSet:
    """What the mesh knows of itself; spans of the same route and endpoint share it, and its encoding."""
    pairs = (("pilotfish.route", route), ("pilotfish.cluster", cluster), ("pilotfish.endpoint", endpoint))
    return AttributeSet(tuple(pair for pair in pairs if pair[1]))


def request_attributes(
    kind: int,
    method: bytes,
    scheme: bytes,
    authority: bytes,
    path: bytes,
    protocol_version: str,
    user_agent: bytes | None,
    grpc: bool,
) -> tuple[Attribute, ...]:
    """What is known when the request's head is there. `protocol_version` is "1.1" or "2".

    The answer depends on nothing that changes between equal heads: it may be kept in the head's memo.
    """
    host, port = _host_port(authority, scheme)
    bare_path = path.partition(b"?")[0]
    attributes: list[Attribute] = [
        ("http.request.method", method if method in _METHODS else "_OTHER"),
        ("server.address", host),
        ("server.port", port),
        ("network.protocol.version", protocol_version),
    ]
    if method not in _METHODS:
        attributes.append(("http.request.method_original", method))
    if kind == KIND_SERVER:
        attributes += (("url.path", bare_path), ("url.scheme", scheme))
    else:
        attributes.append(("url.full", b"%b://%b%b" % (scheme, authority, bare_path)))
    if user_agent is not None:
        attributes.append(("user_agent.original", user_agent))
    if grpc:
        service, _, rpc_method = bare_path.lstrip(b"/").rpartition(b"/")
        attributes += (("rpc.system", "grpc"), ("rpc.service", service), ("rpc.method", rpc_method))
    return tuple(attributes)


@lru_cache(maxsize=1024)
def result_attributes(
    status: int,
    grpc_status: int | None,
    error: str = "",
    response_flags: str = "",
    resend_count: int = 0,
    retry_reason: str = "",
) -> tuple[Attribute, ...]:
    """What is known at the end. `status` 0: no response came. `error`, when the request failed without
    a status saying so, is a short class of failure (`connect_failure`, `timeout`, `reset`)."""
    attributes: list[Attribute] = []
    if status:
        attributes.append(("http.response.status_code", status))
    if grpc_status is not None:
        attributes.append(("rpc.grpc.status_code", grpc_status))
    if error:
        attributes.append(("error.type", error))
    elif grpc_status:
        attributes.append(("error.type", _grpc_name(grpc_status)))
    elif status >= 500:
        attributes.append(("error.type", str(status)))
    if resend_count:
        attributes.append(("http.request.resend_count", resend_count))
    if retry_reason:
        attributes.append(("pilotfish.retry.reason", retry_reason))
    if response_flags:
        attributes.append(("pilotfish.response_flags", response_flags))
    return tuple(attributes)


def span_status(kind: int, status: int, grpc_status: int | None, error: str = "") -> tuple[int, str]:
    """OTLP status code and message: a server span is an error for its own failures alone (5xx, the gRPC
    codes that are the server's fault), a client span for every unsuccessful answer."""
    if error:
        return STATUS_ERROR, error
    if grpc_status is not None:
        failed = grpc_status in GRPC_FAILURES if kind == KIND_SERVER else grpc_status != 0
    else:
        failed = status >= (500 if kind == KIND_SERVER else 400)
    return (STATUS_ERROR if failed else STATUS_UNSET), ""


def _grpc_name(grpc_status: int) -> str:
    return _GRPC_NAMES[grpc_status] if 0 <= grpc_status < len(_GRPC_NAMES) else str(grpc_status)


def _host_port(authority: bytes, scheme: bytes) -> tuple[bytes, int]:
    host, colon, port = authority.rpartition(b":")
    if colon and port.isdigit() and len(port) <= 5:
        return host.strip(b"[]"), int(port)
    return authority.strip(b"[]"), 443 if scheme == b"https" else 80
