"""TLS as hostile, mistaken and ordinary peers meet it: alerts, truncation, ALPN, storms, memory."""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.config.resources import SocketAddress
from sidecar.net.connect import connect
from sidecar.net.connection import Connection
from sidecar.net.connection_types import ConnectError
from sidecar.net.tls import TlsParameters, TlsSession
from tests.support.certs import CertificateFiles, make_ca
from tests.support.connections import (
    HalfClosingCodec,
    Owner,
    RecordingCodec,
    Server,
    client_tls,
    run,
    server_tls,
    until,
)

IDENTITY = "spiffe://cluster.local/ns/shop/sa/users"


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return make_ca().write_files(tmp_path, IDENTITY, ["localhost"])


async def dial(server: Server, owner: Owner, tls: TlsParameters | None) -> Connection:
    return await connect(asyncio.get_running_loop(), SocketAddress("127.0.0.1", server.port), owner, tls, 5.0)


def _failure(server: TlsParameters, client: TlsParameters) -> tuple[str, str]:
    """(why the client's connect failed, what the server's owner was told), without addresses."""

    async def main() -> tuple[str, str]:
        owner = Owner()
        async with Server(owner, server) as listener:
            with pytest.raises(ConnectError) as caught:
                await dial(listener, Owner(), client)
            assert caught.value.stage == "tls"
            assert f"TLS handshake with 127.0.0.1:{listener.port} failed: " in caught.value.reason
            await until(lambda: owner.lost or owner.secured)
            lost = owner.lost[0] if owner.lost else ""
            return caught.value.reason.partition("failed: ")[2], lost.partition("failed: ")[2]

    return run(main)


def test_both_ends_learn_identity_alpn_and_server_name(files: CertificateFiles) -> None:
    async def main() -> None:
        owner = Owner(RecordingCodec)
        async with Server(owner, server_tls(files, alpn=("pilotfish-h2", "h2"))) as server:
            client = await dial(server, Owner(RecordingCodec), client_tls(files, sni="localhost"))
            await until(lambda: owner.secured)
            for peer in (client.peer, owner.secured[0].peer):
                assert (peer.tls, peer.alpn, peer.uri_sans) == (True, "h2", (IDENTITY,))
                assert len(peer.cert_sha256) == 64
            assert owner.secured[0].sni == "localhost"
            client.close()

    run(main)


def test_untrusted_server_is_refused_and_hears_the_alert(files: CertificateFiles, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = make_ca("another CA").write_files(tmp_path / "other", IDENTITY)
    assert _failure(server_tls(files), client_tls(stranger)) == (
        "certificate verify failed: unable to get local issuer certificate",
        "peer sent TLS alert: unknown ca",
    )


def test_expired_server_certificate_is_refused(files: CertificateFiles, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    ca = make_ca()
    good = ca.write_files(tmp_path, IDENTITY)
    old = ca.write_files(tmp_path / "old", IDENTITY, lifetime=-10)
    assert _failure(server_tls(old, mutual=False), client_tls(good)) == (
        "certificate verify failed: certificate has expired",
        "peer sent TLS alert: certificate expired",
    )


def test_alpn_without_agreement_fails(files: CertificateFiles) -> None:
    reason, _ = _failure(server_tls(files, alpn=("h2",)), client_tls(files, alpn=("http/1.1",)))
    assert reason == "ALPN: peer agreed to none, needed is http/1.1"


def test_peer_check_refuses_by_its_text(files: CertificateFiles) -> None:
    parameters = client_tls(files)
    strict = TlsParameters(parameters.context, None, (), lambda peer: f"not {peer.uri_sans[0]}")
    assert _failure(server_tls(files), strict)[0] == f"not {IDENTITY}"


def test_refused_client_certificate_is_named_in_the_loss(files: CertificateFiles) -> None:
    async def main() -> None:
        owner, codec = Owner(), RecordingCodec()
        async with Server(owner, server_tls(files)) as server:
            await dial(server, Owner(lambda: codec), client_tls(files, certificate=False))
            await until(lambda: codec.lost and owner.lost)
            address = f"127.0.0.1:{server.port}"
            assert (
                codec.lost
                == f"TLS connection with {address} failed: peer sent TLS alert: certificate required"
            )
            assert owner.lost[0].endswith("failed: peer did not return a certificate")

    run(main)


@pytest.mark.parametrize(
    ("hello", "answer", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"", "peer sent a plain HTTP request"),
        (b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff", b"\x15\x03\x03\x00\x02\x02\x0a", "unexpected message"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"", "peer does not speak TLS"),
        (b"", b"", "peer closed the connection"),
    ],
)
def test_malformed_hello_gets_its_alert_and_ends_that_connection_alone(
    files: CertificateFiles, hello: bytes, answer: bytes, reason: str
) -> None:
    async def main() -> None:
        owner = Owner(lambda: RecordingCodec(echo=True))
        other = RecordingCodec()
        async with Server(owner, server_tls(files)) as server:
            bystander = await dial(server, Owner(lambda: other), client_tls(files))
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(hello)
            if not hello:
                writer.close()
            else:
                assert await reader.read() == answer
                writer.close()
            await until(lambda: owner.lost)
            assert owner.lost[0].partition("failed: ")[2] == reason
            other.write(b"alive")
            await until(lambda: other.received == b"alive")
            bystander.close()

    run(main)


def test_tls_1_2_client_is_refused_with_protocol_version(files: CertificateFiles) -> None:
    async def main() -> None:
        owner = Owner()
        context = ssl.create_default_context(cafile=files.ca)
        context.check_hostname = False
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        async with Server(owner, server_tls(files, mutual=False)) as server:
            with pytest.raises(ssl.SSLError) as caught:
                await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
            assert caught.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"
            await until(lambda: owner.lost)
            assert owner.lost[0].endswith("peer does not offer TLS 1.3")

    run(main)


def plain_client(files: CertificateFiles) -> ssl.SSLContext:
    """A client on another TLS library than the sidecar's, and which would resume a session if it could."""
    context = ssl.create_default_context(cafile=files.ca)
    context.check_hostname = False
    context.load_cert_chain(files.certificate, files.private_key)
    context.set_alpn_protocols(["h2"])
    return context


def test_session_is_never_resumed(files: CertificateFiles) -> None:
    context = plain_client(files)

    def twice(port: int) -> list[bool | None]:
        reused, session = [], None
        for _ in range(2):
            with (
                socket.create_connection(("127.0.0.1", port)) as raw,
                context.wrap_socket(raw, session=session) as secured,
            ):
                secured.sendall(b"x")
                secured.recv(1)
                session = secured.session
                assert session is not None
                reused.append(secured.session_reused)
        return reused

    async def main() -> list[bool | None]:
        async with Server(Owner(lambda: RecordingCodec(echo=True)), server_tls(files)) as server:
            return await asyncio.to_thread(twice, server.port)

    assert run(main) == [False, False]


def test_truncated_tls_is_a_lost_connection_not_an_end(files: CertificateFiles) -> None:
    context = plain_client(files)

    def truncate(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw) as secured:
            secured.sendall(b"half a mess")
            secured.shutdown(socket.SHUT_WR)  # FIN without close_notify
            while secured.recv(4096):  # unread input would make it a reset
                pass

    async def main() -> None:
        codec = RecordingCodec()
        async with Server(Owner(lambda: codec), server_tls(files)) as server:
            await asyncio.to_thread(truncate, server.port)
            await until(lambda: codec.lost)
            assert (bytes(codec.received), codec.eof) == (b"half a mess", False)
            assert codec.lost == "TLS connection truncated: peer closed TCP without close_notify"

    run(main)


def test_handshake_that_stalls_times_out(files: CertificateFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.net.handshakes.HANDSHAKE_TIMEOUT", 0.1)

    async def main() -> None:
        owner = Owner()
        async with Server(owner, server_tls(files)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            assert await reader.read() == b""
            writer.close()
            await until(lambda: owner.lost)
            assert owner.lost[0].endswith("failed: timed out after 0.1 s")

    run(main)


def test_silent_peers_do_not_hold_up_handshakes_of_others(files: CertificateFiles) -> None:
    async def main() -> None:
        async with Server(Owner(RecordingCodec), server_tls(files)) as server:
            silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(100)]
            for _, writer in silent:
                writer.write(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a hello, and no more
            clients = [await dial(server, Owner(RecordingCodec), client_tls(files)) for _ in range(5)]
            for _, writer in silent:
                writer.transport.abort()
            for client in clients:
                client.abort()

    run(main)


def test_storm_of_handshakes_leaves_turns_to_others(files: CertificateFiles) -> None:
    async def main() -> None:
        owner, parameters = Owner(RecordingCodec), client_tls(files)
        async with Server(owner, server_tls(files)) as server:
            storm = [asyncio.create_task(dial(server, Owner(RecordingCodec), parameters)) for _ in range(150)]  # noqa: TID251
            turns, worst, last = 0, 0.0, time.process_time()
            while not all(task.done() for task in storm):
                await asyncio.sleep(0)
                now = time.process_time()
                turns, worst, last = turns + 1, max(worst, now - last), now
            assert turns > 100
            assert worst < 0.1  # seconds of CPU; all at once take more
            for task in storm:
                (await task).abort()

    run(main)


def test_tls_can_start_on_bytes_that_were_already_read(files: CertificateFiles) -> None:
    async def main() -> None:
        codec = RecordingCodec(echo=True)

        class Sniffing(Owner):
            def on_unread(self, conn: Connection, data: bytes) -> None:
                assert data[0] == 0x16
                conn.start_tls(server_tls(files))

        owner = Sniffing(lambda: codec if owner.secured[-1].peer.tls else None)
        async with Server(owner, None) as server:
            mine = RecordingCodec()
            client = await dial(server, Owner(lambda: mine), client_tls(files))
            mine.write(b"hello")
            await until(lambda: mine.received == b"hello")
            assert [conn.peer.uri_sans for conn in owner.secured] == [(IDENTITY,)] * 2
            client.close()

    run(main)


def test_data_and_close_in_one_piece_are_both_delivered(files: CertificateFiles) -> None:
    async def main() -> None:
        server_codec, client_codec = RecordingCodec(), RecordingCodec()
        async with Server(Owner(lambda: server_codec), server_tls(files)) as server:
            await dial(server, Owner(lambda: client_codec), client_tls(files))
            client_codec.write(b"all of it")
            client_codec.should_close = True
            await until(lambda: server_codec.eof)
            assert bytes(server_codec.received) == b"all of it"
            await until(lambda: server_codec.lost and client_codec.lost)

    run(main)


class Greeting(RecordingCodec):
    """Has the first word, and says everything back."""

    def start(self) -> None:
        self.write(b"hello ")


def _after_the_handshake(port: int, client: TlsSession, data: bytes) -> list[bytes]:
    """What each piece held that the server sends to a client whose `data` comes with the end of the
    handshake, and which then closes."""
    client.handshake(b"")
    received = []
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(client.take_output())
        while client.handshake(raw.recv(65536)) is None:
            pass
        raw.sendall(client.take_output() + b"".join(client.encrypt(data)) + client.close_notify())
        while piece := raw.recv(65536):
            received.append(bytes(client.decrypt(piece)))
    return received


def test_the_first_word_and_the_answer_to_what_came_with_the_handshake_leave_together(
    files: CertificateFiles,
) -> None:
    async def main() -> None:
        client = TlsSession(client_tls(files), server_side=False)
        async with Server(Owner(lambda: Greeting(echo=True)), server_tls(files)) as server:
            pieces = await asyncio.to_thread(_after_the_handshake, server.port, client, b"world")
            assert [piece for piece in pieces if piece] == [b"hello world"]
            assert client.peer_closed

    run(main)


def test_what_comes_with_the_end_of_the_handshake_waits_for_a_codec(files: CertificateFiles) -> None:
    async def main() -> None:
        owner = Owner()
        client = TlsSession(client_tls(files), server_side=False)
        async with Server(owner, server_tls(files)) as server:
            await asyncio.to_thread(_after_the_handshake, server.port, client, b"early")
            assert owner.unread == [b"early"]
            assert owner.lost == ["peer closed the connection"]

    run(main)


def test_a_peer_that_has_said_goodbye_is_not_waited_for(
    files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.net.loop_shared.LINGER_INTERVAL", 60.0)

    async def main() -> None:
        codec = HalfClosingCodec()
        async with Server(Owner(lambda: codec), server_tls(files)) as server:
            mine = HalfClosingCodec()
            client = await dial(server, Owner(lambda: mine), client_tls(files))
            mine.want_eof = True  # close_notify, and no FIN
            mine.on_output()
            await until(lambda: codec.eof)
            codec.should_close = True
            codec.on_output()
            await until(lambda: codec.lost)
            client.abort()

    run(main)


def test_a_codec_that_follows_close_notify_hears_of_it(files: CertificateFiles) -> None:
    async def main() -> None:
        first, second = HalfClosingCodec(), HalfClosingCodec()
        owner = Owner(lambda: first)
        async with Server(owner, server_tls(files)) as server:
            mine = HalfClosingCodec()
            client = await dial(server, Owner(lambda: mine), client_tls(files))
            mine.write(b"that was all")
            mine.want_eof = True
            mine.on_output()
            await until(lambda: first.eof)
            assert not second.eof
            server.connections[0].set_codec(second)
            assert second.eof
            client.abort()

    run(main)


def test_fragment_limit_of_the_client_is_obeyed(files: CertificateFiles) -> None:
    """RFC 6066 section 4: OpenSSL then writes records of 512 bytes, several for one write."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    command = [
        "openssl",
        "s_client",
        "-connect",
        "127.0.0.1:{port}",
        "-maxfraglen",
        "512",
        "-quiet",
        "-ign_eof",
    ]
    command += ["-cert", files.certificate, "-key", files.private_key, "-alpn", "h2"]

    async def main() -> None:
        codec = RecordingCodec()
        async with Server(Owner(lambda: codec), server_tls(files)) as server:
            process = await asyncio.create_subprocess_exec(
                *(part.format(port=server.port) for part in command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            await until(lambda: codec.calls)
            codec.write(b"y" * 5000)
            codec.write(b"z" * 40000)
            assert process.stdout is not None
            assert await process.stdout.readexactly(45000) == b"y" * 5000 + b"z" * 40000
            process.kill()
            await process.wait()

    run(main)


def test_flood_of_key_updates_ends_the_connection(files: CertificateFiles) -> None:
    assert _key_updates(files, 20_000, data=b"").endswith("of TLS records without application data")


def test_key_updates_between_data_are_no_flood(files: CertificateFiles) -> None:
    assert _key_updates(files, 20_000, data=b"x") == "peer closed the connection"


def _key_updates(files: CertificateFiles, count: int, data: bytes) -> str:
    """Send KeyUpdates, with `data` after every hundredth; returns how the connection ended."""
    name = ctypes.util.find_library("ssl")
    if name is None:
        pytest.skip("needs libssl as a shared library")
    client = _open_ssl_client(ctypes.CDLL(name), files)

    async def main() -> str:
        codec = RecordingCodec()
        async with Server(Owner(lambda: codec), server_tls(files, mutual=False, alpn=())) as server:
            thread = threading.Thread(target=client, args=(server.port, count, data))
            thread.start()
            await until(lambda: codec.lost, timeout=15)
            await asyncio.to_thread(thread.join)
            assert codec.lost is not None
            return codec.lost

    return run(main)


def _open_ssl_client(lib: ctypes.CDLL, files: CertificateFiles) -> Callable[[int, int, bytes], None]:
    """A client on OpenSSL itself, because Python's ssl module cannot send KeyUpdate."""
    for function in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(lib, function).restype = ctypes.c_void_p

    def run_client(port: int, count: int, data: bytes) -> None:
        context = ctypes.c_void_p(lib.SSL_CTX_new(ctypes.c_void_p(lib.TLS_client_method())))
        session = ctypes.c_void_p(lib.SSL_new(context))
        with socket.create_connection(("127.0.0.1", port)) as sock:
            lib.SSL_set_fd(session, sock.fileno())
            assert lib.SSL_connect(session) == 1
            for number in range(count):
                lib.SSL_key_update(session, 0)
                if lib.SSL_do_handshake(session) != 1:
                    break
                if data and number % 100 == 99:
                    lib.SSL_write(session, data, len(data))
            lib.SSL_write(session, b"end", 3)
            lib.SSL_shutdown(session)
            while sock.recv(4096):  # unread input would make it a reset
                pass
            lib.SSL_free(session)
        lib.SSL_CTX_free(context)

    return run_client
