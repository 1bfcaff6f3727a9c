"""Certificates as OpenSSL holds them (`X509 *`) and as Python reads them.

Used by contexts and sessions of TLS. Peers come back with the certificate that they had, so that what was
read of one is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.net.openssl import OpenSslError, ffi, last_error, lib

MAX_REMEMBERED = 4096
_SHA256 = lib.EVP_get_digestbyname(b"SHA256")


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """Of a certificate whose chain was verified. `sha256`: lower-case hex of the DER form."""

    uri_sans: tuple[str, ...] = ()
    sha256: str = ""


NO_CERTIFICATE = PeerCertificate()
_known: dict[bytes, PeerCertificate] = {}


def read_peer(certificate: Any) -> PeerCertificate:
    """Of an `X509 *`. Raises ValueError when its names cannot be parsed."""
    digest = digest_of(certificate)
    known = _known.get(digest)
    if known is None:
        known = PeerCertificate(uri_sans_of(python_of(certificate)), digest.hex())
        if len(_known) >= MAX_REMEMBERED:
            _known.clear()
        _known[digest] = known
    return known


def uri_sans_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Raises ValueError when the subject alternative names cannot be parsed."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(str(error)) from error
    return tuple(extension.value.get_values_for_type(x509.UniformResourceIdentifier))


def digest_of(certificate: Any) -> bytes:
    """SHA-256 of an `X509 *` in DER form. Raises OpenSslError."""
    digest = ffi.new("unsigned char[32]")  # another thread may run while OpenSSL does
    if lib.X509_digest(certificate, _SHA256, digest, ffi.NULL) != 1:
        raise OpenSslError(last_error())
    return bytes(ffi.buffer(digest))


def python_of(certificate: Any) -> x509.Certificate:
    """Of an `X509 *`."""
    bio = ffi.gc(lib.BIO_new(lib.BIO_s_mem()), lib.BIO_free)
    lib.i2d_X509_bio(bio, certificate)
    start = ffi.new("char **")
    size = lib.BIO_get_mem_data(bio, start)
    return x509.load_der_x509_certificate(ffi.buffer(start[0], size)[:])


def native_of(certificate: x509.Certificate) -> Any:
    """The same as an `X509 *`."""
    der = certificate.public_bytes(Encoding.DER)
    return ffi.gc(lib.d2i_X509_bio(memory_of(der), ffi.NULL), lib.X509_free)


def memory_of(data: bytes) -> Any:
    """A BIO that holds `data`."""
    bio = ffi.gc(lib.BIO_new(lib.BIO_s_mem()), lib.BIO_free)
    lib.BIO_write(bio, data, len(data))
    return bio
