"""Tells a connection's protocol from its first bytes.

`server/detect.py` calls it with all bytes so far. It never needs more than `MAX_SNIFF` of them, and
decides as soon as they leave one answer: a server-first protocol is the caller's matter (its time limit).
"""

from __future__ import annotations

from enum import Enum

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_SNIFF = len(HTTP2_PREFACE)

# Methods that HTTP/1 clients send; longer or rarer ones count as opaque, as any text protocol's words do.
_METHODS = tuple(
    method + b" "
    for method in (
        *(b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH", b"QUERY"),
        *(b"PROPFIND", b"PROPPATCH", b"MKCOL", b"COPY", b"MOVE", b"LOCK", b"UNLOCK", b"REPORT", b"SEARCH"),
        *(b"MKCALENDAR", b"ACL", b"BIND", b"REBIND", b"UNBIND", b"MERGE", b"CHECKOUT", b"MKACTIVITY"),
        *(b"PURGE", b"LINK", b"UNLINK", b"NOTIFY", b"SUBSCRIBE", b"UNSUBSCRIBE", b"SOURCE", b"M-SEARCH"),
    )
)


class Protocol(Enum):
    """What a connection speaks."""

    NEED_MORE = "need more bytes"
    HTTP1 = "HTTP/1"
    HTTP2 = "HTTP/2"
    TLS = "TLS"
    OTHER = "opaque"


def sniff(data: bytes) -> Protocol:
    """The protocol that `data`, a connection's first bytes, begins."""
    if not data:
        return Protocol.NEED_MORE
    if data[0] == 0x16:  # A handshake record (RFC 8446 section 5.1); its version is 3.x in every TLS.
        if len(data) == 1:
            return Protocol.NEED_MORE
        return Protocol.TLS if data[1] == 0x03 else Protocol.OTHER
    # An HTTP/1 server ignores an empty line ahead of a request (RFC 9112 section 2.2).
    start = data.removeprefix(b"\r\n")
    if start.startswith(_METHODS):
        return Protocol.HTTP1
    if data.startswith(HTTP2_PREFACE):
        return Protocol.HTTP2
    if data in (b"\r", b"\r\n") or HTTP2_PREFACE.startswith(data):
        return Protocol.NEED_MORE
    if any(method.startswith(start) for method in _METHODS):
        return Protocol.NEED_MORE
    return Protocol.OTHER
