"""ADS and signing over real gRPC and TLS: tokens, pushes, reconnects, and a proxyless gRPC client."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.service.discovery.v3 import discovery_pb2

from control_plane import app
from control_plane.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTE
from mesh_api import ca_pb2
from tests.support.xds_source import ADS, Plane, cluster, endpoints, serve

DELTA = discovery_pb2.DeltaDiscoveryRequest
CREATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"


def run(scenario: Callable[[Plane], Awaitable[None]], directory: Path, **settings: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), Plane(directory, **settings) as plane:
            await scenario(plane)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110, what is waited for is another process' doing
            await asyncio.sleep(0.005)


async def failure_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if hasattr(call, "read") else call)
    return caught.value.code(), caught.value.details() or ""


def signing_request() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def test_a_change_reaches_its_watchers_and_nobody_else(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        plane.source.put(ROUTE, "a", b"A")
        plane.source.put(ROUTE, "b", b"B")
        streams = {name: plane.stream(plane.token()) for name in "ab"}
        for name, stream in streams.items():
            await stream.write(DELTA(node={"id": name}, type_url=ROUTE, resource_names_subscribe=[name]))
            response = await stream.read()
            assert [r.name for r in response.resources] == [name]
            await stream.write(DELTA(type_url=ROUTE, response_nonce=response.nonce))
        await until(lambda: all(client.in_step for client in plane.app.discovery.clients()))
        looked_up = len(plane.source.asked)
        plane.source.tell(plane.source.put(ROUTE, "b", b"B2"))
        response = await streams["b"].read()
        assert response.resources[0].resource.value == b"B2"
        assert [node.id for node, _, _ in plane.source.asked[looked_up:]] == ["b"]

    run(scenario, tmp_path)


def test_a_burst_of_changes_is_one_push(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        stream = plane.stream(plane.token())
        names = [f"r{number}" for number in range(20)]
        await stream.write(DELTA(node={"id": "n"}, type_url=ROUTE, resource_names_subscribe=names))
        response = await stream.read()
        await stream.write(DELTA(type_url=ROUTE, response_nonce=response.nonce))
        for name in names:
            plane.source.tell(plane.source.put(ROUTE, name, name.encode()))
        response = await stream.read()
        assert sorted(r.name for r in response.resources) == sorted(names)

    run(scenario, tmp_path, push_quiet=timedelta(milliseconds=50))


def test_the_identity_comes_from_the_token_and_the_address_from_the_node(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        stream = plane.stream(plane.token("shop/orders"), delta=False)
        node = {
            "id": "claims/admin",
            "user_agent_name": "envoy",
            "metadata": {"WORKLOAD_IP": "127.0.0.7", "NAMESPACE": "kube-system"},
        }
        await stream.write(discovery_pb2.DiscoveryRequest(node=node, type_url=CLUSTER))
        await stream.read()
        [client] = plane.app.discovery.clients()
        assert str(client.node.identity) == "shop/orders"
        assert client.node.namespace == "shop"
        assert client.node.address == "127.0.0.7"
        assert client.node.dialect.value == "envoy"
        assert client.variant == "sotw"

    run(scenario, tmp_path)


@pytest.mark.parametrize("delta", [True, False])
def test_streams_without_a_good_token_end_unauthenticated(tmp_path: Path, delta: bool) -> None:
    async def scenario(plane: Plane) -> None:
        code, text = await failure_of(plane.stream(None, delta))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "authorization: Bearer TOKEN" in text
        assert "system:serviceaccount:NAMESPACE:ACCOUNT" in text
        code, text = await failure_of(plane.stream("nonsense", delta))
        assert (code, text.partition(":")[0]) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "the token is not a valid JWT",
        )
        method = plane.channel.stream_stream(f"{ADS}/DeltaAggregatedResources")
        code, text = await failure_of(method(metadata=[("authorization", "Basic dXNlcg==")]))
        assert (code, text) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "metadata `authorization` is not of the form `Bearer TOKEN`",
        )
        assert plane.app.discovery.clients() == []

    run(scenario, tmp_path)


def test_requests_that_are_no_messages_end_their_stream_alone(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        good = plane.stream(plane.token())
        plane.source.put(ROUTE, "a", b"A")
        await good.write(DELTA(node={"id": "good"}, type_url=ROUTE, resource_names_subscribe=["a"]))
        await good.read()
        method = plane.channel.stream_stream(f"{ADS}/DeltaAggregatedResources")
        for bad in (b"\xff\xff\xff", b""):
            stream = method(metadata=[("authorization", f"Bearer {plane.token()}")])
            await stream.write(bad)
            code, text = await failure_of(stream)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "DeltaDiscoveryRequest" in text or "type_url" in text
        await good.write(DELTA(type_url=ROUTE, resource_names_subscribe=["missing"]))
        await until(lambda: [client.node.id for client in plane.app.discovery.clients()] == ["good"])

    run(scenario, tmp_path)


def test_a_client_that_goes_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        streams = [plane.stream(plane.token()) for _ in range(3)]
        for stream in streams:
            await stream.write(DELTA(node={"id": "n"}, type_url=ROUTE, resource_names_subscribe=["a"]))
            await stream.read()
        assert len(plane.app.discovery.clients()) == 3
        streams[0].cancel()
        await streams[1].done_writing()
        assert await streams[1].read() is grpc.aio.EOF
        await until(lambda: len(plane.app.discovery.clients()) == 1)
        streams[2].cancel()
        await until(lambda: plane.app.discovery.clients() == [])
        assert "names=0 types=[]" in repr(plane.app.discovery)

    run(scenario, tmp_path)


def test_nothing_is_answered_before_a_configuration_was_read(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        plane.loaded = False
        code, text = await failure_of(plane.stream(plane.token()))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "no configuration without errors has been read yet" in text
        create = plane.channel.unary_unary(
            CREATE,
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )
        metadata = [("authorization", f"Bearer {plane.token()}")]
        response = await create(ca_pb2.IstioCertificateRequest(csr=signing_request()), metadata=metadata)
        assert len(response.cert_chain) == 2, "certificates are signed all the same"

    run(scenario, tmp_path)


def test_signing_gives_the_token_s_identity_and_refuses_the_rest(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        create = plane.channel.unary_unary(
            CREATE,
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )
        metadata = [("authorization", f"Bearer {plane.token('shop/users')}")]
        request = ca_pb2.IstioCertificateRequest(csr=signing_request(), validity_duration=10)
        response = await create(request, metadata=metadata)
        leaf = x509.load_pem_x509_certificate(response.cert_chain[0].encode())
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [name.value for name in san] == ["spiffe://cluster.local/ns/shop/sa/users"]
        assert leaf.not_valid_after_utc <= datetime.now(UTC) + timedelta(seconds=10)
        assert response.cert_chain[-1] == plane.app.authority.root_pem

        code, text = await failure_of(create(request))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        bad = ca_pb2.IstioCertificateRequest(csr="nonsense")
        code, text = await failure_of(create(bad, metadata=metadata))
        assert (code, "not a PEM PKCS #10 request" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        for seconds in (-1, -(2**63)):
            bad = ca_pb2.IstioCertificateRequest(csr=signing_request(), validity_duration=seconds)
            code, text = await failure_of(create(bad, metadata=metadata))
            assert (code, "negative" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        huge = ca_pb2.IstioCertificateRequest(csr=signing_request(), validity_duration=2**63 - 1)
        assert len((await create(huge, metadata=metadata)).cert_chain) == 2

    run(scenario, tmp_path)


def serving_serial(port: int, ca: str) -> int:
    """Serial number of the certificate that a new connection gets."""
    context = ssl.create_default_context(cadata=ca)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as tcp,
        context.wrap_socket(tcp, server_hostname="localhost") as tls,
    ):
        return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"").serial_number


def test_the_control_plane_renews_its_own_certificate_while_it_serves(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        stream = plane.stream(plane.token())
        await stream.write(DELTA(node={"id": "n"}, type_url=ROUTE, resource_names_subscribe=["a"]))
        await stream.read()
        ca = plane.app.authority.root_pem
        first = await asyncio.to_thread(serving_serial, plane.app.port, ca)
        assert await asyncio.to_thread(serving_serial, plane.app.port, ca) == first
        async with asyncio.timeout(20):
            while await asyncio.to_thread(serving_serial, plane.app.port, ca) == first:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await stream.write(DELTA(type_url=ROUTE, resource_names_subscribe=["still-open"]))
        assert len(plane.app.discovery.clients()) == 1

    run(scenario, tmp_path, max_leaf_lifetime=timedelta(seconds=4))


def test_stopping_ends_streams_in_good_order(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        stream = plane.stream(plane.token())
        await stream.write(DELTA(node={"id": "n"}, type_url=ROUTE, resource_names_subscribe=["a"]))
        await stream.read()
        await plane.app.stop()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK

    run(scenario, tmp_path)


def test_clients_are_asked_to_reconnect_when_their_connection_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "CONNECTION_GRACE", timedelta(seconds=0.2))

    async def scenario(plane: Plane) -> None:
        stream = plane.stream(plane.token())
        await stream.write(DELTA(node={"id": "n"}, type_url=ROUTE, resource_names_subscribe=["a"]))
        await stream.read()
        code, _ = await failure_of(stream)
        assert code is grpc.StatusCode.UNAVAILABLE
        again = plane.stream(plane.token())
        await again.write(DELTA(node={"id": "n"}, type_url=ROUTE, resource_names_subscribe=["a"]))
        assert list((await again.read()).removed_resources) == ["a"]

    run(scenario, tmp_path, max_connection_age=timedelta(seconds=1))


CLIENT = """
import sys, grpc
channel = grpc.insecure_channel("xds:///greeter")
call = channel.unary_unary("/greeter/Hello")
for line in sys.stdin:
    try:
        print(call(b"hi", timeout=10, wait_for_ready=True).decode(), flush=True)
    except grpc.RpcError as error:
        print("error", error.code(), error.details(), flush=True)
"""


async def greeter(name: str) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server()

    async def hello(_request: bytes, _context: Any) -> bytes:
        return name.encode()

    method = grpc.unary_unary_rpc_method_handler(hello)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("greeter", {"Hello": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


def proxyless_environment(plane: Plane, directory: Path) -> dict[str, str]:
    """What makes grpcio ask this control plane, with a join token read from a file."""
    token = directory / "token"
    token.write_text(plane.token("shop/users"))
    bootstrap = {
        "xds_servers": [
            {
                "server_uri": f"localhost:{plane.app.port}",
                "channel_creds": [
                    {"type": "tls", "config": {"ca_certificate_file": str(directory / "ca" / "root.pem")}}
                ],
                "call_creds": [{"type": "jwt_token_file", "config": {"jwt_token_file": str(token)}}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {"id": "proxyless"},
    }
    return {
        **os.environ,
        "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap),
        "GRPC_EXPERIMENTAL_XDS_BOOTSTRAP_CALL_CREDS": "true",
    }


def test_a_proxyless_grpc_client_is_routed_and_follows_changes(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        one, first_port = await greeter("one")
        two, second_port = await greeter("two")
        serve(plane.source, "greeter", "members", first_port)
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CLIENT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=proxyless_environment(plane, tmp_path),
        )
        assert client.stdin is not None
        assert client.stdout is not None

        async def call() -> str:
            client.stdin.write(b"\n")  # type: ignore[union-attr]
            return (await client.stdout.readline()).decode().strip()  # type: ignore[union-attr]

        try:
            assert await call() == "one"
            [status] = plane.app.discovery.clients()
            assert (str(status.node.identity), status.node.dialect.value) == ("shop/users", "grpc")
            await until(lambda: all(c.in_step for c in plane.app.discovery.clients()))
            plane.source.tell(plane.source.put(ENDPOINTS, "members", endpoints("members", second_port)))
            async with asyncio.timeout(20):
                while await call() != "two":
                    pass

            # A cluster that gRPC refuses: it says why, keeps the old one and is not sent it again.
            bad = cluster("members", lbPolicy="MAGLEV")
            plane.source.tell(plane.source.put(CLUSTER, "members", bad))
            await until(lambda: any(c.nacks for c in plane.app.discovery.clients()))
            [status] = plane.app.discovery.clients()
            [nack] = status.nacks
            assert (nack.type_url, nack.names) == (CLUSTER, ("members",))
            assert nack.text
            pushes = plane.app.discovery.counts.pushes
            assert await call() == "two"
            code, page = await plane.get("/")
            assert code == 200
            assert "CDS refused members" in page
            await asyncio.sleep(0.1)
            assert plane.app.discovery.counts.pushes == pushes
        finally:
            client.stdin.close()
            await client.wait()
            await one.stop(0)
            await two.stop(0)

    run(scenario, tmp_path)


def test_listeners_of_one_target_say_at_once_that_it_does_not_exist(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        stream = plane.stream(plane.token(), delta=False)
        request = discovery_pb2.DiscoveryRequest(
            node={"id": "n"}, type_url=LISTENER, resource_names=["nowhere"]
        )
        await stream.write(request)
        response = await stream.read()
        assert (list(response.resources), response.type_url) == ([], LISTENER)

    run(scenario, tmp_path)
