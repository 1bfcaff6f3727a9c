"""Decoders that share blocks against decoders that do not, and against the `hpack` package: whoever else is
connected, and whatever they send, the same octets mean the same fields, and none loses its mark."""

from __future__ import annotations

import random

import hpack
import pytest

from sidecar.protocol.events import Field
from sidecar.protocol.hpack import (
    STATIC_TABLE,
    HeaderBlock,
    HpackBombError,
    HpackDecoder,
    HpackError,
    NeverIndexed,
)
from sidecar.protocol.hpack_encoder import encode_integer

Marked = tuple[bool, bytes, bytes]
"""Never indexed, name, value."""
_PAIRS: dict[Field, int] = {}
_NAMES: dict[bytes, int] = {}
for _index, _field in enumerate(STATIC_TABLE, 1):
    _PAIRS.setdefault(_field, _index)
    _NAMES.setdefault(_field[0], _index)
INDEXED, PLAIN, NEVER = (0x3F, 0x40), (0x0F, 0x00), (0x0F, 0x10)
REGULAR: tuple[Field, ...] = (
    *((b"accept-encoding", b"gzip, deflate"), (b"authorization", b"Bearer x"), (b"cookie", b"a=b")),
    *((b"x-forwarded-client-cert", b"By=x"), (b"content-length", b"0"), (b":path", b"/again")),
    *((b"x-large", b"y" * 300), (b"x-a", b"1"), (b"x-a", b"2")),
)


class Peer:
    """One connection: an encoder that makes use of all that HPACK allows, and who decodes it."""

    def __init__(self, rng: random.Random, limits: tuple[int, int], common: dict[bytes, HeaderBlock]) -> None:
        self.rng = rng
        self.table: list[Field] = []
        self.frugal = rng.random() < 0.5
        self.sharing = HpackDecoder(*limits, open_paths=True, common=common)
        self.alone = HpackDecoder(*limits, open_paths=True)
        self.package = hpack.Decoder(max_header_list_size=1 << 30)

    def encode(self, fields: list[Field]) -> bytes:
        rng = self.rng
        octets = b""
        if rng.random() < 0.05:
            octets = b"\x20" + encode_integer(4096, 0x1F, 0x20)
            self.table.clear()
        for field in fields:
            name, value = field
            if field in _PAIRS and rng.random() < 0.9:
                octets += encode_integer(_PAIRS[field], 0x7F, 0x80)
            elif field in self.table and rng.random() < 0.9:
                octets += encode_integer(62 + self.table.index(field), 0x7F, 0x80)
            else:
                mask, kind = rng.choice((PLAIN, PLAIN, NEVER) if self.frugal else (INDEXED, PLAIN, NEVER))
                known = _NAMES.get(name) if rng.random() < 0.9 else None
                octets += encode_integer(known or 0, mask, kind)
                if known is None:
                    octets += encode_integer(len(name), 0x7F, 0) + name
                octets += encode_integer(len(value), 0x7F, 0) + value
                if kind == 0x40:
                    self.table.insert(0, field)
                    del self.table[10:]  # fewer than the table holds: none is taken that is gone
        return octets


def fields_of(rng: random.Random) -> list[Field]:
    head: list[Field] = [
        (b":method", rng.choice((b"GET", b"POST"))),
        (b":scheme", rng.choice((b"http", b"https"))),
        (b":authority", rng.choice((b"a", b"b"))),
        (b":path", rng.choice((b"/", b"/index.html", b"/%d" % rng.randrange(3)))),
    ]
    return head + rng.choices(REGULAR, k=rng.choice((0, 0, 1, 3)))


def meaning(decoder: HpackDecoder, block: bytes) -> tuple[bool, list[Marked]] | None:
    """Whether it is too large, and all fields if not; None: it is wrong."""
    try:
        decoded = decoder.decode(block)
    except (HpackError, HpackBombError):
        return None
    fields = (*decoded.all_fields(decoder.path), *decoder.fresh)
    return decoded.too_large, [] if decoded.too_large else [(type(f) is NeverIndexed, *f) for f in fields]


def meaning_by_package(decoder: hpack.Decoder, block: bytes) -> list[Marked] | None:
    try:
        fields = decoder.decode(block, raw=True)
    except (hpack.HPACKError, IndexError, UnicodeDecodeError):
        return None
    return [(isinstance(f, hpack.NeverIndexedHeaderTuple), bytes(f[0]), bytes(f[1])) for f in fields]


@pytest.mark.parametrize("seed", range(60))
def test_a_block_means_the_same_whoever_has_sent_it_before(seed: int) -> None:
    rng = random.Random(seed)
    limits = rng.choice(((65536, 100), (400, 100), (65536, 6)))
    common: dict[bytes, HeaderBlock] = {}
    heads = [fields_of(rng) for _ in range(rng.choice((2, 6, 40)))]
    peers: list[Peer] = []
    heard: list[bytes] = []
    for _ in range(150):
        if not peers or rng.random() < 0.2:
            peers = [*peers[-5:], Peer(rng, limits, common)]
        peer = rng.choice(peers)
        again = heard and not peer.table and rng.random() < 0.4
        block = rng.choice(heard) if again else peer.encode(rng.choice(heads))
        if not peer.table and not again:
            heard.append(block)
        if rng.random() < 0.03:
            block = block[: rng.randrange(len(block))] + rng.randbytes(2)
            peers.remove(peer)  # nobody knows what is in its table now
        found = meaning(peer.sharing, block)
        assert found == meaning(peer.alone, block)
        by_package = meaning_by_package(peer.package, block)
        if found is None or by_package is None:
            assert (found is None) == (by_package is None)
            if peer in peers:
                peers.remove(peer)
        elif not found[0]:
            assert found[1] == by_package
        else:
            size = sum(len(name) + len(value) + 32 for _, name, value in by_package)
            assert size > limits[0] or len(by_package) > limits[1]
    assert len(common) <= 16
