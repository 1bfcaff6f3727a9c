"""What makes a header section well-formed, and the heads made of one (RFC 9113 section 8).

The HTTP/2 codec builds every head here; other codecs use the checks of names and values. Nothing is
repaired: a section is well-formed or `MalformedError` says why not. Stricter than RFC 9113 where field
sections travel on to HTTP/1: names are tokens (RFC 9110 section 5.1), values hold no control characters but
the horizontal tab, and `content-length` comes once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sidecar.protocol.events import Field, NeverIndexed, NeverIndexedValue, RequestHead, ResponseHead

NO_LENGTH = -1
"""No `content-length`: any amount of body is right."""

CONNECTION_FIELDS = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
"""RFC 9113 section 8.2.2: never in HTTP/2."""

NOT_IN_TRAILERS = frozenset(
    (
        *(b"content-length", b"host", b"trailer"),
        *(b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"x-forwarded-client-cert"),
    )
)
"""RFC 9110 section 6.5.1: what frames or routes a message, and what says who sends it, means nothing behind
its content, and would mean something to a careless recipient."""

_TOKEN_OCTETS = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NAME_OCTETS = _TOKEN_OCTETS[:-26]
_VALUE_TABLE = bytes(x if x == 0x09 or (x >= 0x20 and x != 0x7F) else 0 for x in range(256))
"""Maps what a value may not hold to NUL: with `bytes.translate` the fastest of the ways to look."""
_PATH_OCTETS = bytes(x for x in range(0x21, 0x7F) if x != ord("#"))
"""As `h1_wire` takes them: where routes decide, a path must not mean more on one version than on another."""
_AUTHORITY = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=%:\[\]]+").fullmatch
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*").fullmatch
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch
_STATUS = re.compile(rb"[1-9][0-9]{2}").fullmatch

_MAX_KNOWN_NAMES = 1024
_MAX_KNOWN_NAME = 64
_plain_names: set[bytes] = set()
"""Valid names without a rule of their own, seen before."""
_RULED_NAMES = CONNECTION_FIELDS | {b"te", b"host", b"content-length"}


class MalformedError(Exception):
    """The message is malformed (RFC 9113 section 8.1.1): a stream error of type PROTOCOL_ERROR."""


def is_plain_name(name: bytes) -> bool:
    """Whether the name is valid and subject to no rule but those for all fields."""
    if name in _plain_names:
        return True
    if not name or name.translate(None, _NAME_OCTETS) or name in _RULED_NAMES:
        return False
    if len(name) <= _MAX_KNOWN_NAME:
        if len(_plain_names) >= _MAX_KNOWN_NAMES:
            _plain_names.clear()
        _plain_names.add(name)
    return True


def is_value(value: bytes) -> bool:
    """RFC 9110 section 5.5: no control characters but the tab, no white space around."""
    return 0 not in value.translate(_VALUE_TABLE) and value.strip(b" \t") == value


def is_token(value: bytes) -> bool:
    """RFC 9110 section 5.6.2, for methods."""
    return bool(value) and not value.translate(None, _TOKEN_OCTETS)


def is_authority(value: bytes) -> bool:
    """Host and optional port; the characters of RFC 3986 section 3.2 without user information."""
    return _AUTHORITY(value) is not None


def is_path(value: bytes) -> bool:
    """RFC 9113 section 8.3.1: an absolute path, with query; `*` is for a rule of its own."""
    return value.startswith(b"/") and not value.translate(None, _PATH_OCTETS)


def check_fresh(fresh: Iterable[Field], content_length: int) -> int | None:
    """Whether fields may follow a well-formed head as they are.

    Returns the message's content length then, None when the whole section must be looked at.
    """
    for name, value in fresh:
        if name not in _plain_names and not is_plain_name(name):
            if name != b"content-length" or content_length != NO_LENGTH or not _CONTENT_LENGTH(value):
                return None
            content_length = int(value)
        elif 0 in value.translate(_VALUE_TABLE) or value.strip(b" \t") is not value:
            return None
    return content_length


def request_head(fields: Sequence[Field], extended_connect: bool) -> tuple[RequestHead, int]:
    """The request's head and content length (`NO_LENGTH`).

    `extended_connect`: `:protocol` was offered to the peer (RFC 8441). Raises `MalformedError`.
    """
    pseudo: dict[bytes, bytes] = {}
    start = _take_pseudo(fields, pseudo, _REQUEST_PSEUDO)
    regular, length, host = _regular_fields(fields, start)
    method = pseudo.get(b":method")
    if method is None:
        raise MalformedError("request without :method")
    if not is_token(method):
        raise MalformedError(":method is not a token")
    protocol = pseudo.get(b":protocol")
    if protocol is not None and (method != b"CONNECT" or not extended_connect or not is_token(protocol)):
        raise MalformedError(":protocol outside of an extended CONNECT request")
    authority = _authority(pseudo.get(b":authority"), host)
    if method == b"CONNECT" and protocol is None:
        if b":scheme" in pseudo or b":path" in pseudo:
            raise MalformedError("CONNECT with :scheme or :path")
        if b":authority" not in pseudo:
            raise MalformedError("CONNECT without :authority")
        return RequestHead(method, b"", authority, b"", regular), NO_LENGTH
    scheme, path = _target(pseudo, method)
    if protocol is not None:
        length = NO_LENGTH
    return RequestHead(method, scheme, authority, path, regular, (), protocol or b""), length


def response_head(fields: Sequence[Field]) -> tuple[ResponseHead, int]:
    """The response's head and content length (`NO_LENGTH`). Raises `MalformedError`."""
    pseudo: dict[bytes, bytes] = {}
    start = _take_pseudo(fields, pseudo, _RESPONSE_PSEUDO)
    regular, length, _ = _regular_fields(fields, start, False)
    status = pseudo.get(b":status")
    if status is None:
        raise MalformedError("response without :status")
    if not _STATUS(status) or status == b"101":
        raise MalformedError(":status is not a status that HTTP/2 has")
    return ResponseHead(int(status), regular), length


def without_length(head: ResponseHead) -> ResponseHead:
    """What is passed on of a head that may have no content-length (RFC 9110 section 8.6)."""
    parts = (head.fields, head.fresh)
    fields, fresh = (tuple([f for f in part if f[0] != b"content-length"]) for part in parts)
    return ResponseHead(head.status, fields, fresh)


def trailer_section(fields: Sequence[Field]) -> tuple[Field, ...]:
    """The fields, checked. Raises `MalformedError`.

    Those of `NOT_IN_TRAILERS` are dropped.
    """
    kept = []
    for field in fields:
        name, value = field
        if name not in NOT_IN_TRAILERS:
            if not is_plain_name(name):
                raise MalformedError(_why_not(name, "trailer section"))
            kept.append(field)
        if not is_value(value):
            raise MalformedError(f"value of {_shown(name)} in the trailer section holds forbidden characters")
    return tuple(kept)


_REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})
_RESPONSE_PSEUDO = frozenset({b":status"})


def _take_pseudo(fields: Sequence[Field], pseudo: dict[bytes, bytes], allowed: frozenset[bytes]) -> int:
    """Fill `pseudo`; returns where the regular fields begin (RFC 9113 section 8.3)."""
    for position, field in enumerate(fields):
        name, value = field
        if not name.startswith(b":"):
            return position
        if name not in allowed:
            raise MalformedError(f"unexpected pseudo-header field {_shown(name)}")
        if name in pseudo:
            raise MalformedError(f"{_shown(name)} comes twice")
        pseudo[name] = NeverIndexedValue(value) if type(field) is NeverIndexed else value
    return len(fields)


def _regular_fields(
    fields: Sequence[Field], start: int, request: bool = True
) -> tuple[tuple[Field, ...], int, bytes | None]:
    """The fields behind the pseudo-header fields, the content length, and the `host` taken out (requests)."""
    regular = []
    length = NO_LENGTH
    host: bytes | None = None
    for position in range(start, len(fields)):
        field = fields[position]
        name, value = field
        if not is_value(value):
            raise MalformedError(f"value of {_shown(name)} holds forbidden characters")
        if not is_plain_name(name):
            if name == b"content-length":
                if length != NO_LENGTH or not _CONTENT_LENGTH(value):
                    raise MalformedError("content-length is not one number")
                length = int(value)
            elif name == b"host" and request:
                if host is not None:
                    raise MalformedError("host comes twice")
                host = value
                continue
            elif not (name == b"host" or (name == b"te" and request and value.lower() == b"trailers")):
                raise MalformedError(_why_not(name, "header section"))
        regular.append(field)
    return tuple(regular), length, host


def _authority(authority: bytes | None, host: bytes | None) -> bytes:
    """RFC 9113 section 8.3.1: `:authority`, else `host`; both must name the same."""
    if authority is None:
        if host is None:
            raise MalformedError("request without :authority and host")
        authority = host
    elif host is not None and host.lower() != authority.lower():
        raise MalformedError("host differs from :authority")
    if not is_authority(authority):
        raise MalformedError("authority holds forbidden characters or is empty")
    return authority


def _target(pseudo: dict[bytes, bytes], method: bytes) -> tuple[bytes, bytes]:
    scheme = pseudo.get(b":scheme")
    path = pseudo.get(b":path")
    if scheme is None or path is None:
        raise MalformedError("request without :scheme or :path")
    if not _SCHEME(scheme):
        raise MalformedError(":scheme is not a scheme")
    if not is_path(path) and not (path == b"*" and method == b"OPTIONS"):
        raise MalformedError(":path does not begin with a slash, or holds forbidden characters")
    return scheme, path


def _why_not(name: bytes, where: str) -> str:
    if name.startswith(b":"):
        return f"pseudo-header field {_shown(name)} behind regular fields or in a trailer section"
    if name in CONNECTION_FIELDS:
        return f"connection-specific field {_shown(name)} in the {where}"
    if name == b"te":
        return "te with another value than trailers, or outside of a request's header section"
    return f"field name {_shown(name)} in the {where} is not a lower-case token"


def _shown(name: bytes) -> str:
    return ascii(name[:64].decode("latin-1"))
