"""Verifies the certificate chains that peers show, and each certificate only once.

Peers come back with the certificate that they had, and checking its issuer's signature again is a sixth of
what a server's half of a handshake costs. So OpenSSL is given no issuers: it looks at validity, purpose, keys
and names each time, and then asks here about issuers that it does not know. The answer comes from a full
verification against those that are trusted, and is remembered for as long as every certificate of the chain
is valid.

Made by `tls_context.py`, one for each context: who trusts others has another context. Must never say yes
because something could not be looked at.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

from sidecar.net.certificates import digest_of, python_of
from sidecar.net.openssl import ffi, lib

MAX_REMEMBERED = 4096
_FOR_WANT_OF_ISSUERS = frozenset(
    {
        lib.X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT,
        lib.X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
        lib.X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
        lib.X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT,
        lib.X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN,
        # By an issuer that was shown, which need not be the true one.
        lib.X509_V_ERR_CERT_SIGNATURE_FAILURE,
        lib.X509_V_ERR_PERMITTED_VIOLATION,
        lib.X509_V_ERR_EXCLUDED_VIOLATION,
    }
)
"""What OpenSSL may find wrong with a leaf for want of the issuers that are trusted."""
_KEY_TOO_SMALL, _DIGEST_TOO_WEAK = 67, 68
"""X509_V_ERR_CA_KEY_TOO_SMALL and X509_V_ERR_CA_MD_TOO_WEAK, which the binding does not name."""
_LEAST_RSA, _LEAST_EC = 1963, 224
"""Bits: OpenSSL's security level 2, as OpenSSL rounds. The first is for DSA too, the second for its q."""

_log = logging.getLogger(__name__)


class PeerChains:
    """Use `callback` with SSL_CTX_set_verify, and keep the object for as long as the context."""

    def __init__(self, of_clients: bool) -> None:
        """`of_clients`: the peers are clients."""
        self.remembered: dict[bytes, float] = {}
        """SHA-256 of leaves whose chains were good, and until when (Unix time) these are valid."""
        self.verified = 0
        """How many chains were verified in full."""
        self._trusted = ffi.gc(lib.X509_STORE_new(), lib.X509_STORE_free)
        purpose = lib.X509_PURPOSE_SSL_CLIENT if of_clients else lib.X509_PURPOSE_SSL_SERVER
        lib.X509_STORE_set_purpose(self._trusted, purpose)
        self.callback = ffi.callback("int (*)(int, X509_STORE_CTX *)", self._on_finding, error=0)

    def trust(self, certificate: Any) -> bool:
        """Chains may end in this `X509 *`."""
        return bool(lib.X509_STORE_add_cert(self._trusted, certificate) == 1)

    def _on_finding(self, good: int, context: Any) -> int:
        """OpenSSL has found a certificate good, or something wrong."""
        if good:
            return 1
        # What is wrong with issuers that were shown matters only where no other way leads to a trusted one,
        # and that is found out here.
        of_leaf = not lib.X509_STORE_CTX_get_error_depth(context)
        if of_leaf and lib.X509_STORE_CTX_get_error(context) not in _FOR_WANT_OF_ISSUERS:
            return 0
        try:
            problem = self._problem(context)
        except Exception:
            _log.exception("a peer's certificate chain cannot be looked at")
            problem = int(lib.X509_V_ERR_CERT_UNTRUSTED)
        lib.ERR_clear_error()  # the reason is in the context; what OpenSSL says next is to be the first
        lib.X509_STORE_CTX_set_error(context, problem)
        return int(problem == lib.X509_V_OK)

    def _problem(self, context: Any) -> int:
        """What is wrong with the chain of the leaf that `context` is about, X509_V_OK when nothing is."""
        leaf = lib.X509_STORE_CTX_get0_cert(context)
        digest = digest_of(leaf)
        if time.time() < self.remembered.get(digest, 0.0):
            return int(lib.X509_V_OK)
        shown = lib.X509_STORE_CTX_get1_chain(context)
        try:
            problem, until = self._verify(leaf, shown)
        finally:
            _free(shown)
        if problem == lib.X509_V_OK:
            if len(self.remembered) >= MAX_REMEMBERED:
                self.remembered.clear()
            self.remembered[digest] = until
        return problem

    def _verify(self, leaf: Any, shown: Any) -> tuple[int, float]:
        """In full. What is wrong, and until when the chain is valid (Unix time)."""
        self.verified += 1
        context = ffi.gc(lib.X509_STORE_CTX_new(), lib.X509_STORE_CTX_free)
        if lib.X509_STORE_CTX_init(context, self._trusted, leaf, shown) != 1:
            return int(lib.X509_V_ERR_OUT_OF_MEM), 0.0
        if lib.X509_verify_cert(context) != 1:
            return int(lib.X509_STORE_CTX_get_error(context) or lib.X509_V_ERR_CERT_UNTRUSTED), 0.0
        chain = lib.X509_STORE_CTX_get1_chain(context)
        try:
            certificates = [python_of(lib.sk_X509_value(chain, at)) for at in range(lib.sk_X509_num(chain))]
        finally:
            _free(chain)
        return _weakness(certificates), min(one.not_valid_after_utc.timestamp() for one in certificates)

    def __repr__(self) -> str:
        return f"<PeerChains verified={self.verified} remembered={len(self.remembered)}>"


def _weakness(chain: list[x509.Certificate]) -> int:
    """What OpenSSL looks for too, but not in certificates that it was not shown, nor in the leaf's own
    signature."""
    for certificate in chain[:-1]:  # nobody relies on the signature of what is trusted itself
        if isinstance(certificate.signature_hash_algorithm, hashes.MD5 | hashes.SHA1):
            return _DIGEST_TOO_WEAK
    if any(_too_small(certificate.public_key()) for certificate in chain):
        return _KEY_TOO_SMALL
    return int(lib.X509_V_OK)


def _too_small(key: object) -> bool:
    if isinstance(key, dsa.DSAPublicKey):
        q = key.public_numbers().parameter_numbers.q
        return key.key_size < _LEAST_RSA or q.bit_length() < _LEAST_EC
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.key_size < _LEAST_EC
    return isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA


def _free(chain: Any) -> None:
    """A stack, and what it holds."""
    for at in range(lib.sk_X509_num(chain)):
        lib.X509_free(lib.sk_X509_value(chain, at))
    lib.sk_X509_free(chain)
