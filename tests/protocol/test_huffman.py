"""Huffman strings at the borders of what zlib decodes, against the `hpack` package."""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman_table import decode_huffman

from sidecar.protocol.huffman import HuffmanError, huffman_decode

encode = hpack.Encoder().huffman_coder.encode


def decoded_by_package(octets: bytes) -> bytes | None:
    try:
        return decode_huffman(octets)
    except Exception:
        return None


def decoded(octets: bytes) -> bytes | None:
    try:
        return huffman_decode(octets)
    except HuffmanError:
        return None


def test_every_string_of_up_to_two_octets_is_as_the_package_has_it() -> None:
    strings = [bytes([a]) for a in range(256)] + [bytes([a, b]) for a in range(256) for b in range(256)]
    assert [decoded(string) for string in strings] == [decoded_by_package(string) for string in strings]


def test_a_string_that_ends_inside_a_code_is_refused() -> None:
    with pytest.raises(HuffmanError):
        huffman_decode(b"\x00.")  # two zeros and six of the seven bits of B


@pytest.mark.parametrize(("text", "last"), [(b"00000", 0x7F), (b"00001", 0xFF)])
def test_seven_bits_of_padding_are_accepted_and_eight_more_refused(text: bytes, last: int) -> None:
    assert encode(text)[-1] == last
    assert huffman_decode(encode(text)) == text
    with pytest.raises(HuffmanError):
        huffman_decode(encode(text) + b"\xff")


@pytest.mark.parametrize("rare", [b"\\", b"\x00", b"\n", b"\xff", b"<", b"{", b"`"])
@pytest.mark.parametrize("before", range(9))
def test_a_rare_octet_is_found_anywhere(rare: bytes, before: int) -> None:
    for text in (b"B" * before + rare, b"B" * before + rare + b"token", rare + b"0" * before):
        assert huffman_decode(encode(text)) == text


def test_a_long_token_is_decoded_whole() -> None:
    text = bytes(range(32, 127)) * 100
    assert huffman_decode(encode(text)) == text
