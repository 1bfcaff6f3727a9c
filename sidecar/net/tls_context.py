"""What many TLS sessions have in common: trust, identity, ALPN.

`tls.py` makes sessions of contexts; `identity.tls_contexts` makes contexts from configuration.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sidecar.net.certificates import memory_of, native_of
from sidecar.net.openssl import OpenSslError, ffi, last_error, lib
from sidecar.net.peer_chains import PeerChains

GROUPS = b"X25519:P-256:P-384"
"""Key exchange. Not the hybrid with ML-KEM, whose key share alone is 1.2 KB in each direction."""
CIPHERS = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""In order of preference. The server's counts: SHA-256 has instructions of its own, SHA-384 has not."""
_NO_AUTO_CHAIN = 0x8
"""SSL_MODE_NO_AUTO_CHAIN, which the binding does not name. Without it every handshake looks for issuers of
our own certificate among those that we trust, verifies what it finds, and sends it along."""
_HOST_FLAGS = lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS


class TlsContext:
    """Trust, identity and ALPN of many sessions. Nothing is ever resumed, and TLS is 1.3 unless `old_too`
    lets it be 1.2. Nothing is verified until `verify_peer`."""

    def __init__(self, server_side: bool, old_too: bool = False) -> None:
        self.server_side = server_side
        self.check_hostname = False
        """Client side: whether the certificate must be for the name that the session connects to."""
        self.handle = ffi.gc(lib.SSL_CTX_new(lib.TLS_method()), lib.SSL_CTX_free)
        self.peer_chains = PeerChains(of_clients=server_side)
        self._alpn: list[tuple[bytes, Any]] = []
        self._select: Any = None
        oldest = lib.TLS1_2_VERSION if old_too else lib.TLS1_3_VERSION
        lib.SSL_CTX_set_min_proto_version(self.handle, oldest)
        lib.SSL_CTX_set_mode(self.handle, lib.SSL_MODE_RELEASE_BUFFERS | _NO_AUTO_CHAIN)
        # With both, tickets that a server sends lead nowhere: there is no call to send none.
        lib.SSL_CTX_set_options(self.handle, lib.SSL_OP_NO_TICKET | lib.SSL_OP_CIPHER_SERVER_PREFERENCE)
        lib.SSL_CTX_set_session_cache_mode(self.handle, lib.SSL_SESS_CACHE_OFF)
        self._must(lib.SSL_CTX_set1_curves_list(self.handle, GROUPS))
        self._must(lib.SSL_CTX_set_ciphersuites(self.handle, CIPHERS))

    def verify_peer(self, required: bool) -> None:
        """Verify a certificate that the peer shows; a server may also insist on one."""
        required_flag = lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT if required else 0
        flags = lib.SSL_VERIFY_PEER | required_flag
        lib.SSL_CTX_set_verify(self.handle, flags, self.peer_chains.callback)

    def trust(self, pem: bytes) -> None:
        """Add the certificates in `pem` to those that a chain may end in. Raises ValueError."""
        for certificate in x509.load_pem_x509_certificates(pem):
            self._must(self.peer_chains.trust(native_of(certificate)))

    def use_identity(self, chain_pem: bytes, key_pem: bytes) -> x509.Certificate:
        """Show this chain, leaf first. Returns the leaf. Raises ValueError, OpenSslError when the key is
        another's. The key goes from memory to memory, never through a file."""
        leaf, *issuers = x509.load_pem_x509_certificates(chain_pem)
        try:
            key = load_pem_private_key(key_pem, None)
        except TypeError as error:
            raise ValueError("the private key is encrypted") from error
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        self._must(lib.SSL_CTX_use_certificate(self.handle, native_of(leaf)))
        native = lib.d2i_PrivateKey_bio(memory_of(der), ffi.NULL)
        if native == ffi.NULL:
            raise OpenSslError(last_error())
        self._must(lib.SSL_CTX_use_PrivateKey(self.handle, ffi.gc(native, lib.EVP_PKEY_free)))
        for issuer in issuers:
            certificate = native_of(issuer)
            self._must(lib.SSL_CTX_add_extra_chain_cert(self.handle, certificate))
            ffi.gc(certificate, None)  # the context's own from now on
        return leaf

    def set_alpn(self, protocols: Sequence[str]) -> None:
        """Offer these (client), or take the first of these that the client offers (server)."""
        names = [protocol.encode() for protocol in protocols]
        if not self.server_side:
            wire = b"".join(bytes([len(name)]) + name for name in names)
            lib.SSL_CTX_set_alpn_protos(self.handle, wire, len(wire))
            return
        self._alpn = [(name, ffi.new("unsigned char[]", name)) for name in names]
        self._select = ffi.callback(
            "int (*)(SSL *, unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *)",
            self._select_alpn,
            error=lib.SSL_TLSEXT_ERR_NOACK,
        )
        lib.SSL_CTX_set_alpn_select_cb(self.handle, self._select, ffi.NULL)

    def _select_alpn(self, _: Any, out: Any, out_size: Any, offered: Any, size: int, __: Any) -> int:
        wire = ffi.buffer(offered, size)[:]
        names = set()
        while wire:
            names.add(wire[1 : 1 + wire[0]])
            wire = wire[1 + wire[0] :]
        for name, native in self._alpn:
            if name in names:
                out[0], out_size[0] = native, len(name)
                return int(lib.SSL_TLSEXT_ERR_OK)
        return int(lib.SSL_TLSEXT_ERR_NOACK)

    def new_session(self, hostname: str | None) -> Any:
        """An `SSL *` without BIOs. `hostname`, client side: SNI, unless it is an address."""
        session = ffi.gc(lib.SSL_new(self.handle), lib.SSL_free)
        if self.server_side:
            lib.SSL_set_accept_state(session)
            return session
        lib.SSL_set_connect_state(session)
        if hostname:
            self._expect(session, hostname)
        return session

    def _expect(self, session: Any, hostname: str) -> None:
        name = hostname.encode("idna")
        parameters = lib.SSL_get0_param(session)
        try:
            address = ipaddress.ip_address(hostname).packed
        except ValueError:
            lib.SSL_set_tlsext_host_name(session, name)
            if self.check_hostname:
                lib.X509_VERIFY_PARAM_set_hostflags(parameters, _HOST_FLAGS)
                self._must(lib.X509_VERIFY_PARAM_set1_host(parameters, name, len(name)))
        else:
            if self.check_hostname:
                self._must(lib.X509_VERIFY_PARAM_set1_ip(parameters, address, len(address)))

    @staticmethod
    def _must(result: int) -> None:
        if result != 1:
            raise OpenSslError(last_error())

    def __repr__(self) -> str:
        return f"<TlsContext {'server' if self.server_side else 'client'}>"
