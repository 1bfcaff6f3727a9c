"""The mesh's certificate authority: an ECDSA P-256 root, and the leaves that it signs.

Used by the signing service and by the control plane's own listener. A leaf's identity is what the caller
passes in, which comes from a verified token; of a signing request only the public key is used. Must
never hand out its key, and never sign for longer than its own life.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from control_plane.model.discovery import Identity
from mesh_api.spiffe import SpiffeId

BACKDATE = timedelta(seconds=60)
"""A leaf is valid from a little before now, for machines whose clocks are behind."""
MAX_CSR_BYTES = 16384

Clock = Callable[[], datetime]


class SigningError(Exception):
    """A signing request is refused; the text is for its sender."""


class AuthorityExpired(SigningError):
    """Nothing can be signed any more until the mesh has a new root."""


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    chain: tuple[str, ...]
    """PEM certificates, the leaf first, the root last."""
    not_after: datetime


class CertificateAuthority:
    """Signs workloads' certificates. `chain`: the issuer's certificate first, the root last."""

    def __init__(
        self,
        chain: Sequence[x509.Certificate],
        key: ec.EllipticCurvePrivateKey,
        trust_domain: str,
        max_leaf_lifetime: timedelta,
        now: Clock = utc_now,
    ) -> None:
        self.trust_domain = trust_domain
        self.max_leaf_lifetime = max_leaf_lifetime
        self._issuer = chain[0]
        self._root = chain[-1]
        self._chain_pem = tuple(certificate_pem(certificate) for certificate in chain)
        self._key = key
        self._now = now

    def __repr__(self) -> str:
        return f"<CertificateAuthority {self.trust_domain} issuer={self._issuer.subject.rfc4514_string()!r}>"

    @property
    def root_pem(self) -> str:
        """What sidecars trust."""
        return self._chain_pem[-1]

    @property
    def not_after(self) -> datetime:
        """When the first certificate of the authority's own chain expires."""
        return min(self._issuer.not_valid_after_utc, self._root.not_valid_after_utc)

    def sign_workload(self, csr_pem: str, identity: Identity, asked: timedelta) -> IssuedCertificate:
        """The certificate of a workload: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT` as its only
        name. `asked`: wanted lifetime, zero for the longest allowed. Raises SigningError."""
        public_key = _checked_csr(csr_pem).public_key()
        if asked < timedelta(0):
            raise SigningError(f"validity_duration is negative: {int(asked.total_seconds())} s")
        _check_key(public_key)
        uri = SpiffeId(self.trust_domain, identity.namespace, identity.service_account)
        names = [x509.UniformResourceIdentifier(str(uri))]
        return self._sign(public_key, names, asked)

    def sign_server(self, key: ec.EllipticCurvePrivateKey, names: Sequence[str]) -> IssuedCertificate:
        """The control plane's own certificate, for DNS names and IP addresses."""
        return self._sign(key.public_key(), [_general_name(name) for name in names], timedelta(0))

    def _sign(
        self,
        public_key: CertificatePublicKeyTypes,
        names: Sequence[x509.GeneralName],
        asked: timedelta,
    ) -> IssuedCertificate:
        now = self._now()
        if now >= self.not_after:
            raise AuthorityExpired(
                f"the mesh's certificate authority expired at {self.not_after.isoformat()}"
            )
        lifetime = min(asked or self.max_leaf_lifetime, self.max_leaf_lifetime)
        not_after = min(now + lifetime, self.not_after)
        builder = (
            x509.CertificateBuilder()
            # No subject: the names are in the extension alone, which is critical then (RFC 5280, 4.2.1.6).
            .subject_name(x509.Name([]))
            .issuer_name(self._issuer.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - BACKDATE, self._issuer.not_valid_before_utc))
            .not_valid_after(not_after)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(digital_signature=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(_authority_key_identifier(self._issuer), critical=False)
        )
        leaf = builder.sign(self._key, hashes.SHA256())
        return IssuedCertificate((certificate_pem(leaf), *self._chain_pem), leaf.not_valid_after_utc)


def _checked_csr(csr_pem: str) -> x509.CertificateSigningRequest:
    if len(csr_pem) > MAX_CSR_BYTES:
        raise SigningError(f"the signing request is longer than {MAX_CSR_BYTES} bytes")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        valid = csr.is_signature_valid
    except Exception as error:  # whatever a parser makes of hostile bytes
        raise SigningError(f"the signing request is not a PEM PKCS #10 request: {error}") from error
    if not valid:
        raise SigningError("the signing request's signature does not match its public key")
    return csr


def _check_key(key: object) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1"):
        return
    if isinstance(key, ed25519.Ed25519PublicKey):
        return
    if isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 4096:
        return
    raise SigningError(
        "the key to be certified must be ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits"
    )


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        ski = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)


def key_usage(*, digital_signature: bool = False, sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
