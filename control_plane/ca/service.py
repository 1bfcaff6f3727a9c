"""The signing RPC, `istio.v1.auth.IstioCertificateService/CreateCertificate`, and who may call.

The app puts `handler` on the control plane's gRPC server, and gives `Authenticator` to the ADS server
too: both know callers by their bearer tokens alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc

from control_plane.ca.attestation import AttestationError, Attestor, AttestorUnavailable
from control_plane.ca.authority import AuthorityExpired, CertificateAuthority, SigningError
from control_plane.ca.issued import IssuedCertificates
from control_plane.ca.token_review import TokenReviews
from control_plane.model.discovery import Identity
from mesh_api import ca_pb2
from mesh_api.names import CA_AUDIENCE

SERVICE = "istio.v1.auth.IstioCertificateService"
MAX_ASKED_SECONDS = 10 * 365 * 86400

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trust:
    """What the control plane signs with, and whom it believes."""

    authority: CertificateAuthority
    attestor: Attestor
    reviews: TokenReviews | None = None
    """Of the attestor, where there is a cluster to ask; for metrics."""


class Authenticator:
    """Tells the account behind a call from its `authorization` metadata."""

    def __init__(self, attestor: Attestor) -> None:
        self._attestor = attestor
        self.refused = 0
        self.unavailable = 0

    def __repr__(self) -> str:
        return f"<Authenticator {self._attestor!r} refused={self.refused}>"

    async def __call__(self, context: Any) -> Identity:
        """The caller's account. Otherwise the call ends, with UNAUTHENTICATED, or with UNAVAILABLE when
        nobody can tell now, and this does not return."""
        try:
            return await self._attestor.attest(_bearer_token(context.invocation_metadata() or ()))
        except AttestationError as error:
            self.refused += 1
            log.warning("authentication refused peer=%s reason=%r", context.peer(), str(error))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            raise
        except AttestorUnavailable as error:
            self.unavailable += 1
            log.warning("authentication not possible peer=%s reason=%r", context.peer(), str(error))
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            raise


def _bearer_token(metadata: Any) -> str:
    for key, value in metadata:
        if key == "authorization":
            scheme, _, token = value.partition(" ")
            if scheme.lower() != "bearer" or not token.strip():
                raise AttestationError("metadata `authorization` is not of the form `Bearer TOKEN`")
            return str(token.strip())
    raise AttestationError(
        "no token: send metadata `authorization: Bearer TOKEN`, with a token of the workload's account "
        f"(system:serviceaccount:NAMESPACE:ACCOUNT) for audience {CA_AUDIENCE!r}"
    )


class CertificateService:
    """Answers signing requests with certificates for the caller's account."""

    def __init__(self, authority: CertificateAuthority, authenticate: Authenticator) -> None:
        self._authority = authority
        self._authenticate = authenticate
        self.issued = IssuedCertificates()
        self.signed = 0
        self.refused = 0

    def __repr__(self) -> str:
        return f"<CertificateService signed={self.signed} refused={self.refused}>"

    def handler(self) -> Any:
        """For `grpc.aio.Server.add_generic_rpc_handlers`."""
        method = grpc.unary_unary_rpc_method_handler(
            self._create,
            request_deserializer=ca_pb2.IstioCertificateRequest.FromString,
            response_serializer=ca_pb2.IstioCertificateResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"CreateCertificate": method})

    async def _create(self, request: Any, context: Any) -> Any:
        identity = await self._authenticate(context)
        # Bounded before it becomes a timedelta, which overflows.
        asked = timedelta(seconds=max(-1, min(request.validity_duration, MAX_ASKED_SECONDS)))
        try:
            issued = self._authority.sign_workload(request.csr, identity, asked)
        except SigningError as error:
            self.refused += 1
            log.warning("certificate refused identity=%s reason=%r", identity, str(error))
            expired = isinstance(error, AuthorityExpired)
            code = grpc.StatusCode.FAILED_PRECONDITION if expired else grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, str(error))
        self.signed += 1
        self.issued.record(identity, context.peer(), issued.not_after)
        log.info("certificate signed identity=%s not_after=%s", identity, issued.not_after.isoformat())
        return ca_pb2.IstioCertificateResponse(cert_chain=issued.chain)
