"""The control plane's own certificate: signed by the mesh's root, renewed while the server runs.

The app gives `credentials` to its gRPC server. New connections get the newest certificate; those that
are open keep theirs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.ca.authority import CertificateAuthority, Clock, SigningError, utc_now
from control_plane.ca.store import key_pem

log = logging.getLogger(__name__)


class ServingCertificate:
    """A key pair in memory with a certificate for `names`, renewed at half of its life."""

    def __init__(self, authority: CertificateAuthority, names: Sequence[str], now: Clock = utc_now) -> None:
        self._authority = authority
        self._names = tuple(names)
        self._now = now
        # grpc asks for certificates on a thread of its own.
        self._lock = threading.Lock()
        self._renew_at: datetime | None = None
        self.not_after: datetime | None = None

    def __repr__(self) -> str:
        return f"<ServingCertificate {','.join(self._names)} not_after={self.not_after}>"

    def credentials(self) -> Any:
        """`grpc.ServerCredentials` that follow the renewals."""
        initial = self._renewed()
        return grpc.dynamic_ssl_server_credentials(initial, self._fetch, require_client_authentication=False)

    def _fetch(self) -> Any | None:
        try:
            return self._renewed()
        except SigningError as error:
            # What is raised here would be lost in grpc's thread; the old certificate serves while it can.
            log.error("the control plane's own certificate was not renewed: %s", error)
            return None

    def _renewed(self) -> Any | None:
        """A new certificate configuration when one is due, else None. Called at each new connection."""
        with self._lock:
            now = self._now()
            if self._renew_at is not None and now < self._renew_at:
                return None
            key = ec.generate_private_key(ec.SECP256R1())
            issued = self._authority.sign_server(key, self._names)
            self._renew_at = now + (issued.not_after - now) / 2
            self.not_after = issued.not_after
            return grpc.ssl_server_certificate_configuration([(key_pem(key), "".join(issued.chain).encode())])
