"""Huffman decoding of HPACK strings (RFC 7541 section 5.2), remembered.

Used by `hpack.py` alone. The code table comes from the `hpack` package. Strings are sent raw by this
sidecar, so there is no encoder. Decoding walks a state machine; steps of a whole octet are composed from
the package's steps of four bits when first needed, because a table of all of them would take megabytes.
"""

from __future__ import annotations

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


def huffman_decode(data: bytes) -> bytes:
    """The decoded string. Raises `HuffmanError`."""
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
