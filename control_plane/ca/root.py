"""The mesh's root: made and kept in a directory, or given as files; checked before anything is signed.

Used by the app at start-up. Must never start with a root whose key others can read, whose key is another
one's, or that is no CA.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from control_plane.ca import store
from control_plane.ca.authority import (
    BACKDATE,
    CertificateAuthority,
    Clock,
    certificate_pem,
    key_usage,
    utc_now,
)
from control_plane.ca.store import CaError

ROOT_KEY_FILE = "root-key.pem"
ROOT_FILE = "root.pem"
ROOT_LIFETIME = timedelta(days=3650)


def self_made(
    directory: Path, trust_domain: str, max_leaf_lifetime: timedelta, now: Clock = utc_now
) -> CertificateAuthority:
    """The authority whose root is kept in `directory`, made there at the first start. Raises CaError."""
    store.private_directory(directory)
    key = store.load_or_make_key(directory / ROOT_KEY_FILE)
    path = directory / ROOT_FILE
    if not path.exists():
        store.create(path, certificate_pem(_make_root(key, trust_domain, now())).encode(), store.PUBLIC_MODE)
    return _checked_authority(path, directory / ROOT_KEY_FILE, key, trust_domain, max_leaf_lifetime, now)


def from_files(
    certificate: Path, key_path: Path, trust_domain: str, max_leaf_lifetime: timedelta, now: Clock = utc_now
) -> CertificateAuthority:
    """The authority given as files: the issuer's certificate, any intermediates and the root in one PEM
    file, and the issuer's key. A group may read the key, as mounted secrets have it. Raises CaError."""
    key = store.read_key(key_path, forbidden=0o037)
    if key is None:
        raise CaError(f"there is no key file {key_path}")
    return _checked_authority(certificate, key_path, key, trust_domain, max_leaf_lifetime, now)


def publish(directory: Path, authority: CertificateAuthority) -> None:
    """Writes the root of an authority given as files to `root.pem` in `directory`, where sidecars on this
    machine look for it. Raises CaError."""
    store.private_directory(directory)
    path = directory / ROOT_FILE
    if (directory / ROOT_KEY_FILE).exists():
        raise CaError(f"{directory} holds a self-made root: use another --ca-dir, or no --ca-cert")
    store.replace(path, authority.root_pem.encode(), store.PUBLIC_MODE)


def _checked_authority(
    path: Path,
    key_path: Path,
    key: ec.EllipticCurvePrivateKey,
    trust_domain: str,
    max_leaf_lifetime: timedelta,
    now: Clock,
) -> CertificateAuthority:
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise CaError(f"cannot read CA certificate {path}: {error.strerror}") from error
    return from_pem(pem, key, str(path), str(key_path), trust_domain, max_leaf_lifetime, now)


def from_pem(
    pem: bytes,
    key: ec.EllipticCurvePrivateKey,
    where: str,
    key_where: str,
    trust_domain: str,
    max_leaf_lifetime: timedelta,
    now: Clock = utc_now,
) -> CertificateAuthority:
    """The authority of certificates in memory, the issuer first and the root last. `where` and `key_where`
    say in messages what they came from. Raises CaError."""
    chain = _certificates(pem, where)
    issuer, root = chain[0], chain[-1]
    if issuer.public_key() != key.public_key():
        raise CaError(f"the key in {key_where} is not that of the certificate in {where}")
    for certificate, signer in zip(chain, [*chain[1:], root], strict=True):
        _check_ca(certificate, signer, where)
    if now() >= issuer.not_valid_after_utc:
        raise CaError(
            f"the CA certificate in {where} expired at {issuer.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
        )
    domain = _trust_domain(root)
    if domain is not None and domain != trust_domain:
        raise CaError(
            f"the CA certificate in {where} is that of trust domain {domain}, not {trust_domain}: "
            "start with the same --trust-domain as before, or with another CA"
        )
    return CertificateAuthority(chain, key, trust_domain, max_leaf_lifetime, now)


def _certificates(pem: bytes, where: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CaError(f"{where} holds no PEM certificates: {error}") from error


def make_root_pem(key: ec.EllipticCurvePrivateKey, trust_domain: str, now: datetime) -> str:
    """A new self-signed root."""
    return certificate_pem(_make_root(key, trust_domain, now))


def _check_ca(certificate: x509.Certificate, signer: x509.Certificate, path: str) -> None:
    name = certificate.subject.rfc4514_string()
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        basic = None
    if basic is None or not basic.ca:
        raise CaError(f"certificate {name!r} in {path} is not that of a CA (BasicConstraints)")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is not None and not usage.key_cert_sign:
        raise CaError(f"certificate {name!r} in {path} may not sign certificates (KeyUsage)")
    try:
        certificate.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CaError(
            f"certificate {name!r} in {path} is not signed by the next one in the file; "
            "the file holds the issuer first and ends with its self-signed root"
        ) from error


def _make_root(key: ec.EllipticCurvePrivateKey, trust_domain: str, now: datetime) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "pilotfish"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain} root"[:64]),
        ]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(sign=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _trust_domain(root: x509.Certificate) -> str | None:
    try:
        san = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    for uri in san.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith("spiffe://"):
            return uri.removeprefix("spiffe://").partition("/")[0]
    return None
