"""HPACK decoding (RFC 7541) with memory, and what it shares with `hpack_encoder.py`.

Called by `h2.py`, one decoder a connection. A peer that repeats itself sends the same octets, and as long
as the dynamic table has not changed the same octets mean the same fields. So the decoder remembers whole
blocks, and the longest prefix of a block that holds nothing but indexed fields (and pseudo-header
literals); the object that comes back for them is always the same, and the codec hangs the validated head
on it. Where a path comes that did not come before, it remembers the indexed fields around it. It never
judges what the fields mean: that is `field_rules.py`.
"""

from __future__ import annotations

import re

from hpack.table import HeaderTable

from sidecar.protocol.events import Field, NeverIndexed, RequestHead, ResponseHead
from sidecar.protocol.huffman import HuffmanCache, HuffmanError

STATIC_TABLE: tuple[Field, ...] = tuple((bytes(n), bytes(v)) for n, v in HeaderTable.STATIC_TABLE)
STATIC_LENGTH = len(STATIC_TABLE)
DEFAULT_TABLE_SIZE = 4096
ENTRY_OVERHEAD = 32
"""RFC 7541 section 4.1."""

_MAX_REMEMBERED_BLOCK = 2048
_REMEMBERED_OVERHEAD = 512
"""About what a remembered block costs beside its octets: fields, head and memo."""
_MAX_REMEMBERED = 98304
_MAX_SEEN = 64
_MAX_COMMON = 16
_MAX_COMMON_BLOCK = 512
_MAX_CONTINUED = 4
"""Continuation octets of an integer: 2**28 is far above every limit here."""

# Indexed fields: one octet, or 0xff and continuation octets. Possessive, so that nothing is tried twice.
_INDEXED_RUN = re.compile(rb"(?:[\x80-\xfe]|\xff[\x80-\xff]*+[\x00-\x7f])*+").match
_PATH_LITERAL = 0x04
"""First octet of a literal `:path` without indexing."""
_PSEUDO_LITERALS = frozenset({*range(0x01, 0x0F), *range(0x11, 0x1F)})
"""First octets of literals without indexing whose name is a pseudo-header field's (static table)."""
_LITERALS = frozenset(range(0x80)) - _PSEUDO_LITERALS

_huffman = HuffmanCache()


class HpackError(Exception):
    """The block cannot be decoded: a connection error of type COMPRESSION_ERROR."""


class HpackBombError(Exception):
    """The block decodes to many times the limit: not worth the work of keeping in step."""


class HeaderBlock:
    """Fields that were decoded from a run of octets, and the heads that were made of them."""

    __slots__ = ("content_length", "fields", "head", "path_at", "size", "too_large", "trailers")

    def __init__(
        self, fields: tuple[Field, ...], size: int, too_large: bool = False, path_at: int = -1
    ) -> None:
        self.fields = fields
        self.path_at = path_at
        """Which of the fields is the path, an empty one: it is `HpackDecoder.path`; -1: they are complete."""
        self.size = size
        """RFC 9113 section 6.5.2: octets of names and values, and 32 a field."""
        self.too_large = too_large
        """The list passed the limits and was decoded only to keep the dynamic table right; `fields` are
        those before it did, and the content-type, which says in what language to refuse."""
        self.head: RequestHead | ResponseHead | bool | None = None
        """None: not tried yet; False: these fields alone are no valid head."""
        self.content_length = -1
        self.trailers: tuple[Field, ...] | None = None

    def all_fields(self, path: bytes) -> tuple[Field, ...]:
        """With `path` where it is left open."""
        at = self.path_at
        return self.fields if at < 0 else (*self.fields[:at], (b":path", path), *self.fields[at + 1 :])

    def __repr__(self) -> str:
        return f"<HeaderBlock fields={len(self.fields)} size={self.size}{' too large' * self.too_large}>"


_EMPTY = HeaderBlock((), 0)


class HpackDecoder:
    """One direction's decoding state.

    `max_bytes` and `max_count` bound the decoded list; what passes them is decoded and dropped, and a
    list of more than eight times `max_bytes` (at least 1 MiB) raises `HpackBombError`. With `open_paths`
    blocks may come back that leave their path open: see `HeaderBlock.path_at`. `common` is what decoders with
    equal limits share: how octets were decoded while nothing was in the dynamic table yet.
    """

    __slots__ = (
        "_around_paths",
        "_blocks",
        "_blocks_cost",
        "_bomb_size",
        "_common",
        "_last_prefix",
        "_last_shared",
        "_max_bytes",
        "_max_count",
        "_open_paths",
        "_seen",
        "_table",
        "_table_limit",
        "_table_max",
        "_table_size",
        "fresh",
        "path",
    )

    def __init__(
        self,
        max_bytes: int,
        max_count: int,
        table_size: int = DEFAULT_TABLE_SIZE,
        *,
        open_paths: bool = False,
        common: dict[bytes, HeaderBlock] | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._bomb_size = max(8 * max_bytes, 1 << 20)
        self._table: list[Field] = []  # oldest first
        self._table_size = 0
        self._table_max = table_size
        self._table_limit = table_size
        self._blocks: dict[bytes, HeaderBlock] = {}
        self._blocks_cost = 0
        self._around_paths: dict[bytes, HeaderBlock] = {}
        self._last_prefix = b""
        self._last_shared = _EMPTY
        self._seen: set[int] = set()
        self.fresh: tuple[Field, ...] = ()
        """The fields of the last block that come after those of the returned `HeaderBlock`."""
        self.path = b""
        """The path of the last block, where the returned `HeaderBlock` leaves it open."""
        self._open_paths = open_paths
        self._common = common

    def decode(self, block: bytes) -> HeaderBlock:
        """The block's first fields; the rest is in `fresh`. Raises `HpackError` or `HpackBombError`."""
        known = self._blocks.get(block)
        if known is not None:
            self.fresh = ()
            return known
        try:
            return self._decode_new(block)
        except IndexError:
            raise HpackError("header block ends inside a field") from None
        except HuffmanError as error:
            raise HpackError(str(error)) from None

    def _decode_new(self, block: bytes) -> HeaderBlock:
        self.fresh = ()
        if self._common and not self._table:
            known = self._common.get(block)
            if known is not None:
                self._remember(block, known)
                return known
        end = len(self._last_prefix)
        if 0 < end < len(block) and block[end] in _LITERALS and block.startswith(self._last_prefix):
            shared = self._last_shared
        else:
            around = self._decode_around_path(block) if self._open_paths else None
            end, shared = around or self._decode_shared(block)
            if end == len(block):
                return shared
        fields, octets, changed = self._fields(block, end)
        octets += shared.size
        if shared.path_at >= 0:
            octets += len(self.path)
        if changed or shared.too_large or octets > self._max_bytes:
            return self._made([*shared.all_fields(self.path), *fields], octets)
        if len(shared.fields) + len(fields) > self._max_count:
            return HeaderBlock((*shared.all_fields(self.path), *fields), octets, too_large=True)
        if shared.path_at < 0 and self._seen_before(block):
            whole = HeaderBlock((*shared.fields, *fields), octets)
            self._remember(block, whole)
            return whole
        self.fresh = tuple(fields)
        return shared

    def _decode_shared(self, block: bytes) -> tuple[int, HeaderBlock]:
        """The length of what may be remembered apart from the rest, and its fields."""
        end = _INDEXED_RUN(block).end()  # type: ignore[union-attr]
        indexed = end == len(block) or block[end] not in _PSEUDO_LITERALS
        if not indexed:
            end = _shared_length(block, end)
        if not end:
            return 0, _EMPTY
        prefix = block[:end]
        shared = self._blocks.get(prefix)
        if shared is None:
            shared, repeated = self._common_block(prefix)
            if shared.too_large or not (indexed or repeated or self._seen_before(prefix)):
                return end, shared
            self._remember(prefix, shared)
        self._last_prefix = prefix
        self._last_shared = shared
        return end, shared

    def _common_block(self, octets: bytes) -> tuple[HeaderBlock, bool]:
        """As the dynamic table is now, and whether another connection has sent the same."""
        common = self._common if not self._table and len(octets) <= _MAX_COMMON_BLOCK else None
        if common is not None and octets in common:
            return common[octets], True
        fields, size, _ = self._fields(octets, 0)
        block = self._made(fields, size)
        if common is not None and not block.too_large:
            if len(common) >= _MAX_COMMON:
                common.clear()
            common[octets] = block
        return block, False

    def _decode_around_path(self, block: bytes) -> tuple[int, HeaderBlock] | None:
        """What may be remembered around a path that did not come lately, when it did; else None."""
        at = _shared_length(block, 0, _PATH_LITERAL)
        if at == len(block) or block[at] != _PATH_LITERAL:
            return None
        path, behind = _string(block, at + 1)
        end = _shared_length(block, behind)
        key = block[: at + 1] + block[behind:end]
        known = self._around_paths.get(key)
        if known is not None:
            if self._seen_before(block[:end]):
                return None
        elif self._seen_before(key):
            before, size, _ = self._fields(block[:at], 0)
            after, more, _ = self._fields(block[behind:end], 0)
            fields = (*before, (b":path", b""), *after)
            known = HeaderBlock(fields, size + more + len(b":path") + 32, path_at=len(before))
            if len(fields) <= self._max_count:
                if len(self._around_paths) >= _MAX_SEEN:
                    self._around_paths.clear()
                self._around_paths[key] = known
        if known is None or len(known.fields) > self._max_count or known.size + len(path) > self._max_bytes:
            return None
        self.path = path
        return end, known

    def _made(self, fields: list[Field], size: int) -> HeaderBlock:
        if size > self._max_bytes or len(fields) > self._max_count:
            return HeaderBlock(tuple(fields), size, too_large=True)
        return HeaderBlock(tuple(fields), size)

    def _fields(self, block: bytes, start: int) -> tuple[list[Field], int, bool]:
        """Fields from `start` on, their size, and whether the dynamic table changed."""
        pos = start
        fields: list[Field] = []
        size = 0
        changed = False
        end = len(block)
        max_bytes = self._max_bytes
        while pos < end:
            octet = block[pos]
            if octet >= 0x80:
                if octet < 0xFF:
                    index = octet & 0x7F
                    pos += 1
                else:
                    index, pos = _integer(block, pos, 0x7F)
                field = self._entry(index)
            elif octet & 0xE0 == 0x20:
                if start or size:
                    raise HpackError("dynamic table size update after a field")
                limit, pos = _integer(block, pos, 0x1F)
                self._resize(limit)
                changed = True
                continue
            else:
                mask = 0x3F if octet >= 0x40 else 0x0F
                index = octet & mask
                if index == mask:
                    index, pos = _integer(block, pos, mask)
                else:
                    pos += 1
                if index:
                    name = self._entry(index)[0]
                else:
                    length = block[pos]
                    if length < 0x7F:
                        pos += 1 + length
                        name = block[pos - length : pos]
                    else:
                        name, pos = _string(block, pos)
                length = block[pos]
                if length < 0x7F:
                    pos += 1 + length
                    value = block[pos - length : pos]
                else:
                    value, pos = _string(block, pos)
                field = NeverIndexed((name, value)) if octet & 0xF0 == 0x10 else (name, value)
                if octet >= 0x40:
                    self._insert(field)
                    changed = True
            size += len(field[0]) + len(field[1]) + 32
            if size <= max_bytes:
                fields.append(field)
            elif size > self._bomb_size:
                raise HpackBombError(f"header block decodes to more than {self._bomb_size} octets")
            elif field[0] == b"content-type":
                fields.append(field)
        if pos != end:
            raise HpackError("header block ends inside a string")
        return fields, size, changed

    def _entry(self, index: int) -> Field:
        if 0 < index <= STATIC_LENGTH:
            return STATIC_TABLE[index - 1]
        if STATIC_LENGTH < index <= STATIC_LENGTH + len(self._table):
            return self._table[STATIC_LENGTH - index]
        raise HpackError(f"no field has index {index}")

    def _insert(self, field: Field) -> None:
        self._table.append(field)
        self._table_size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
        self._shrink()

    def _resize(self, limit: int) -> None:
        if limit > self._table_limit:
            raise HpackError(f"dynamic table size {limit} is above the setting, {self._table_limit}")
        self._table_max = limit
        self._shrink()

    def _shrink(self) -> None:
        table = self._table
        while self._table_size > self._table_max:
            name, value = table.pop(0)
            self._table_size -= len(name) + len(value) + ENTRY_OVERHEAD
        self._blocks.clear()
        self._blocks_cost = 0
        self._around_paths.clear()
        self._last_prefix = b""

    def _seen_before(self, block: bytes) -> bool:
        """Whether the block came lately; octets that never come again are not worth remembering."""
        seen = self._seen
        key = hash(block)
        if key in seen:
            return True
        if len(seen) >= _MAX_SEEN:
            seen.clear()
        seen.add(key)
        return False

    def _remember(self, block: bytes, decoded: HeaderBlock) -> None:
        if len(block) > _MAX_REMEMBERED_BLOCK:
            return
        self._blocks_cost += 2 * len(block) + _REMEMBERED_OVERHEAD
        if self._blocks_cost > _MAX_REMEMBERED:
            self._blocks.clear()
            self._blocks_cost = 2 * len(block) + _REMEMBERED_OVERHEAD
        self._blocks[block] = decoded

    def __repr__(self) -> str:
        return (
            f"<HpackDecoder entries={len(self._table)} size={self._table_size}/{self._table_max} "
            f"remembered={len(self._blocks)}>"
        )


def _shared_length(block: bytes, pos: int, stop: int = -1) -> int:
    """Where, from `pos` on, indexed fields and pseudo-header literals without indexing end.

    Many clients never index `:path`, so that it may not end what can be remembered. A literal that begins
    with the octet `stop` does end it.
    """
    end = len(block)
    pos = _INDEXED_RUN(block, pos).end()  # type: ignore[union-attr]
    while pos + 2 <= end:
        octet = block[pos]
        if octet not in _PSEUDO_LITERALS or octet == stop:
            break
        length = block[pos + 1] & 0x7F
        if length == 0x7F or pos + 2 + length > end:
            break
        pos = _INDEXED_RUN(block, pos + 2 + length).end()  # type: ignore[union-attr]
    return pos


def _integer(block: bytes, pos: int, mask: int) -> tuple[int, int]:
    """RFC 7541 section 5.1: the value and the position behind it."""
    value = block[pos] & mask
    pos += 1
    if value < mask:
        return value, pos
    for shift in range(0, 7 * _MAX_CONTINUED, 7):
        octet = block[pos]
        pos += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, pos
    raise HpackError("integer is too large")


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    """RFC 7541 section 5.2: the string and the position behind it."""
    huffman = block[pos] & 0x80
    length, pos = _integer(block, pos, 0x7F)
    end = pos + length
    if end > len(block):
        raise HpackError("header block ends inside a string")
    data = block[pos:end]
    return (_huffman.decode(data) if huffman else data), end
