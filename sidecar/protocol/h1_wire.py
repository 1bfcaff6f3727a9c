"""HTTP/1.1 message heads: from bytes, refusing whatever two parsers may read differently.

`h1_server.py` and `h1_client.py` call it. A head passes two gates: a grammar of our own, stricter than
RFC 9112 has to be (no bare CR or LF, no folding, no control characters, no white space before a colon),
and then llhttp (`httptools`), which takes it apart. Bodies are framed in `h1_stream.py` and
`h1_chunked.py`: llhttp does not tell where a message ended, and the bytes behind it may be another
protocol's. Nothing here keeps a connection's state.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import httptools

from sidecar.protocol.events import Field, RequestHead, ResponseHead
from sidecar.protocol.field_rules import NOT_IN_TRAILERS, without_length

CHUNKED = -1
UNTIL_CLOSE = -2
TUNNEL = -3
"""Body framings beside a content-length, which is a number of bytes >= 0."""

CONNECTION_SPECIFIC = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
"""Fields that end at this hop (RFC 9110 section 7.6.1)."""

# Values that differ on every request. They leave `fields`, so that everything else stays the same object.
FRESH_NAMES = frozenset(
    (b"traceparent", b"tracestate", b"x-request-id", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid")
)
# The same in bytes, as clients write it; a line that looks otherwise is only not found here.
_FRESH_LINE = re.compile(
    rb"\r\n([Tt]race(?:parent|state)|[Xx]-[Rr]equest-[Ii][Dd]|[Xx]-[Bb]3-(?:[Tt]race|[Pp]arent[Ss]pan|[Ss]pan)[Ii][Dd]):"
    rb" ?([\x21-\x7e]++(?: [\x21-\x7e]++)*+)(?=\r\n)"
)
_NOT_IN_TRAILERS = NOT_IN_TRAILERS | CONNECTION_SPECIFIC | {b"te"}

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_FIELD_LINES = rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+"
_REQUEST_HEAD = re.compile(_TOKEN + rb" ([\x21\x22\x24-\x7e]++) HTTP/1\.([01])\r\n" + _FIELD_LINES + rb"\r\n")
_RESPONSE_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n" + _FIELD_LINES + rb"\r\n"
)
_FIELD_SECTION = re.compile(_FIELD_LINES)
_TOKEN_ONLY = re.compile(_TOKEN)
_HOST = rb"(?:[A-Za-z0-9\-._~%!$&'()*+;=]++|\[[0-9A-Fa-f:.]++\])"
_AUTHORITY = re.compile(_HOST + rb"(?::[0-9]{0,5})?")
_AUTHORITY_FORM = re.compile(_HOST + rb":[0-9]{1,5}")
_ABSOLUTE_FORM = re.compile(rb"(https?)://([^/?]++)([/?].*)?", re.IGNORECASE | re.DOTALL)
_ANY_VERSION = re.compile(_TOKEN + rb" [^\r\n ]+ HTTP/[0-9]\.[0-9]\r\n")
# Seen in a head that is not complete yet: no later byte can make it valid.
_BAD_BYTE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?![\n])(?!\Z)|(?<!\r)\n")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?:^|[,\s])timeout\s*=\s*\"?([0-9]{1,9})", re.IGNORECASE)

_MAX_LENGTH_DIGITS = 18
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3

# Heads that a connection remembers by their bytes.
MAX_CACHED_HEAD = 4096
MAX_CACHED_HEADS = 16


@dataclass(frozen=True, slots=True)
class H1Options:
    """What an HTTP/1 connection allows. Sizes in bytes."""

    scheme: bytes = b"http"
    max_header_bytes: int = 65536
    """A message's whole head, and its trailer section."""
    max_header_count: int = 100
    body_window: int = 65536
    """Received and not yet consumed body bytes at which reading stops."""
    random_bytes: Callable[[int], bytes] = os.urandom
    """For `Sec-WebSocket-Key`."""
    default_authority: bytes = b""
    """Whom an HTTP/1.0 request without Host is for (RFC 9112 section 3.3): the address that it came to."""


class H1Error(Exception):
    """The peer's bytes are refused. `status` is the answer to a request; `str()` says what is wrong."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ParsedRequest:
    """A request head and how its message goes on. Shared between requests with the same bytes."""

    __slots__ = ("body", "expects", "head", "http10", "keep_alive", "websocket_key")

    def __init__(
        self,
        head: RequestHead,
        body: int,
        keep_alive: bool,
        http10: bool,
        expects: bool = False,
        websocket_key: bytes = b"",
    ) -> None:
        self.head = head
        self.body = body
        """Content length, `CHUNKED` or `TUNNEL`."""
        self.keep_alive = keep_alive
        self.http10 = http10
        self.expects = expects
        """The client waits for 100 before it sends the body."""
        self.websocket_key = websocket_key
        """`Sec-WebSocket-Key` of an upgrade request."""

    def with_fresh(self, fresh: tuple[Field, ...]) -> ParsedRequest:
        """The same request with other fresh fields."""
        return ParsedRequest(
            self.head.with_fresh(fresh),
            self.body,
            self.keep_alive,
            self.http10,
            self.expects,
            self.websocket_key,
        )


class ParsedResponse:
    """A response head and how its message goes on. Shared between responses with the same bytes."""

    __slots__ = ("body", "head", "keep_alive", "timeout", "upgrade")

    def __init__(self, head: ResponseHead, body: int, keep_alive: bool, section: _Section) -> None:
        self.head = head
        self.body = body
        """Content length, `CHUNKED` or `UNTIL_CLOSE`; not yet knowing the request's method."""
        self.keep_alive = keep_alive
        found = _KEEP_ALIVE_TIMEOUT.search(section.keep_alive)
        self.timeout = float(found[1]) if found else None
        self.upgrade = section.upgrade


class _Section:
    """A header section taken apart; the protocol that httptools calls."""

    __slots__ = (
        "connection",
        "fields",
        "fresh",
        "hosts",
        "keep_alive",
        "lengths",
        "te",
        "transfer_codings",
        "upgrade",
    )

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self.fresh: list[Field] = []
        self.hosts: list[bytes] = []
        self.lengths: list[bytes] = []
        self.transfer_codings: list[bytes] = []
        self.connection: list[bytes] = []
        self.upgrade = b""
        self.keep_alive = b""
        self.te = False
        """TE names trailers. For requests: no response has such a field (RFC 9113 section 8.2.2)."""

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        value = value.strip(b" \t")
        if name not in _SPECIAL:
            (self.fresh if name in FRESH_NAMES else self.fields).append((name, value))
        elif name == b"host":
            self.hosts.append(value)
        elif name == b"content-length":
            self.lengths.append(value)
            self.fields.append((name, value))
        elif name == b"transfer-encoding":
            self.transfer_codings.append(value)
        elif name == b"connection":
            self.connection += [option.strip(b" \t").lower() for option in value.split(b",")]
        elif name == b"te":
            # Only `trailers` means something past this hop (RFC 9113 section 8.2.2).
            if any(coding.strip(b" \t").lower() == b"trailers" for coding in value.split(b",")):
                self.te = True
        elif name == b"upgrade":
            self.upgrade = b"%b, %b" % (self.upgrade, value) if self.upgrade else value
        elif name == b"keep-alive":
            self.keep_alive = value

    def drop_named_by_connection(self) -> None:
        """RFC 9110 section 7.6.1: the fields that `Connection` names end here."""
        named = {option for option in self.connection if option not in _CONNECTION_OPTIONS}
        if named:
            self.fields = [field for field in self.fields if field[0] not in named]
            self.fresh = [field for field in self.fresh if field[0] not in named]

    def content_length(self) -> int | None:
        """RFC 9112 section 6.3; a repeated field is refused even when its values agree."""
        lengths = self.lengths
        if not lengths:
            return None
        if len(lengths) > 1:
            raise H1Error(400, "more than one content-length")
        digits = lengths[0]
        if not digits.isdigit() or len(digits) > _MAX_LENGTH_DIGITS:
            raise H1Error(400, "invalid content-length")
        return int(digits)

    def chunked(self, http10: bool) -> bool:
        codings = self.transfer_codings
        if not codings:
            return False
        if http10:
            raise H1Error(400, "transfer-encoding in an HTTP/1.0 message")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise H1Error(400, "transfer-encoding is not exactly chunked")
        if self.lengths:
            raise H1Error(400, "content-length together with transfer-encoding")
        return True


_SPECIAL = CONNECTION_SPECIFIC | {b"host", b"content-length", b"te"}
# Options of `Connection` whose fields are handled one by one, and fields that it must not remove.
_CONNECTION_OPTIONS = _SPECIAL | {b"close", b""}


def parse_request(raw: bytes, options: H1Options) -> ParsedRequest:
    """A whole request head, blank line included. Raises `H1Error`."""
    match = _REQUEST_HEAD.fullmatch(raw)
    if match is None:
        _explain(raw, "request")
    _check_count(raw, options)
    method = raw[: raw.index(b" ")]
    section = _request_section(raw, method)
    http10 = match[2] == b"0"
    hosts = section.hosts
    if http10 and not hosts and options.default_authority:
        hosts = [options.default_authority]
    scheme, authority, path = _target(method, match[1], hosts, http10, options.scheme)
    length = section.content_length()
    body = CHUNKED if section.chunked(http10) else length or 0
    connection = section.connection
    keep_alive = b"keep-alive" in connection if http10 else b"close" not in connection
    section.drop_named_by_connection()
    fields, fresh = section.fields, section.fresh
    if section.te:
        fields.append((b"te", b"trailers"))
    if http10:  # It cannot be told to continue (RFC 9110 section 10.1.1).
        fields = [field for field in fields if field[0] != b"expect"]
    if method == b"CONNECT":
        if section.lengths or section.transfer_codings:
            raise H1Error(400, "CONNECT with a body")
        head = RequestHead(method, scheme, authority, b"", tuple(fields), tuple(fresh))
        return ParsedRequest(head, TUNNEL, False, http10)
    key = _websocket_key(section, method, body, http10)
    if key:
        # RFC 8441 section 5: the handshake's key and answer stay on each HTTP/1.1 hop.
        kept = tuple(field for field in fields if field[0] != b"sec-websocket-key")
        head = RequestHead(b"CONNECT", scheme, authority, path, kept, tuple(fresh), b"websocket")
        return ParsedRequest(head, TUNNEL, keep_alive, http10, websocket_key=key)
    head = RequestHead(method, scheme, authority, path, tuple(fields), tuple(fresh))
    return ParsedRequest(head, body, keep_alive, http10, head.get(b"expect") is not None)


def _request_section(raw: bytes, method: bytes) -> _Section:
    section = _Section()
    try:
        httptools.HttpRequestParser(section).feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # Every byte of the head was taken; what follows is ours to read.
    except httptools.HttpParserError as error:
        if method == b"GET":
            raise H1Error(400, f"malformed request: {error}") from None
        # llhttp has a list of methods. Any token is one (RFC 9110 section 9.1), and no field depends on it.
        return _request_section(b"GET" + raw[len(method) :], b"GET")
    return section


def cut_fresh(raw: bytes) -> tuple[bytes, tuple[Field, ...]]:
    """A head's bytes without its fresh fields, and these: heads that differ in nothing else are found so."""
    parts = _FRESH_LINE.split(raw)
    if len(parts) == 1:
        return raw, ()
    return b"".join(parts[::3]), tuple(
        (name.lower(), value) for name, value in zip(parts[1::3], parts[2::3], strict=True)
    )


def parse_response(raw: bytes, options: H1Options) -> ParsedResponse:
    """A whole response head, blank line included. Raises `H1Error`."""
    match = _RESPONSE_HEAD.fullmatch(raw)
    if match is None:
        _explain(raw, "response")
    _check_count(raw, options)
    section = _Section()
    try:
        httptools.HttpResponseParser(section).feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise H1Error(502, f"malformed response: {error}") from None
    http10 = match[1] == b"0"
    length = section.content_length()
    if section.chunked(http10):
        body = CHUNKED
    else:
        body = UNTIL_CLOSE if length is None else length
    connection = section.connection
    keep_alive = b"keep-alive" in connection if http10 else b"close" not in connection
    section.drop_named_by_connection()
    head = ResponseHead(int(match[2]), tuple(section.fields), tuple(section.fresh))
    if length is not None and (head.status < 200 or head.status == 204):
        head = without_length(head)
    return ParsedResponse(head, body, keep_alive, section)


def websocket_accept(key: bytes) -> bytes:
    """`Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())


def check_partial(buffered: bytearray, start: int, options: H1Options, what: str) -> None:
    """Refuse a head that has not ended yet as soon as it cannot become valid: it may never end."""
    if len(buffered) > options.max_header_bytes:
        raise H1Error(431, f"{what} header section larger than {options.max_header_bytes} bytes")
    if _BAD_BYTE.search(buffered, start):
        _explain(bytes(buffered), what)


def _target(
    method: bytes, target: bytes, hosts: list[bytes], http10: bool, scheme: bytes
) -> tuple[bytes, bytes, bytes]:
    """Scheme, authority and path of a request (RFC 9112 section 3.2)."""
    if len(hosts) > 1:
        raise H1Error(400, "more than one host field")
    if not hosts and not http10:
        raise H1Error(400, "no host field")
    host = hosts[0] if hosts else b""
    if hosts and not _AUTHORITY.fullmatch(host):
        raise H1Error(400, "invalid host field")
    if method == b"CONNECT":
        if not _AUTHORITY_FORM.fullmatch(target):
            raise H1Error(400, "the target of CONNECT is not host:port")
        return scheme, target, b""
    if target[:1] == b"/" or (target == b"*" and method == b"OPTIONS"):
        return scheme, host, target
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute is None or not _AUTHORITY.fullmatch(absolute[2]):
        raise H1Error(400, "invalid request target")
    path = absolute[3] or (b"*" if method == b"OPTIONS" else b"/")
    if path[:1] == b"?":
        path = b"/" + path
    return absolute[1].lower(), absolute[2], path


def _websocket_key(section: _Section, method: bytes, body: int, http10: bool) -> bytes:
    """The key of an upgrade to WebSocket (RFC 6455 section 4.2.1), b"" when the request is none."""
    if section.upgrade.lower() != b"websocket" or method != b"GET" or body or http10:
        return b""
    if b"upgrade" not in section.connection:
        return b""
    keys = [value for name, value in section.fields if name == b"sec-websocket-key"]
    return keys[0] if len(keys) == 1 else b""


def parse_trailers(raw: bytes, options: H1Options) -> tuple[Field, ...]:
    """A trailer section, without the blank line that ends it. Raises `H1Error`."""
    if not _FIELD_SECTION.fullmatch(raw):
        _explain(b"\r\n" + raw + b"\r\n", "trailer")
    lines = raw.split(b"\r\n")[:-1]
    if len(lines) > options.max_header_count:
        raise H1Error(431, f"more than {options.max_header_count} trailer fields")
    fields = []
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name not in _NOT_IN_TRAILERS:
            fields.append((name, value.strip(b" \t")))
    return tuple(fields)


def _check_count(raw: bytes, options: H1Options) -> None:
    if raw.count(b"\n") - 2 > options.max_header_count:
        raise H1Error(431, f"more than {options.max_header_count} header fields")


def _explain(raw: bytes, what: str) -> NoReturn:
    """Why the grammar refused a head, or the beginning of one."""
    bad = _BAD_BYTE.search(raw)
    if bad is not None:
        kind = {b"\r": "bare CR", b"\n": "bare LF"}.get(bad[0], "control character")
        raise H1Error(400, f"{what} head with a {kind}")
    first, *lines = raw[:-4].split(b"\r\n")
    if what == "request" and _ANY_VERSION.match(raw) and first[-8:] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise H1Error(505, "HTTP version not supported")
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            raise H1Error(400, f"{what} head with a folded line")
        name, colon, _ = line.partition(b":")
        if not colon:
            raise H1Error(400, f"{what} header line without a colon")
        if name.endswith((b" ", b"\t")):
            raise H1Error(400, f"{what} header with white space before the colon")
        if not _TOKEN_ONLY.fullmatch(name):
            raise H1Error(400, f"{what} header with an invalid name")
    raise H1Error(400, f"malformed {'request' if what == 'request' else 'status'} line")
