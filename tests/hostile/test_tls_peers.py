"""Peers that misuse TLS, and many of them at once."""

from __future__ import annotations

import concurrent.futures
import ctypes
import ctypes.util
import socket
import ssl
import time
from pathlib import Path

import pytest

from tests.support import h2_frames as f
from tests.support.certs import make_ca
from tests.support.hostile import SPIFFE, Target, client_context, request
from tests.support.raw import Raw, RawH2

HANDSHAKE_TIMEOUT = 10.0
"""Seconds that `sidecar/net/handshakes.py` allows."""


def test_tls_1_2_is_refused_with_protocol_version(target: Target) -> None:
    context = client_context(target.files["caller"])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with target.under_attack():
        for _ in range(50):
            with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
                target.connect_tls(context)


def test_no_session_is_ever_resumed(target: Target) -> None:
    context = client_context(target.files["caller"])
    with target.under_attack():
        first = RawH2(target.connect_tls(context))
        first.read_until(lambda: first.of(f.SETTINGS))
        session = first.sock.session
        assert session is not None
        for _ in range(20):
            again = context.wrap_socket(target.connect(target.mtls), session=session)
            assert again.session_reused is False
            again.close()


def test_strangers_are_told_so(target: Target, tmp_path: Path) -> None:
    """No certificate, one of another authority, one of another identity."""
    ours = target.ca.write_files(tmp_path, SPIFFE + "stranger", name="stranger")
    theirs = make_ca("another").write_files(tmp_path, SPIFFE + "caller", name="theirs")
    with target.under_attack():
        for files in (None, ours, theirs):
            peer = RawH2(target.connect_tls(client_context(files)))
            peer.send(f.headers(1, request(), True))
            peer.read_end(3.0)
            assert not peer.of(f.HEADERS)


@pytest.mark.parametrize("size", [10_000, 90_000, 500_000])
def test_oversized_certificates(target: Target, tmp_path: Path, size: int) -> None:
    """OpenSSL takes 100 KB of certificates from a client, which is then judged like any other."""
    certificate, key = target.ca.issue(SPIFFE + "caller", padding=size)
    (tmp_path / "large.crt").write_bytes(certificate)
    (tmp_path / "large.key").write_bytes(key)
    context = client_context(None)
    context.load_cert_chain(tmp_path / "large.crt", tmp_path / "large.key")
    with target.under_attack(memory=24.0):
        for _ in range(20):
            try:
                peer = RawH2(target.connect_tls(context))
                peer.send(f.headers(1, request(), True))
                served = True
                peer.read_until(lambda peer=peer: peer.of(f.HEADERS), 3.0)
            except (ssl.SSLError, ConnectionError, AssertionError):
                served = False
            assert served is (size < 100_000)


def test_flood_of_key_updates(target: Target) -> None:
    name = ctypes.util.find_library("ssl")
    if name is None:
        pytest.skip("needs libssl as a shared library")
    lib = ctypes.CDLL(name)
    for function in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(lib, function).restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.SSL_CTX_new(ctypes.c_void_p(lib.TLS_client_method())))
    files = target.files["caller"]
    assert lib.SSL_CTX_use_certificate_chain_file(context, files.certificate.encode()) == 1
    assert lib.SSL_CTX_use_PrivateKey_file(context, files.private_key.encode(), 1) == 1
    assert lib.SSL_CTX_set_alpn_protos(context, b"\x02h2", 3) == 0
    with target.under_attack():
        sock = target.connect(target.mtls)
        sock.settimeout(None)  # OpenSSL reads and writes by itself
        session = ctypes.c_void_p(lib.SSL_new(context))
        lib.SSL_set_fd(session, sock.fileno())
        assert lib.SSL_connect(session) == 1
        for _ in range(50_000):
            lib.SSL_key_update(session, 1)  # and wants one in return
            if lib.SSL_do_handshake(session) != 1:
                break
        Raw(sock).read_end(5.0)
        lib.SSL_free(session)
    lib.SSL_CTX_free(context)


def test_clients_that_never_finish_their_handshake_are_dropped(target: Target) -> None:
    """They have been at it since the sidecar started, so that nobody waits for them here alone."""
    with target.under_attack(memory=30.0):
        for sock in target.unfinished:
            Raw(sock).read_end(HANDSHAKE_TIMEOUT + 5)


def test_garbage_instead_of_a_handshake(target: Target) -> None:
    with target.under_attack():
        for octets in (
            b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            f.PREFACE,
            b"\x16\x03\x01\xff\xff" + b"\0" * 70000,
        ):
            peer = Raw(target.connect(target.mtls))
            peer.send(octets)
            assert len(peer.read_end()) < 100  # an alert, or nothing


def reconnect(target: Target, context: ssl.SSLContext, times: int) -> None:
    """`times` clients at once, in 20 threads; each must be served."""

    def one(_: int) -> bool:
        with socket.create_connection(target.mtls, 30.0) as raw, context.wrap_socket(raw) as secured:
            peer = RawH2(secured)
            peer.send(f.headers(1, request(), True))
            peer.read_until(lambda: peer.of(f.HEADERS), 30.0)
            return True

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        assert all(pool.map(one, range(times)))


def test_two_hundred_peers_that_reconnect_at_once(target: Target) -> None:
    with target.under_attack(cpu=10.0, memory=24.0):
        reconnect(target, client_context(target.files["caller"]), 200)


@pytest.mark.scale
def test_a_thousand_peers_that_reconnect_at_once(target: Target) -> None:
    with target.under_attack(cpu=40.0, memory=64.0):
        reconnect(target, client_context(target.files["caller"]), 1000)


def idle_connections(target: Target, count: int) -> None:
    """Half plain, half HTTP/2 over mTLS; each has been served once and then says nothing."""
    context = client_context(target.files["caller"])
    per_plain, per_tls = 32 / 1024, 96 / 1024  # MiB, twice and more what one should cost
    with target.under_attack(memory=count / 2 * (per_plain + per_tls), cpu=count / 100):
        plain = []
        for _ in range(count // 2):
            plain.append(target.h1())
            plain[-1].send(b"GET /direct HTTP/1.1\r\nhost: a\r\n\r\n")  # before it counts as late
        for peer in plain:
            peer.read_until(lambda peer=peer: peer.received)
        secured = []
        for _ in range(count // 2):
            secured.append(RawH2(target.connect_tls(context)))
            secured[-1].send(f.headers(1, request(), True))
        for one in secured:
            one.read_until(lambda one=one: one.of(f.HEADERS))
        used = target.cpu()
        time.sleep(1.0)
        assert target.cpu() - used < 0.8  # the polite client's share included
        for one in plain:
            assert not one.ended


def test_a_thousand_idle_connections(target: Target) -> None:
    idle_connections(target, 1000)


@pytest.mark.scale
@pytest.mark.timeout(300)
def test_ten_thousand_idle_connections(target: Target) -> None:
    idle_connections(target, 10_000)
