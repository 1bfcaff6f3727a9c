"""HPACK encoding (RFC 7541) with memory.

Called by the HTTP/2 codec, one encoder a connection. A head whose shared part was encoded before costs one
dictionary look-up: heads that differ only in `path` and `fresh` share their memo, so the memo's identity
finds the octets before and behind the path, as long as the dynamic table has not changed.

A pair enters the dynamic table when it is seen for the second time in a short history, so that values
that never repeat never enter; what follows in `fresh` is sent as literals. Strings are never Huffman-coded,
which costs a few octets and saves the receiver most of its work.

Secrets (RFC 7541 section 7.1.3). A field that came as never-indexed leaves as never-indexed, always
(section 6.2.3 demands it of intermediaries). Other fields that carry credentials are never-indexed
towards applications and unknown peers, and treated like any other between two sidecars of the mesh
(`trusted_peer`): those talk over mutual TLS and repeat long bearer tokens, and both ends see the plain text
anyway; what is left is that somebody who can add requests to the same connection and also sees its size
could test a whole guessed value, never a part of one, which section 7.1 accepts for values of high entropy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sidecar.protocol.events import Field, NeverIndexed, NeverIndexedValue, RequestHead, ResponseHead
from sidecar.protocol.hpack import (
    DEFAULT_TABLE_SIZE,
    ENTRY_OVERHEAD,
    STATIC_LENGTH,
    STATIC_TABLE,
)

_MAX_REMEMBERED = 64
_MAX_HISTORY = 128
_MAX_NAMES, _MAX_NAME = 1024, 64
_EVICTION_CREDIT = 64
_EVICTION_COST = 16
"""An insertion that evicts makes both ends forget what they remember: allowed once in so many blocks."""
_ENCODED = object()
"""Key in a head's memo: it was encoded before, on whatever connection."""
_SHORT_COOKIE = 20
_SECRET_NAMES = frozenset({b"authorization", b"proxy-authorization", b"set-cookie"})


def encode_integer(value: int, mask: int, first: int) -> bytes:
    """RFC 7541 section 5.1; `first` holds the representation's high bits."""
    if value < mask:
        return bytes((first | value,))
    octets = bytearray((first | mask,))
    value -= mask
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


_STATIC: dict[Field, bytes] = {pair: encode_integer(i, 0x7F, 0x80) for i, pair in enumerate(STATIC_TABLE, 1)}
_STATIC_NAMES: dict[bytes, int] = {}
for _index, (_name, _) in enumerate(STATIC_TABLE, 1):
    _STATIC_NAMES.setdefault(_name, _index)
_LENGTHS = tuple(encode_integer(i, 0x7F, 0) for i in range(256))
_INDEXED = tuple(encode_integer(i, 0x7F, 0x80) for i in range(STATIC_LENGTH + DEFAULT_TABLE_SIZE // 32 + 2))
_STATUS = {status: (b":status", b"%d" % status) for status in range(100, 1000)}


def _name_octets(name: bytes, mask: int, first: int) -> bytes:
    index = _STATIC_NAMES.get(name)
    if index is not None:
        return encode_integer(index, mask, first)
    return bytes((first,)) + encode_integer(len(name), 0x7F, 0) + name


_literal_names: dict[bytes, bytes] = {}
"""Names as literals without indexing begin with them, whatever is in a dynamic table."""


def _literal_name(name: bytes) -> bytes:
    octets = _literal_names.get(name)
    if octets is None:
        octets = _name_octets(name, 0x0F, 0)
        if len(_literal_names) >= _MAX_NAMES:
            _literal_names.clear()
        if len(name) <= _MAX_NAME:
            _literal_names[name] = octets
    return octets


class HpackEncoder:
    """One direction's encoding state."""

    __slots__ = (
        "_blocks",
        "_credit",
        "_entries",
        "_history",
        "_indices",
        "_inserted",
        "_max_size",
        "_requests",
        "_size",
        "_smallest_pending",
        "_trusted_peer",
        "_update_pending",
    )

    def __init__(self, trusted_peer: bool = False) -> None:
        self._trusted_peer = trusted_peer
        self._entries: dict[int, Field] = {}  # insertion number -> pair, oldest first
        self._indices: dict[Field, int] = {}  # pair -> its latest insertion number
        self._inserted = 0
        self._size = 0
        self._max_size = DEFAULT_TABLE_SIZE
        self._update_pending = False
        self._smallest_pending = DEFAULT_TABLE_SIZE
        self._history: dict[int, None] = {}
        self._credit = _EVICTION_CREDIT
        self._blocks: dict[int, tuple[object, bytes]] = {}
        self._requests: dict[int, tuple[object, bytes, bytes, bytes, bytes]] = {}
        """By the identity of a memo, which is kept: octets before the path and behind it, the last path, and
        the block with it."""

    def request(self, head: RequestHead) -> bytes:
        """The header block of a request."""
        known = self._requests.get(id(head.memo))
        if known is None:
            block = self._new_request(head)
        elif known[3] == head.path:
            block = known[4]
        else:
            block = self._with_path(head, known[1], known[2])
        return block + self._literals(head.fresh) if head.fresh else block

    def _with_path(self, head: RequestHead, before: bytes, behind: bytes) -> bytes:
        inserted = self._inserted
        block = before + self._pair(_pseudo(b":path", head.path))
        self._earn_credit()
        if self._inserted != inserted:
            return block + self._pairs(_behind_path(head))
        block += behind
        self._requests[id(head.memo)] = (head.memo, before, behind, head.path, block)
        return block

    def _new_request(self, head: RequestHead) -> bytes:
        update, inserted = self._update_pending, self._inserted
        pairs: list[Field] = [(b":method", head.method)]
        if head.scheme:
            pairs.append((b":scheme", head.scheme))
        if head.authority:
            pairs.append(_pseudo(b":authority", head.authority))
        before = self._pairs(pairs)
        path = self._pair(_pseudo(b":path", head.path)) if head.path else b""
        behind = self._pairs(_behind_path(head))
        block = before + path + behind
        self._earn_credit()
        # A head that is encoded for the first time may never come again; the memo tells.
        if _ENCODED not in head.memo:
            head.memo[_ENCODED] = True
        elif path and not update and self._inserted == inserted:
            if len(self._requests) >= _MAX_REMEMBERED:
                self._requests.clear()
            self._requests[id(head.memo)] = (head.memo, before, behind, head.path, block)
        return block

    def response(self, head: ResponseHead) -> bytes:
        """The header block of a response, final or informational."""
        known = self._blocks.get(id(head.memo))
        if known is not None:
            block = known[1]
        else:
            block = self._shared_of_memo(head.memo, [_STATUS[head.status], *head.fields])
        return block + self._literals(head.fresh) if head.fresh else block

    def trailers(self, fields: tuple[Field, ...]) -> bytes:
        """The header block of a trailer section."""
        known = self._blocks.get(id(fields))
        return known[1] if known is not None else self._shared(fields, fields, True)

    def set_max_size(self, size: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE; more than the default of 4096 is not used."""
        size = min(size, DEFAULT_TABLE_SIZE)
        if size == self._max_size and not self._update_pending:
            return
        # RFC 7541 section 4.2: the smallest value in between is signalled too.
        self._smallest_pending = min(size, self._smallest_pending) if self._update_pending else size
        self._update_pending = True
        self._max_size = size
        self._evict(min(size, self._smallest_pending))
        self._forget()

    def _forget(self) -> None:
        """The dynamic table has changed: what was encoded before means something else now."""
        self._blocks.clear()
        self._requests.clear()

    def _shared_of_memo(self, memo: dict[Any, Any], pairs: list[Field]) -> bytes:
        # A head that is encoded for the first time may never come again; the memo tells.
        if _ENCODED in memo:
            return self._shared(memo, pairs, True)
        memo[_ENCODED] = True
        return self._shared(memo, pairs, False)

    def _shared(self, owner: object, pairs: Iterable[Field], remember: bool) -> bytes:
        """Encode `pairs`; `remember` the octets under `owner`'s identity."""
        update, inserted = self._update_pending, self._inserted
        block = self._pairs(pairs)
        self._earn_credit()
        if remember and not update and self._inserted == inserted:
            if len(self._blocks) >= _MAX_REMEMBERED:
                self._blocks.clear()
            self._blocks[id(owner)] = (owner, block)
        return block

    def _pairs(self, pairs: Iterable[Field]) -> bytes:
        """Encode fields, after the size update that may be due."""
        octets = bytearray()
        if self._update_pending:
            if self._smallest_pending < self._max_size:
                octets += encode_integer(self._smallest_pending, 0x1F, 0x20)
            octets += encode_integer(self._max_size, 0x1F, 0x20)
            self._update_pending = False
        for pair in pairs:
            octets += self._pair(pair)
        return bytes(octets)

    def _earn_credit(self) -> None:
        if self._credit < _EVICTION_CREDIT:
            self._credit += 1

    def _pair(self, pair: Field) -> bytes:
        if type(pair) is not tuple:
            return self._literal(pair)
        code = _STATIC.get(pair)
        if code is not None:
            return code
        number = self._indices.get(pair)
        if number is not None:
            return _INDEXED[STATIC_LENGTH + 1 + self._inserted - number]
        return self._literal(pair)

    def _literal(self, pair: Field) -> bytes:
        name, value = pair
        length = len(value)
        value_octets = (_LENGTHS[length] if length < 256 else encode_integer(length, 0x7F, 0)) + value
        if type(pair) is NeverIndexed or (not self._trusted_peer and _is_secret(name, value)):
            return _name_octets(name, 0x0F, 0x10) + value_octets
        history = self._history
        key = hash(pair)
        if key not in history:
            if len(history) >= _MAX_HISTORY:
                del history[next(iter(history))]
            history[key] = None
        elif self._insert((name, value), len(name) + length + ENTRY_OVERHEAD):
            return _name_octets(name, 0x3F, 0x40) + value_octets
        return _literal_name(name) + value_octets

    def _literals(self, fields: tuple[Field, ...]) -> bytes:
        """Fields as literals without indexing, or as never indexed where that is due."""
        parts = []
        names = _literal_names
        for pair in fields:
            name, value = pair
            if type(pair) is not tuple or name in _SECRET_NAMES or name == b"cookie":
                parts.append(self._literal(pair))
                continue
            length = len(value)
            parts.append(names.get(name) or _literal_name(name))
            parts.append(_LENGTHS[length] if length < 256 else encode_integer(length, 0x7F, 0))
            parts.append(value)
        return b"".join(parts)

    def _insert(self, pair: Field, size: int) -> bool:
        if size > self._max_size // 2:
            return False
        if self._size + size > self._max_size:
            if self._credit < _EVICTION_COST:
                return False
            self._credit -= _EVICTION_COST
            self._evict(self._max_size - size)
        self._inserted += 1
        self._entries[self._inserted] = pair
        self._indices[pair] = self._inserted
        self._size += size
        self._forget()
        return True

    def _evict(self, size: int) -> None:
        entries = self._entries
        while self._size > size:
            number = next(iter(entries))
            pair = entries.pop(number)
            self._size -= len(pair[0]) + len(pair[1]) + ENTRY_OVERHEAD
            if self._indices[pair] == number:
                del self._indices[pair]

    def __repr__(self) -> str:
        return (
            f"<HpackEncoder entries={len(self._entries)} size={self._size}/{self._max_size} "
            f"remembered={len(self._blocks) + len(self._requests)}>"
        )


def _pseudo(name: bytes, value: bytes) -> Field:
    return NeverIndexed((name, value)) if type(value) is NeverIndexedValue else (name, value)


def _behind_path(head: RequestHead) -> tuple[Field, ...]:
    return ((b":protocol", head.protocol), *head.fields) if head.protocol else head.fields


def _is_secret(name: bytes, value: bytes) -> bool:
    return name in _SECRET_NAMES or (name == b"cookie" and len(value) < _SHORT_COOKIE)
