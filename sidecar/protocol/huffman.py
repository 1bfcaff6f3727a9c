"""Huffman decoding of HPACK strings (RFC 7541 section 5.2), remembered.

Used by `hpack.py` alone. The code table comes from the `hpack` package. Strings are sent raw by this
sidecar, so there is no encoder. zlib decodes what it can, 20 times as fast as Python: HPACK's code is
canonical, as DEFLATE's codes are (RFC 1951 section 3.2.2). Only its codes of more than 15 bits, all of which
begin with 15 ones, DEFLATE cannot have; there stands its end of block, which padding and 15 ones that are
appended make too. Where that comes too early, a state machine decodes the string instead and judges it. Its
steps of a whole octet are composed from the package's steps of four bits when first needed, because a table
of all of them would take megabytes.
"""

from __future__ import annotations

import zlib

from hpack.huffman_constants import REQUEST_CODES_LENGTH
from hpack.huffman_table import (
    HUFFMAN_COMPLETE,
    HUFFMAN_EMIT_SYMBOL,
    HUFFMAN_FAIL,
    HUFFMAN_TABLE,
)

_MAX_STEPS = 16384
_steps: dict[int, tuple[int, bytes]] = {}
"""State times 256 plus octet -> following state times 256, the octets that it completed. State -1 fails."""


class HuffmanError(Exception):
    """The octets are not a Huffman string: EOS inside, or padding that is not the start of EOS."""


def _half_step(state: int, nibble: int) -> tuple[int, bytes]:
    state, flags, symbol = HUFFMAN_TABLE[state * 16 + nibble]
    if flags & HUFFMAN_FAIL:
        raise HuffmanError("invalid Huffman code")
    return state, bytes((symbol,)) if flags & HUFFMAN_EMIT_SYMBOL else b""


def _step(key: int) -> tuple[int, bytes]:
    middle, first = _half_step(key >> 8, (key >> 4) & 15)
    state, second = _half_step(middle, key & 15)
    step = (state << 8, first + second)
    if len(_steps) < _MAX_STEPS:
        _steps[key] = step
    return step


# Whether a string may end there is a property of the state alone (padding of at most seven 1 bits).
_FINAL_STATES = frozenset({state for state, flags, _ in HUFFMAN_TABLE if flags & HUFFMAN_COMPLETE})


def _bits_first_to_last(value: int, count: int) -> list[int]:
    return [value >> bit & 1 for bit in range(count)]


def _block_header() -> bytes:
    """What begins a final DEFLATE block with dynamic codes, these being HPACK's (RFC 1951 section 3.2.7)."""
    lengths = [length if length <= 15 else 0 for length in REQUEST_CODES_LENGTH[:256]]
    lengths += [15, 0]  # end of block; no distances
    # 257 literals, 1 distance, 19 code lengths: 0..15 are written in four bits each, the repeats never.
    bits = [1, *_bits_first_to_last(2, 2), *[0] * 10, *_bits_first_to_last(15, 4)]
    bits += [bit for symbol in range(19) for bit in _bits_first_to_last(4 if symbol >= 3 else 0, 3)]
    for length in lengths:
        bits += reversed(_bits_first_to_last(length, 4))
    # Empty blocks with fixed codes before it, of ten bits each, have it end where an octet ends.
    while len(bits) % 8:
        bits = [0, 1, *[0] * 8, *bits]
    octets = range(0, len(bits), 8)
    return bytes(sum(bit << place for place, bit in enumerate(bits[at : at + 8])) for at in octets)


_BITS_REVERSED = bytes(sum((octet >> bit & 1) << 7 - bit for bit in range(8)) for octet in range(256))
"""DEFLATE packs its codes from the lowest bit on, HPACK from the highest."""
_FIFTEEN_ONES = b"\xff\x7f"
"""No more than that: a string that ends inside a code must not borrow one and still meet its end."""
_CODE_LENGTHS = bytes(REQUEST_CODES_LENGTH[:256])
_inflater = zlib.decompressobj(-zlib.MAX_WBITS)
_inflater.decompress(_block_header())


def huffman_decode(data: bytes) -> bytes:
    """The decoded string. Raises `HuffmanError`."""
    inflater = _inflater.copy()
    try:
        value = inflater.decompress(data.translate(_BITS_REVERSED) + _FIFTEEN_ONES)
    except zlib.error:
        return _decode_slowly(data)
    # Zero to six of the 15 ones were padding when both appended octets were used; seven or more when one was.
    # Eight are too many (section 5.2), and only where the last octet is all ones.
    rest = len(inflater.unused_data)
    if inflater.eof and (
        not rest
        or (rest == 1 and (data[-1] != 255 or 8 * len(data) - sum(value.translate(_CODE_LENGTHS)) < 8))
    ):
        return value
    return _decode_slowly(data)


def _decode_slowly(data: bytes) -> bytes:
    steps = _steps
    state = 0
    parts = []
    for octet in data:
        key = state | octet
        step = steps.get(key)
        if step is None:
            step = _step(key)
        state = step[0]
        parts.append(step[1])
    if state >> 8 not in _FINAL_STATES:
        raise HuffmanError("invalid Huffman padding")
    return b"".join(parts)


class HuffmanCache:
    """Decoded strings by their encoded octets, in two generations of at most `max_bytes` each."""

    __slots__ = ("_max_bytes", "_new", "_new_bytes", "_old")

    def __init__(self, max_bytes: int = 131072) -> None:
        self._max_bytes = max_bytes
        self._new: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._new_bytes = 0

    def decode(self, data: bytes) -> bytes:
        """As `huffman_decode`, from memory when the string was decoded lately."""
        value = self._new.get(data)
        if value is not None:
            return value
        value = self._old.get(data)
        if value is None:
            value = huffman_decode(data)
        # 160: two octet strings and a dictionary entry of CPython.
        self._new_bytes += len(data) + len(value) + 160
        if self._new_bytes > self._max_bytes:
            self._old = self._new
            self._new = {}
            self._new_bytes = len(data) + len(value) + 160
        if self._new_bytes <= self._max_bytes:
            self._new[data] = value
        return value

    def __repr__(self) -> str:
        strings = len(self._new) + len(self._old)
        return f"<HuffmanCache strings={strings} bytes={self._new_bytes}/{self._max_bytes}>"
