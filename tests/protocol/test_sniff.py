"""Which protocol a connection's first bytes begin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.protocol.sniff import HTTP2_PREFACE, MAX_SNIFF, Protocol, sniff


@pytest.mark.parametrize(
    ("data", "protocol"),
    [
        (b"", Protocol.NEED_MORE),
        (b"G", Protocol.NEED_MORE),
        (b"GET", Protocol.NEED_MORE),
        (b"GET ", Protocol.HTTP1),
        (b"GET / HTTP/1.1\r\n", Protocol.HTTP1),
        (b"OPTIONS * HTTP/1.1\r\n", Protocol.HTTP1),
        (b"CONNECT a:1 HTTP/1.1\r\n", Protocol.HTTP1),
        (b"PROPFIND / HTTP/1.1\r\n", Protocol.HTTP1),
        (b"\r\nGET / HTTP/1.1\r\n", Protocol.HTTP1),
        (b"\r\n", Protocol.NEED_MORE),
        (b"\r\nG", Protocol.NEED_MORE),
        (b"\r\n\r\n", Protocol.OTHER),
        (b"get / HTTP/1.1\r\n", Protocol.OTHER),
        (b"GETX", Protocol.OTHER),
        (b"P", Protocol.NEED_MORE),
        (b"PRI * HTTP/2.0\r\n", Protocol.NEED_MORE),
        (HTTP2_PREFACE, Protocol.HTTP2),
        (HTTP2_PREFACE + b"\x00\x00", Protocol.HTTP2),
        (b"PRI * HTTP/1.1\r\n", Protocol.OTHER),
        (HTTP2_PREFACE[:-1] + b"x", Protocol.OTHER),
        (b"\x16", Protocol.NEED_MORE),
        (b"\x16\x03", Protocol.TLS),
        (b"\x16\x03\x01\x02\x00\x01", Protocol.TLS),
        (b"\x16\x04", Protocol.OTHER),
        (b"\x15\x03\x01", Protocol.OTHER),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Protocol.OTHER),  # PostgreSQL's SSLRequest
        (b"*1\r\n$4\r\nPING\r\n", Protocol.OTHER),  # Redis
        (b"PING\r\n", Protocol.OTHER),
        (b"EHLO me\r\n", Protocol.OTHER),
        (b"AMQP\x00\x00\x09\x01", Protocol.OTHER),
        (b"SSH-2.0-OpenSSH\r\n", Protocol.OTHER),
        (b"USER me\r\n", Protocol.OTHER),
    ],
)
def test_the_first_bytes_name_the_protocol(data: bytes, protocol: Protocol) -> None:
    assert sniff(data) is protocol


@given(st.binary(min_size=MAX_SNIFF, max_size=64))
def test_a_decision_never_needs_more_than_the_preface(data: bytes) -> None:
    assert sniff(data) is not Protocol.NEED_MORE


@given(
    st.one_of(
        st.binary(max_size=32),
        st.sampled_from([HTTP2_PREFACE, b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x00", b"\r\nPOST /"]),
    ),
    st.binary(max_size=8),
)
def test_a_decision_is_never_taken_back(data: bytes, more: bytes) -> None:
    whole = data + more
    decision = sniff(whole)
    for end in range(len(whole)):
        assert sniff(whole[:end]) in (Protocol.NEED_MORE, decision)
