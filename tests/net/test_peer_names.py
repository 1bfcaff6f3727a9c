"""Names of peers that cannot be read."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from sidecar.net.certificates import native_of, read_peer

URI_THAT_IS_NOT_ASCII = bytes.fromhex("3004 8602 fffe")
EDI_PARTY = bytes.fromhex("3008 a506 a104 0c02 6869")


def named(alternative_names: bytes) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    extension = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, alternative_names)
    nobody = x509.Name([])
    later = now + datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder(nobody, nobody, key.public_key(), 1, now, later)
        .add_extension(extension, critical=False)
        .sign(key, hashes.SHA256())
    )


@pytest.mark.parametrize("names", [URI_THAT_IS_NOT_ASCII, EDI_PARTY], ids=["URI", "ediPartyName"])
def test_names_that_cannot_be_read_are_a_value_error(names: bytes) -> None:
    """Which `Connection` takes for the end of the handshake."""
    with pytest.raises(ValueError):
        read_peer(native_of(named(names)))
