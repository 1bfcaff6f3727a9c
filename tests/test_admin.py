"""The admin port: what each path answers, and that no client of it can hold it up. Real sockets."""

from __future__ import annotations

import asyncio
import enum
import http.client
import json
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from sidecar import admin
from sidecar.admin import AdminServer, AnswerProbe
from sidecar.admin_pages import JSON, AdminPages, AdminSources, to_json
from sidecar.config.resources import SocketAddress
from sidecar.telemetry.metrics import Metrics


@dataclass
class Sidecar:
    """What the sources say, to be changed by tests."""

    reason: str = ""
    called: list[str] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)

    def sources(self) -> AdminSources:
        return AdminSources(
            ready=lambda: self.reason,
            stats=self.metrics.snapshot,
            prometheus=self.metrics.prometheus_parts,
            config_dump=lambda: {"listeners": [SocketAddress("127.0.0.1", 1)]},
            clusters=lambda: [{"name": "app"}],
            certs=lambda: 1 / 0,
            listeners=list,
            drain=lambda: self.called.append("drain"),
            quit=lambda: self.called.append("quit"),
        )


def ask(method: str, path: str, sidecar: Sidecar | None = None, origin: bool = False) -> tuple[int, str]:
    response = AdminPages((sidecar or Sidecar()).sources()).respond(method, path, origin)
    assert isinstance(response.body, bytes)
    return response.status, response.body.decode()


def test_ready_gives_503_and_the_reason_until_there_is_none() -> None:
    sidecar = Sidecar(reason="waiting for the first configuration")
    assert ask("GET", "/ready", sidecar) == (503, "waiting for the first configuration\n")
    sidecar.reason = ""
    assert ask("GET", "/ready", sidecar) == (200, "ready\n")


def test_live_does_not_depend_on_readiness() -> None:
    assert ask("GET", "/live", Sidecar(reason="draining")) == (200, "live\n")


@pytest.mark.parametrize(
    "path", ["/", "/?x=1", "/stats?format=json", "/clusters", "/listeners", "/config_dump"]
)
def test_known_paths_answer_whatever_their_query(path: str) -> None:
    assert ask("GET", path)[0] == 200


def test_a_wrong_path_lists_the_right_ones() -> None:
    status, text = ask("GET", "/nope")
    assert status == 404
    for path in (
        "/ready",
        "/live",
        "/stats",
        "/metrics",
        "/config_dump",
        "/certs",
        "/drain",
        "/quitquitquit",
    ):
        assert path in text


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/drain", "POST"), ("POST", "/ready", "GET, HEAD"), ("DELETE", "/stats", "GET, HEAD")],
)
def test_a_wrong_method_is_405_and_says_which_is_right(method: str, path: str, allow: str) -> None:
    sidecar = Sidecar()
    response = AdminPages(sidecar.sources()).respond(method, path, False)
    assert (response.status, response.allow) == (405, allow)
    assert sidecar.called == []


def test_drain_and_quit_do_it_once_for_a_post() -> None:
    sidecar = Sidecar()
    assert ask("POST", "/drain", sidecar)[0] == 200
    assert ask("POST", "/quitquitquit", sidecar)[0] == 200
    assert sidecar.called == ["drain", "quit"]


def test_a_web_page_can_drain_nothing() -> None:
    sidecar = Sidecar()
    assert ask("POST", "/quitquitquit", sidecar, origin=True)[0] == 403
    assert sidecar.called == []


@pytest.mark.parametrize("path", ["/drain", "/quitquitquit"])
def test_another_pod_can_drain_nothing_but_may_look(path: str) -> None:
    sidecar = Sidecar()
    pages = AdminPages(sidecar.sources())
    assert pages.respond("POST", path, False, foreign=True).status == 403
    assert pages.respond("GET", "/live", False, foreign=True).status == 200
    assert sidecar.called == []


def test_a_source_that_fails_is_a_500_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    status, text = ask("GET", "/certs")
    assert status == 500
    assert "ZeroDivisionError" in text
    assert "/certs failed" in caplog.text


def test_json_shows_dataclasses_enums_sets_and_bytes() -> None:
    class Color(enum.Enum):
        RED = "red"

    value = {"a": SocketAddress("h", 1), "b": Color.RED, "c": frozenset("ba"), "d": b"\xff", "e": (1,)}
    assert json.loads(to_json(value)) == {
        "a": {"host": "h", "port": 1},
        "b": "red",
        "c": ["a", "b"],
        "d": "\\xff",
        "e": [1],
    }


def test_what_has_no_json_form_is_an_error_that_names_its_type() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json(object())


def serve(sidecar: Sidecar, client: Callable[[int], Any], probe: AnswerProbe | None = None) -> Any:
    """Run the server, and `client(port)` in a thread; returns what it returns."""

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        server = AdminServer(loop, sidecar.sources(), probe)
        await server.start(SocketAddress("127.0.0.1", 0))
        try:
            return await loop.run_in_executor(None, client, server.port)
        finally:
            server.close()
            await asyncio.sleep(0.01)

    def start(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(coroutine)

    return start(main())


def test_one_connection_serves_many_requests() -> None:
    def client(port: int) -> list[tuple[int, str | None, bytes]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        answers = []
        for line in (
            *("GET /ready", "HEAD /stats", "GET /nope", "POST /drain"),
            *("GET /clusters", "GET /metrics", "HEAD /metrics", "GET /live"),
        ):
            method, path = line.split()
            connection.request(method, path, body=b"x=1" if method == "POST" else None)
            response = connection.getresponse()
            answers.append((response.status, response.getheader("content-type"), response.read()))
        connection.close()
        return answers

    sidecar = Sidecar()
    sidecar.metrics.cluster("app").requests = 3
    answers = serve(sidecar, client)
    assert [status for status, _, _ in answers] == [200, 200, 404, 200, 200, 200, 200, 200]
    assert answers[1][2] == b""
    assert answers[4][1] == JSON
    assert b'pilotfish_cluster_requests_total{cluster="app"} 3\n' in answers[5][2]
    assert answers[5][1] == "text/plain; version=0.0.4; charset=utf-8"
    assert sidecar.called == ["drain"]


def test_a_large_scrape_arrives_whole() -> None:
    sidecar = Sidecar()
    for index in range(500):
        sidecar.metrics.route("inbound", f"route-{index}", "app", "").record(200, None, 0.001)

    def client(port: int) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics")
        body = connection.getresponse().read()
        connection.close()
        return body

    assert serve(sidecar, client).decode() == sidecar.metrics.prometheus_text()


def test_a_scraper_that_does_not_read_costs_little_and_stops_nobody() -> None:
    sidecar = Sidecar()
    for index in range(2000):
        sidecar.metrics.route("inbound", f"route-{index}", "app", "").record(200, None, 0.001)

    def client(port: int) -> int:
        stalled = []
        for _ in range(3):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", port))
            sock.sendall(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
            stalled.append(sock)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/live")
        status = connection.getresponse().status
        connection.close()
        for sock in stalled:
            sock.close()
        return status

    assert serve(sidecar, client) == 200


def test_connections_that_stay_cannot_lock_others_out() -> None:
    def client(port: int) -> tuple[int, bytes]:
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(admin.MAX_CONNECTIONS)]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/live")
        status = connection.getresponse().status
        connection.close()
        held[0].settimeout(10)
        try:
            first = held[0].recv(1)
        except ConnectionResetError:
            first = b""
        for sock in held:
            sock.close()
        return status, first

    assert serve(Sidecar(), client) == (200, b"")


def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "IDLE_TIMEOUT", 0.2)

    def client(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            try:
                return sock.recv(1)
            except ConnectionResetError:
                return b""

    assert serve(Sidecar(), client) == b""


def test_nonsense_gets_400_and_is_closed() -> None:
    def client(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            sock.sendall(b"nonsense\r\n\r\n")
            data = b""
            while piece := sock.recv(4096):
                data += piece
            return data

    assert serve(Sidecar(), client).startswith(b"HTTP/1.1 400 ")


def test_probes_of_applications_are_answered_when_the_application_has_answered() -> None:
    async def probe(path: str) -> tuple[int, str]:
        await asyncio.sleep(0.01)
        return (200, "it answered 204") if path.endswith("/readyz") else (503, "it answered 500")

    def client(port: int) -> list[tuple[int, bytes]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        answers = []
        for path in ("/app-health/app/readyz", "/app-health/app/livez", "/live"):
            connection.request("GET", path)
            response = connection.getresponse()
            answers.append((response.status, response.read()))
        connection.close()
        return answers

    assert serve(Sidecar(), client, probe) == [
        (200, b"it answered 204\n"),
        (503, b"it answered 500\n"),
        (200, b"live\n"),
    ]


def test_a_prober_that_leaves_early_stops_nobody() -> None:
    asked = []

    async def probe(path: str) -> tuple[int, str]:
        asked.append(path)
        await asyncio.sleep(0.1)
        return 200, "late"

    def client(port: int) -> int:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"GET /app-health/a/livez HTTP/1.1\r\nhost: a\r\n\r\n")
        time.sleep(0.2)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/live")
        status = connection.getresponse().status
        connection.close()
        return status

    assert serve(Sidecar(), client, probe) == 200
    assert asked == ["/app-health/a/livez"]


def test_without_probes_their_paths_are_not_known() -> None:
    def client(port: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/app-health/app/livez")
        status = connection.getresponse().status
        connection.close()
        return status

    assert serve(Sidecar(), client) == 404
