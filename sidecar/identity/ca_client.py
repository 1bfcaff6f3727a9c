"""Has certificates signed by the control plane: `istio.v1.auth.IstioCertificateService/CreateCertificate`.

`CaClient.sign` is what a `CertificateProvider` is made with. The token is read for each call, because
the kubelet replaces it on disk, and is never logged.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from mesh_api.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from sidecar.identity.certificate_provider import SigningError
from sidecar.net.grpc_client import GrpcChannel, GrpcError
from sidecar.protocol.events import Field

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
TIMEOUT = 10.0


class CaClient:
    """Signs through `channel`, authenticated by the token in `token_file` ("" sends none)."""

    def __init__(self, channel: GrpcChannel, token_file: str) -> None:
        self._channel = channel
        self._token_file = token_file

    async def sign(self, csr_pem: bytes, ttl: float) -> list[str]:
        """The chain for a PEM request, leaf first, root last, good for `ttl` seconds. Raises SigningError."""
        request = IstioCertificateRequest(csr=csr_pem.decode("ascii"), validity_duration=round(ttl))
        try:
            reply = await self._channel.unary(
                METHOD, request.SerializeToString(), self._credentials(), TIMEOUT
            )
            return list(IstioCertificateResponse.FromString(reply).cert_chain)
        except GrpcError as error:
            raise SigningError(f"the control plane did not sign: {error}") from error
        except DecodeError as error:
            raise SigningError(
                f"the control plane's answer is not an IstioCertificateResponse: {error}"
            ) from error

    def _credentials(self) -> tuple[Field, ...]:
        if not self._token_file:
            return ()
        try:
            with open(self._token_file, "rb") as file:
                token = file.read().strip()
        except OSError as error:
            raise SigningError(f"cannot read token file {self._token_file}: {error.strerror}") from error
        if not token:
            raise SigningError(f"token file {self._token_file} is empty")
        return ((b"authorization", b"Bearer " + token),)

    def __repr__(self) -> str:
        return f"<CaClient {self._channel!r} token_file={self._token_file}>"
