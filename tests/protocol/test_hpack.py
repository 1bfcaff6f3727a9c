"""HPACK decoding and encoding: RFC 7541, its examples, its errors, and what is remembered."""

from __future__ import annotations

import random

import hpack
import pytest

from sidecar.protocol.events import NeverIndexed, RequestHead, ResponseHead
from sidecar.protocol.field_rules import request_head
from sidecar.protocol.hpack import HeaderBlock, HpackBombError, HpackDecoder, HpackError
from sidecar.protocol.hpack_encoder import HpackEncoder, encode_integer
from sidecar.protocol.huffman import HuffmanCache, HuffmanError, huffman_decode

Fields = list[tuple[bytes, bytes]]


def decode(decoder: HpackDecoder, block: bytes) -> Fields:
    shared = decoder.decode(block)
    return [*shared.fields, *decoder.fresh]


def new_decoder() -> HpackDecoder:
    return HpackDecoder(65536, 100)


EXAMPLES = [
    # RFC 7541 appendix C.4: requests with Huffman coding, then C.5/C.6: a table of 256 octets that evicts
    (
        4096,
        [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
        [
            [
                (b":method", b"GET"),
                (b":scheme", b"http"),
                (b":path", b"/"),
                (b":authority", b"www.example.com"),
            ],
            [
                (b":method", b"GET"),
                (b":scheme", b"http"),
                (b":path", b"/"),
                (b":authority", b"www.example.com"),
                (b"cache-control", b"no-cache"),
            ],
            [
                (b":method", b"GET"),
                (b":scheme", b"https"),
                (b":path", b"/index.html"),
                (b":authority", b"www.example.com"),
                (b"custom-key", b"custom-value"),
            ],
        ],
    ),
    (
        256,
        [
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff"
            "6e919d29ad171863c78f0b97c8e9ae82ae43d3",
            "4883640effc1c0bf",
        ],
        [
            [
                (b":status", b"302"),
                (b"cache-control", b"private"),
                (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
                (b"location", b"https://www.example.com"),
            ],
            [
                (b":status", b"307"),
                (b"cache-control", b"private"),
                (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
                (b"location", b"https://www.example.com"),
            ],
        ],
    ),
]


@pytest.mark.parametrize(("table_size", "blocks", "expected"), EXAMPLES)
def test_examples_of_the_rfc(table_size: int, blocks: list[str], expected: list[Fields]) -> None:
    decoder = HpackDecoder(65536, 100, table_size)
    assert [decode(decoder, bytes.fromhex(block)) for block in blocks] == expected


ERRORS = {
    "index 0": b"\x80",
    "index beyond the table": b"\xbe",
    "name index beyond the table": b"\x7f\x00a",
    "integer ends": b"\xff\x80",
    "integer too large": b"\xff\xff\xff\xff\xff\xff\x0f",
    "string ends": b"\x00\x05ab",
    "value missing": b"\x00\x01a",
    "value ends": b"\x00\x01a\x05bc",
    "length ends": b"\x00",
    "table size above the setting": b"\x3f\xe2\x1f",
    "table size behind a field": b"\x82\x20",
    "table size behind a literal": b"\x00\x01a\x01b\x20",
    "EOS in a string": b"\x00\x84\xff\xff\xff\xff\x01a",
    "padding longer than 7 bits": b"\x00\x82\x1f\xff\x01a",
    "padding of zeros": b"\x00\x81\x18\x01a",
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    with pytest.raises(HpackError):
        new_decoder().decode(ERRORS[name])
    with pytest.raises(hpack.HPACKError):
        hpack.Decoder().decode(ERRORS[name])


def test_table_size_updates_evict() -> None:
    decoder = new_decoder()
    decode(decoder, b"\x40\x01a\x01b\x40\x01c\x01d")
    assert decode(decoder, b"\xbe\xbf") == [(b"c", b"d"), (b"a", b"b")]
    assert decode(decoder, b"\x3f\x03\xbe") == [(b"c", b"d")]  # 34: room for one entry
    with pytest.raises(HpackError):
        decode(decoder, b"\xbf")
    decoder = new_decoder()
    decode(decoder, b"\x40\x01a\x01b")
    assert decode(decoder, b"\x20\x3f\xe1\x1f\x82") == [(b":method", b"GET")]
    with pytest.raises(HpackError):
        decode(decoder, b"\xbe")


def test_entry_larger_than_the_table_empties_it() -> None:
    decoder = HpackDecoder(65536, 100, 40)
    decode(decoder, b"\x40\x01a\x01b")
    assert decode(decoder, b"\x40\x01x\x14" + b"y" * 20) == [(b"x", b"y" * 20)]
    with pytest.raises(HpackError):
        decode(decoder, b"\xbe")


def test_name_of_an_evicted_entry_may_be_reused() -> None:
    decoder = HpackDecoder(65536, 100, 40)
    decode(decoder, b"\x40\x01a\x01b")
    assert decode(decoder, b"\x7e\x01c\xbe") == [(b"a", b"c"), (b"a", b"c")]


def test_indexed_blocks_come_back_as_one_object_until_the_table_changes() -> None:
    decoder = new_decoder()
    first = decoder.decode(b"\x82\x86\x84")
    assert decoder.decode(b"\x82\x86\x84") is first
    assert decoder.decode(b"\x82\x86\x84\x00\x01a\x01b") is first
    assert decoder.fresh == ((b"a", b"b"),)
    assert decode(decoder, b"\x40\x01a\x01b\xbe") == [(b"a", b"b")] * 2
    again = decoder.decode(b"\x82\x86\x84")
    assert again is not first
    assert again.fields == first.fields


def test_what_an_index_means_changes_with_the_table() -> None:
    decoder = new_decoder()
    decode(decoder, b"\x40\x01a\x01b")
    assert decode(decoder, b"\xbe") == [(b"a", b"b")]
    decode(decoder, b"\x40\x01c\x01d")
    assert decode(decoder, b"\xbe") == [(b"c", b"d")]


def test_repeated_literals_are_remembered_from_the_second_sight() -> None:
    decoder = new_decoder()
    block = b"\x82\x86\x04\x03/ab\x0f\x0d\x01\x33"
    blocks: list[HeaderBlock] = [decoder.decode(block) for _ in range(3)]
    assert blocks[1] is blocks[2]
    assert blocks[1].fields[-1] == (b"content-length", b"3")
    assert decoder.fresh == ()


def test_a_forgotten_block_is_decoded_again() -> None:
    decoder = new_decoder()
    paths = [b"\x82\x86\x04\x04/%03d" % i for i in range(400)]
    for block in [*paths, *paths, *paths]:
        for _ in range(3):
            assert decode(decoder, block)[2] == (b":path", block[-4:])
    decoder.decode(b"\x82\x86\x84")
    decoder._blocks.clear()
    assert decode(decoder, b"\x82\x86\x84")[2] == (b":path", b"/")


def test_memory_is_bounded() -> None:
    decoder = new_decoder()
    for i in range(20000):
        block = b"\x82\x86\x84" + b"\x00\x01a\x04%04d" % (i % 5000)
        decoder.decode(block)
        decoder.decode(block)
    assert len(decoder._blocks) <= 192
    assert len(decoder._seen) <= 64
    cache = HuffmanCache(10000)
    encoder = hpack.Encoder()
    for i in range(2000):
        text = b"value-%d" % i
        assert cache.decode(encoder.huffman_coder.encode(text)) == text
    assert len(cache._new) + len(cache._old) < 120


def test_limits_drop_the_list_and_bombs_raise() -> None:
    decoder = HpackDecoder(100, 3)
    assert not decoder.decode(b"\x82\x86").too_large
    assert decoder.decode(b"\x82\x86\x84").too_large
    assert HpackDecoder(1000, 3).decode(b"\x82" * 4).too_large
    assert HpackDecoder(1000, 3).decode(b"\x82\x00\x01a\x01b" * 2).too_large
    assert decoder.decode(b"\x82\x86\x84").too_large
    with pytest.raises(HpackBombError):
        HpackDecoder(100, 3).decode(b"\x82" * 30000)


def test_huffman_of_every_octet() -> None:
    encode = hpack.Encoder().huffman_coder.encode
    for octet in range(256):
        text = bytes((octet, 97, octet))
        assert huffman_decode(encode(text)) == text
    with pytest.raises(HuffmanError):
        huffman_decode(b"\xff\xff\xff\xff")


def test_integers() -> None:
    assert encode_integer(10, 0x1F, 0) == b"\x0a"
    assert encode_integer(1337, 0x1F, 0) == b"\x1f\x9a\x0a"
    assert encode_integer(42, 0xFF, 0) == b"\x2a"
    assert encode_integer(127, 0x7F, 0x80) == b"\xff\x00"


# --- encoder ---------------------------------------------------------------------------------------

FIELDS = ((b"user-agent", b"x"), (b"accept", b"*/*"))


def request(
    fields: tuple[tuple[bytes, bytes], ...] = FIELDS, fresh: tuple[tuple[bytes, bytes], ...] = ()
) -> RequestHead:
    return RequestHead(b"GET", b"http", b"a.example", b"/", fields, fresh)


def test_pairs_enter_the_table_at_their_second_sight() -> None:
    encoder, decoder = HpackEncoder(), hpack.Decoder()
    head = request()
    blocks = [encoder.request(head) for _ in range(5)]
    for block in blocks:
        fields = [(bytes(n), bytes(v)) for n, v in decoder.decode(block, raw=True)]
        assert fields == [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":authority", b"a.example"),
            (b":path", b"/"),
            *FIELDS,
        ]
    assert blocks[0][2] == 0x01  # :authority without indexing
    assert blocks[2] == bytes.fromhex("8286c084bfbe")
    assert blocks[4] is blocks[3]
    assert encoder.request(head.with_fresh(((b"trace", b"1"),))) == blocks[4] + b"\x00\x05trace\x011"


def test_values_that_never_repeat_never_enter() -> None:
    encoder = HpackEncoder()
    for i in range(500):
        encoder.request(request(((b"x-id", b"%d" % i),)))
    # :authority repeats, x-id does not
    assert len(encoder._entries) == 1
    assert len(encoder._history) <= 128


def test_evictions_are_rationed() -> None:
    encoder, decoder = HpackEncoder(), hpack.Decoder()
    for i in range(3000):
        block = encoder.request(request(((b"x-id", b"v" * 100 + b"%d" % (i % 100)),)))
        assert decoder.decode(block, raw=True)[-1][1].endswith(b"%d" % (i % 100))
    assert encoder._inserted < 300
    assert encoder._size <= 4096


@pytest.mark.parametrize("name", [b"authorization", b"proxy-authorization", b"set-cookie", b"cookie"])
def test_secrets_are_never_indexed_except_between_sidecars(name: bytes) -> None:
    for fields, fresh in ((((name, b"secret"),), ()), ((), ((name, b"secret"),))):
        encoder, decoder = HpackEncoder(), hpack.Decoder()
        for _ in range(3):
            block = encoder.request(RequestHead(b"GET", b"http", b"a", b"/", fields, fresh))
            assert type(decoder.decode(block, raw=True)[-1]).__name__ == "NeverIndexedHeaderTuple"
    encoder = HpackEncoder(trusted_peer=True)
    for _ in range(3):
        block = encoder.request(RequestHead(b"GET", b"http", b"a", b"/", ((name, b"secret"),)))
    assert b"secret" not in block


def test_never_indexed_fields_stay_so_when_forwarded() -> None:
    decoder, encoder = new_decoder(), HpackEncoder(trusted_peer=True)
    block = b"\x82\x86\x84\x41\x01a\x10\x01x\x01y"
    fields = decode(decoder, block)
    assert type(fields[-1]) is NeverIndexed
    for _ in range(4):
        octets = encoder.request(RequestHead(b"GET", b"http", b"a", b"/", (fields[-1],)))
        assert octets.endswith(b"\x10\x01x\x01y")
        octets = encoder.request(RequestHead(b"GET", b"http", b"a", b"/", (), (fields[-1],)))
        assert octets.endswith(b"\x10\x01x\x01y")


def test_a_path_and_an_authority_that_came_never_indexed_leave_so() -> None:
    decoder, encoder, peer = new_decoder(), HpackEncoder(trusted_peer=True), hpack.Decoder()
    fields = decode(decoder, b"\x82\x86\x14\x02/x\x11\x01a")
    head, _ = request_head(fields, False)
    for path in (head.path, head.path, head.path, b"/y"):
        octets = encoder.request(head.vary(path, ()))
        marked = [tuple(f) for f in peer.decode(octets, raw=True) if type(f) is hpack.NeverIndexedHeaderTuple]
        assert marked == [(b":authority", b"a"), (b":path", b"/x")][: 2 if path is head.path else 1]


def test_a_never_indexed_field_that_is_in_the_static_table_too_is_a_literal() -> None:
    field = NeverIndexed((b"accept-encoding", b"gzip, deflate"))
    octets = HpackEncoder().request(RequestHead(b"GET", b"http", b"a", b"/", (field,)))
    assert octets.endswith(b"\x1f\x01\x0dgzip, deflate")


def test_heads_that_are_not_repeated_are_not_remembered() -> None:
    encoder = HpackEncoder()
    for _ in range(50):
        encoder.response(ResponseHead(200, ((b"a", b"b"),)))
    assert encoder._blocks == {}


def test_table_size_of_the_peer_is_obeyed_and_announced() -> None:
    encoder, decoder = HpackEncoder(), hpack.Decoder()
    head = request()
    for _ in range(3):
        decoder.decode(encoder.request(head))
    encoder.set_max_size(0)
    block = encoder.request(head)
    assert block[0] == 0x20
    assert len(decoder.decode(block)) == 6
    encoder.set_max_size(100)
    encoder.set_max_size(50)
    encoder.set_max_size(1 << 20)
    block = encoder.request(head)
    assert block.startswith(b"\x3f\x13\x3f\xe1\x1f")
    assert len(decoder.decode(block)) == 6
    encoder.set_max_size(4096)
    assert not encoder.request(head).startswith(b"\x3f")


def test_memory_and_table_are_shown() -> None:
    encoder, decoder = HpackEncoder(), new_decoder()
    head = request()
    for _ in range(3):
        decode(decoder, encoder.request(head))
    assert repr(encoder) == "<HpackEncoder entries=3 size=135/4096 remembered=1>"
    assert repr(decoder) == "<HpackDecoder entries=3 size=135/4096 remembered=1>"


AROUND = b"\x82\x86\x41\x01a"
"""GET, http, and the authority a, which enters the table; then it is 0xbe."""


def open_decoder() -> HpackDecoder:
    decoder = HpackDecoder(400, 10, open_paths=True)
    decoder.decode(AROUND + b"\x84")
    return decoder


def complete(decoder: HpackDecoder, block: bytes) -> Fields:
    shared = decoder.decode(block)
    return [*shared.all_fields(decoder.path), *decoder.fresh]


def test_the_fields_around_a_path_that_never_repeats_are_remembered() -> None:
    decoder = open_decoder()
    blocks = []
    for number in range(6):
        block = decoder.decode(b"\x82\x86\xbe\x04\x02/%d\x90" % number)
        blocks.append(block)
        assert [*block.all_fields(decoder.path)] == [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":authority", b"a"),
            (b":path", b"/%d" % number),
            (b"accept-encoding", b"gzip, deflate"),
        ]
        assert decoder.fresh == ()
    assert len({id(block) for block in blocks[1:]}) == 1
    assert complete(decoder, b"\x82\x86\xbe\x04\x03/no\x90\x00\x01x\x01y")[-2:] == [
        (b"accept-encoding", b"gzip, deflate"),
        (b"x", b"y"),
    ]
    assert decoder.decode(b"\x82\x86\xbe\x04\x03/nu\x90\x00\x01x\x01z") is blocks[-1]


def test_a_path_that_repeats_is_remembered_with_its_fields() -> None:
    decoder = open_decoder()
    for number in range(3):
        decoder.decode(b"\x82\x86\xbe\x04\x02/%d" % number)
    same = [decoder.decode(b"\x82\x86\xbe\x04\x04/abc") for _ in range(3)]
    assert same[1] is same[2]
    assert same[2].path_at == -1


def test_a_new_table_entry_changes_what_the_octets_around_a_path_mean() -> None:
    decoder = open_decoder()
    for number in range(3):
        decoder.decode(b"\x82\x86\xbe\x04\x02/%d" % number)
    assert complete(decoder, b"\x82\x86\xbe\x04\x02/x\x40\x01n\x01v")[-1] == (b"n", b"v")
    assert complete(decoder, b"\x82\x86\xbf\x04\x02/y\xbe") == [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"a"),
        (b":path", b"/y"),
        (b"n", b"v"),
    ]


def test_what_a_table_entry_was_is_forgotten_when_another_takes_its_index() -> None:
    """Neither around paths, nor at the beginning of a block, nor in whole blocks."""
    decoder = HpackDecoder(65536, 100, open_paths=True)
    for value in range(4):
        decoder.decode(b"\x40\x01a\x01%d" % value)
        new = (b"a", b"%d" % value)
        for number in range(4):
            assert complete(decoder, b"\x82\x86\x04\x03/%d%d\xbe" % (value, number))[-1] == new
        for number in range(4):
            assert complete(decoder, b"\x82\x86\x84\xbe\x00\x01x\x01%d" % number)[3] == new
            assert complete(decoder, b"\x82\x86\x84\xbe")[3] == new


def test_an_open_path_counts_toward_the_limit_beside_fields_that_never_repeat() -> None:
    decoder = HpackDecoder(300, 100, open_paths=True)
    for number in range(4):
        decoder.decode(b"\x82\x86\x04\x02/%d\x90" % number)
    field = b"\x00\x01x\x3c" + b"v" * 60
    assert not decoder.decode(b"\x82\x86\x04\x3c" + b"/" * 60 + b"\x90").too_large
    assert not decoder.decode(b"\x82\x86\x04\x01/\x90" + field).too_large
    assert decoder.decode(b"\x82\x86\x04\x3c" + b"?" * 60 + b"\x90" + field).too_large


def test_limits_hold_for_blocks_with_an_open_path() -> None:
    decoder = open_decoder()
    for number in range(3):
        decoder.decode(b"\x82\x86\xbe\x04\x02/%d" % number)
    assert decoder.decode(b"\x82\x86\xbe\x04\x7f\x81\x02" + b"/" * 384).too_large
    assert decoder.decode(b"\x82\x86\xbe\x04\x02/q" + b"\x00\x01x\x01y" * 8).too_large
    assert not decoder.decode(b"\x82\x86\xbe\x04\x02/r").too_large
    assert complete(decoder, b"\x82\x86\xbe\x04\x02/s") == complete(open_decoder(), b"\x82\x86\xbe\x04\x02/s")


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_block_that_ends_inside_its_path_is_an_error(cut: int) -> None:
    decoder = open_decoder()
    for number in range(3):
        decoder.decode(b"\x82\x86\xbe\x04\x09/%08d" % number)
    with pytest.raises(HpackError):
        decoder.decode((b"\x82\x86\xbe\x04\x09/%08d" % 9)[:-cut])


def test_heads_of_one_memo_are_encoded_alike_whatever_their_paths_do_to_the_table() -> None:
    encoder, decoder = HpackEncoder(trusted_peer=True), hpack.Decoder()
    head = request(((b"x-a", b"1"), (b"x-b", b"2")))
    rng = random.Random(5)
    for number in range(600):
        if number == 300:
            encoder.set_max_size(200)
            decoder.max_allowed_table_size = 4096
        path = b"/%d" % (rng.randrange(8) if rng.random() < 0.7 else number)
        varied = head.vary(path, ((b"trace", b"%d" % number),))
        assert [tuple(field) for field in decoder.decode(encoder.request(varied), raw=True)] == [
            (b":method", head.method),
            (b":scheme", head.scheme),
            (b":authority", head.authority),
            (b":path", path),
            *head.fields,
            (b"trace", b"%d" % number),
        ]


@pytest.mark.parametrize(
    "around",
    [
        (b"\x82\x86", b"\x01\x01a"),
        (b"\x82\x86\x01\x01a", b""),
        (b"\x82\x01\x01a", b"\x86\x90"),
        (b"", b"\x82\x86\x01\x01a\x90"),
    ],
)
def test_pseudo_header_literals_may_stand_around_the_path(around: tuple[bytes, bytes]) -> None:
    decoder = open_decoder()
    before, behind = around
    blocks = []
    for number in range(5):
        block = before + b"\x04\x02/%d" % number + behind + b"\x1f\x08\x01%d" % number
        assert complete(decoder, block) == complete(HpackDecoder(400, 10), block)
        blocks.append(decoder.decode(before + b"\x04\x03/x%d" % number + behind + b"\x1f\x08\x01s"))
    assert len({id(block) for block in blocks[2:]}) == 1


# --- what decoders share ---

FIRST = b"\x82\x86\x04\x02/a\x01\x01a"
"""GET, http, /a, authority a: nothing of it in a dynamic table."""


def sharing(common: dict[bytes, HeaderBlock]) -> HpackDecoder:
    return HpackDecoder(400, 10, open_paths=True, common=common)


def test_decoders_share_how_the_first_block_of_a_connection_was_decoded() -> None:
    common: dict[bytes, HeaderBlock] = {}
    first = sharing(common).decode(FIRST)
    assert first.fields == (
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/a"),
        (b":authority", b"a"),
    )
    again = sharing(common)
    assert again.decode(FIRST) is first
    assert again.fresh == ()
    traced = sharing(common)
    assert traced.decode(FIRST + b"\x00\x01t\x011") is first
    assert traced.fresh == ((b"t", b"1"),)


def test_what_a_table_entry_has_changed_is_not_shared() -> None:
    common: dict[bytes, HeaderBlock] = {}
    decoder = sharing(common)
    decoder.decode(b"\x41\x01b")
    decoder.decode(FIRST)
    decoder.decode(b"\x82\x86\x84\xbe")
    assert common == {}
    with pytest.raises(HpackError):
        sharing(common).decode(b"\x82\x86\x84\xbe")


def test_octets_that_mean_something_else_here_are_not_taken_from_others() -> None:
    common = {b"\x82\xbe": HeaderBlock(((b"wrong", b"wrong"),), 42)}
    decoder = sharing(common)
    decoder.decode(b"\x41\x01b")
    assert decoder.decode(b"\x82\xbe").fields == ((b":method", b"GET"), (b":authority", b"b"))


def test_blocks_over_the_limit_and_large_ones_are_not_shared_and_many_do_not_pile_up() -> None:
    common: dict[bytes, HeaderBlock] = {}
    assert sharing(common).decode(b"\x82" * 11).too_large
    assert common == {}
    for number in range(100):
        sharing(common).decode(b"\x82\x86\x04\x03/%02d\x01\x01a" % number)
    assert 0 < len(common) <= 16
    common.clear()
    HpackDecoder(1 << 16, 100, common=common).decode(b"\x82\x86\x01\x01a" + b"\x88" * 600)
    assert common == {}
