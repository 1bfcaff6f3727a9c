"""What a ClientHello offers, of real ones and of everything else that a client may send first."""

from __future__ import annotations

import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.protocol.client_hello import (
    MAX_CLIENT_HELLO,
    ClientHello,
    ClientHelloParser,
    parse_client_hello,
)
from sidecar.protocol.sniff import Protocol


def real_hello(
    name: str | None = "Shop.Example", alpn: tuple[str, ...] = ("pilotfish-h2", "h2"), tls12: bool = False
) -> bytes:
    """As OpenSSL sends it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def message(body: bytes, kind: int = 1) -> bytes:
    return bytes((kind,)) + len(body).to_bytes(3) + body


def records(data: bytes, size: int = 16384) -> bytes:
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(part)) + part for part in parts)


def verdict(data: bytes, cut: int = 1 << 20) -> tuple[Protocol, ClientHello | None]:
    parser = ClientHelloParser()
    answer = Protocol.NEED_MORE
    for i in range(0, len(data), cut):
        answer = parser.feed(data[i : i + cut])
    return answer, parser.hello


HELLO = real_hello()
OFFER = ClientHello("shop.example", ("pilotfish-h2", "h2"))


@pytest.mark.parametrize("tls12", [False, True])
def test_name_and_protocols_of_a_real_hello(tls12: bool) -> None:
    assert verdict(real_hello(tls12=tls12)) == (Protocol.TLS, OFFER)


def test_a_hello_that_offers_neither() -> None:
    assert verdict(real_hello(None, ())) == (Protocol.TLS, ClientHello())


def test_a_hello_without_extensions() -> None:
    body = b"\x03\x01" + bytes(32) + b"\x00" + b"\x00\x02\x00\x2f" + b"\x01\x00"
    assert verdict(records(message(body))) == (Protocol.TLS, ClientHello())


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 100])
def test_a_hello_in_many_reads(cut: int) -> None:
    assert verdict(HELLO, cut) == (Protocol.TLS, OFFER)


@pytest.mark.parametrize("size", [1, 3, 4, 57])
@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
def test_a_hello_in_many_records(size: int, cut: int) -> None:
    assert verdict(records(HELLO[5:], size), cut) == (Protocol.TLS, OFFER)


def test_what_follows_a_hello_changes_nothing() -> None:
    parser = ClientHelloParser()
    assert parser.feed(HELLO + b"early data") is Protocol.TLS
    assert parser.feed(b"GET / HTTP/1.1\r\n") is Protocol.TLS
    assert parser.hello == OFFER


def test_no_part_of_a_hello_is_enough() -> None:
    for length in range(len(HELLO)):
        assert verdict(HELLO[:length])[0] is Protocol.NEED_MORE


@pytest.mark.parametrize(
    "data",
    [
        b"G",
        b"GET / HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x01\x00",  # an alert
        b"\x16\x02",
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x40\x01",  # one that is too long
        records(message(b"", 2)),  # a ServerHello
        records(message(b"short")),
        records(b"\x01\x00\x40\x00"),  # longer than is read
    ],
)
def test_anything_else_is_no_tls(data: bytes) -> None:
    assert verdict(data) == (Protocol.OTHER, None)
    assert verdict(data, 1) == (Protocol.OTHER, None)


def test_the_longest_hello_that_is_read() -> None:
    start = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    padding = MAX_CLIENT_HELLO - 4 - len(start) - 6
    body = start + struct.pack("!HHH", padding + 4, 21, padding) + bytes(padding)
    assert verdict(records(message(body))) == (Protocol.TLS, ClientHello())
    assert verdict(records(message(body + b"x"))) == (Protocol.OTHER, None)


@given(st.binary(max_size=300))
def test_garbage_never_raises(data: bytes) -> None:
    assert verdict(data)[0] in (Protocol.NEED_MORE, Protocol.OTHER)
    parse_client_hello(data)
    verdict(records(message(data)))


@given(st.data())
def test_a_mutated_hello_never_raises_and_says_the_same_however_it_is_cut(data: st.DataObject) -> None:
    changed = bytearray(HELLO)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    whole = verdict(bytes(changed))
    assert verdict(bytes(changed), data.draw(st.integers(1, 50))) == whole
    assert (whole[0] is Protocol.TLS) is (whole[1] is not None)
