"""HPACK against the `hpack` package: the same fields and the same verdict on generated and mutated octets.

`HYPOTHESIS_PROFILE=explore` looks for new cases. What it finds is judged and kept in `data/hpack_found.txt`.
"""

from __future__ import annotations

from pathlib import Path

import hpack
import pytest
from hpack.exceptions import OversizedHeaderListError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.protocol.events import RequestHead
from sidecar.protocol.hpack import HpackBombError, HpackDecoder, HpackError
from sidecar.protocol.hpack_encoder import HpackEncoder
from sidecar.protocol.huffman import HuffmanError, huffman_decode

NAMES = st.sampled_from([b"a", b"cookie", b"user-agent", b"x-trace", b":path", b"authorization", b"accept"])
VALUES = st.one_of(st.sampled_from([b"", b"1", b"gzip", b"/"]), st.binary(max_size=200))
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=12)
FOUND = (Path(__file__).parent / "data" / "hpack_found.txt").read_text().splitlines()
KEPT = [line.split(maxsplit=3) for line in FOUND if not line.startswith("#")]


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
    st.sampled_from([4096, 200, 0]),
)
def test_same_verdict_on_mutated_blocks(
    lists: list, huffman: bool, changes: list[tuple[int, int]], table_size: int
) -> None:
    ours, reference = decoders()
    encoder = hpack.Encoder()
    encoder.header_table_size = table_size
    for fields in lists:
        block = bytearray(encoder.encode(fields, huffman=huffman))
        for position, octet in changes:
            if block:
                block[position % len(block)] = octet
        if not agree(ours, reference, bytes(block)):
            return


@settings(max_examples=400, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4))
def test_same_verdict_on_any_octets(blocks: list[bytes]) -> None:
    compare(blocks)


@pytest.mark.parametrize("case", KEPT, ids=lambda case: f"{case[0]} {case[3]}")
def test_what_was_found_is_judged_as_ever(case: list[str]) -> None:
    kind, verdict, octets, _ = case
    if kind == "block":
        taken = compare([bytes.fromhex(block) for block in octets.split(",")])
    else:
        taken = compare_huffman(bytes.fromhex(octets.strip("-")))
    assert taken is (verdict == "taken")


def compare(blocks: list[bytes]) -> bool:
    """Whether both take all blocks of one connection."""
    ours, reference = decoders()
    return all(agree(ours, reference, block) for block in blocks)


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
    compare_huffman(octets)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 7)), max_size=2))
def test_huffman_is_the_packages_with_a_bit_changed(text: bytes, bits: list[tuple[int, int]]) -> None:
    octets = bytearray(HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text))
    for place, bit in bits if octets else ():
        octets[place % len(octets)] ^= 1 << bit
    assert compare_huffman(bytes(octets)) or bits


def compare_huffman(octets: bytes) -> bool:
    """Whether both take the string."""
    try:
        expected = decode_huffman(octets)
    except hpack.HPACKError:
        expected = None
    try:
        found = huffman_decode(octets)
    except HuffmanError:
        found = None
    assert found == expected
    return found is not None
