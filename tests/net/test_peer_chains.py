"""Chains of peers: what is verified once, what each time, and whom no memory helps."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sidecar.net import peer_chains
from sidecar.net.tls import TlsError, TlsParameters, TlsSession
from sidecar.net.tls_context import TlsContext

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
HOUR = 3600.0


@dataclass(frozen=True)
class Identity:
    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def made(
    name: str,
    issuer: Identity | None = None,
    *,
    ca: bool = False,
    key: Key | None = None,
    lasts: float = 24 * HOUR,
    usages: tuple[x509.ObjectIdentifier, ...] = BOTH,
) -> Identity:
    """A certificate, by itself where there is no issuer. `lasts`: seconds from now."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(seconds=lasts))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False).add_extension(
            x509.SubjectAlternativeName([x509.DNSName(f"{name}.test")]), critical=False
        )
    signer = issuer.key if issuer else key
    return Identity(builder.sign(signer, hashes.SHA256()), key)


ROOT = made("root", ca=True)
SERVER = made("server", ROOT)


def context(server_side: bool, *trusted: Identity, shows: tuple[Identity, ...] = ()) -> TlsContext:
    """`shows`: leaf, then issuers."""
    new = TlsContext(server_side)
    for each in trusted:
        new.trust(each.pem)
    new.verify_peer(required=True)
    if shows:
        new.use_identity(b"".join(each.pem for each in shows), shows[0].key_pem)
    return new


def meet(server: TlsContext, client: TlsContext, hostname: str = "server.test") -> None:
    """A handshake. Raises TlsError of the side that refuses the other."""
    one = TlsSession(TlsParameters(client, hostname), False)
    other = TlsSession(TlsParameters(server), True)
    one.handshake(b"")
    other.handshake(one.take_output())
    one.handshake(other.take_output())
    other.handshake(one.take_output())


def client_of(*shows: Identity, trusts: Identity = ROOT) -> TlsContext:
    return context(False, trusts, shows=shows)


def test_a_certificate_that_comes_back_is_not_verified_again_on_either_side() -> None:
    server, client = context(True, ROOT, shows=(SERVER,)), client_of(made("client", ROOT))
    for _ in range(3):
        meet(server, client)
    assert (server.peer_chains.verified, client.peer_chains.verified) == (1, 1)
    meet(server, client_of(made("other", ROOT)))
    assert server.peer_chains.verified == 2


def test_strangers_are_verified_and_refused_each_time() -> None:
    other_root = made("root", ca=True)
    for stranger in (made("client", other_root), made("client"), made("client", made("client", ca=True))):
        server = context(True, ROOT, shows=(SERVER,))
        for count in (1, 2):
            with pytest.raises(TlsError, match="certificate verify failed"):
                meet(server, client_of(stranger))
            assert server.peer_chains.verified == count
        assert server.peer_chains.remembered == {}


def test_what_one_context_knows_is_nothing_to_another() -> None:
    client = client_of(made("client", ROOT))
    meet(context(True, ROOT, shows=(SERVER,)), client)
    with pytest.raises(TlsError, match="unable to get local issuer certificate"):
        meet(context(True, made("another root", ca=True), shows=(SERVER,)), client)


def test_a_forged_signature_is_seen_though_all_else_is_known() -> None:
    good = made("client", ROOT)
    server = context(True, ROOT, shows=(SERVER,))
    meet(server, client_of(good))
    der = bytearray(good.certificate.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = Identity(x509.load_der_x509_certificate(bytes(der)), good.key)
    with pytest.raises(TlsError, match="certificate signature failure"):
        meet(server, client_of(forged))


def test_the_name_is_checked_each_time() -> None:
    server, client = context(True, ROOT, shows=(SERVER,)), client_of(made("client", ROOT))
    client.check_hostname = True
    meet(server, client, "server.test")
    with pytest.raises(TlsError, match="hostname mismatch"):
        meet(server, client, "elsewhere.test")
    meet(server, client, "server.test")
    assert client.peer_chains.verified == 1


@pytest.mark.parametrize("of_server", [True, False])
def test_a_certificate_for_the_other_purpose_is_refused(of_server: bool) -> None:
    wrong = made("wrong", ROOT, usages=(BOTH[1] if of_server else BOTH[0],))
    shown = (wrong, made("client", ROOT)) if of_server else (SERVER, wrong)
    server, client = context(True, ROOT, shows=shown[:1]), client_of(shown[1])
    for _ in range(2):
        with pytest.raises(TlsError, match="unsuitable certificate purpose"):
            meet(server, client)


def test_an_expired_certificate_is_refused() -> None:
    server = context(True, ROOT, shows=(SERVER,))
    with pytest.raises(TlsError, match="certificate has expired"):
        meet(server, client_of(made("client", ROOT, lasts=-60.0)))


def test_a_chain_is_verified_anew_when_one_of_its_certificates_has_expired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = made("root", ca=True, lasts=2 * HOUR)
    server, client = context(True, short, shows=(SERVER,)), client_of(made("client", short))
    meet(server, client)
    now = time.time()
    for hours, known in ((1.9, True), (2.1, False)):
        before = server.peer_chains.verified
        monkeypatch.setattr(peer_chains.time, "time", lambda hours=hours: now + hours * HOUR)
        meet(server, client)
        assert (server.peer_chains.verified == before) is known


def test_intermediates_lead_to_the_root_and_are_needed_once() -> None:
    middle = made("middle", ROOT, ca=True)
    leaf = made("client", middle)
    server = context(True, ROOT, shows=(SERVER,))
    with pytest.raises(TlsError, match="unable to get local issuer certificate"):
        meet(server, client_of(leaf))
    for shown in ((leaf, middle), (leaf, middle, ROOT), (leaf,)):
        meet(server, client_of(*shown))
    assert server.peer_chains.verified == 2


def test_a_leaf_may_not_issue() -> None:
    leaf = made("client", ROOT)
    server = context(True, ROOT, shows=(SERVER,))
    meet(server, client_of(leaf))
    with pytest.raises(TlsError, match="certificate verify failed: invalid CA certificate"):
        meet(server, client_of(made("child", leaf), leaf))


def test_keys_that_are_too_small_for_openssl_are_so_here() -> None:
    root = made("weak", ca=True, key=rsa.generate_private_key(65537, 1024))
    server = context(True, root, shows=(SERVER,))
    with pytest.raises(TlsError, match="certificate verify failed: CA certificate key too weak"):
        meet(server, client_of(made("client", root)))


def test_digests_that_are_too_weak_for_openssl_are_so_here() -> None:
    """Of the leaf's own signature, by a root with a good one. Nothing here would sign such a leaf."""
    pem = (Path(__file__).parent / "data/sha1_leaf_root_key.txt").read_bytes()
    leaf, root = x509.load_pem_x509_certificates(pem)
    key = serialization.load_pem_private_key(pem[pem.index(b"-----BEGIN PRIVATE KEY") :], None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    server = context(True, Identity(root, key), shows=(SERVER,))
    with pytest.raises(TlsError, match="certificate verify failed: CA signature digest algorithm too weak"):
        meet(server, client_of(Identity(leaf, key)))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_chains, "MAX_REMEMBERED", 2)
    server = context(True, ROOT, shows=(SERVER,))
    for number in range(5):
        meet(server, client_of(made(f"client-{number}", ROOT)))
        assert len(server.peer_chains.remembered) <= 2
