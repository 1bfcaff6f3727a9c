"""Applications that close idle connections: no request may be lost to that."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.support.hostile import EVIL_H1, EvilServer, Target


def closes_after(idle: float, fields: bytes = b"") -> Callable[[socket.socket], None]:
    """Answers every request, and closes a connection that brings none for `idle` seconds."""

    def behave(sock: socket.socket) -> None:
        sock.settimeout(idle)
        with sock, sock.makefile("rb") as reader:
            try:
                while reader.readline():
                    length = 0
                    while (line := reader.readline()) != b"\r\n":
                        if line.lower().startswith(b"content-length:"):
                            length = int(line[15:])
                    assert len(reader.read(length)) == length
                    sock.sendall(b"HTTP/1.1 200 OK\r\n%bcontent-length: 2\r\n\r\nok" % fields)
            except TimeoutError:
                return

    return behave


def load(target: Target, pause: float, seconds: float) -> Counter[object]:
    """Ten clients, half of them with bodies, that ask, pause for about as long as the application waits, and
    ask again."""
    outcomes: Counter[object] = Counter()

    def client(number: int) -> None:
        method = ("GET", "POST")[number % 2]
        connection = http.client.HTTPConnection(*target.plain, timeout=10.0)
        end = time.monotonic() + seconds
        turn = number
        while time.monotonic() < end:
            try:
                connection.request(method, "/evil1", b"body" if method == "POST" else None)
                response = connection.getresponse()
                text = response.read()
                outcomes[response.status if response.status == 200 else (response.status, text)] += 1
            except (OSError, http.client.HTTPException) as error:
                outcomes[repr(error)] += 1
            turn += 1
            time.sleep(pause * (0.9 + turn % 11 / 50))  # from a little less to a little more
        connection.close()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_an_application_that_announces_when_it_closes(target: Target) -> None:
    """`Keep-Alive: timeout=1`: connections are dropped after half a second."""
    behave = closes_after(1.0, b"keep-alive: timeout=1\r\n")
    with EvilServer(target.host, EVIL_H1, behave) as server:
        outcomes = load(target, 1.0, 1.5)
        assert set(outcomes) == {200}, outcomes
        assert server.accepted >= 2  # connections were dropped and made anew


def test_an_application_that_closes_a_little_later_than_connections_are_kept(target: Target) -> None:
    """It says nothing; the sidecar keeps idle connections for 1 s."""
    with EvilServer(target.host, EVIL_H1, closes_after(1.2)) as server:
        outcomes = load(target, 1.1, 1.5)
        assert set(outcomes) == {200}, outcomes
        assert server.accepted >= 2


def test_an_application_that_closes_long_before(target: Target) -> None:
    """Its FIN is seen before the next request is sent, which then goes out on a new connection."""
    with EvilServer(target.host, EVIL_H1, closes_after(0.2)) as server:
        outcomes = load(target, 0.3, 1.5)
        assert set(outcomes) == {200}, outcomes
        assert server.accepted > 3
