"""Just enough of HTTP/2 to ask for something and to see the answer end (RFC 9113 section 4.1, 6; RFC 7541).

For `client.py` and `memory.py`: the bench must not load a proxy with that proxy's own codec.
"""

from __future__ import annotations

import ssl
from functools import cache

from benchmarks.processes import CERTIFICATES

DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_STREAM = ACK = 1
_END_HEADERS = 4
_WINDOW = 1 << 28


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


OPENING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + frame(SETTINGS, 0, 0, b"\x00\x04" + _WINDOW.to_bytes(4))
    + frame(8, 0, 0, _WINDOW.to_bytes(4))
)
"""Preface, and windows so large that credit is never to be given."""
SETTINGS_ACK = frame(SETTINGS, ACK, 0, b"")


def headers(stream: int, block: bytes, end_stream: bool) -> bytes:
    return frame(HEADERS, _END_HEADERS | (END_STREAM if end_stream else 0), stream, block)


def string(data: bytes, huffman: bool = False) -> bytes:
    """A string literal of up to 16,510 bytes (RFC 7541 section 5.1, 5.2)."""
    first = 0x80 if huffman else 0
    if len(data) < 127:
        return bytes((first | len(data),)) + data
    rest = len(data) - 127
    length = bytes((rest,)) if rest < 128 else bytes((rest & 127 | 128, rest >> 7))
    return bytes((first | 127,)) + length + data


def plain_block(path: str) -> bytes:
    """The header block of a GET, nothing of it indexed."""
    return b"\x82\x87\x04" + string(path.encode()) + b"\x01" + string(b"inbound.bench")


def split(data: bytes) -> tuple[list[tuple[int, int, int, bytes]], bytes]:
    """Whole frames as (type, flags, stream, payload), and what is left."""
    found = []
    position = 0
    while len(data) - position >= 9:
        end = position + 9 + int.from_bytes(data[position : position + 3])
        if end > len(data):
            break
        stream = int.from_bytes(data[position + 5 : position + 9])
        found.append((data[position + 3], data[position + 4], stream, data[position + 9 : end]))
        position = end
    return found, data[position:]


@cache
def client_context() -> ssl.SSLContext:
    """TLS as the outbound proxy's, with its certificate: that alone is shown, as both proxies do, where
    OpenSSL would send the root along if it were given one. So the server is not verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(CERTIFICATES / "outbound.pem", CERTIFICATES / "outbound.key")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context
