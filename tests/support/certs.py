"""A certificate authority for tests: SPIFFE and DNS leaves, ECDSA P-256, in memory or written to files."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_BACKDATE = datetime.timedelta(seconds=60)


@dataclass(frozen=True)
class CertificateFiles:
    """Paths written by `TestCa.write_files`, as text because configuration holds text."""

    certificate: str
    private_key: str
    ca: str


class TestCa:
    """A root that signs leaves. Make it with `make_ca()`."""

    __test__ = False  # not a test class, whatever its name says to pytest

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = _now()
        usage = _key_usage(ca=True)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        spiffe_id: str | None = None,
        dns: Sequence[str] = (),
        lifetime: float = 3600.0,
        *,
        uris: Sequence[str] = (),
        addresses: Sequence[str] = (),
        valid_from: float = -60.0,
        padding: int = 0,
    ) -> tuple[bytes, bytes]:
        """A new key and its certificate, as (cert_pem, key_pem), good for client and server.

        `lifetime` and `valid_from` are seconds from now; a negative `lifetime` makes an expired one.
        `uris` adds further URI SANs, `padding` bytes of an unknown extension make the certificate large.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = _alternative_names(spiffe_id, dns, uris, addresses)
        certificate = self._sign(key.public_key(), names, lifetime, valid_from, padding)
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM), key_pem

    def sign_csr(self, csr_pem: bytes, spiffe_id: str, lifetime: float) -> list[str]:
        """What a mesh CA answers to a signing request: the chain as PEM texts, leaf first, root last."""
        csr = x509.load_pem_x509_csr(csr_pem)
        assert csr.is_signature_valid
        public_key = csr.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        names = _alternative_names(spiffe_id, (), (), ())
        leaf = self._sign(public_key, names, lifetime, -60.0, 0)
        return [leaf.public_bytes(serialization.Encoding.PEM).decode(), self.ca_pem.decode()]

    def write_files(
        self,
        directory: Path,
        spiffe_id: str | None = None,
        dns: Sequence[str] = (),
        lifetime: float = 3600.0,
        *,
        name: str = "tls",
    ) -> CertificateFiles:
        """Issue a leaf into `directory` as NAME.crt and NAME.key, with the root beside them as ca.crt."""
        certificate, key = self.issue(spiffe_id, dns, lifetime)
        paths = (directory / f"{name}.crt", directory / f"{name}.key", directory / "ca.crt")
        for path, content in zip(paths, (certificate, key, self.ca_pem), strict=True):
            path.write_bytes(content)
        return CertificateFiles(*map(str, paths))

    def _sign(
        self,
        public_key: ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        lifetime: float,
        valid_from: float,
        padding: int,
    ) -> x509.Certificate:
        now = _now()
        not_after = now + datetime.timedelta(seconds=lifetime)
        not_before = min(now + datetime.timedelta(seconds=valid_from), not_after - _BACKDATE)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(issuer_key, critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        if padding:
            oid = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")
            builder = builder.add_extension(
                x509.UnrecognizedExtension(oid, b"\x04" * padding), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())

    def __repr__(self) -> str:
        return f"<TestCa {self._name.rfc4514_string()}>"


def make_ca(name: str = "pilotfish test CA") -> TestCa:
    """A fresh root, valid for 30 days."""
    return TestCa(name)


def _alternative_names(
    spiffe_id: str | None, dns: Sequence[str], uris: Sequence[str], addresses: Sequence[str]
) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(u) for u in ([spiffe_id] if spiffe_id else [])
    ]
    names += [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(name) for name in dns]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    return names


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
