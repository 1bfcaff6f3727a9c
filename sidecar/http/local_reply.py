"""Answers that the sidecar makes itself, in the dialect of the request: plain HTTP, or a gRPC status.

Called by the exchange and the router. Every reply says what happened, to what, and what to do; the same
text goes to the access log. Once a response has been started only `grpc_trailers` is of use.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from sidecar.protocol.events import Field, ResponseHead

GRPC_UNKNOWN = 2
GRPC_DEADLINE_EXCEEDED = 4
GRPC_UNIMPLEMENTED = 12
GRPC_UNAVAILABLE = 14

_GRPC_STATUS = {
    400: 13,
    401: 16,
    403: 7,
    404: GRPC_UNIMPLEMENTED,
    408: GRPC_DEADLINE_EXCEEDED,
    413: 8,
    429: 8,
    431: 8,
    502: GRPC_UNAVAILABLE,
    503: GRPC_UNAVAILABLE,
    504: GRPC_DEADLINE_EXCEEDED,
}
"""HTTP status of a local reply to gRPC status (gRPC: "HTTP to gRPC Status Code Mapping"; a timeout of
ours is the call's deadline, too much of something is RESOURCE_EXHAUSTED)."""


@dataclass(frozen=True, slots=True)
class LocalReply:
    """`flag` is Envoy's response flag (`UH`, `UF`, `UT`, ...); `text` one line for people."""

    status: int
    flag: str
    text: str
    grpc_status: int | None = None
    """None: from the HTTP status."""
    fields: tuple[Field, ...] = ()
    body: bytes | None = None
    """None: the text."""


def is_grpc(content_type: bytes | None) -> bool:
    """gRPC over HTTP/2: `application/grpc` alone or with a `+suffix` or parameter; not gRPC-Web."""
    if content_type is None or not content_type.startswith(b"application/grpc"):
        return False
    rest = content_type[16:17]
    return rest in (b"", b"+", b";")


def grpc_status_of(reply: LocalReply) -> int:
    """The gRPC status that stands for this reply."""
    return _GRPC_STATUS.get(reply.status, GRPC_UNKNOWN) if reply.grpc_status is None else reply.grpc_status


def grpc_trailers(reply: LocalReply) -> tuple[Field, ...]:
    """Status and message of a gRPC call that ends here, for trailers or a trailers-only response."""
    message = quote(reply.text, safe=" !#$&'()*+,/:;=?@[]~\"<>^`{|}\\").encode()
    return (b"grpc-status", b"%d" % grpc_status_of(reply)), (b"grpc-message", message)


def render(reply: LocalReply, grpc: bool) -> tuple[ResponseHead, bytes]:
    """Head and body. For gRPC a trailers-only response: 200, status and message in the head, no body."""
    if grpc:
        fields = ((b"content-type", b"application/grpc"), *grpc_trailers(reply))
        return ResponseHead(200, (*fields, *reply.fields)), b""
    if reply.status in (204, 304):  # RFC 9110 section 6.4.1: these have no content
        return ResponseHead(reply.status, reply.fields), b""
    body = reply.text.encode() + b"\n" if reply.body is None else reply.body
    described = (
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
    )
    return ResponseHead(reply.status, (*described, *reply.fields)), body
