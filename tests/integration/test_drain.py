"""SIGTERM: readiness fails, clients are told to go, what is in flight finishes, and the exit status is 0."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.apps import start_app
from tests.support.clients import Answer, H2Client, fetch
from tests.support.grpc_app import SERVICE, start_grpc_app
from tests.support.processes import eventually
from tests.support.sidecars import (
    APP,
    OUTBOUND,
    Sidecar,
    address,
    bootstrap,
    cluster,
    http_filter,
    listener,
    loopback,
    route,
)

GRPC_LISTENER, GRPC_APP = 15003, 50051


class Alone:
    """One sidecar with an HTTP/1.1 application, and a gRPC one on another listener, behind it."""

    def __init__(self, directory: Path, *options: str) -> None:
        host = self.host = loopback()
        self.at = (host, OUTBOUND)
        listeners = [
            listener("in", address(host, OUTBOUND), http_filter([route(cluster="app")])),
            listener("grpc", address(host, GRPC_LISTENER), http_filter([route(cluster="grpc")])),
        ]
        clusters = [cluster("app", [(host, APP)]), cluster("grpc", [(host, GRPC_APP)], True)]
        self.app = start_app(host, APP, "app", directory)
        self.sidecar = Sidecar("alone", bootstrap(host, listeners, clusters), directory, *options)
        self.directory = directory

    def release(self) -> None:
        """Lets the application answer `/wait`."""
        assert fetch((self.host, APP), "/release").status == 200

    def drain(self) -> None:
        """Returns when draining has begun."""
        self.sidecar.terminate()
        eventually(lambda: self.sidecar.get("/ready") == (503, "draining\n"))

    def count(self, path: str) -> int:
        return int(fetch((self.host, APP), "/counts").json().get(path, 0))

    def stop(self) -> None:
        self.sidecar.stop()
        self.app.stop()

    def __repr__(self) -> str:
        return f"<Alone {self.host}>"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    made = Alone(tmp_path)
    try:
        made.sidecar.ready()
        yield made
    finally:
        made.stop()


def in_flight(alone: Alone, path: str) -> tuple[list[Answer], threading.Thread]:
    answers: list[Answer] = []
    worker = threading.Thread(target=lambda: answers.append(fetch(alone.at, path)))
    worker.start()
    return answers, worker


def test_requests_in_flight_finish_and_the_exit_status_is_0(alone: Alone) -> None:
    """Slow HTTP/1.1 answers, a slow one over HTTP/2, and a gRPC stream that goes on for two seconds."""
    with start_grpc_app(alone.host, GRPC_APP, "greeter", alone.directory):
        target = f"{alone.host}:{GRPC_LISTENER}"
        flights = [in_flight(alone, "/wait") for _ in range(5)]
        with (
            grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel,
            H2Client(alone.at) as client,
        ):
            messages = channel.unary_stream(f"/{SERVICE}/Listing")(b"40,0.05", timeout=30)
            assert next(messages) == b"0"
            slow = client.send("/wait")
            eventually(lambda: alone.count("/wait") == 6)
            alone.drain()
            assert list(messages) == [str(i).encode() for i in range(1, 40)]
            alone.release()
            assert client.wait(slow).body == b"waited\n"
            client.wait_closed()
            last = [(goaway.error_code, goaway.last_stream_id) for goaway in client.goaways]
            assert last == [(0, 2**31 - 1), (0, slow)]
        for answers, worker in flights:
            worker.join(30)
            assert [answer.body for answer in answers] == [b"waited\n"]
    assert alone.sidecar.wait() == 0
    assert "drained" in alone.sidecar.log()
    assert "until the applications have ended" not in alone.sidecar.log()  # it knows of none


def test_between_the_two_goaways_new_streams_are_still_served(alone: Alone) -> None:
    with H2Client(alone.at) as client:
        assert client.fetch("/1").status == 200
        alone.sidecar.terminate()
        while not client.goaways:
            client.pump()
        assert client.goaways[0].last_stream_id == 2**31 - 1
        assert client.fetch("/2").status == 200  # it was on its way
        client.wait_closed()
        assert [goaway.last_stream_id for goaway in client.goaways] == [2**31 - 1, 3]
    assert alone.sidecar.wait() == 0


def test_keep_alive_connections_are_told_to_close(alone: Alone) -> None:
    """HTTP/1.1 has no GOAWAY: the answer to the next request says close, an idle connection just ends."""
    with socket.create_connection(alone.at, 30) as busy, socket.create_connection(alone.at, 30) as idle:
        for wire in (busy, idle):
            wire.sendall(b"GET /status/204 HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"connection: close" not in wire.recv(65536)
        busy.sendall(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        eventually(lambda: alone.count("/wait") == 1)
        alone.drain()
        alone.release()
        received = b"".join(iter(lambda: busy.recv(65536), b""))
        assert b"connection: close" in received
        assert received.endswith(b"waited\n")
        assert idle.recv(100) == b""
    assert alone.sidecar.wait() == 0


def test_the_deadline_cuts_what_does_not_end(tmp_path: Path) -> None:
    made = Alone(tmp_path, "--drain-deadline", "0.5")
    try:
        made.sidecar.ready()
        with socket.create_connection(made.at, 30) as wire:
            wire.sendall(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n")
            eventually(lambda: made.count("/hang") == 1)
            begun = time.monotonic()
            made.sidecar.terminate()
            assert made.sidecar.wait() == 0
            assert time.monotonic() - begun < 10.0  # of 30, were it not for the option
            with contextlib.suppress(ConnectionResetError):
                assert b"200" not in wire.recv(65536)
        assert "drain deadline passed: 1 requests or sessions were cut" in made.sidecar.log()
        assert made.sidecar.logged(path="/hang")["flags"] == "DT"
    finally:
        made.stop()


def test_sigterm_before_the_sidecar_is_up_ends_it_with_0(tmp_path: Path) -> None:
    made = Alone(tmp_path)
    try:
        made.sidecar.terminate()
        assert made.sidecar.wait() in (0, -15)
    finally:
        made.stop()


def test_quitquitquit_drains_too(alone: Alone) -> None:
    answers, worker = in_flight(alone, "/wait")
    eventually(lambda: alone.count("/wait") == 1)
    assert alone.sidecar.get("/quitquitquit", "POST")[0] == 200
    eventually(lambda: alone.sidecar.get("/ready") == (503, "draining\n"))
    alone.release()
    worker.join(30)
    assert answers[0].body == b"waited\n"
    assert alone.sidecar.wait() == 0
