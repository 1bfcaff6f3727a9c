"""Two sidecars of a real mesh and, behind the second, applications that a test writes byte by byte.

The caller's sidecar is the proxy of the tests' clients; what they reach has crossed both sidecars and the
mTLS between them. Applications run in threads of the test process.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pilotfish.workload_bootstrap import TcpUpstream
from tests.support.kubernetes import account, endpoint_slice, service
from tests.support.mesh import Mesh
from tests.support.processes import loopback
from tests.support.sidecars import OUTBOUND, Sidecar

TIMEOUT = 20.0
DOMAIN = "shop.svc.cluster.local"
WAYS = ("upstream", "connect", "detect")
"""To an opaque server: a local port that is a named upstream; a CONNECT tunnel to a port that is declared or
known to be opaque; one to a port that says nothing."""


class Peer:
    """One end of a connection, blocking, with a time limit on everything."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT)
        self.sock = sock
        self.buffer = b""

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def end(self) -> None:
        """FIN; reading goes on."""
        self.sock.shutdown(socket.SHUT_WR)

    def until(self, mark: bytes) -> bytes:
        """What comes up to and with `mark`. Raises EOFError at the end of the connection."""
        while mark not in self.buffer:
            self._more()
        end = self.buffer.index(mark) + len(mark)
        data, self.buffer = self.buffer[:end], self.buffer[end:]
        return data

    def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def rest(self) -> bytes:
        """All that comes until the other side has ended."""
        try:
            while True:
                self._more()
        except EOFError:
            data, self.buffer = self.buffer, b""
            return data

    def head(self) -> bytes:
        """A message head, blank line included."""
        return self.until(b"\r\n\r\n")

    def answer(self) -> tuple[bytes, bytes]:
        """Head and body of a final response, framed by content-length, chunks or the connection's end."""
        head = self.head()
        while head.startswith(b"HTTP/1.1 1"):
            head = self.head()
        lower = head.lower()
        length = re.search(rb"\r\ncontent-length: *([0-9]+)\r\n", lower)
        if b" 204 " in head[:13] or b" 304 " in head[:13]:
            return head, b""
        if length:
            return head, self.exactly(int(length[1]))
        if b"\r\ntransfer-encoding: chunked\r\n" not in lower:
            return head, self.rest()
        body = b""
        while size := int(self.until(b"\r\n"), 16):
            body += self.exactly(size + 2)[:-2]
        while self.until(b"\r\n") != b"\r\n":
            pass
        return head, body

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        self.sock.settimeout(seconds)
        try:
            self._more()
        except TimeoutError:
            return not self.buffer
        finally:
            self.sock.settimeout(TIMEOUT)
        return False

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self.buffer += data

    def __repr__(self) -> str:
        return f"<Peer {self.sock} {len(self.buffer)} bytes read ahead>"


class TcpApp:
    """Calls `serve(peer)` in a thread for each connection, and closes it when that returns."""

    def __init__(self, host: str, port: int, serve: Callable[[Peer], None]) -> None:
        self.address = (host, port)
        self.serve = serve
        self.connections = 0
        self._socket = socket.create_server(self.address, backlog=256)
        self._peers: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._peers.add(sock)
            threading.Thread(target=self._run, args=(sock,), daemon=True).start()

    def _run(self, sock: socket.socket) -> None:
        try:
            with sock:
                self.serve(Peer(sock))
        except (OSError, EOFError):
            pass  # the other side left, which tests do on purpose
        finally:
            self._peers.discard(sock)

    def stop(self) -> None:
        if self._socket.fileno() >= 0:
            self._socket.shutdown(socket.SHUT_RDWR)  # which wakes `accept`, as closing alone does not
            self._socket.close()
        for sock in list(self._peers):
            sock.close()

    def __repr__(self) -> str:
        return f"<TcpApp {self.address} connections={self.connections}>"


class RawApp(TcpApp):
    """An HTTP/1.1 application: the script that a test sets for a path gets the connection and the head, and
    writes the answer's bytes. The connection lives on unless the script closes it."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port, self._serve)
        self.scripts: dict[bytes, Callable[[Peer, bytes], None]] = {}
        self.heads: dict[bytes, list[bytes]] = {}
        """Heads of requests as they came, by path without query."""

    def on(self, path: str, script: Callable[[Peer, bytes], None] | bytes) -> list[bytes]:
        """`script` may be the bytes to answer. Returns the list that the heads go to."""
        key = path.encode()
        if isinstance(script, bytes):
            answer = script
            self.scripts[key] = lambda peer, head: peer.send(answer)
        else:
            self.scripts[key] = script
        self.heads[key] = []
        return self.heads[key]

    def _serve(self, peer: Peer) -> None:
        while True:
            head = peer.head()
            path = head.split(b" ")[1].partition(b"?")[0]
            self.heads[path].append(head)
            self.scripts[path](peer, head)


def ok(body: bytes = b"ok\n", *fields: str) -> bytes:
    """A whole 200 response."""
    lines = ["HTTP/1.1 200 OK", f"content-length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Everything up to the end, and the end; what comes behind a cut is lost."""
    with contextlib.suppress(OSError):
        source.settimeout(None)
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class World:
    """`ports` are Service ports with the name of the Service in `service`; all replicas are `host`.
    `upstreams` maps local ports of the caller to names of them."""

    def __init__(
        self, directory: Path, ports: Iterable[dict[str, Any]], upstreams: dict[int, str] | None = None
    ) -> None:
        self.mesh = Mesh(directory)
        self.caller_host, self.host = loopback(), loopback()
        objects = [account("caller"), account("backend")]
        authority = {}
        for port in ports:
            port = {"name": "", **port}
            name = port.pop("service")
            authority[name] = f"{name}.{DOMAIN}:{port['port']}"
            objects.append(service(name, {k: v for k, v in port.items() if k != "at"}))
            shown = {k: port[k] for k in ("name", "appProtocol") if k in port}
            listens = {"port": port.get("at", port["port"]), **shown}
            objects.append(
                endpoint_slice(f"{name}-a", self.host, of=name, runs_as="backend", ports=[listens])
            )
        self.mesh.save("shop", *objects)
        self.mesh.start_control_plane()
        named = [TcpUpstream(port, authority[name]) for port, name in (upstreams or {}).items()]
        self.caller = self.mesh.sidecar("caller", "caller", self.caller_host, named)
        self.backend = self.mesh.sidecar("backend", "backend", self.host)
        self.apps: list[TcpApp] = []
        self.proxy = (self.caller_host, OUTBOUND)

    def ready(self) -> World:
        for sidecar in (self.caller, self.backend):
            sidecar.ready()
        return self

    def web(self, port: int) -> RawApp:
        app = RawApp(self.host, port)
        self.apps.append(app)
        return app

    def tcp(self, port: int, serve: Callable[[Peer], None]) -> TcpApp:
        app = TcpApp(self.host, port, serve)
        self.apps.append(app)
        return app

    def dial(self, port: int = OUTBOUND) -> Peer:
        """A client of the caller's sidecar."""
        return Peer(socket.create_connection((self.caller_host, port), TIMEOUT))

    def tunnel(self, authority: str) -> Peer:
        """Through a CONNECT request that was granted."""
        peer = self.dial()
        peer.send(f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode())
        head = peer.head()
        assert head.startswith(b"HTTP/1.1 200 "), head
        return peer

    def relay(self, authority: str) -> TcpApp:
        """A local port for clients that know no proxies: each connection to it is a CONNECT tunnel."""

        def serve(peer: Peer) -> None:
            with self.tunnel(authority) as other:
                peer.send(other.buffer)
                back = threading.Thread(target=pump, args=(other.sock, peer.sock), daemon=True)
                back.start()
                pump(peer.sock, other.sock)
                back.join(TIMEOUT)

        made = TcpApp(loopback(), OUTBOUND, serve)
        self.apps.append(made)
        return made

    def detected(self) -> dict[str, int]:
        """The outbound listener's counts of detected protocols, `timeouts` among them."""
        row = self.caller.stats("listeners", listener="outbound")
        return {**row["detected"], "timeouts": row["detect_timeouts"]}

    def stop(self) -> None:
        for app in self.apps:
            app.stop()
        self.mesh.stop()

    def __repr__(self) -> str:
        return f"<World {self.caller_host} to {self.host}>"


__all__ = ["Peer", "RawApp", "Sidecar", "TcpApp", "World", "ok"]
