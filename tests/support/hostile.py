"""A sidecar under attack: the process, applications that attack it, and a polite client that notices when the
sidecar neglects it."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import h2_frames as f
from tests.support.apps import start_app
from tests.support.certs import CertificateFiles, make_ca
from tests.support.processes import eventually, loopback
from tests.support.raw import RawH1, RawH2
from tests.support.sidecars import (
    APP,
    INBOUND,
    OUTBOUND,
    RETRY,
    SPIFFE,
    Sidecar,
    Tree,
    address,
    bootstrap,
    cluster,
    http_filter,
    listener,
    route,
    tls,
)

HEAD_TIMEOUT = 0.4
"""Seconds: `request_headers_timeout` of both listeners."""
STREAM_IDLE = 1.0
"""Seconds: `stream_idle_timeout` of the plain and the mTLS listener."""
KEEPALIVE = 0.2
"""Seconds of `connection_keepalive` where it is set: at the watchful listener and behind `/evil3`."""
WATCHFUL = 15011
POLITE = 8081
EVIL_H1 = 9001
EVIL_H2 = 9002
WORST = 2.0
"""Seconds that a polite request may take at worst in an attack; on a quiet machine it takes 2 ms."""
CALM = 11
"""ENHANCE_YOUR_CALM."""
TICKS = os.sysconf("SC_CLK_TCK")


ASKED = {"interval": f"{KEEPALIVE:g}s", "timeout": f"{KEEPALIVE:g}s"}


def asking(made: Tree) -> Tree:
    """The HTTP/2 cluster with `connection_keepalive`."""
    (options,) = made["typed_extension_protocol_options"].values()
    options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"] = ASKED
    return made


class Target:
    """A sidecar with a plain listener, one for mTLS, one that soon asks silent peers, its application, and
    room for upstreams of a test's own behind `/evil1` (HTTP/1.1), `/evil2` (HTTP/2) and `/evil3` (HTTP/2,
    asked)."""

    def __init__(self, directory: Path) -> None:
        self.host = loopback()
        self.plain = (self.host, OUTBOUND)
        self.mtls = (self.host, INBOUND)
        self.watchful = (self.host, WATCHFUL)
        self.ca = make_ca()
        self.files = {
            name: self.ca.write_files(directory, SPIFFE + name, name=name) for name in ("caller", "server")
        }
        self._sockets: list[socket.socket] = []
        self.app = start_app(self.host, APP, "victim", directory)
        self.polite_app = start_app(self.host, POLITE, "polite", directory)
        self.sidecar = Sidecar("target", self._tree(), directory).ready()
        self.unfinished = [self._begin_handshake(i) for i in range(150)]

    def _tree(self) -> Tree:
        routes = [
            {"name": "direct", "match": {"prefix": "/direct"}, "direct_response": {"status": 200}},
            route("/status", "polite"),
            route("/evil1", "evil1", timeout="8s"),
            route("/evil2", "evil2", timeout="8s"),
            route("/evil3", "evil3", timeout="8s", retry_policy={**RETRY, "num_retries": 1}),
            route("/", "app"),
        ]
        listeners = []
        for name, port in (("plain", OUTBOUND), ("mtls", INBOUND), ("watchful", WATCHFUL)):
            network = http_filter(routes, request_headers_timeout=f"{HEAD_TIMEOUT:g}s")
            network["typed_config"]["stream_idle_timeout"] = f"{8 if name == 'watchful' else STREAM_IDLE:g}s"
            socket_of = None
            if name == "watchful":
                network["typed_config"]["http2_protocol_options"] = {"connection_keepalive": ASKED}
            if name == "mtls":
                socket_of = tls("Downstream", self.files["server"], "caller", require_client_certificate=True)
            listeners.append(listener(name, address(self.host, port), network, socket_of))
        clusters = [
            cluster("app", [(self.host, APP)]),
            cluster("polite", [(self.host, POLITE)]),
            cluster("evil1", [(self.host, EVIL_H1)]),
            cluster("evil2", [(self.host, EVIL_H2)], http2=True, connect_timeout="1s"),
            asking(cluster("evil3", [(self.host, EVIL_H2)], http2=True)),
        ]
        return bootstrap(self.host, listeners, clusters)

    def _begin_handshake(self, number: int) -> socket.socket:
        """A client that says nothing, half a hello, or a hello without what must follow it."""
        outgoing = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            client_context(None).wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
        hello = outgoing.read()
        sock = socket.create_connection(self.mtls, 10.0)
        sock.sendall((b"", hello[:100], hello)[number % 3])
        return sock

    def stop(self) -> None:
        for sock in self.unfinished:
            sock.close()
        self.sidecar.stop()
        self.app.stop()
        self.polite_app.stop()

    # --- what an attack costs

    def cpu(self) -> float:
        """Seconds of CPU time that the sidecar has used."""
        fields = Path(f"/proc/{self.sidecar.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.sidecar.child.pid}/fd"))

    def active(self) -> int:
        """Attempts in flight, of all clusters."""
        return sum(int(row["requests_active"]) for row in self.sidecar.json("/stats")["clusters"])

    @contextmanager
    def under_attack(self, memory: float = 16.0, cpu: float = 2.0, worst: float = WORST) -> Iterator[Witness]:
        """Others are served during the block and all is as before after it: `memory` MiB and `cpu` seconds
        are what the attack may cost, `worst` seconds what the slowest polite request may take."""
        memory_before, cpu_before = self.sidecar.resident(), self.cpu()
        witness = Witness(self.plain)
        with witness:
            yield witness
        self.sidecar.check()
        cpu_used = self.cpu() - cpu_before - witness.count * 0.001
        grown = self.sidecar.resident() - memory_before
        assert not witness.failures, witness.failures[:3]
        assert witness.count > 2
        slowest = max(witness.times)
        kind = ("kept", "new")[witness.times.index(slowest) % 2]
        assert slowest < worst, f"{slowest:.3f} s on a {kind} connection, of {witness.count} requests"
        assert statistics.median(witness.times) < worst / 10
        assert cpu_used < cpu
        assert grown < memory, f"{grown:.1f} MiB more than before"
        eventually(lambda: self.active() == 0, "every request to end")
        assert "Traceback" not in self.sidecar.log(), self.sidecar.last_words()

    # --- connections

    def connect(self, at: tuple[str, int] | None = None, receive_buffer: int = 0) -> socket.socket:
        """Closed by `hang_up`, at the latest. `receive_buffer`: bytes that the kernel takes unread."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(10.0)
        sock.connect(at or self.plain)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets.append(sock)
        return sock

    def connect_tls(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """Over the mTLS listener, as the peer it expects unless `context` is another's."""
        context = context or client_context(self.files["caller"])
        sock = context.wrap_socket(self.connect(self.mtls), server_hostname="server.test")
        self._sockets.append(sock)
        return sock

    def hang_up(self) -> None:
        """Close every connection of the test."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def h2(self, settings: dict[int, int] | None = None, tls: bool = False) -> RawH2:
        return RawH2(self.connect_tls() if tls else self.connect(), settings)

    def h1(self) -> RawH1:
        return RawH1(self.connect())

    def __repr__(self) -> str:
        return f"<Target {self.host} {self.sidecar!r}>"


def client_context(files: CertificateFiles | None, alpn: str = "h2") -> ssl.SSLContext:
    """Trusts anybody: what these tests ask is what the sidecar makes of its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    if files is not None:
        context.load_cert_chain(files.certificate, files.private_key)
    return context


class Witness:
    """Asks for `/direct` on a kept and `/status/204` on a new connection, every few milliseconds."""

    def __init__(self, at: tuple[str, int]) -> None:
        self.at = at
        self.times: list[float] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def count(self) -> int:
        return len(self.times)

    def __enter__(self) -> Witness:
        self._thread.start()
        while self.count < 4 and not self.failures:
            time.sleep(0.002)
        return self

    def __exit__(self, *exception: object) -> None:
        time.sleep(0.05)  # what the attack left behind is part of it
        self._stop.set()
        self._thread.join(30.0)

    def _run(self) -> None:
        kept = http.client.HTTPConnection(*self.at, timeout=15.0)
        while not self._stop.is_set():
            fresh = http.client.HTTPConnection(*self.at, timeout=15.0)
            for connection, path, wanted in ((kept, "/direct", 200), (fresh, "/status/204", 204)):
                begun = time.monotonic()
                try:
                    connection.request("GET", path)
                    response = connection.getresponse()
                    response.read()
                    if response.status != wanted:
                        self.failures.append(f"{path}: {response.status}")
                except (OSError, http.client.HTTPException) as error:
                    self.failures.append(f"{path}: {error!r}")
                self.times.append(time.monotonic() - begun)
            fresh.close()
            self._stop.wait(0.005)
        kept.close()

    def __repr__(self) -> str:
        return f"<Witness {self.count} requests, {len(self.failures)} failed>"


def request(path: str = "/direct", method: str = "GET") -> list[tuple[bytes, bytes]]:
    return [
        (b":method", method.encode()),
        (b":scheme", b"http"),
        (b":authority", b"test"),
        (b":path", path.encode()),
    ]


class EvilServer:
    """Accepts on the target's port for evil upstreams and lets `behave` have each connection, in a thread."""

    def __init__(self, host: str, port: int, behave: Callable[[socket.socket], None]) -> None:
        self.listening = socket.create_server((host, port), backlog=512)
        self.accepted = 0
        self._behave = behave
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listening.accept()
            except OSError:
                return
            self.accepted += 1
            self._sockets.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            self._behave(sock)
        except (OSError, ValueError):
            return  # the sidecar has had enough, which is what tests ask for, or the test is over

    def __enter__(self) -> EvilServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):  # closed by its thread, or by the sidecar
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def __repr__(self) -> str:
        return f"<EvilServer accepted={self.accepted}>"


def read_head(sock: socket.socket) -> bytes:
    """An HTTP/1.1 request head."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            raise ConnectionError("the sidecar closed")
        data += more
    return data


def read_h2_request(sock: socket.socket, settings: dict[int, int] | None = None) -> int:
    """Say hello as an HTTP/2 server, take everything up to the first request; returns its stream."""
    sock.sendall(f.settings(settings) + f.frame(f.SETTINGS, f.ACK))
    data = b""
    while True:
        for frame in f.parse_prefix(data.removeprefix(f.PREFACE)) if len(data) >= len(f.PREFACE) else []:
            if frame.type == f.HEADERS:
                return frame.stream_id
        more = sock.recv(65536)
        if not more:
            raise ConnectionError("the sidecar closed")
        data += more


def allow_descriptors(wanted: int) -> None:
    """Raise this process' limit of open files, which children inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
