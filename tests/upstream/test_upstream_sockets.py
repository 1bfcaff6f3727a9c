"""Pools on real sockets, with the real codecs at both ends."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from random import Random

import pytest

from sidecar.config.resources import (
    ClusterConfig,
    Discovery,
    EndpointConfig,
    EndpointsConfig,
    Http2Options,
    LocalityEndpoints,
    SocketAddress,
    StringMatcher,
    TlsConfig,
)
from sidecar.identity.tls_contexts import TlsContexts
from sidecar.net.connect import connect
from sidecar.net.peer import PeerInfo
from sidecar.protocol.events import (
    Codec,
    ConnectionHandler,
    ErrorCode,
    Field,
    RequestHead,
    Reset,
    ResponseHead,
    Stream,
)
from sidecar.protocol.h1 import H1ClientCodec, H1Options, H1ServerCodec
from sidecar.protocol.h2 import H2Codec, H2Options
from sidecar.protocol.raw import RawCodec
from sidecar.telemetry.metrics import Metrics
from sidecar.upstream.cluster import Cluster
from sidecar.upstream.cluster_manager import ClusterManager
from sidecar.upstream.endpoint import Endpoint
from tests.support.certs import CertificateFiles, make_ca
from tests.support.connections import Owner, Server, run, server_tls, until

GET = RequestHead(b"GET", b"http", b"users", b"/")


class Application:
    """Server side: answers every request with 200 when `answer` says so. One for all its connections."""

    def __init__(self, http2: bool = True, max_streams: int = 100) -> None:
        self.http2 = http2
        self.max_streams = max_streams
        self.codecs: list[Codec] = []
        self.waiting: list[Stream] = []
        self.hold = False

    def make_codec(self) -> Codec:
        codec: Codec
        if self.http2:
            codec = H2Codec(False, self, H2Options(max_concurrent_streams=self.max_streams))
        else:
            codec = H1ServerCodec(self, H1Options())
        self.codecs.append(codec)
        return codec

    def on_request(self, stream: Stream, head: RequestHead, end_stream: bool) -> None:
        stream.handler = Client()
        if self.hold:
            self.waiting.append(stream)
        else:
            stream.send_response(ResponseHead(200, ((b"content-length", b"0"),)), True)

    def on_ready(self) -> None: ...
    def on_capacity(self) -> None: ...
    def on_goaway(self) -> None: ...
    def on_closed(self, reason: str) -> None: ...


class Client:
    """A waiter that sends GET as soon as it has a stream."""

    def __init__(self, sends_request: bool = True) -> None:
        self.sends_request = sends_request
        self.stream: Stream | None = None
        self.peer: PeerInfo | None = None
        self.status = 0
        self.data = b""
        self.ended = False
        self.failures: list[str] = []
        self.resets: list[Reset] = []

    def on_stream(self, stream: Stream, peer: PeerInfo) -> None:
        self.stream, self.peer = stream, peer
        if self.sends_request:
            stream.send_request(GET, True)

    def on_connect_failure(self, reason: str, overflow: bool) -> None:
        self.failures.append(reason)

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        self.status = head.status

    def on_data(self, data: bytes, end_stream: bool) -> None:
        self.data += data
        self.ended = end_stream
        if self.stream is not None:
            self.stream.consume(len(data))

    def on_reset(self, reset: Reset) -> None:
        self.resets.append(reset)

    def on_informational(self, head: ResponseHead) -> None: ...
    def on_trailers(self, fields: tuple[Field, ...]) -> None: ...
    def on_sent(self, n: int) -> None: ...

    @property
    def done(self) -> bool:
        return bool(self.status or self.failures or self.resets)


def make_h2(handler: ConnectionHandler, options: Http2Options, trusted_peer: bool) -> Codec:
    return H2Codec(True, handler, H2Options(trusted_peer=trusted_peer))


def make_h1(handler: ConnectionHandler) -> Codec:
    return H1ClientCodec(handler, H1Options())


def make_raw(handler: ConnectionHandler) -> Codec:
    return RawCodec(handler)


def make_manager() -> ClusterManager:
    loop = asyncio.get_running_loop()
    return ClusterManager(loop, Metrics(), TlsContexts({}), Random(1), make_h2, make_h1, make_raw, connect)


def configured(manager: ClusterManager, port: int, **changes: object) -> tuple[Cluster, Endpoint]:
    members = (EndpointConfig(SocketAddress(str(changes.pop("host", "127.0.0.1")), port)),)
    endpoints = EndpointsConfig("c", (LocalityEndpoints("", "", "", 0, 1, members),))
    config = ClusterConfig("c", endpoints=endpoints, **changes)  # type: ignore[arg-type]
    manager.apply({"c": config})
    cluster = manager.get("c")
    assert cluster is not None
    return cluster, cluster.endpoints[0]


async def get(endpoint: Endpoint) -> Client:
    client = Client()
    endpoint.acquire(client)
    await until(lambda: client.done)
    return client


def test_fifty_requests_travel_on_one_http2_connection() -> None:
    async def main() -> None:
        application = Application()
        async with Server(Owner(application.make_codec)) as server:
            manager = make_manager()
            cluster, endpoint = configured(manager, server.port, http2=Http2Options())
            clients = [Client() for _ in range(50)]
            for client in clients:
                endpoint.acquire(client)
            await until(lambda: all(client.done for client in clients))
            assert {client.status for client in clients} == {200}
            assert len(server.connections) == 1
            assert cluster.stats.connections_opened == 1
            await manager.close()

    run(main)


def test_the_peers_limit_of_streams_makes_more_connections() -> None:
    async def main() -> None:
        application = Application(max_streams=4)
        application.hold = True
        async with Server(Owner(application.make_codec)) as server:
            manager = make_manager()
            _, endpoint = configured(manager, server.port, http2=Http2Options())
            clients = [Client() for _ in range(10)]
            for client in clients:
                endpoint.acquire(client)
            await until(lambda: len(application.waiting) == 10)
            assert len(server.connections) == 3
            for stream in application.waiting:
                stream.send_response(ResponseHead(204), True)
            await until(lambda: all(client.done for client in clients))
            assert {client.status for client in clients} == {204}
            await manager.close()

    run(main)


def test_http2_drains_in_the_middle_of_requests_and_none_is_lost() -> None:
    async def main() -> None:
        application = Application()
        async with Server(Owner(application.make_codec)) as server:
            manager = make_manager()
            _, endpoint = configured(manager, server.port, http2=Http2Options())
            application.hold = True
            early = Client()
            endpoint.acquire(early)
            await until(lambda: application.waiting)
            application.codecs[0].drain(True)
            await until(lambda: not endpoint.pool._usable)
            application.hold = False
            assert (await get(endpoint)).status == 200
            application.waiting[0].send_response(ResponseHead(200), True)
            await until(lambda: early.done)
            assert early.status == 200
            await until(lambda: endpoint.connections == 1)
            await manager.close()

    run(main)


def test_http1_reuses_its_connection_and_closes_it_when_idle() -> None:
    async def main() -> None:
        application = Application(http2=False)
        async with Server(Owner(application.make_codec)) as server:
            manager = make_manager()
            cluster, endpoint = configured(manager, server.port, idle_timeout=0.5)
            for _ in range(5):
                assert (await get(endpoint)).status == 200
            assert len(server.connections) == 1
            await until(lambda: endpoint.connections == 0)
            assert cluster.stats.connections_active == 0
            assert (await get(endpoint)).status == 200
            assert len(server.connections) == 2
            await manager.close()

    run(main)


def test_a_refused_connection_names_the_address_and_the_cause() -> None:
    async def main() -> None:
        manager = make_manager()
        with socket.socket() as bound:  # without listening: connections are refused, and nobody else has it
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            cluster, endpoint = configured(manager, port, http2=Http2Options())
            client = await get(endpoint)
        assert client.failures == [f"cannot connect to 127.0.0.1:{port}: connection refused"]
        assert cluster.stats.connect_failures == 1
        await manager.close()

    run(main)


@pytest.mark.parametrize("http2", [True, False])
def test_a_server_that_never_speaks_is_given_up(http2: bool) -> None:
    """HTTP/2 counts SETTINGS as part of connecting; HTTP/1.1 has nothing to wait for."""

    async def main() -> None:
        async with Server(Owner()) as server:
            manager = make_manager()
            options = Http2Options() if http2 else None
            _, endpoint = configured(manager, server.port, http2=options, connect_timeout=0.2)
            client = Client()
            endpoint.acquire(client)
            if http2:
                await until(lambda: client.done)
                assert "no HTTP/2 SETTINGS came within 0.2 s" in client.failures[0]
            else:
                await asyncio.sleep(0.3)
                assert client.stream is not None
                assert client.failures == []
            await manager.close()

    run(main)


def test_a_name_is_resolved_when_connecting() -> None:
    async def main() -> None:
        application = Application()
        async with Server(Owner(application.make_codec)) as server:
            manager = make_manager()
            cluster = manager.passthrough("localhost", server.port, True)
            assert (await get(cluster.endpoints[0])).status == 200
            await manager.close()

    run(main)


def test_strict_dns_on_the_system_resolver() -> None:
    async def main() -> None:
        application = Application()
        async with Server(Owner(application.make_codec)) as server:
            manager = make_manager()
            cluster, _ = configured(
                manager, server.port, host="localhost", discovery=Discovery.STRICT_DNS, http2=Http2Options()
            )
            await until(lambda: any(e.address.host == "127.0.0.1" for e in cluster.endpoints))
            (endpoint,) = (e for e in cluster.endpoints if e.address.host == "127.0.0.1")
            assert (await get(endpoint)).status == 200
            await manager.close()

    run(main)


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return make_ca().write_files(tmp_path, "spiffe://cluster.local/ns/shop/sa/users")


def client_config(files: CertificateFiles, *, certificate: bool = True, san: str = "users") -> TlsConfig:
    return TlsConfig(
        certificate_file=files.certificate if certificate else "",
        private_key_file=files.private_key if certificate else "",
        trusted_ca_file=files.ca,
        uri_san_matchers=(StringMatcher("exact", f"spiffe://cluster.local/ns/shop/sa/{san}"),),
        alpn=("h2",),
    )


def test_mutual_tls_shows_the_peer_to_the_waiter(files: CertificateFiles) -> None:
    async def main() -> None:
        application = Application()
        async with Server(Owner(application.make_codec), server_tls(files)) as server:
            manager = make_manager()
            _, endpoint = configured(manager, server.port, http2=Http2Options(), tls=client_config(files))
            client = await get(endpoint)
            assert client.status == 200, client.failures
            assert client.peer is not None
            assert client.peer.uri_sans == ("spiffe://cluster.local/ns/shop/sa/users",)
            assert client.peer.alpn == "h2"
            await manager.close()

    run(main)


def test_a_peer_with_another_identity_is_a_connect_failure(files: CertificateFiles) -> None:
    async def main() -> None:
        application = Application()
        async with Server(Owner(application.make_codec), server_tls(files)) as server:
            manager = make_manager()
            tls = client_config(files, san="orders")
            cluster, endpoint = configured(manager, server.port, http2=Http2Options(), tls=tls)
            client = await get(endpoint)
            assert len(client.failures) == 1
            assert "spiffe://cluster.local/ns/shop/sa/users" in client.failures[0]
            assert cluster.stats.connections_opened == 0
            await manager.close()

    run(main)


def test_a_refused_client_certificate_is_a_connect_failure_not_a_lost_request(
    files: CertificateFiles,
) -> None:
    """Under TLS 1.3 the client's handshake is over before the server has looked at its certificate."""

    async def main() -> None:
        application = Application()
        async with Server(Owner(application.make_codec), server_tls(files, mutual=True)) as server:
            manager = make_manager()
            tls = client_config(files, certificate=False)
            cluster, endpoint = configured(manager, server.port, http2=Http2Options(), tls=tls)
            client = await get(endpoint)
            assert client.resets == []
            assert "certificate" in client.failures[0]
            assert str(server.port) in client.failures[0]
            assert cluster.stats.connections_opened == 0
            await manager.close()

    run(main)


# --- opaque TCP ----------------------------------------------------------------------------------


def test_tcp_streams_carry_bytes_and_half_close() -> None:
    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            everything = await reader.read()  # until our FIN
            writer.write(everything[::-1])
            writer.close()

        listener = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        manager = make_manager()
        cluster, endpoint = configured(manager, port)
        clients = [Client(sends_request=False) for _ in range(3)]
        for client in clients:
            endpoint.acquire_tcp(client)
        await until(lambda: all(client.stream for client in clients))
        for number, client in enumerate(clients):
            assert client.stream is not None
            client.stream.send_data(b"abc%d" % number, True)
        await until(lambda: all(client.ended for client in clients))
        assert [client.data for client in clients] == [b"0cba", b"1cba", b"2cba"]
        await until(lambda: endpoint.connections == 0)
        assert cluster.stats.connections_opened == 3
        listener.close()
        await manager.close()

    run(main)


def test_cancelling_a_stream_frees_its_place() -> None:
    async def main() -> None:
        application = Application(max_streams=1)
        application.hold = True
        async with Server(Owner(application.make_codec)) as server:
            manager = make_manager()
            _, endpoint = configured(manager, server.port, http2=Http2Options())
            first = Client()
            endpoint.acquire(first)
            await until(lambda: application.waiting)
            assert first.stream is not None
            first.stream.reset(ErrorCode.CANCEL)
            application.hold = False
            assert (await get(endpoint)).status == 200
            assert len(server.connections) == 1
            await manager.close()

    run(main)
