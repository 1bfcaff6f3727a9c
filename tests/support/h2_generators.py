"""What a peer of HTTP/2 might send: frames in any order, frames with an error, header sections with one.

`client`: the receiver is a client, which has asked for something on streams 1, 3 and 5.
"""

from __future__ import annotations

from functools import cache

import hpack
from hypothesis import strategies as st

from tests.support import h2_frames as f

IDS = st.sampled_from([1, 3, 5, 7])
COMMON = [
    st.builds(lambda i: f.headers(i, [(b"x-t", b"1")], True), IDS),
    st.builds(lambda i, n, end: f.data(i, b"x" * n, end), IDS, st.integers(0, 6), st.booleans()),
    st.builds(
        lambda i, n, p, end: f.padded(i, b"x" * n, p, end), IDS, *[st.integers(0, 6)] * 2, st.booleans()
    ),
    st.builds(f.rst_stream, IDS, st.integers(0, 20)),
    st.builds(f.window_update, st.sampled_from([0, 1, 3, 5]), st.sampled_from([0, 1, 9999, 2**31 - 1])),
    st.builds(f.ping, flags=st.sampled_from([0, 1, 2])),
    st.builds(f.priority, IDS),
    st.builds(
        lambda key, value: f.settings({key: value}),
        st.integers(1, 9),
        st.sampled_from([0, 1, 2, 16384, 2**31 - 1, 2**31]),
    ),
    st.builds(lambda kind: f.frame(kind, 0, 0, b"abc"), st.integers(20, 60)),
]


def length(n: int) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % n


REQUESTS = st.one_of(
    st.sampled_from([f.POST, f.GET]), st.builds(lambda n: [*f.POST, length(n)], st.integers(0, 6))
)
RESPONSES = st.builds(
    lambda status, fields: [(b":status", status), *fields],
    st.sampled_from([b"200", b"200", b"204", b"304", b"103", b"101"]),
    st.one_of(st.just([]), st.builds(lambda n: [length(n)], st.integers(0, 6))),
)


def cut(stream: int, fields: list[tuple[bytes, bytes]], at: int, end: bool) -> bytes:
    """A header section in two frames."""
    block = f.block(fields)
    return f.frame(f.HEADERS, int(end), stream, block[:at]) + f.frame(f.CONTINUATION, 4, stream, block[at:])


def padded_head(stream: int, fields: list[tuple[bytes, bytes]], padding: int, priority: bool) -> bytes:
    flags = 4 | f.PADDED | (f.PRIORITY_FLAG if priority else 0)
    block = b"\0\0\0\0\1" * priority + f.block(fields)
    return f.frame(f.HEADERS, flags, stream, bytes((padding,)) + block + bytes(padding))


@cache
def frames(client: bool) -> st.SearchStrategy[bytes]:
    heads = RESPONSES if client else REQUESTS
    head = st.builds(f.headers, IDS, heads, st.booleans())
    pieces = st.builds(cut, IDS, heads, st.integers(0, 20), st.booleans())
    padded = st.builds(padded_head, IDS, heads, st.integers(0, 9), st.booleans())
    return st.one_of(head, head, pieces, padded, *COMMON)


@cache
def sequences(client: bool, least: int = 0, most: int = 10) -> st.SearchStrategy[list[bytes]]:
    return st.lists(frames(client), min_size=least, max_size=most)


@st.composite
def conversations(draw: st.DrawFn, client: bool) -> list[bytes]:
    """Messages side by side, most of what comes being allowed: heads, bodies in pieces, trailers and ends;
    now and then a frame of any kind."""
    fresh = [1, 3] if client else [1, 3, 5]  # 5 is a HEAD there
    opened, octets = list[int](), list[bytes]()
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=6, max_size=20)):
        if kind == "head" and fresh:
            opened.append(fresh.pop(0))
            octets.append(f.headers(opened[-1], f.OK if client else f.POST))
        elif kind == "any":
            octets.append(draw(frames(client)))
        elif opened and kind != "head":
            stream = draw(st.sampled_from(opened))
            body = b"x" * draw(st.integers(0, 6))
            end = kind in ("trailers", "end")
            if kind == "trailers":
                octets.append(f.headers(stream, [(b"x-t", b"1")], True))
            elif kind == "padded":
                octets.append(f.padded(stream, body, draw(st.integers(0, 6)), end))
            else:
                octets.append(f.data(stream, body, end))
            if end:
                opened.remove(stream)
    return octets


KINDS = ["head"] * 4 + ["data"] * 6 + ["padded"] * 4 + ["trailers", "end", "any"]


@st.composite
def mutated(draw: st.DrawFn, client: bool) -> bytes:
    """A sequence with one frame changed: an octet of its header or payload, or the payload's length."""
    sequence = draw(st.one_of(sequences(client, 1, 6), conversations(client).filter(bool)))
    which = draw(st.integers(0, len(sequence) - 1))
    octets = bytearray(sequence[which])
    how = draw(st.sampled_from(["header", "payload", "payload", "shorter", "longer"]))
    if how == "header":
        octets[draw(st.integers(0, 8))] = draw(st.integers(0, 255))
    elif how == "payload" and len(octets) > 9:
        octets[draw(st.integers(9, len(octets) - 1))] = draw(st.integers(0, 255))
    else:
        first = f.parse_prefix(bytes(octets))[0]
        payload = first.payload[:-1] if how == "shorter" else first.payload + draw(st.binary(max_size=9))
        octets[:] = f.frame(first.type, first.flags, first.stream_id, payload)
    sequence[which] = bytes(octets)
    return b"".join(sequence)


PLAIN = st.sampled_from([b"a", b"b-c", b"accept", b"cookie", b"x-trace", b"authorization"])
RULED = st.sampled_from(
    b"te host connection content-length A x-\xc3 :path :x :scheme :status :method :authority".split()
)
GOOD = st.sampled_from([b"", b"1", b"a b", b"\xc3\xa4", b"x" * 130])
TELLING = st.sampled_from(b"trailers 0 200 GET a.example A.Example b.example /".split())
WRONG = st.one_of(st.sampled_from([b" a", b"a\t"]), st.binary(max_size=4))
FIELDS = st.lists(st.tuples(PLAIN, GOOD), max_size=4)
ODD = st.tuples(
    st.one_of(RULED, RULED, PLAIN, st.binary(max_size=3)), st.one_of(TELLING, TELLING, GOOD, WRONG)
)


@st.composite
def sections(draw: st.DrawFn, client: bool) -> bytes:
    """A head, or the trailers behind a good one, of good fields with up to two odd ones among them. It comes
    three times: the second refers to what the first has put into the table, but for the last fields."""
    good = [(b":status", b"200")] if client else list(f.GET)
    kind = draw(st.sampled_from(["head", "head", "head", "trailers", "less"]))
    fields = [] if kind == "trailers" else list(good)
    if kind == "less":
        del fields[draw(st.integers(0, len(fields) - 1))]
    fields += draw(FIELDS)
    for odd in draw(st.lists(ODD, max_size=2)):
        fields.insert(draw(st.integers(0, len(fields))), odd)
    encoder = hpack.Encoder()
    known = draw(st.sampled_from([len(fields), len(fields), len(good), 0]))
    section = fields[:known] + [hpack.NeverIndexedHeaderTuple(*field) for field in fields[known:]]
    octets = b""
    for stream in (1, 3, 5):
        before = f.headers(stream, good) if kind == "trailers" else b""
        octets += before + f.frame(f.HEADERS, 5, stream, encoder.encode(section, huffman=stream == 3))
    return octets
