"""Services some of whose replicas have a sidecar and some not, as after a namespace was labelled: callers in
the mesh reach all of them, and lose nothing while replicas are replaced one by one."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest

from tests.support.clients import fetch
from tests.support.grpc_app import SERVICE, grpc_channel, make_server
from tests.support.kubernetes import Object, account, endpoint_slice, service
from tests.support.load import Load
from tests.support.mesh import Mesh
from tests.support.processes import eventually, loopback
from tests.support.sidecars import OUTBOUND

HTTP, RPC, DECLARED, OPAQUE = 8080, 8081, 8082, 8083
PORTS = (
    {"name": "http", "port": HTTP},
    {"name": "rpc", "port": RPC},  # says nothing
    {"name": "grpc", "port": DECLARED},
    {"name": "tcp", "port": OPAQUE},
)
PLAIN, MESHED = ("plain-1", "plain-2"), ("meshed-1", "meshed-2")
TIMEOUT = 30.0


class StandardLibrary(http.server.BaseHTTPRequestHandler):
    """What speaks HTTP/1.1 and nothing else."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("x-replica", "plain-1")
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Not into the test's output."""


class Rollout:
    """Four replicas of `users`, two of which have sidecars; a test says which of them there are."""

    def __init__(self, mesh: Mesh, cleanup: ExitStack) -> None:
        self.mesh = mesh
        self.cleanup = cleanup
        self.hosts = {name: loopback() for name in ("shopper", *PLAIN, *MESHED)}
        self.proxy = (self.hosts["shopper"], OUTBOUND)

    def start(self) -> Rollout:
        mesh = self.mesh
        mesh.save("accounts", account("shopper"), account("users"))
        self.serve(*PLAIN)
        mesh.start_control_plane()
        self.shopper = mesh.sidecar("shopper", "shopper", self.hosts["shopper"])
        started = [self.shopper]
        started += [mesh.sidecar(name, "users", self.hosts[name]) for name in MESHED]
        for name in (*PLAIN, *MESHED):
            self.start_application(name, self.hosts[name])
        for sidecar in started:
            sidecar.ready()
        return self

    def start_application(self, name: str, host: str) -> None:
        if name == "plain-1":
            server = http.server.ThreadingHTTPServer((host, HTTP), StandardLibrary)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,)).start()
            self.cleanup.callback(server.server_close)
            self.cleanup.callback(server.shutdown)
        else:
            self.mesh.app(name, host, HTTP)
        self.mesh.app(f"{name}-echo", host, OPAQUE, kind="echo")
        rpc = make_server(name, f"{host}:{RPC}", f"{host}:{DECLARED}")
        rpc.start()
        self.cleanup.callback(lambda: rpc.stop(None).wait())

    def serve(self, *replicas: str) -> None:
        """These are ready; the others are known and not ready, as while they start and while they end."""
        ports = [{**port, "targetPort": port["port"]} for port in PORTS]
        self.mesh.save("users", service("users", *ports), *(self.slice(n, n in replicas) for n in self.hosts))

    def slice(self, name: str, ready: bool) -> Object:
        entry = {"addresses": [self.hosts[name]], "hostname": name, "conditions": {"ready": ready}}
        runs_as = "users" if name in MESHED else ""
        found = [] if name == "shopper" else [entry]
        return endpoint_slice(f"users-{name}", *found, runs_as=runs_as, ports=PORTS)

    def in_use(self) -> set[str]:
        """Replicas that the caller's sidecar chooses from for HTTP."""
        clusters = self.shopper.json("/clusters")
        rows = [row for each in clusters if each["name"].endswith(f":{HTTP}") for row in each["endpoints"]]
        return {row["name"] for row in rows}

    def replicas_of(self, call: Callable[[], str], wanted: set[str]) -> None:
        """All of these answer `call`, and no others; no call may fail. Several at a time, because one at a
        time goes to the replica that was fastest."""
        seen: set[str] = set()
        with ThreadPoolExecutor(8) as pool:
            for _ in range(50):
                seen |= set(pool.map(lambda _: call(), range(8)))
                if seen >= wanted:
                    break
        assert seen == wanted

    def get(self) -> str:
        answer = fetch(self.proxy, f"http://users:{HTTP}/")
        assert answer.status == 200, answer
        return answer.headers["x-replica"]

    def __repr__(self) -> str:
        return f"<Rollout {self.hosts}>"


@pytest.fixture(scope="module")
def rollout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollout]:
    mesh = Mesh(tmp_path_factory.mktemp("rollout"))
    with ExitStack() as cleanup:
        cleanup.callback(mesh.stop)
        yield Rollout(mesh, cleanup).start()


class Calls:
    """gRPC calls one after the other from a thread while the `with` block lasts."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._call = channel.unary_unary(f"/{SERVICE}/Hello")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.replicas: list[str] = []
        self.failures: list[grpc.RpcError] = []

    def _run(self) -> None:
        while not self._over.wait(0.02):
            try:
                self.replicas.append(self._call(b"", timeout=TIMEOUT).decode().partition(":")[0])
            except grpc.RpcError as error:
                self.failures.append(error)

    def __enter__(self) -> Calls:
        self._thread.start()
        eventually(lambda: self.replicas, "the first answer")
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def __repr__(self) -> str:
        return f"<Calls {len(self.replicas)} done, {self.failures!r}>"


STEPS = (
    ("plain-1", "plain-2"),
    ("meshed-1", "plain-2"),
    ("meshed-1", "meshed-2"),
    ("meshed-1", "plain-1"),
    ("plain-2", "plain-1"),
    ("meshed-2",),
    ("plain-1",),
)
"""Into the mesh replica by replica and back; then all at once: the cluster changes with all its endpoints."""


def test_nothing_fails_while_replicas_move_into_the_mesh_and_back(rollout: Rollout) -> None:
    rollout.serve(*STEPS[0])
    rollout.get()
    proxy = f"{rollout.proxy[0]}:{OUTBOUND}"
    with ExitStack() as stack:
        url = f"http://users:{HTTP}/"
        loads = [stack.enter_context(Load(rollout.proxy, url, body=body)) for body in (None, b"x" * 100)]
        channels = [stack.enter_context(grpc_channel(f"users:{port}", proxy)) for port in (RPC, DECLARED)]
        calls = [stack.enter_context(Calls(channel)) for channel in channels]
        for step in STEPS[1:]:
            rollout.serve(*step)
            eventually(lambda step=step: rollout.in_use() == set(step))
            for load in loads:
                load.more(10)
    assert [load.failures() for load in loads] == [[], []]
    assert [each.failures for each in calls] == [[], []]
    for replicas in [{o.replica for o in load.outcomes} for load in loads], [set(c.replicas) for c in calls]:
        assert set().union(*replicas) >= {"meshed-1", "meshed-2", "plain-1"}


@pytest.fixture
def mixed(rollout: Rollout) -> Rollout:
    rollout.serve("plain-2", "meshed-1")
    rollout.get()
    eventually(lambda: rollout.in_use() == {"plain-2", "meshed-1"})
    return rollout


def test_trailers_and_a_body_that_waits_for_100_reach_both(mixed: Rollout) -> None:
    def post() -> str:
        with socket.create_connection(mixed.proxy, TIMEOUT) as sock:
            sock.settimeout(TIMEOUT)
            sock.sendall(
                b"POST http://users:8080/headers HTTP/1.1\r\nhost: users:8080\r\nexpect: 100-continue\r\n"
                b"transfer-encoding: chunked\r\nte: trailers\r\ntrailer: x-sum\r\nconnection: close\r\n\r\n"
            )
            reader = sock.makefile("rb")
            assert reader.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert reader.readline() == b"\r\n"
            sock.sendall(b"3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n")
            answer = json.loads(reader.read().partition(b"\r\n\r\n")[2])
        assert (answer["size"], answer["trailers"]) == (3, {"x-sum": "7"})
        return str(answer["replica"])

    mixed.replicas_of(post, {"plain-2", "meshed-1"})


def test_trailers_of_the_response_come_from_both(mixed: Rollout) -> None:
    def get() -> str:
        with socket.create_connection(mixed.proxy, TIMEOUT) as sock:
            sock.settimeout(TIMEOUT)
            sock.sendall(
                b"GET http://users:8080/bytes?n=1000&chunked=1 HTTP/1.1\r\nhost: users:8080\r\n"
                b"te: trailers\r\nconnection: te, close\r\n\r\n"
            )
            head, _, body = sock.makefile("rb").read().partition(b"\r\n\r\n")
        assert b"x-sha256: " in body
        return next(line[11:].decode() for line in head.split(b"\r\n") if line.startswith(b"x-replica: "))

    mixed.replicas_of(get, {"plain-2", "meshed-1"})


def test_websockets_reach_both(mixed: Rollout) -> None:
    def echo() -> None:
        with socket.create_connection(mixed.proxy, TIMEOUT) as sock:
            sock.settimeout(TIMEOUT)
            sock.sendall(
                b"GET http://users:8080/upgrade HTTP/1.1\r\nhost: users:8080\r\nconnection: upgrade\r\n"
                b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
                b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            reader = sock.makefile("rb")
            assert reader.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
            while reader.readline() != b"\r\n":
                pass
            sock.sendall(b"hello")
            assert reader.read(5) == b"hello"

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(echo) for _ in range(48)]:
            done.result()
    assert all(upgrades(mixed, name) for name in ("plain-2", "meshed-1"))


def upgrades(mixed: Rollout, name: str) -> int:
    counts = fetch((mixed.hosts[name], HTTP), "/counts").json()
    return int(counts.get("/upgrade", 0))


def test_opaque_connections_reach_both(mixed: Rollout) -> None:
    def greet() -> str:
        with socket.create_connection(mixed.proxy, TIMEOUT) as sock:
            sock.settimeout(TIMEOUT)
            sock.sendall(b"CONNECT users:8083 HTTP/1.1\r\nhost: users:8083\r\n\r\n")
            reader = sock.makefile("rb")
            assert reader.readline().startswith(b"HTTP/1.1 200")
            while reader.readline() != b"\r\n":
                pass
            return reader.readline().decode().removeprefix("hello from ").strip().removesuffix("-echo")

    mixed.replicas_of(greet, {"plain-2", "meshed-1"})


def test_a_request_is_sent_again_from_one_kind_to_the_other(mixed: Rollout) -> None:
    """Each kind refuses connections for a while, body and all going to the other."""
    for refusing, left in (("plain-2", "meshed-1"), ("meshed-1", "plain-2")):
        dead = endpoint_slice(
            f"users-{refusing}",
            {"addresses": [loopback()], "hostname": "nobody"},
            runs_as="users" if refusing in MESHED else "",
            ports=PORTS,
        )
        ports = [{**port, "targetPort": port["port"]} for port in PORTS]
        mixed.mesh.save("users", service("users", *ports), dead, mixed.slice(left, ready=True))
        with Load(mixed.proxy, f"http://users:{HTTP}/headers", body=b"y" * 5000) as load:
            eventually(lambda dead=refusing: dead not in mixed.in_use() and "nobody" in mixed.in_use())
            load.more(30)
        assert load.failures() == []
        assert {outcome.replica for outcome in load.outcomes[-20:]} == {left}
