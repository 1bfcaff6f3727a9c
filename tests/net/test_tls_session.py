"""TLS records as TCP delivers them: in pieces that end anywhere."""

from __future__ import annotations

import gc
import random
import weakref
from pathlib import Path

import pytest

from sidecar.net.openssl import lib
from sidecar.net.tls import TlsError, TlsSession
from tests.support.certs import make_ca
from tests.support.connections import client_tls, server_tls


def _pair(folder: Path) -> tuple[TlsSession, TlsSession, bytes]:
    """A client and a server after their handshake, and what the client's last flight left of `decrypt`."""
    files = make_ca().write_files(folder, "spiffe://cluster.local/ns/shop/sa/users", ["localhost"])
    client, server = TlsSession(client_tls(files), False), TlsSession(server_tls(files), True)
    client.handshake(b"")
    server.handshake(client.take_output())
    assert client.handshake(server.take_output()) is not None
    return client, server, client.take_output()


@pytest.mark.parametrize("seed", range(20))
def test_records_may_be_cut_anywhere(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    client, server, flight = _pair(tmp_path)
    sent = b""
    wire = flight
    for _ in range(8):
        data = rng.randbytes(rng.choice([1, 100, 8191, 8192, 8193, 16384, 50_000, 150_000]))
        sent += data
        wire += b"".join(client.encrypt(data))
    sizes = rng.choice([[1, 2, 4, 5, 6, 40], [8214, 8219, 16406], [3, 5000, 70_000]])
    received = b""
    secured = False
    while wire:
        size = rng.choice(sizes)
        piece, wire = wire[:size], wire[size:]
        if not secured:
            rest = server.handshake(piece)
            if rest is None:
                continue
            secured, piece = True, rest
        received += server.decrypt(piece)
    assert server.error == ""
    assert received == sent


def test_what_follows_the_last_flight_in_one_piece_is_not_lost(tmp_path: Path) -> None:
    client, server, flight = _pair(tmp_path)
    records = b"".join(client.encrypt(b"early"))
    rest = server.handshake(flight + records[:-1])
    assert rest is not None
    assert server.decrypt(rest) == b""
    assert server.decrypt(records[-1:]) == b"early"
    assert server.decrypt(client.close_notify()) == b""
    assert server.peer_closed


def test_a_session_keeps_what_openssl_calls_back(tmp_path: Path) -> None:
    """Certificates are renewed, and contexts replaced, while a client has yet to send its hello."""
    files = make_ca().write_files(tmp_path, "spiffe://cluster.local/ns/shop/sa/users", ["localhost"])
    parameters = server_tls(files)
    context = weakref.ref(parameters.context)
    server = TlsSession(parameters, True)
    del parameters
    gc.collect()
    assert context() is not None
    client = TlsSession(client_tls(files), False)
    client.handshake(b"")
    server.handshake(client.take_output())
    assert client.handshake(server.take_output()) is not None
    assert client.alpn == "h2"
    del server
    gc.collect()
    assert context() is None


def test_what_is_shown_to_the_peer_is_the_configured_chain_alone(tmp_path: Path) -> None:
    client, _, _ = _pair(tmp_path)
    chain = lib.SSL_get_peer_cert_chain(client._ssl)
    assert lib.sk_X509_num(chain) == 1  # without the root, which both sides have


def test_sessions_in_turn_keep_their_bytes_apart(tmp_path: Path) -> None:
    rng = random.Random(1)
    pairs = []
    for name in "abc":
        (tmp_path / name).mkdir()
        client, server, flight = _pair(tmp_path / name)
        rest = server.handshake(flight)
        assert rest is not None
        data = rng.randbytes(60_000)
        pairs.append((server, data, rest + b"".join(client.encrypt(data)), bytearray()))
    for start in range(0, 62_000, 777):
        for server, _, wire, received in pairs:
            received += server.decrypt(wire[start : start + 777])
    assert [bytes(received) for *_, received in pairs] == [data for _, data, *_ in pairs]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x17\x03\x03\x00\x14" + bytes(20),
        b"\x17\x03\x03\xff\xff" + bytes(100),
        b"\x17\x03\x03\x00\x00" * 3,
        b"GET / HTTP/1.1\r\n\r\n" * 1000,
    ],
)
def test_garbage_ends_its_own_session_with_an_alert_and_no_other(tmp_path: Path, garbage: bytes) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    client, server, flight = _pair(tmp_path / "a")
    assert server.handshake(flight) == b""
    _, other, flight = _pair(tmp_path / "b")
    assert other.handshake(flight) == b""
    assert other.decrypt(garbage) == b""
    assert other.error
    assert server.decrypt(b"".join(client.encrypt(b"still here"))) == b"still here"
    records = server.encrypt(b"and answering")
    assert client.decrypt(b"".join(records)) == b"and answering"
    assert other.take_output() != b""


def test_a_failed_handshake_leaves_nothing_to_another_session(tmp_path: Path) -> None:
    files = make_ca().write_files(tmp_path, "spiffe://cluster.local/ns/shop/sa/users", ["localhost"])
    failed = TlsSession(server_tls(files), True)
    with pytest.raises(TlsError, match="plain HTTP"):
        failed.handshake(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n" * 10)
    client, server, flight = _pair(tmp_path)
    assert server.handshake(flight) == b""
    assert server.decrypt(b"".join(client.encrypt(b"x"))) == b"x"


def test_bulk_is_written_in_records_of_full_size(tmp_path: Path) -> None:
    client, _, _ = _pair(tmp_path)
    wire = b"".join(client.encrypt(bytes(49_179)))
    sizes = []
    while wire:
        sizes.append(int.from_bytes(wire[3:5], "big"))
        wire = wire[5 + sizes[-1] :]
    assert sizes == [16_401, 16_401, 16_401, 44]
