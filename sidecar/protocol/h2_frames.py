"""HTTP/2 frame layout and constants (RFC 9113 sections 4, 6 and 7): the octets of frames, nothing else.

Used by the HTTP/2 codec, which decides what is sent and when.
"""

from __future__ import annotations

from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA = 0
HEADERS = 1
PRIORITY = 2
RST_STREAM = 3
SETTINGS = 4
PUSH_PROMISE = 5
PING = 6
GOAWAY = 7
WINDOW_UPDATE = 8
CONTINUATION = 9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

SETTINGS_HEADER_TABLE_SIZE = 1
SETTINGS_ENABLE_PUSH = 2
SETTINGS_MAX_CONCURRENT_STREAMS = 3
SETTINGS_INITIAL_WINDOW_SIZE = 4
SETTINGS_MAX_FRAME_SIZE = 5
SETTINGS_MAX_HEADER_LIST_SIZE = 6
SETTINGS_ENABLE_CONNECT_PROTOCOL = 8

DEFAULT_WINDOW = 65535
DEFAULT_FRAME_SIZE = 16384
MAX_WINDOW = 2**31 - 1
MAX_FRAME_SIZE = 2**24 - 1
MAX_STREAM_ID = 2**31 - 1

_header = Struct(">HBBBL")
pack_header = _header.pack
"""(length >> 8, length & 255, type, flags, stream id) -> 9 octets."""
unpack_header = _header.unpack_from

_settings_frame = Struct(">HL")
_rst_stream = Struct(">HBBBLL")
_goaway = Struct(">HBBBLLL")

SETTINGS_ACK = pack_header(0, 0, SETTINGS, ACK, 0)
KEEPALIVE_PING = pack_header(0, 8, PING, 0, 0) + bytes(8)


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(_settings_frame.pack(key, value) for key, value in values.items())
    return pack_header(0, len(payload), SETTINGS, 0, 0) + payload


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Identifier and value pairs in order; the length must be a multiple of six."""
    return list(_settings_frame.iter_unpack(payload))


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return _rst_stream.pack(0, 4, RST_STREAM, 0, stream_id, code)


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; `stream_id` 0 for the connection."""
    return _rst_stream.pack(0, 4, WINDOW_UPDATE, 0, stream_id, increment)


def ping_ack(payload: bytes) -> bytes:
    """The answer to a PING."""
    return pack_header(0, 8, PING, ACK, 0) + payload


def goaway(last_stream_id: int, code: int, debug: bytes) -> bytes:
    """A GOAWAY frame."""
    size = 8 + len(debug)
    return _goaway.pack(size >> 8, size & 255, GOAWAY, 0, 0, last_stream_id, code) + debug


def header_block(stream_id: int, block: bytes, end_stream: bool, max_frame_size: int) -> bytes:
    """A HEADERS frame and, where the block is larger than a frame, its CONTINUATION frames."""
    size = len(block)
    if size <= max_frame_size:
        return pack_header(size >> 8, size & 255, HEADERS, 5 if end_stream else 4, stream_id) + block
    parts = []
    kind, flags = HEADERS, END_STREAM if end_stream else 0
    for start in range(0, size, max_frame_size):
        piece = block[start : start + max_frame_size]
        if start + max_frame_size >= size:
            flags |= END_HEADERS
        parts.append(pack_header(len(piece) >> 8, len(piece) & 255, kind, flags, stream_id))
        parts.append(piece)
        kind, flags = CONTINUATION, 0
    return b"".join(parts)
