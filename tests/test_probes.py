"""Probes of applications, run by the sidecar in place of the kubelet. Real servers, real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from control_plane.injector.probes import probes_variable, rewrite_probes
from sidecar.net.connect import connect
from sidecar.net.connection import Connection
from sidecar.probes import AppProbes, parse_probes
from tests.support.certs import make_ca
from tests.support.grpc_server import grpc_server

PATH = "/app-health/app/readyz"


def run_probe(
    probe: dict[str, Any], path: str = PATH, sources: tuple[str, ...] = (), host: str = "127.0.0.1"
) -> tuple[int, str]:
    """What the kubelet is answered about a container with this readiness probe."""
    originals = rewrite_probes([{"name": "app", "readinessProbe": probe}])
    # `$$` is what Kubernetes turns into a dollar.
    probes = parse_probes(probes_variable(originals).replace("$$", "$"))

    made: list[Connection] = []

    async def tracked(*given: Any) -> Connection:
        made.append(await connect(*given))
        return made[-1]

    async def main() -> tuple[int, str]:
        found = AppProbes(asyncio.get_running_loop(), probes, host, sources, tracked)
        answer = await found.answer(path)
        for connection in made:
            connection.abort()  # instead of lingering
        await asyncio.sleep(0.01)
        return answer

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


class Application:
    """An HTTP server that remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], str]] = []
        """Path, fields, and the address that asked."""
        self.answers: dict[str, tuple[int, str]] = {}
        """Status and location by path; 200 for others."""
        self.hold = threading.Event()
        self.port = 0


@contextmanager
def application(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Application]:
    state = Application()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.seen.append((self.path, dict(self.headers.items()), self.client_address[0]))
            if self.path == "/slow":
                state.hold.wait(10)
            status, location = state.answers.get(self.path, (200, ""))
            self.send_response(status)
            if location:
                self.send_header("location", location)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    with Server((host, 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        state.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            state.hold.set()
            server.shutdown()
            thread.join()


def test_an_http_probe_asks_as_the_kubelet_would() -> None:
    with application() as app:
        fields = [{"name": "X-Check", "value": "$(A) 1"}, {"name": "Host", "value": "shop.example"}]
        probe = {"httpGet": {"path": "/ok?deep=1", "port": app.port, "httpHeaders": fields}}
        status, text = run_probe(probe)
    assert (status, text) == (200, f"GET http://127.0.0.1:{app.port}/ok?deep=1 was answered with 200")
    [(path, headers, _)] = app.seen
    asked = {name.lower(): value for name, value in headers.items()}
    assert path == "/ok?deep=1"
    assert asked["host"] == "shop.example"
    assert asked["x-check"] == "$(A) 1"
    assert asked["user-agent"].startswith("kube-probe/")


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, 200), (204, 200), (302, 200), (399, 200), (400, 503), (404, 503), (500, 503)],
)
def test_an_http_probe_succeeds_from_200_to_399(status: int, expected: int) -> None:
    with application() as app:
        app.answers["/"] = (status, "")
        answer, text = run_probe({"httpGet": {"port": app.port}})
    assert answer == expected
    assert text == f"GET http://127.0.0.1:{app.port}/ was answered with {status}"


def test_redirects_are_followed_within_the_host_alone() -> None:
    with application() as app:
        app.answers |= {"/a": (301, "/a/"), "/a/": (503, ""), "/b": (302, "http://example.invalid/")}
        assert run_probe({"httpGet": {"port": app.port, "path": "/a"}})[0] == 503
        assert run_probe({"httpGet": {"port": app.port, "path": "/b"}})[0] == 200
        app.answers["/loop"] = (302, "/loop")
        status, text = run_probe({"httpGet": {"port": app.port, "path": "loop"}})
    assert (status, text.endswith("is still a redirect after 10")) == (503, True)


def test_a_certificate_is_not_verified(tmp_path: Path) -> None:
    certificate, key = make_ca("nobody").issue(dns=("elsewhere",))
    file = tmp_path / "server.pem"
    file.write_bytes(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(file)
    with application(context) as app:
        assert run_probe({"httpGet": {"port": app.port, "scheme": "HTTPS"}})[0] == 200
        # As the kubelet: HTTP to a TLS port is no success.
        assert run_probe({"httpGet": {"port": app.port}})[0] == 503


def test_an_answer_that_does_not_come_fails_before_the_kubelet_gives_up() -> None:
    with application() as app:
        probe = {"httpGet": {"port": app.port, "path": "/slow"}, "timeoutSeconds": 1}
        assert run_probe(probe) == (503, f"no answer from 127.0.0.1:{app.port} within 1 s")


def test_the_application_is_asked_from_the_address_that_is_not_captured() -> None:
    with application() as app:
        assert run_probe({"httpGet": {"port": app.port}}, sources=("127.0.0.6", "::6"))[0] == 200
    assert app.seen[0][2] == "127.0.0.6"


def test_a_pod_with_ipv6_is_asked_there() -> None:
    with application(host="::1") as app:
        status, text = run_probe({"httpGet": {"port": app.port}}, host="::1")
    assert (status, text) == (200, f"GET http://[::1]:{app.port}/ was answered with 200")


def test_a_tcp_probe_succeeds_when_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert run_probe({"tcpSocket": {"port": port}}) == (200, f"127.0.0.1:{port} takes connections")
    status, text = run_probe({"tcpSocket": {"port": port}})
    assert (status, text) == (503, f"cannot connect to 127.0.0.1:{port}: connection refused")


def health(answers: dict[bytes, bytes | grpc.StatusCode]) -> Callable[[bytes, Any], bytes]:
    def check(request: bytes, context: Any) -> bytes:
        answer = answers.get(request, grpc.StatusCode.NOT_FOUND)
        if isinstance(answer, bytes):
            return answer
        return context.abort(answer, "unknown service")  # type: ignore[no-any-return]

    return check


def test_a_grpc_probe_asks_for_the_health_of_the_service() -> None:
    answers: dict[bytes, bytes | grpc.StatusCode] = {b"": b"\x08\x01", b"\x0a\x04shop": b"\x08\x02"}
    with grpc_server({"/grpc.health.v1.Health/Check": health(answers)}) as port:
        where = f"127.0.0.1:{port}"
        assert run_probe({"grpc": {"port": port}}) == (200, f"health of service '' at {where}: SERVING")
        shop = run_probe({"grpc": {"port": port, "service": "shop"}})
        assert shop == (503, f"health of service 'shop' at {where}: not SERVING")
        other = run_probe({"grpc": {"port": port, "service": "other"}})
        assert other == (503, f"health of service 'other' at {where}: gRPC status 5: unknown service")


def test_a_grpc_probe_of_a_server_without_health_or_without_grpc_fails() -> None:
    with grpc_server() as port:
        status, text = run_probe({"grpc": {"port": port}})
    assert (status, "gRPC status 12" in text) == (503, True)
    with application() as app:
        assert run_probe({"grpc": {"port": app.port}, "timeoutSeconds": 2})[0] == 503


def test_only_probes_that_the_injector_wrote_are_run() -> None:
    with application() as app:
        status, text = run_probe({"httpGet": {"port": app.port}}, path="/app-health/app/livez")
    assert (status, text) == (404, f"/app-health/app/livez is no probe of this pod; there are: {PATH}")
    assert app.seen == []


@pytest.mark.parametrize("text", ["{", "[]", '{"/a": {}}', json.dumps({"/a": {"httpGet": {"port": "x"}}})])
def test_what_the_injector_did_not_write_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="PILOTFISH_PROBES is not what the injector writes"):
        parse_probes(text)
