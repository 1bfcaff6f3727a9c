"""The `grpc-timeout` field: a caller's deadline (gRPC over HTTP/2, "Timeout"). Called by the router."""

from __future__ import annotations

from sidecar.protocol.events import RequestHead

_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def parse_grpc_timeout(value: bytes) -> float | None:
    """Seconds; None when the value is not of the form 1 to 8 digits and a unit."""
    digits, unit = value[:-1], _UNITS.get(value[-1:])
    if unit is None or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * unit


def format_grpc_timeout(seconds: float) -> bytes:
    """The field's value, rounded down, never below one nanosecond."""
    for unit, size in ((b"n", 1e-9), (b"u", 1e-6), (b"m", 1e-3), (b"S", 1.0), (b"M", 60.0)):
        count = int(seconds / size)
        if count < 100_000_000:
            return b"%d%s" % (max(count, 1), unit)
    return b"%dH" % min(int(seconds / 3600.0), 99_999_999)


def grpc_deadline(limit: float, head: RequestHead) -> float | None:
    """Seconds that the caller of a gRPC method allows, at most `limit` when that is not 0.0 (Envoy
    `grpc_timeout_header_max`). None: the caller did not say, or nothing that can be read."""
    value = head.get(b"grpc-timeout")
    asked = parse_grpc_timeout(value) if value is not None else None
    if asked is None or not limit:
        return asked
    # "0n" means no deadline to Envoy; it is not valid gRPC.
    return min(asked, limit) if asked else limit
