"""The signing call against a real grpcio server over TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from mesh_api.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from sidecar.config.resources import CaProviderConfig, SocketAddress
from sidecar.identity.ca_client import METHOD, CaClient
from sidecar.identity.certificate_provider import CertificateProvider, SigningError
from sidecar.net.grpc_client import GrpcChannel
from tests.support.certs import make_ca
from tests.support.connections import client_tls, run
from tests.support.grpc_server import grpc_server

USERS = "spiffe://cluster.local/ns/shop/sa/users"


def _sign(port: int, token_file: Path) -> list[str]:
    async def main() -> list[str]:
        channel = GrpcChannel(asyncio.get_running_loop(), [SocketAddress("127.0.0.1", port)], "ca", None)
        try:
            return await CaClient(channel, str(token_file)).sign(b"CSR", 60.4)
        finally:
            await channel.close()

    return run(main)


def _answer(tokens: list[str]) -> Callable[[bytes, Any], bytes]:
    def answer(request: bytes, context: Any) -> bytes:
        message = IstioCertificateRequest.FromString(request)
        assert (message.csr, message.validity_duration) == ("CSR", 60)
        tokens.append(dict(context.invocation_metadata())["authorization"])
        return IstioCertificateResponse(cert_chain=["leaf", "root"]).SerializeToString()

    return answer


def test_token_is_read_anew_for_each_call(tmp_path: Path) -> None:
    token_file, tokens = tmp_path / "token", list[str]()
    with grpc_server({METHOD: _answer(tokens)}) as port:
        for token in ("one", "two\n"):
            token_file.write_text(token)
            assert _sign(port, token_file) == ["leaf", "root"]
    assert tokens == ["Bearer one", "Bearer two"]


def test_refusal_carries_the_servers_words_and_address(tmp_path: Path) -> None:
    def refuse(_: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "token expired")
        raise AssertionError

    (tmp_path / "token").write_text("old")
    with grpc_server({METHOD: refuse}) as port, pytest.raises(SigningError) as caught:
        _sign(port, tmp_path / "token")
    text = f"the control plane did not sign: gRPC status 16: 127.0.0.1:{port}: token expired"
    assert str(caught.value) == text


def test_missing_and_empty_token_are_named(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    with pytest.raises(SigningError, match=f"cannot read token file {token_file}: No such file or directory"):
        _sign(1, token_file)
    token_file.write_text("\n")
    with pytest.raises(SigningError, match=f"token file {token_file} is empty"):
        _sign(1, token_file)


def test_provider_gets_its_certificate_through_the_wire(tmp_path: Path) -> None:
    ca = make_ca()
    files = ca.write_files(tmp_path, dns=["control-plane"])
    (tmp_path / "token").write_text("join")

    def sign(request: bytes, context: Any) -> bytes:
        message = IstioCertificateRequest.FromString(request)
        chain = ca.sign_csr(message.csr.encode(), USERS, message.validity_duration)
        return IstioCertificateResponse(cert_chain=chain).SerializeToString()

    async def main(port: int) -> None:
        loop = asyncio.get_running_loop()
        tls = client_tls(files, certificate=False, sni="control-plane")
        channel = GrpcChannel(loop, [SocketAddress("127.0.0.1", port)], "control-plane", lambda: tls)
        config = CaProviderConfig("mesh", "control-plane", str(tmp_path / "token"), USERS, 600.0)
        client = CaClient(channel, config.token_file)
        provider = CertificateProvider(config, client.sign, loop, Random(1))
        provider.start()
        async with asyncio.timeout(5):
            await provider.ready()
        assert provider.spiffe_id == USERS
        await provider.stop()
        await channel.close()

    with grpc_server({METHOD: sign}, tls=ca.issue(dns=["control-plane"])) as port:
        run(lambda: main(port))
