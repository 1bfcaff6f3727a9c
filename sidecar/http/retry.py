"""Whether a failed attempt may be made again: the rules, free of sockets and clocks.

Called by the router after each failure. A request that the peer has certainly not processed may always go
again; one that it may have processed only when its method is idempotent (RFC 9110 section 9.2.2); a
response is refused only when the policy names its status.
"""

from __future__ import annotations

from enum import Enum

from sidecar.config.resources import RetryPolicy
from sidecar.protocol.events import ErrorCode, Reset

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})

_GRPC_RETRY_NAMES = {
    1: "cancelled",
    4: "deadline-exceeded",
    8: "resource-exhausted",
    13: "internal",
    14: "unavailable",
}


class Failure(Enum):
    """How an attempt failed; the value is the reason that logs and spans show."""

    CONNECT = "connect-failure"
    REFUSED = "refused-stream"
    NOT_SENT = "reset-before-request"
    RESET = "reset"
    MALFORMED = "upstream-protocol-error"
    UNWRITABLE = "unwritable-request"
    PER_TRY_TIMEOUT = "per-try-timeout"


_BROKEN_PROTOCOL = frozenset(
    {
        ErrorCode.PROTOCOL_ERROR,
        ErrorCode.FLOW_CONTROL_ERROR,
        ErrorCode.FRAME_SIZE_ERROR,
        ErrorCode.STREAM_CLOSED,
        ErrorCode.COMPRESSION_ERROR,
        ErrorCode.ENHANCE_YOUR_CALM,
    }
)
"""Codes with which our own codec turns down what a peer sent: a malformed or too large response."""


def classify(reset: Reset) -> Failure:
    """What a reset says about the request, nothing of whose response was passed on."""
    if reset.processed:
        broken = not reset.remote and reset.code in _BROKEN_PROTOCOL
        return Failure.MALFORMED if broken else Failure.RESET
    if reset.code == ErrorCode.INTERNAL_ERROR and not reset.remote:
        return Failure.UNWRITABLE
    return Failure.REFUSED if reset.code == ErrorCode.REFUSED_STREAM else Failure.NOT_SENT


_CONDITIONS = {
    Failure.CONNECT: frozenset({"connect-failure", "reset-before-request", "5xx", "gateway-error", "reset"}),
    Failure.REFUSED: frozenset({"refused-stream", "reset-before-request", "5xx", "gateway-error", "reset"}),
    Failure.NOT_SENT: frozenset(
        {"reset-before-request", "refused-stream", "connect-failure", "5xx", "reset"}
    ),
    Failure.RESET: frozenset({"reset", "5xx", "gateway-error"}),
    Failure.MALFORMED: frozenset({"reset", "5xx", "gateway-error"}),
    Failure.UNWRITABLE: frozenset(),
    Failure.PER_TRY_TIMEOUT: frozenset({"reset", "5xx", "gateway-error"}),
}
_MAYBE_PROCESSED = (Failure.RESET, Failure.MALFORMED, Failure.PER_TRY_TIMEOUT)


def retries_failure(policy: RetryPolicy, method: bytes, failure: Failure) -> bool:
    """True when the policy wants this failure retried and the method makes it safe."""
    if failure in _MAYBE_PROCESSED and method not in IDEMPOTENT:
        return False
    return not _CONDITIONS[failure].isdisjoint(policy.retry_on)


def retries_status(policy: RetryPolicy, method: bytes, status: int) -> bool:
    """True when the policy names this response status. Unsafe methods are never retried on a status."""
    if method not in IDEMPOTENT:
        return False
    on = policy.retry_on
    if status >= 500 and "5xx" in on:
        return True
    if status in (502, 503, 504) and "gateway-error" in on:
        return True
    if status == 409 and "retriable-4xx" in on:
        return True
    return status in policy.retriable_status_codes and "retriable-status-codes" in on


def retries_grpc_status(policy: RetryPolicy, status: int) -> bool:
    """True when the policy names this gRPC status (gRFC A44); only for responses without messages."""
    return _GRPC_RETRY_NAMES.get(status) in policy.retry_on
