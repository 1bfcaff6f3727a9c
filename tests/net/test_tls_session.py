"""TLS records as TCP delivers them: in pieces that end anywhere."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sidecar.net.tls import TlsSession
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
        data = rng.randbytes(rng.choice([1, 100, 8191, 8192, 8193, 16384, 50_000]))
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
