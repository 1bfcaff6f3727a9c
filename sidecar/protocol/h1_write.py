"""HTTP/1.1 heads to bytes, for `h1_server.py` and `h1_client.py`.

Field names go out in lower case as they came. Whatever a filter or another protocol put into a head,
no byte leaves that would start a line of its own: a field that cannot be written fails the whole head.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from sidecar.protocol.events import Field
from sidecar.protocol.h1_wire import CONNECTION_SPECIFIC

_LINES = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++: [\t\x20-\x7e\x80-\xff]*+\r\n)*+")
_REQUEST_START = re.compile(
    rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++ [\x21-\x7e]++ HTTP/1\.1\r\nhost: [\x21-\x7e]*+\r\n"
)
# Written from what the codec knows, never copied: the handshake of WebSocket too is each hop's own.
_OWN = CONNECTION_SPECIFIC | {b"content-length", b"host", b"sec-websocket-key", b"sec-websocket-accept"}
_RULED = _OWN | {b"cookie", b"te"}
_MAX_BLOCKS = 256
_MAX_REMEMBERED = 4096
"""Bytes of a block that is remembered."""

STATUS_LINES = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}


class FieldError(Exception):
    """A head that HTTP/1.1 cannot carry."""


class FieldBlock:
    """Serialised fields, without those that frame the message or manage the connection."""

    __slots__ = ("cookie", "fields", "length", "lines", "te")

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.fields = fields  # Held, so that its id stays its own.
        self.length = -1
        """The fields' content-length, -1 without one."""
        self.te = False
        cookie: bytes | None = None
        lines = []
        for name, value in fields:
            if name not in _RULED:
                lines.append(b"%b: %b\r\n" % (name, value))
            elif name == b"cookie":
                cookie = value if cookie is None else b"%b; %b" % (cookie, value)
            elif name == b"content-length":
                self.length = merge_length(self.length, value)
            elif name == b"te":
                lines.append(b"te: %b\r\n" % value)
                self.te = True
        self.cookie = cookie is not None
        if cookie is not None:  # HTTP/1 has one such field (RFC 9113 section 8.2.3)
            lines.append(b"cookie: %b\r\n" % cookie)
        self.lines = b"".join(lines)
        if not _LINES.fullmatch(self.lines) or self.lines.count(b"\n") != len(lines):
            raise FieldError("a header field that cannot be written in HTTP/1.1")


_blocks: dict[int, FieldBlock] = {}
"""By the identity of their fields."""


def field_block(fields: tuple[Field, ...]) -> FieldBlock:
    """The block of these fields; the same tuple comes again, on this connection and on others. Raises
    `FieldError`."""
    block = _blocks.get(id(fields))
    if block is None:
        block = FieldBlock(fields)
        if len(block.lines) <= _MAX_REMEMBERED:
            if len(_blocks) >= _MAX_BLOCKS:
                _blocks.clear()
            _blocks[id(fields)] = block
    return block


def merge_length(known: int, value: bytes) -> int:
    """A further content-length beside the one known so far (-1: none). Raises `FieldError`."""
    if not value.isdigit() or len(value) > 18 or known not in (-1, int(value)):
        raise FieldError("an invalid content-length")
    return int(value)


def request_start(method: bytes, target: bytes, authority: bytes) -> bytes:
    """Request line and Host. Raises `FieldError`."""
    start = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method, target, authority)
    if not _REQUEST_START.fullmatch(start):
        raise FieldError("a method, target or authority that cannot be written in HTTP/1.1")
    return start


def status_line(status: int) -> bytes:
    """The reason phrase is the standard one, empty for a status without."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %03d \r\n" % status
