"""HPACK against the `hpack` package: the same fields and the same verdict on generated and mutated octets."""

from __future__ import annotations

import hpack
from hpack.exceptions import OversizedHeaderListError
from hpack.huffman_table import decode_huffman
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.protocol.events import RequestHead
from sidecar.protocol.hpack import HpackBombError, HpackDecoder, HpackError
from sidecar.protocol.hpack_encoder import HpackEncoder
from sidecar.protocol.huffman import HuffmanError, huffman_decode

NAMES = st.sampled_from([b"a", b"cookie", b"user-agent", b"x-trace", b":path", b"authorization", b"accept"])
VALUES = st.one_of(st.sampled_from([b"", b"1", b"gzip", b"/"]), st.binary(max_size=200))
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=12)


def reference_decode(decoder: hpack.Decoder, block: bytes) -> list[tuple[bytes, bytes]] | None:
    """None when the package rejects the block."""
    try:
        return [(bytes(n), bytes(v)) for n, v in decoder.decode(block, raw=True)]
    except OversizedHeaderListError:
        raise AssertionError("the reference has no limit here") from None
    except (hpack.HPACKError, IndexError, UnicodeDecodeError):
        return None


def our_decode(decoder: HpackDecoder, block: bytes) -> list[tuple[bytes, bytes]] | None:
    try:
        shared = decoder.decode(block)
    except (HpackError, HpackBombError):
        return None
    return [tuple(x) for x in (*shared.fields, *decoder.fresh)]


def decoders() -> tuple[HpackDecoder, hpack.Decoder]:
    return HpackDecoder(1 << 24, 1 << 20), hpack.Decoder(max_header_list_size=1 << 30)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(FIELDS, st.booleans()), max_size=8), st.sampled_from([4096, 200, 0]))
def test_decodes_what_the_package_encodes(blocks: list, table_size: int) -> None:
    ours, _ = decoders()
    encoder = hpack.Encoder()
    encoder.header_table_size = table_size
    for fields, huffman in blocks:
        assert our_decode(ours, encoder.encode(fields, huffman=huffman)) == fields


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(FIELDS, FIELDS, st.integers(1, 3)), max_size=6),
    st.lists(st.sampled_from([0, 60, 200, 4096]), max_size=3),
    st.booleans(),
)
def test_the_package_decodes_what_we_encode(heads: list, sizes: list[int], trusted: bool) -> None:
    encoder, reference = HpackEncoder(trusted), hpack.Decoder()
    for number, (fields, fresh, times) in enumerate(heads):
        if number < len(sizes):
            encoder.set_max_size(sizes[number])
        head = RequestHead(b"GET", b"http", b"a", b"/", tuple(fields), tuple(fresh))
        for _ in range(times):
            decoded = reference_decode(reference, encoder.request(head))
            assert decoded is not None
            assert decoded[4:] == fields + fresh
            assert reference_decode(reference, encoder.trailers(tuple(fields))) == fields


@settings(max_examples=400, deadline=None)
@given(
    st.lists(FIELDS, min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=4),
)
def test_same_verdict_on_mutated_blocks(lists: list, huffman: bool, changes: list[tuple[int, int]]) -> None:
    ours, reference = decoders()
    encoder = hpack.Encoder()
    for fields in lists:
        block = bytearray(encoder.encode(fields, huffman=huffman))
        for position, octet in changes:
            if block:
                block[position % len(block)] = octet
        if not agree(ours, reference, bytes(block)):
            return


@settings(max_examples=400, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4))
@example([b"\x40\x01a\x01b", b"\xbe", b"\xbe"])
@example([b"\x82\x20"])
@example([b"\x3f\x03\x40\x01a\x01b", b"\xbe"])
def test_same_verdict_on_any_octets(blocks: list[bytes]) -> None:
    ours, reference = decoders()
    for block in blocks:
        if not agree(ours, reference, block):
            return


def agree(ours: HpackDecoder, reference: hpack.Decoder, block: bytes) -> bool:
    """Same result from both; False when both reject it, which ends a connection."""
    for _ in range(3):  # what is remembered must mean the same
        expected = reference_decode(reference, block)
        assert our_decode(ours, block) == expected
        if expected is None:
            return False
    return True


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_huffman_is_the_packages(octets: bytes) -> None:
    try:
        expected = decode_huffman(octets)
    except hpack.HPACKError:
        expected = None
    try:
        found = huffman_decode(octets)
    except HuffmanError:
        found = None
    assert found == expected
