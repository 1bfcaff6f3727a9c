"""Peers that are gone and never said so: nothing comes from them, not even an answer to PING. No FIN and no
RST tell of it, so that only asking does. The sidecar asks after KEEPALIVE seconds here; 30 unless set."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.support import h2_frames as f
from tests.support.clients import fetch
from tests.support.hostile import (
    EVIL_H2,
    KEEPALIVE,
    EvilServer,
    Target,
    asking,
    read_h2_request,
    read_head,
    request,
)
from tests.support.netns import Namespace
from tests.support.pod_network import pod_network
from tests.support.processes import eventually, loopback
from tests.support.raw import RawH2
from tests.support.sidecars import (
    OUTBOUND,
    RETRY,
    Sidecar,
    address,
    bootstrap,
    cluster,
    http_filter,
    listener,
    route,
)

GONE_AFTER = 3 * KEEPALIVE
"""A look that finds silence, one that finds no answer, and what is left of the period before them."""
OK = f.block([(b":status", b"200")])


def watched(target: Target) -> RawH2:
    return RawH2(target.connect(target.watchful))


def test_clients_that_answer_no_ping_are_dropped_and_their_requests_ended(target: Target) -> None:
    with target.under_attack():
        peers = [watched(target) for _ in range(20)]
        for peer in peers:
            peer.send(f.headers(1, request("/sleep?s=1", "POST")))
        eventually(lambda: target.active() == 20, "the requests to reach the application")
        begun = time.monotonic()
        for peer in peers:
            peer.read_end(GONE_AFTER * 10)
            assert [ping.flags for ping in peer.of(f.PING)] == [0]
        assert time.monotonic() - begun > KEEPALIVE
        eventually(lambda: target.active() == 0, "the requests to end", 1.0)


def test_a_client_that_answers_is_waited_for(target: Target) -> None:
    with target.under_attack(), watched(target) as peer:
        peer.send(f.headers(1, request("/sleep?s=1"), True))
        answered = 0
        while not peer.of(f.HEADERS):
            assert peer.read(0.05) or peer.of(f.HEADERS)
            for ping in peer.of(f.PING)[answered:]:
                peer.send(f.frame(f.PING, f.ACK, 0, ping.payload))
                answered += 1
        assert answered >= 1
        assert not peer.ended


def test_an_idle_client_is_not_asked(target: Target) -> None:
    with watched(target) as peer:
        peer.send(f.headers(1, request(), True))
        peer.read_until(lambda: peer.of(f.HEADERS))
        end = time.monotonic() + 4 * KEEPALIVE
        while time.monotonic() < end:
            assert peer.read(0.05)
        assert peer.of(f.PING) == []


def test_a_server_that_answers_no_ping_is_left_and_its_requests_go_elsewhere_or_fail(target: Target) -> None:
    """Tried twice, as the route allows, each time on a connection of its own."""

    def behave(sock: socket.socket) -> None:
        read_h2_request(sock)
        while sock.recv(65536):
            pass

    with target.under_attack(), EvilServer(target.host, EVIL_H2, behave) as server:
        begun = time.monotonic()
        answer = fetch(target.watchful, "/evil3")
        assert answer.status == 503
        assert b"nothing came for 0.2 s, not even an answer to PING" in answer.body
        assert time.monotonic() - begun > 2 * KEEPALIVE
        assert server.accepted == 2


def test_a_request_whose_server_has_vanished_is_answered_by_the_next_connection(target: Target) -> None:
    server: EvilServer

    def behave(sock: socket.socket) -> None:
        first = server.accepted == 1
        stream = read_h2_request(sock)
        if not first:
            sock.sendall(f.frame(f.HEADERS, 5, stream, OK))
        while sock.recv(65536):
            pass

    with target.under_attack(), EvilServer(target.host, EVIL_H2, behave) as server:
        assert fetch(target.watchful, "/evil3").status == 200
        assert server.accepted == 2


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
@pytest.mark.parametrize(
    ("http2", "timeout", "status", "reason"),
    [
        (True, "20s", 503, b"not even an answer to PING"),
        (False, "1s", 504, b"within 1 s (timeout of route /)"),
    ],
    ids=["HTTP/2", "HTTP/1.1"],
)
def test_a_host_that_falls_off_the_network_is_noticed(
    tmp_path: Path, http2: bool, timeout: str, status: int, reason: bytes
) -> None:
    """Its packets go nowhere from one moment to the next, as when a node dies."""
    with pod_network("app") as network:
        app = (network.pods["app"], 8080)
        listening = Namespace(f"{network.mark}-app").listener(*app)
        host = loopback()
        routes = [route("/", "app", timeout=timeout, retry_policy={**RETRY, "num_retries": 0})]
        made = cluster("app", [app], http2=http2)
        tree = bootstrap(
            host,
            [listener("out", address(host, OUTBOUND), http_filter(routes))],
            [asking(made) if http2 else made],
        )
        sidecar = Sidecar("surviving", tree, tmp_path).ready()
        try:
            answers = []
            caller = threading.Thread(target=lambda: answers.append(fetch((host, OUTBOUND), "/")))
            caller.start()
            with listening, listening.accept()[0] as sock:
                sock.settimeout(5.0)
                (read_h2_request if http2 else read_head)(sock)
                network.cut("app")
                caller.join(10.0)
            (answer,) = answers
            assert answer.status == status
            assert reason in answer.body
            row = sidecar.json("/stats")["clusters"][0]
            assert row["requests_active"] == row["connections_active"] == 0
        finally:
            sidecar.stop()
