"""HTTP/2 as a server: what RFC 9113 lets a client say in sections 4 to 8 is taken, whether or not it means
anything. Names begin with the section."""

from __future__ import annotations

import pytest

from tests.support import h2_frames as f
from tests.support.h2_hop import ECHO, HELD, Hop
from tests.support.raw import RawH2

BLOCK = f.block(f.GET)
GET = f.headers(1, f.GET, True)
AGAIN = f.headers(3, f.GET, True)
LAST = b"the last"


def padded(block: bytes, padding: int, flags: int = 5) -> bytes:
    return f.frame(f.HEADERS, flags | f.PADDED, 1, bytes((padding,)) + block + bytes(padding))


def asked(fields: list[tuple[bytes, bytes]]) -> bytes:
    return f.headers(1, fields, True)


PIECES = b"".join(f.frame(f.CONTINUATION, 0, 1, BLOCK[i : i + 1]) for i in range(len(BLOCK)))
TAKEN: dict[str, bytes] = {
    "4.1 unknown types": f.frame(0x2A, 0xFF, 0, b"x" * 20) + f.frame(0xFE, 0, 7) + GET + f.frame(0x2A, 0, 1),
    "4.1 flags without a meaning": f.frame(f.HEADERS, 5 | 0xD2, 1, BLOCK),
    "4.1 the reserved bit of a stream's id": f.frame(f.HEADERS, 5, 1 | 1 << 31, BLOCK),
    "4.3 a block in pieces of one octet": f.frame(f.HEADERS, 1, 1) + PIECES + f.frame(f.CONTINUATION, 4, 1),
    "5.1 PRIORITY on streams idle and ended": f.priority(1) + f.priority(9) + GET + f.priority(1),
    "5.1 WINDOW_UPDATE on an ended stream": GET + f.window_update(1, 1),
    "5.1 RST_STREAM on an ended stream": GET + f.rst_stream(1, 8),
    "5.1.1 ids that are left out": f.headers(7, f.GET, True) + f.headers(1001, f.GET, True),
    "5.3.1 a stream that depends on itself": f.priority(1, b"\0\0\0\1\x10") + GET,
    "6.2 padding": padded(BLOCK, 200),
    "6.2 padding of no octets": padded(BLOCK, 0),
    "6.2 priority": f.frame(f.HEADERS, 5 | f.PRIORITY_FLAG, 1, b"\x80\0\0\3\xff" + BLOCK),
    "6.2 padding and priority": padded(b"\0\0\0\0\x10" + BLOCK, 7, 5 | f.PRIORITY_FLAG),
    "6.4 an unknown code": f.headers(1, HELD) + f.rst_stream(1, 0xDEAD) + AGAIN,
    "6.5 no settings": f.settings() + GET,
    "6.5.2 unknown settings": f.settings({0: 1, 0x99: 2**32 - 1}) + GET,
    "6.5.2 push enabled": f.settings({2: 1}) + GET,
    "6.5.2 no streams of the server": f.settings({3: 0}) + GET,
    "6.5.3 the last of two values": f.frame(f.SETTINGS, 0, 0, b"\0\4\0\0\0\0" + b"\0\4\0\1\0\0") + GET,
    "6.7 an answer to no PING": f.ping(flags=f.ACK) + GET,
    "6.8 requests behind GOAWAY": f.goaway(0, 0xDEAD, b"farewell") + GET,
    "6.9.1 the largest window": f.window_update(0, 2**31 - 1 - 65535) + GET,
    "6.9.1 the reserved bit of an increment": f.window_update(0, 1 << 31 | 1) + GET,
    "8.2.1 all characters of a name": asked([*f.GET, (b"!#$%&'*+-.^_`|~09az", b"1")]),
    "8.2.2 te with trailers": asked([*f.GET, (b"te", b"trailers")]),
    "8.3.1 pseudo-headers in any order": asked(f.GET[::-1]),
    "8.3.1 another scheme": asked([f.GET[0], (b":scheme", b"coap+tcp"), *f.GET[2:]]),
    "8.3.1 host instead of :authority": asked([*f.GET[:2], f.GET[3], (b"host", b"a.example")]),
    "8.3.1 host as :authority says": asked([*f.GET, (b"host", b"A.example")]),
    "8.3.1 OPTIONS of the whole server": asked([(b":method", b"OPTIONS"), *f.GET[1:3], (b":path", b"*")]),
}


def settle(peer: RawH2) -> None:
    """Everything that was sent has been dealt with: frames are taken in their order."""
    peer.send(f.ping(LAST))
    peer.read_until(lambda: any(pong.payload == LAST for pong in peer.of(f.PING)))


@pytest.mark.parametrize("name", TAKEN)
def test_what_a_client_may_say_is_taken(hop: Hop, name: str) -> None:
    with hop.client() as peer:
        peer.send(TAKEN[name])
        settle(peer)
        asked = {
            x.stream_id & 0x7FFFFFFF for x in f.parse(TAKEN[name]) if x.type == f.HEADERS and x.flags & 1
        }
        assert peer.statuses() == dict.fromkeys(asked, 200)
        assert peer.of(f.RST_STREAM) == peer.of(f.GOAWAY) == []


def test_every_settings_frame_is_acknowledged_whatever_its_flags(hop: Hop) -> None:
    with hop.client() as peer:
        peer.send(f.settings({4: 70000}) + f.frame(f.SETTINGS, 0xFE) + f.settings({0x99: 1}))
        settle(peer)
        acknowledged = [x for x in peer.of(f.SETTINGS) if x.flags]
        assert acknowledged == [f.Frame(f.SETTINGS, f.ACK, 0, b"")] * 4  # hello was one


def test_a_ping_is_answered_with_its_octets_and_an_answer_is_not(hop: Hop) -> None:
    with hop.client() as peer:
        peer.send(f.ping(b"12345678", 0xFE) + f.ping(b"an answer"[:8], f.ACK) + f.ping(b"abcdefgh"))
        settle(peer)
        pongs = [(x.flags, x.stream_id, x.payload) for x in peer.of(f.PING)]
        assert pongs == [(f.ACK, 0, b"12345678"), (f.ACK, 0, b"abcdefgh"), (f.ACK, 0, LAST)]


def test_padding_is_no_content_and_its_credit_comes_back(hop: Hop) -> None:
    """Sections 6.1 and 6.9.1: twice the stream's window, of which all but 512 octets are padding."""
    with hop.client() as peer:
        content = [b"%d" % (i % 10) for i in range(512)]
        peer.send(f.headers(1, ECHO) + b"".join(f.padded(1, octet, 254) for octet in content))
        peer.send(f.data(1, b"", True))
        peer.read_until(peer.whole)
        assert peer.content() == b"".join(content)
        assert peer.of(f.RST_STREAM) == peer.of(f.GOAWAY) == []


@pytest.mark.parametrize("size", [0, 1, 16384])
def test_data_of_any_allowed_size_is_taken(hop: Hop, size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    with hop.client() as peer:
        peer.send(f.headers(1, ECHO) + f.data(1, content, True))
        peer.read_until(peer.whole)
        assert peer.content() == content


def test_what_still_comes_on_a_stream_that_was_reset_is_discarded_but_counts(hop: Hop) -> None:
    """Section 5.1: its content uses up the connection's window, which opens again; its fields are indexed."""
    with hop.client() as peer:

        def credit() -> int:
            updates = [x.payload for x in peer.of(f.WINDOW_UPDATE) if not x.stream_id]
            return 65535 + sum(int.from_bytes(increment, "big") for increment in updates)

        peer.send(f.headers(1, [*HELD, (b"connection", b"close")]))
        peer.read_until(lambda: peer.of(f.RST_STREAM))
        window = credit()
        frames = window // 16384 + 1
        peer.send(f.data(1, bytes(16384)) * frames)
        peer.send(f.frame(f.HEADERS, 5, 1, b"\x40\x03x-a\x01b"))
        peer.send(f.frame(f.HEADERS, 5, 3, BLOCK + b"\xbe"))
        settle(peer)
        assert peer.statuses() == {3: 200}
        assert [(x.stream_id, x.code) for x in peer.of(f.RST_STREAM)] == [(1, 1)]
        assert credit() - frames * 16384 >= window // 2
