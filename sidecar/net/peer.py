"""Who is at the other end of a connection: addresses, and the identity that a certificate proves.

Made by `connection.py`; read by listeners, filters and `identity.tls_contexts`.
"""

from __future__ import annotations

from dataclasses import dataclass


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
