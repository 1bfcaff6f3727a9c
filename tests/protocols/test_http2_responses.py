"""HTTP/2 as a client: what RFC 9113 lets an application say in sections 4 to 8 is taken, whether or not it
means anything. Names begin with the section."""

from __future__ import annotations

import pytest

from tests.support import h2_frames as f
from tests.support.h2_hop import Hop

OK = f.block(f.OK)
HEAD = f.headers(1, f.OK)
END = f.data(1, b"ok", True)
HINT = f.headers(1, [(b":status", b"103"), (b"link", b"</a>")])
PRIORITY = b"\0\0\0\0\x10"
PIECES = b"".join(f.frame(f.CONTINUATION, 0, 1, OK[i : i + 1]) for i in range(len(OK)))
PADDED = f.PADDED | f.END_HEADERS

TAKEN: dict[str, bytes] = {
    "4.1 unknown types": f.frame(0x2A, 0xFF, 0, b"x") + HEAD + f.frame(0x2A, 0, 1, b"x") + END,
    "4.1 flags without a meaning": f.frame(f.HEADERS, 4 | 0xD2, 1, OK) + f.frame(f.DATA, 1 | 0xF6, 1, b"ok"),
    "4.1 the reserved bit of a stream's id": f.frame(f.HEADERS, 4, 1 | 1 << 31, OK) + END,
    "4.3 a block in pieces of one octet": f.frame(f.HEADERS, 0, 1)
    + PIECES
    + f.frame(f.CONTINUATION, f.END_HEADERS, 1)
    + END,
    "5.1 WINDOW_UPDATE behind the end": HEAD + END + f.window_update(1, 1),
    "5.1 RST_STREAM behind the end": HEAD + END + f.rst_stream(1, 0),
    "6.1 padding": HEAD + f.padded(1, b"o", 255) + f.padded(1, b"", 7) + f.padded(1, b"k", 0, True),
    "6.1 an end of no octets": HEAD + f.data(1, b"ok") + f.data(1, b"", True),
    "6.2 padding": f.frame(f.HEADERS, PADDED, 1, b"\x09" + OK + bytes(9)) + END,
    "6.2 priority": f.frame(f.HEADERS, 4 | f.PRIORITY_FLAG, 1, PRIORITY + OK) + END,
    "6.2 padding and priority": f.frame(
        f.HEADERS, PADDED | f.PRIORITY_FLAG, 1, b"\2" + PRIORITY + OK + b"\0\0"
    )
    + END,
    "6.3 PRIORITY": f.priority(1) + HEAD + f.priority(7) + END,
    "6.5 no settings": f.settings() + HEAD + END,
    "6.5.2 unknown settings": f.settings({0: 1, 0x99: 2**32 - 1}) + HEAD + END,
    "6.5.2 push not enabled": f.settings({2: 0}) + HEAD + END,
    "6.7 an answer to no PING": f.ping(flags=f.ACK) + HEAD + END,
    "6.9.1 the largest window": f.window_update(0, 2**31 - 1 - 65535) + HEAD + END,
    "8.1 informational responses": HINT * 3 + HEAD + END,
    "8.1 trailers": HEAD + f.data(1, b"ok") + f.headers(1, [(b"x-t", b"1")], True),
    "8.1.1 the length that comes": f.headers(1, [*f.OK, (b"content-length", b"2")]) + END,
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_an_application_may_say_is_taken(hop: Hop, name: str) -> None:
    """Then PING: its answer shows that the connection lives, and comes behind whatever was found wrong."""
    with hop.call() as caller, hop.serving() as app:
        assert app.request() == 1
        app.send(TAKEN[name] + f.ping())
        head, body = caller.answer()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == b"ok"
        app.read_until(lambda: app.of(f.PING))
        assert app.of(f.RST_STREAM) == app.of(f.GOAWAY) == []


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", b"200"), (b"GET", b"304")])
def test_a_length_without_content_is_no_error_where_there_is_none(
    hop: Hop, method: bytes, status: bytes
) -> None:
    """Section 8.1.1, RFC 9110 section 8.6."""
    with hop.call(method) as caller, hop.serving() as app:
        app.send(f.headers(app.request(), [(b":status", status), (b"content-length", b"7")], True) + f.ping())
        head = caller.head()
        assert head.startswith(b"HTTP/1.1 " + status)
        assert b"\r\ncontent-length: 7\r\n" in head
        app.read_until(lambda: app.of(f.PING))
        assert app.of(f.RST_STREAM) == []


def test_hello_has_what_section_3_4_and_8_4_ask_for(hop: Hop) -> None:
    """The preface, SETTINGS first of all, and no push."""
    with hop.call() as caller, hop.serving() as app:
        stream = app.request()
        assert app.received.startswith(f.PREFACE)
        hello = app.frames()[0]
        assert hello.type == f.SETTINGS
        assert hello.flags == 0
        assert b"\0\2\0\0\0\0" in [hello.payload[i : i + 6] for i in range(0, len(hello.payload), 6)]
        app.send(f.headers(stream, f.OK, True))
        assert caller.head().startswith(b"HTTP/1.1 200 ")
