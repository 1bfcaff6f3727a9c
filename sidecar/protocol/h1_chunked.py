"""The chunked transfer coding (RFC 9112 section 7.1), taken apart strictly: every line ends in CRLF.

`h1_stream.py` makes one decoder for each chunked body. It holds at most one unfinished line or trailer
section and never passes on a byte of a body whose framing it has refused.
"""

from __future__ import annotations

import re
from enum import IntEnum

from sidecar.protocol.events import Field
from sidecar.protocol.h1_wire import H1Error, H1Options, parse_trailers

_TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
_PLAIN_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;" + _TEXT + rb")?")
_SIZE_LINE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,15}(?:[ \t]*(?:;" + _TEXT + rb")?)?\r?)?")
_MAX_SIZE_LINE = 1024
_MAX_EXTENSIONS = 16 * 1024  # bytes a body: they are thrown away, but cost time
CHUNKS_A_TURN = 1024
"""Taken in one turn of the event loop: a read may hold ten thousand, and other connections would wait for
all of them."""


class _State(IntEnum):
    SIZE = 0
    DATA = 1
    DATA_END = 2
    TRAILERS = 3


class ChunkedDecoder:
    """One chunked body. Feed it until it says that the body has ended."""

    __slots__ = ("_extensions", "_left", "_options", "_partial", "_state", "ended", "trailers")

    def __init__(self, options: H1Options) -> None:
        self._options = options
        self._state = _State.SIZE
        self._left = 0
        self._partial = b""
        self._extensions = 0
        self.ended = False
        self.trailers: tuple[Field, ...] = ()

    def __repr__(self) -> str:
        return f"<ChunkedDecoder {self._state.name} left={self._left} partial={len(self._partial)}>"

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Body bytes, and what was not taken: what follows the message once it has `ended`, before that what
        the next turn is for. Raises `H1Error`."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        parts: list[bytes] = []
        position = 0
        while position >= 0:
            start = position
            match self._state:
                case _State.DATA:
                    part = data[start : start + self._left]
                    parts.append(part)
                    position = start + len(part)
                    self._left -= len(part)
                    if self._left:
                        return b"".join(parts), b""
                    self._state = _State.DATA_END
                case _State.DATA_END:
                    position = self._data_end(data, start)
                case _State.SIZE:
                    start = _whole_chunks(data, start, parts)
                    if len(parts) >= CHUNKS_A_TURN:
                        return b"".join(parts), data[start:]
                    position = self._size_line(data, start)
                case _State.TRAILERS:
                    position = self._trailer_section(data, start)
                    if position >= 0:
                        self.ended = True
                        return b"".join(parts), data[position:]
        self._partial = data[start:]
        return b"".join(parts), b""

    # Each returns where the next part begins, or -1 while its own is incomplete.

    def _data_end(self, data: bytes, start: int) -> int:
        if data.startswith(b"\r\n", start):
            self._state = _State.SIZE
            return start + 2
        if data[start:] not in (b"", b"\r"):
            raise H1Error(400, "chunk data not followed by CRLF")
        return -1

    def _size_line(self, data: bytes, start: int) -> int:
        end = data.find(b"\r\n", start, start + _MAX_SIZE_LINE)
        if end < 0:
            if len(data) - start >= _MAX_SIZE_LINE:
                raise H1Error(400, "chunk size line too long")
            if not _SIZE_LINE_BEGUN.fullmatch(data, start):
                raise H1Error(400, "invalid chunk size")
            return -1
        match = _SIZE_LINE.fullmatch(data, start, end)
        if match is None:
            raise H1Error(400, "invalid chunk size")
        if match[2]:
            self._extensions += len(match[2])
            if self._extensions > _MAX_EXTENSIONS:
                raise H1Error(400, "too many chunk extensions")
        self._left = int(match[1], 16)
        self._state = _State.DATA if self._left else _State.TRAILERS
        return end + 2

    def _trailer_section(self, data: bytes, start: int) -> int:
        if data.startswith(b"\r\n", start):
            return start + 2
        end = data.find(b"\r\n\r\n", start)
        if (end if end >= 0 else len(data)) - start > self._options.max_header_bytes:
            raise H1Error(431, f"trailer section larger than {self._options.max_header_bytes} bytes")
        if end < 0:
            return -1
        self.trailers = parse_trailers(data[start : end + 2], self._options)
        return end + 4


def _whole_chunks(data: bytes, position: int, parts: list[bytes]) -> int:
    """Add the chunks from `position` on that are there to their last byte and have no extensions, nearly all
    that there are; returns where the first other one begins, or where the turn ends."""
    size_line = _PLAIN_SIZE_LINE.match
    while len(parts) < CHUNKS_A_TURN:
        line = size_line(data, position)
        if line is None:
            break
        begin = line.end()
        end = begin + int(line[1], 16)
        if end == begin or not data.startswith(b"\r\n", end):
            break
        parts.append(data[begin:end])
        position = end + 2
    return position
