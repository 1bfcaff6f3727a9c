"""gRPC's wire form over HTTP/2: message framing, status, errors. Sans-IO; used by `grpc_client.py`.

Source: the gRPC over HTTP2 protocol description and its mapping of HTTP status and HTTP/2 error codes.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from sidecar.protocol.events import ErrorCode, Field, Reset

OK = 0
CANCELLED = 1
UNKNOWN = 2
DEADLINE_EXCEEDED = 4
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
UNAUTHENTICATED = 16

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of the largest message that is taken."""

_FROM_HTTP = {
    400: INTERNAL,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: UNIMPLEMENTED,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}
_FROM_RESET = {
    ErrorCode.REFUSED_STREAM: UNAVAILABLE,
    ErrorCode.CANCEL: CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: PERMISSION_DENIED,
}


class GrpcError(Exception):
    """A call that did not succeed. `code` is a gRPC status code, never 0; `message` names the address."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"gRPC status {code}: {message}")
        self.code = code
        self.message = message


def frame(message: bytes) -> bytes:
    """A message with its prefix: not compressed, and its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Deframer:
    """Cuts messages out of a body. `error` is set, for good, by what cannot be taken."""

    __slots__ = ("_buffer", "error")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.error: tuple[int, str] | None = None

    def receive(self, data: bytes) -> list[bytes]:
        """Messages that `data` completes."""
        buffer = self._buffer
        buffer += data
        messages: list[bytes] = []
        while self.error is None and len(buffer) >= 5:
            size = int.from_bytes(buffer[1:5], "big")
            if buffer[0]:
                self.error = (INTERNAL, "received a compressed message, though no compression was offered")
            elif size > MAX_MESSAGE:
                self.error = (
                    RESOURCE_EXHAUSTED,
                    f"received a message of {size} bytes; the limit is {MAX_MESSAGE}",
                )
            elif len(buffer) < 5 + size:
                break
            else:
                messages.append(bytes(buffer[5 : 5 + size]))
                del buffer[: 5 + size]
        return messages

    @property
    def partial(self) -> bool:
        """The body stops within a message."""
        return bool(self._buffer)

    def __repr__(self) -> str:
        return f"<Deframer buffered={len(self._buffer)} error={self.error}>"


def status_of_fields(fields: tuple[Field, ...]) -> tuple[int, str] | None:
    """`grpc-status` and `grpc-message` of a trailer section; None without a status."""
    values = dict(fields)
    raw = values.get(b"grpc-status")
    if raw is None:
        return None
    code = int(raw) if raw.isdigit() and len(raw) <= 3 else UNKNOWN
    return code, unquote_to_bytes(values.get(b"grpc-message", b"")).decode("utf-8", "replace")


def status_of_http(status: int) -> tuple[int, str]:
    """For a response that is not gRPC's."""
    return _FROM_HTTP.get(status, UNKNOWN), f"the server answered with HTTP status {status}, not with gRPC"


def status_of_reset(reset: Reset) -> tuple[int, str]:
    if not reset.remote or not reset.processed:
        return UNAVAILABLE, reset.reason
    return _FROM_RESET.get(
        ErrorCode(reset.code), INTERNAL
    ) if reset.code in _CODES else INTERNAL, reset.reason


_CODES = frozenset(ErrorCode)
