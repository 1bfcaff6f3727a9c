"""Bytes that are no protocol: that connection ends with the right error, and no other notices."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator

import pytest

from tests.support.apps import start_app
from tests.support.clients import H2Client
from tests.support.processes import eventually
from tests.support.sidecars import APP, INBOUND, OUTBOUND, SPIFFE, Pair

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes(3) + b"\x04\x00" + bytes(4)
GET = b"\x82\x86\x84\x41\x01a"
"""Header block: GET, http, /, authority a (RFC 7541 appendix A)."""
PROTOCOL, FLOW_CONTROL, FRAME_SIZE, COMPRESSION = 1, 3, 6, 9


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("malformed")
    with Pair(directory) as made, start_app(made.hosts[0], APP, "app", directory):
        yield made.start()


@pytest.fixture
def bystander(pair: Pair) -> Iterator[H2Client]:
    """Has a stream open before the test, which goes on after it, on one connection all the way."""
    with H2Client((pair.host, OUTBOUND)) as client:
        assert client.fetch("/before").status == 200
        opened = pair.outbound.stats("clusters", cluster="peer")["connections_opened"]
        stream = client.send("/up", "POST", end=False)
        client.data(stream, b"half, ")
        yield client
        client.data(stream, b"whole", end=True)
        assert client.wait(stream).json()["size"] == 11
        assert pair.outbound.stats("clusters", cluster="peer")["connections_opened"] == opened


def read_all(wire: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := wire.recv(65536):
            received += data
    return received


def goaway_code(received: bytes) -> int | None:
    """Of the last GOAWAY among the frames."""
    code = None
    while len(received) >= 9:
        size = int.from_bytes(received[:3])
        if received[3] == 7:
            code = int.from_bytes(received[13:17])
        received = received[9 + size :]
    return code


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(0, 0, 0, b"data on stream 0"), PROTOCOL),
        (frame(1, 5, 2, GET), PROTOCOL),
        (frame(4, 0, 0, b"12345"), FRAME_SIZE),
        (frame(4, 0, 0, b"\x00\x04\xff\xff\xff\xff"), FLOW_CONTROL),
        (frame(6, 0, 0, b"short"), FRAME_SIZE),
        (frame(8, 0, 0, bytes(4)), PROTOCOL),
        (frame(9, 4, 1, GET), PROTOCOL),
        (frame(1, 5, 1, b"\xff\xff\xff\xff\xff\xff"), COMPRESSION),
        (frame(1, 1, 1, GET) + frame(0, 0, 1, b"x"), PROTOCOL),
        ((20000).to_bytes(3) + b"\x00\x00" + bytes([0, 0, 0, 1]) + bytes(20000), FRAME_SIZE),
    ],
    ids=[
        "DATA on 0",
        "even stream",
        "SETTINGS size",
        "window too large",
        "PING size",
        "WINDOW_UPDATE of 0",
        "CONTINUATION alone",
        "HPACK",
        "headers interrupted",
        "frame too large",
    ],
)
def test_a_malformed_frame_ends_its_connection_with_the_right_code(
    pair: Pair, sent: bytes, code: int
) -> None:
    errors = pair.outbound.stats("listeners", listener="out")["protocol_errors"]
    with socket.create_connection((pair.host, OUTBOUND), 30) as wire:
        wire.sendall(PREFACE + SETTINGS + sent)
        assert goaway_code(read_all(wire)) == code
    eventually(lambda: pair.outbound.stats("listeners", listener="out")["protocol_errors"] == errors + 1)


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    "block",
    [
        b"\x82\x86\x84",
        b"\x82\x86\x84\x41\x01a\x00\x01A\x01b",
        b"\x82\x86\x84\x41\x01a\x40\x0aconnection\x05close",
    ],
    ids=["no path", "upper case", "connection-specific"],
)
def test_a_malformed_request_resets_its_stream_alone(pair: Pair, block: bytes) -> None:
    """RFC 9113 section 8.1.1: a stream error, and the connection goes on."""
    with socket.create_connection((pair.host, OUTBOUND), 30) as wire:
        wire.sendall(PREFACE + SETTINGS + frame(1, 5, 1, block) + frame(6, 0, 0, b"pingpong"))
        received = b""
        while frame(6, 1, 0, b"pingpong") not in received:
            data = wire.recv(65536)
            assert data, received
            received += data
        assert frame(3, 0, 1, PROTOCOL.to_bytes(4)) in received


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nbad name: x\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\nTransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x00\x05hello", 400),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_a_malformed_http1_request_is_answered_and_its_connection_closed(
    pair: Pair, sent: bytes, status: int
) -> None:
    with socket.create_connection((pair.host, OUTBOUND), 30) as wire:
        with contextlib.suppress(ConnectionError):
            wire.sendall(sent)
        received = read_all(wire)
    found = re.match(rb"HTTP/1\.1 (\d+) ", received)
    assert found is not None, received
    assert int(found[1]) == status
    assert b"connection: close" in received.lower()


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"5\r\nhelloXX", b"FFFFFFFFFFFFFFFFF\r\n"])
def test_a_malformed_chunk_ends_its_connection(pair: Pair, chunk: bytes) -> None:
    """The request is under way: it ends at the application as cut off, never as complete."""
    head = b"POST /chunks HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection((pair.host, OUTBOUND), 30) as wire:
        wire.sendall(head + b"3\r\nabc\r\n" + chunk)
        received = read_all(wire)
    assert b"HTTP/1.1 200" not in received
    assert received == b"" or received.startswith(b"HTTP/1.1 400 ")


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    "hello",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\xff\xff" + b"x" * 70_000],
)
def test_a_malformed_tls_hello_ends_its_connection(pair: Pair, hello: bytes) -> None:
    failures = pair.inbound[0].stats("listeners", listener="in")["tls_failures"]
    with socket.create_connection((pair.hosts[0], INBOUND), 30) as wire:
        with contextlib.suppress(ConnectionError):
            wire.sendall(hello)
        received = read_all(wire)
    assert received[:1] in (b"", b"\x15")  # nothing, or an alert
    eventually(lambda: pair.inbound[0].stats("listeners", listener="in")["tls_failures"] == failures + 1)


@pytest.mark.usefixtures("bystander")
def test_a_malformed_frame_inside_mtls_ends_its_connection(pair: Pair) -> None:
    files = pair.ca.write_files(pair.directory, SPIFFE + "caller", name="caller")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(files.certificate, files.private_key)
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection((pair.hosts[0], INBOUND), 30)
    with plain, context.wrap_socket(plain) as wire:
        wire.sendall(PREFACE + SETTINGS + frame(1, 5, 1, b"\xff\xff\xff\xff\xff\xff"))
        assert goaway_code(read_all(wire)) == COMPRESSION
