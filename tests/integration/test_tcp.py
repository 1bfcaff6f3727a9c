"""Opaque TCP: a local port that is a named upstream, and CONNECT tunnels that carry what is not HTTP."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certs import make_ca
from tests.support.processes import eventually
from tests.support.shop import ECHO_PORT, Shop

HELLO = b"hello from echo-1\n"
BYE = b"bye\n"
LARGE = 5_000_000


def read_exactly(wire: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        data = wire.recv(min(65536, count - len(received)))
        assert data, f"the stream ended after {len(received)} of {count} bytes"
        received += data
    return bytes(received)


def connect_tunnel(shop: Shop, authority: str) -> socket.socket:
    wire = socket.create_connection(shop.proxy, 30)
    wire.sendall(f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += wire.recv(1)
    assert head.startswith(b"HTTP/1.1 200 ")
    return wire


@pytest.fixture(params=["local port", "CONNECT"])
def wire(shop: Shop, request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    if request.param == "CONNECT":
        made = connect_tunnel(shop, "echo.shop:7000")
    else:
        made = socket.create_connection((shop.hosts["shopper"], ECHO_PORT), 30)
    with made:
        yield made


def test_a_server_may_speak_first(wire: socket.socket) -> None:
    assert read_exactly(wire, len(HELLO)) == HELLO


def test_half_close_passes_and_the_other_direction_goes_on(wire: socket.socket) -> None:
    wire.sendall(b"\x00ping")
    assert read_exactly(wire, len(HELLO) + 5) == HELLO + b"\x00ping"
    wire.shutdown(socket.SHUT_WR)
    assert read_exactly(wire, len(BYE)) == BYE
    assert wire.recv(1) == b""


def test_megabytes_flow_both_ways_at_once(wire: socket.socket) -> None:
    data = bytes(range(1, 252)) * (LARGE // 251)

    def send() -> None:
        wire.sendall(data)
        wire.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = read_exactly(wire, len(HELLO) + len(data) + len(BYE))
    sender.join(30)
    assert received == HELLO + data + BYE
    assert wire.recv(1) == b""


def test_the_bytes_went_over_mtls_to_the_sidecar(shop: Shop) -> None:
    inbound = f"inbound|{shop.hosts['backend-1']}|7000"
    before = shop.sidecars["backend-1"].stats("listeners", listener=inbound)["requests"]
    with connect_tunnel(shop, "echo.shop.svc:7000") as wire:
        assert read_exactly(wire, len(HELLO)) == HELLO
    backend = shop.sidecars["backend-1"]
    eventually(lambda: backend.stats("listeners", listener=inbound)["requests"] == before + 1)
    line = shop.shopper.logged(authority="echo.shop.svc:7000")
    assert (line["protocol"], line["upstream"], line["bytes_out"]) == ("TCP", "backend-1", len(HELLO + BYE))


def test_tls_of_the_applications_passes_through_a_tunnel_untouched(shop: Shop, tmp_path: Path) -> None:
    ca = make_ca()
    files = ca.write_files(tmp_path, dns=["secret.test"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.private_key)
    outside = socket.create_server((shop.mesh.host, 8443))

    def serve() -> None:
        accepted, _ = outside.accept()
        with context.wrap_socket(accepted, server_side=True) as secured:
            secured.sendall(secured.recv(100).upper())

    server = threading.Thread(target=serve)
    server.start()
    client = ssl.create_default_context(cafile=files.ca)
    with outside, connect_tunnel(shop, f"{shop.mesh.host}:8443") as wire:
        with client.wrap_socket(wire, server_hostname="secret.test") as secured:
            secured.sendall(b"hush")
            assert secured.recv(100) == b"HUSH"
        server.join(30)


def test_a_tunnel_to_nobody_is_cut(shop: Shop) -> None:
    with connect_tunnel(shop, f"{shop.mesh.host}:1") as wire:
        wire.sendall(b"\x00\x01\x02 not http")
        with contextlib.suppress(ConnectionResetError):
            assert wire.recv(10) == b""
    line = shop.shopper.logged(authority=f"{shop.mesh.host}:1")
    assert line["flags"] in ("UF", "UH")
