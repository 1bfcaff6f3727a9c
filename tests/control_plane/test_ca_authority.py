"""What the authority signs: the attested identity and nothing that the request claims."""

from __future__ import annotations

import base64
import contextlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.ca import root
from control_plane.ca.authority import AuthorityExpired, CertificateAuthority, SigningError
from control_plane.ca.store import CaError, key_pem
from control_plane.model.discovery import Identity

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
USERS = Identity("shop", "users")
DAY = timedelta(hours=24)
KEY = ec.generate_private_key(ec.SECP256R1())


def csr(key: object = KEY, **names: str) -> str:
    """A request that claims to be someone else."""
    alternative = [x509.UniformResourceIdentifier(names.get("uri", "spiffe://evil/ns/a/sa/b"))]
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names.get("cn", "admin"))]))
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())  # type: ignore[arg-type]
        .public_bytes(Encoding.PEM)
        .decode()
    )


def make(directory: Path, now: datetime = NOW, max_leaf: timedelta = DAY) -> CertificateAuthority:
    return root.self_made(directory / "ca", "cluster.local", max_leaf, lambda: now)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return make(tmp_path)


def test_a_leaf_has_the_attested_identity_as_its_only_name(authority: CertificateAuthority) -> None:
    issued = authority.sign_workload(csr(), USERS, timedelta(0))
    leaf = x509.load_pem_x509_certificate(issued.chain[0].encode())
    extensions = leaf.extensions
    san = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(san.value) == [x509.UniformResourceIdentifier("spiffe://cluster.local/ns/shop/sa/users")]
    assert san.critical, "RFC 5280, 4.2.1.6: an empty subject needs a critical subjectAltName"
    assert list(leaf.subject) == []
    assert leaf.public_key() == KEY.public_key()
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.critical) == (False, True)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    ]
    own = x509.load_pem_x509_certificate(authority.root_pem.encode())
    key_id = own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == key_id
    leaf.verify_directly_issued_by(own)
    assert issued.chain[-1] == authority.root_pem


@pytest.mark.parametrize(
    ("asked", "given_"),
    [
        (timedelta(0), DAY),
        (timedelta(seconds=10), timedelta(seconds=10)),
        (timedelta(days=365), DAY),
    ],
)
def test_a_leaf_lives_as_asked_up_to_the_maximum(
    authority: CertificateAuthority, asked: timedelta, given_: timedelta
) -> None:
    issued = authority.sign_workload(csr(), USERS, asked)
    leaf = x509.load_pem_x509_certificate(issued.chain[0].encode())
    assert leaf.not_valid_before_utc == NOW - timedelta(seconds=60)
    assert leaf.not_valid_after_utc == issued.not_after == NOW + given_


def test_a_leaf_does_not_outlive_its_issuer(tmp_path: Path) -> None:
    make(tmp_path)
    late = make(tmp_path, now=NOW + root.ROOT_LIFETIME - timedelta(hours=1))
    assert late.sign_workload(csr(), USERS, DAY).not_after == NOW + root.ROOT_LIFETIME


def test_an_expired_authority_signs_nothing_and_does_not_start(tmp_path: Path) -> None:
    moment = [NOW]
    authority = root.self_made(tmp_path / "ca", "cluster.local", DAY, lambda: moment[0])
    moment[0] = NOW + root.ROOT_LIFETIME
    with pytest.raises(AuthorityExpired, match="expired at 2036-05-29"):
        authority.sign_workload(csr(), USERS, DAY)
    with pytest.raises(CaError, match="expired at"):
        make(tmp_path, now=moment[0])


def test_serial_numbers_differ(authority: CertificateAuthority) -> None:
    chains = [authority.sign_workload(csr(), USERS, DAY).chain[0] for _ in range(20)]
    assert len({x509.load_pem_x509_certificate(c.encode()).serial_number for c in chains}) == 20


@given(
    st.from_regex(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?", fullmatch=True),
    st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,30}[a-z0-9])?", fullmatch=True),
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=40),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_a_request_claims_the_identity_is_the_attested_one(
    authority: CertificateAuthority, namespace: str, account: str, claimed: str
) -> None:
    request = csr(cn=claimed, uri=f"spiffe://cluster.local/ns/{claimed}/sa/admin")
    leaf = x509.load_pem_x509_certificate(
        authority.sign_workload(request, Identity(namespace, account), DAY).chain[0].encode()
    )
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in san] == [f"spiffe://cluster.local/ns/{namespace}/sa/{account}"]


def test_requests_that_do_not_prove_their_key_are_refused(authority: CertificateAuthority) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    parsed = x509.load_pem_x509_csr(csr().encode())
    tampered = bytearray(parsed.public_bytes(Encoding.DER))
    tampered[-5] ^= 0xFF
    body = base64.encodebytes(bytes(tampered)).decode()
    broken = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(SigningError, match=r"signature does not match|not a PEM"):
        authority.sign_workload(broken, USERS, DAY)
    for rubbish in (
        "",
        "hello",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----",
    ):
        with pytest.raises(SigningError, match="not a PEM PKCS #10 request"):
            authority.sign_workload(rubbish, USERS, DAY)
    with pytest.raises(SigningError, match="longer than"):
        authority.sign_workload("x" * 20_000, USERS, DAY)
    with pytest.raises(SigningError, match="negative"):
        authority.sign_workload(csr(other), USERS, timedelta(seconds=-1))


@given(st.binary(max_size=300), st.integers(0, 400))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_mutated_requests_are_signed_or_refused_but_never_crash(
    authority: CertificateAuthority, noise: bytes, where: int
) -> None:
    text = csr()
    mutated = text[:where] + noise.decode("latin-1") + text[where + len(noise) :]
    with contextlib.suppress(SigningError):
        authority.sign_workload(mutated, USERS, DAY)


def test_weak_keys_are_refused_and_usual_ones_signed(authority: CertificateAuthority) -> None:
    for key in (
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ):
        assert authority.sign_workload(csr(key), USERS, DAY).chain
    for weak in (
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP192R1()),
        dsa.generate_private_key(2048),
    ):
        with pytest.raises(SigningError, match="must be ECDSA P-256"):
            authority.sign_workload(csr(weak), USERS, DAY)


# --- the root's files ---


def test_the_root_is_kept_and_used_again(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path, now=NOW + timedelta(days=1))
    assert first.root_pem == second.root_pem
    assert (tmp_path / "ca" / "root.pem").read_text() == first.root_pem
    assert sorted(path.name for path in (tmp_path / "ca").iterdir()) == ["root-key.pem", "root.pem"]


def test_keys_are_private_and_the_root_is_public(authority: CertificateAuthority, tmp_path: Path) -> None:
    assert authority.trust_domain == "cluster.local"
    directory = tmp_path / "ca"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (directory, *directory.iterdir())}
    assert modes == {"ca": 0o700, "root-key.pem": 0o600, "root.pem": 0o644}


@pytest.mark.parametrize(("path", "mode"), [("ca/root-key.pem", 0o640), ("ca", 0o755)])
def test_a_root_that_others_can_read_is_refused(tmp_path: Path, path: str, mode: int) -> None:
    make(tmp_path)
    os.chmod(tmp_path / path, mode)
    with pytest.raises(CaError, match=rf"has mode 0{mode:o}.*run chmod"):
        make(tmp_path)


def test_another_trust_domain_on_the_same_root_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(CaError, match=r"trust domain cluster\.local, not example\.org"):
        root.self_made(tmp_path / "ca", "example.org", DAY, lambda: NOW)


def test_files_that_are_no_ca_are_refused_with_a_reason(tmp_path: Path) -> None:
    authority = make(tmp_path)
    certificate, key = tmp_path / "ca" / "root.pem", tmp_path / "ca" / "root-key.pem"
    other = tmp_path / "other-key.pem"
    other.write_bytes(key_pem(KEY))
    other.chmod(0o600)

    def load(cert_path: Path, key_path: Path) -> None:
        root.from_files(cert_path, key_path, "cluster.local", DAY, lambda: NOW)

    load(certificate, key)
    with pytest.raises(CaError, match="is not that of the certificate"):
        load(certificate, other)
    with pytest.raises(CaError, match="there is no key file"):
        load(certificate, tmp_path / "missing.pem")
    with pytest.raises(CaError, match="cannot read CA certificate"):
        load(tmp_path / "missing.pem", key)
    leaf = tmp_path / "leaf.pem"
    leaf.write_text("".join(authority.sign_workload(csr(), USERS, DAY).chain))
    with pytest.raises(CaError, match="is not that of a CA"):
        load(leaf, other)
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("nothing")
    with pytest.raises(CaError, match="holds no PEM certificates"):
        load(rubbish, key)
    rubbish.chmod(0o600)
    with pytest.raises(CaError, match="not an unencrypted PEM private key"):
        load(certificate, rubbish)
    other.chmod(0o604)
    with pytest.raises(CaError, match="others may read it"):
        load(certificate, other)


def test_the_root_of_a_given_ca_is_published_but_never_over_a_self_made_one(tmp_path: Path) -> None:
    given_ = make(tmp_path / "given")
    root.publish(tmp_path / "ca", given_)
    assert (tmp_path / "ca" / "root.pem").read_text() == given_.root_pem
    make(tmp_path / "own")
    with pytest.raises(CaError, match="holds a self-made root"):
        root.publish(tmp_path / "own" / "ca", given_)
