"""What is said, to the peer and to the log, when a record is wrong that came behind good ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.net.tls import TlsError, TlsSession
from tests.support.certs import make_ca
from tests.support.connections import client_tls, server_tls

BAD_RECORD = b"\x17\x03\x03\x00\x20" + b"z" * 32


def secured(folder: Path) -> tuple[TlsSession, TlsSession]:
    files = make_ca().write_files(folder, "spiffe://cluster.local/ns/shop/sa/users", ["localhost"])
    client, server = TlsSession(client_tls(files), False), TlsSession(server_tls(files), True)
    client.handshake(b"")
    server.handshake(client.take_output())
    client.handshake(server.take_output())
    assert server.handshake(client.take_output()) == b""
    return client, server


def test_data_before_a_bad_record_is_delivered_and_the_peer_is_told_why(tmp_path: Path) -> None:
    client, server = secured(tmp_path)
    assert server.decrypt(b"".join(client.encrypt(b"good")) + BAD_RECORD) == b"good"
    assert server.error == "decryption failed or bad record mac"
    client.decrypt(server.close_notify())
    assert client.error == "peer sent TLS alert: bad record mac"


def test_an_answer_to_that_data_changes_nothing_of_it(tmp_path: Path) -> None:
    client, server = secured(tmp_path)
    server.decrypt(b"".join(client.encrypt(b"good")) + BAD_RECORD)
    with pytest.raises(TlsError, match="decryption failed or bad record mac"):
        server.encrypt(b"answer")
    client.decrypt(server.close_notify())
    assert client.error == "peer sent TLS alert: bad record mac"
