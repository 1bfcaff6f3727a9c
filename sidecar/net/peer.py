"""Who is at the other end of a connection: addresses, and the identity that a certificate proves.

Made by `connection.py`; read by listeners, filters and `identity.tls_contexts`. Knows X.509, no sockets.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509

_CACHE_SIZE = 4096
_uri_sans: dict[bytes, tuple[str, ...]] = {}


@dataclass(slots=True)
class PeerInfo:
    """Addresses of both ends and, over TLS, what the handshake settled.

    `uri_sans` and `cert_sha256` (lower-case hex of the DER certificate) are empty when the peer showed no
    certificate; `alpn` is empty when none was negotiated.
    """

    remote: tuple[str, int]
    local: tuple[str, int]
    tls: bool = False
    alpn: str = ""
    uri_sans: tuple[str, ...] = ()
    cert_sha256: str = ""

    @property
    def remote_text(self) -> str:
        """`host:port`, with brackets around IPv6."""
        host, port = self.remote
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_certificate(der: bytes) -> tuple[tuple[str, ...], str]:
    """URI SANs and SHA-256 of a certificate whose chain OpenSSL has verified.

    Parsing costs tens of microseconds and peers reconnect with the same certificate, so it is done once
    for each. Raises ValueError when the subject alternative names cannot be parsed.
    """
    digest = hashlib.sha256(der)
    key = digest.digest()
    sans = _uri_sans.get(key)
    if sans is None:
        sans = _parse_uri_sans(der)
        if len(_uri_sans) >= _CACHE_SIZE:
            _uri_sans.clear()
        _uri_sans[key] = sans
    return sans, digest.hexdigest()


def _parse_uri_sans(der: bytes) -> tuple[str, ...]:
    certificate = x509.load_der_x509_certificate(der)
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(extension.value.get_values_for_type(x509.UniformResourceIdentifier))
