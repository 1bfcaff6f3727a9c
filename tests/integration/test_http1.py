"""HTTP/1.1 callers with `HTTP_PROXY` set: plain `requests`, and raw sockets for what it cannot say."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
import requests

from tests.support.clients import Answer, fetch
from tests.support.processes import eventually
from tests.support.shop import Shop

PATTERN = bytes(range(251)) * (65536 // 251)
"""Of which the application's `/bytes` sends as much as it is asked for, again and again."""
LARGE = 10_000_000


def expected(size: int) -> str:
    return hashlib.sha256((PATTERN * (size // len(PATTERN) + 1))[:size]).hexdigest()


@pytest.fixture
def wire(shop: Shop) -> Iterator[socket.socket]:
    with socket.create_connection(shop.proxy, 30) as made:
        yield made


def read_head(wire: socket.socket) -> bytes:
    """Of one message whose body, if any, does not come with it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = wire.recv(65536)
        assert piece, head
        head += piece
    return head


def read_answers(wire: socket.socket, count: int) -> list[http.client.HTTPResponse]:
    """Responses to as many GETs on one connection, read whole."""
    answers = []
    file = wire.makefile("rb")
    for _ in range(count):
        answer = http.client.HTTPResponse(_Shared(file))  # type: ignore[arg-type]
        answer.begin()
        answer.kept = answer.read()  # type: ignore[attr-defined]
        answers.append(answer)
    return answers


class _Shared:
    """Hands the same buffered file to every response, which closes it in vain."""

    def __init__(self, file: object) -> None:
        self._file = file

    def makefile(self, mode: str) -> object:
        return self

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def close(self) -> None:
        """The next response goes on reading."""


def test_plain_requests_reaches_both_replicas_through_the_proxy(shop: Shop) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"http": f"http://{shop.proxy_text}"}
        seen: set[str] = set()

        def both() -> bool:
            seen.add(session.get("http://users/hello?a=1", timeout=30).json()["replica"])
            return seen == {"users-1", "users-2"}

        eventually(both, "an answer of each")  # one that was slow a moment ago is asked less for seconds
        answer = session.get("http://users/hello", timeout=30).json()
    assert (answer["method"], answer["path"]) == ("GET", "/hello")
    assert ["host", "users"] in answer["fields"]


def test_every_name_of_a_service_leads_to_it(shop: Shop) -> None:
    for name in ("orders", "orders:80", "orders.shop", "orders.shop.svc", "orders.shop.svc.cluster.local"):
        answer = fetch(shop.proxy, f"http://{name}/x")
        assert (answer.status, answer.json()["replica"]) == (200, "orders-1"), name


def test_requests_on_one_connection_are_answered_one_after_the_other(shop: Shop) -> None:
    before = shop.shopper.stats("listeners", listener="outbound")["connections_opened"]
    with closing(http.client.HTTPConnection(*shop.proxy, timeout=30)) as connection:
        for i in range(20):
            connection.request("GET", f"http://orders/{i}")
            assert json.loads(connection.getresponse().read())["path"] == f"/{i}"
    after = shop.shopper.stats("listeners", listener="outbound")["connections_opened"]
    assert after == before + 1


def test_pipelined_requests_are_answered_in_their_order(wire: socket.socket) -> None:
    """RFC 9112 section 9.3.2, though replicas answer in any order: the first takes longest."""
    paths = ["/sleep?s=0.2", "/1", "/sleep?s=0.05", "/3"]
    wire.sendall(b"".join(f"GET http://users{p} HTTP/1.1\r\nhost: users\r\n\r\n".encode() for p in paths))
    bodies = [answer.kept for answer in read_answers(wire, 4)]  # type: ignore[attr-defined]
    assert bodies[0] == bodies[2] == b"slept\n"
    assert [json.loads(bodies[i])["path"] for i in (1, 3)] == ["/1", "/3"]


def test_a_chunked_request_with_trailers_arrives_whole(wire: socket.socket) -> None:
    wire.sendall(
        b"POST http://orders/up HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\n"
        b"trailer: x-sum\r\n\r\n5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nx-sum: 11\r\n\r\n"
    )
    [answer] = read_answers(wire, 1)
    seen = json.loads(answer.kept)  # type: ignore[attr-defined]
    assert (seen["size"], seen["sha256"]) == (11, hashlib.sha256(b"hello world").hexdigest())
    assert seen["trailers"] == {"x-sum": "11"}


def test_trailers_of_a_chunked_response_arrive(wire: socket.socket) -> None:
    wire.sendall(
        b"GET http://orders/bytes?n=1000&chunked=1 HTTP/1.1\r\nhost: orders\r\nte: trailers\r\n"
        b"connection: te, close\r\n\r\n"
    )
    head, _, body = b"".join(iter(lambda: wire.recv(65536), b"")).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()
    last = body.partition(b"\r\n0\r\n")[2]
    assert last == f"x-sha256: {expected(1000)}\r\n\r\n".encode()


def test_head_has_the_length_and_no_body_and_keeps_the_connection(wire: socket.socket) -> None:
    wire.sendall(b"HEAD http://orders/status/200 HTTP/1.1\r\nhost: orders\r\n\r\n")
    head = read_head(wire)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert re.search(rb"content-length: 7\r\n", head)


@pytest.mark.parametrize("status", [204, 304])
def test_a_response_that_has_no_body_is_followed_by_the_next(wire: socket.socket, status: int) -> None:
    get = "GET http://orders/{} HTTP/1.1\r\nhost: orders\r\n\r\n"
    wire.sendall((get.format(f"status/{status}") + get.format("next")).encode())
    first, second = read_answers(wire, 2)
    assert (first.status, first.kept) == (status, b"")  # type: ignore[attr-defined]
    assert first.getheader("transfer-encoding") is None
    assert second.status == 200


def test_the_application_says_when_to_continue(wire: socket.socket) -> None:
    wire.sendall(
        b"POST http://orders/up HTTP/1.1\r\nhost: orders\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
    )
    assert read_head(wire).startswith(b"HTTP/1.1 100 ")
    wire.sendall(b"hello")
    [answer] = read_answers(wire, 1)
    assert json.loads(answer.kept)["size"] == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize("chunked", ["", "&chunked=1"])
def test_ten_megabytes_come_down_unharmed(shop: Shop, chunked: str) -> None:
    answer = fetch(shop.proxy, f"http://orders/bytes?n={LARGE}{chunked}")
    assert len(answer.body) == LARGE
    assert hashlib.sha256(answer.body).hexdigest() == expected(LARGE)


@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_go_up_unharmed(shop: Shop, chunked: bool) -> None:
    data = (PATTERN * (LARGE // len(PATTERN) + 1))[:LARGE]
    headers = {} if chunked else {"content-length": str(LARGE)}
    with closing(http.client.HTTPConnection(*shop.proxy, timeout=30)) as connection:
        pieces = (data[i : i + 50_000] for i in range(0, LARGE, 50_000))
        connection.request("PUT", "http://orders/up", pieces, headers, encode_chunked=chunked)
        seen = json.loads(connection.getresponse().read())
    assert (seen["size"], seen["sha256"]) == (LARGE, expected(LARGE))


def test_a_server_sent_event_arrives_while_the_response_goes_on(wire: socket.socket) -> None:
    """The application sends one event and then nothing, for ever."""
    wire.sendall(b"GET http://orders/events HTTP/1.1\r\nhost: orders\r\n\r\n")
    received = b""
    while b"data: one\n\n" not in received:
        piece = wire.recv(65536)
        assert piece, received
        received += piece
    assert b"text/event-stream" in received


def test_what_follows_a_switch_of_protocols_is_passed_on_as_it_is(wire: socket.socket) -> None:
    wire.sendall(
        b"GET http://orders/upgrade HTTP/1.1\r\nhost: orders\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert read_head(wire).startswith(b"HTTP/1.1 101 ")
    for message in (b"\x81\x05hello", b"\x00not http\r\n\r\n" * 100):
        wire.sendall(message)
        received = b""
        while len(received) < len(message):
            received += wire.recv(65536)
        assert received == message


def test_a_response_that_ends_before_the_request_is_passed_on(shop: Shop) -> None:
    """The application answers without reading a body that then stops being needed."""
    answer: Answer = fetch(shop.proxy, "http://orders/status/413", "POST", b"x" * 1000)
    assert (answer.status, answer.body) == (413, b"status\n")


def test_a_destination_outside_the_mesh_is_passed_through(shop: Shop) -> None:
    outside = shop.mesh.app("outside", shop.mesh.host, 8099)
    try:
        answer = fetch(
            shop.proxy, f"http://{shop.mesh.host}:8099/x", headers={"x-forwarded-client-cert": "By=me"}
        )
        assert answer.json()["replica"] == "outside"
        assert "x-forwarded-client-cert" not in dict(answer.json()["fields"])
    finally:
        outside.stop()


@pytest.mark.debian
def test_curl_reaches_a_service_through_a_connect_tunnel(shop: Shop) -> None:
    import subprocess

    for more in ([], ["--http2-prior-knowledge"]):
        command = ["curl", "-sS", "-m", "20", "-p", "-x", f"http://{shop.proxy_text}", *more]
        done = subprocess.run([*command, "http://users.shop:80/curl"], capture_output=True, check=True)
        assert json.loads(done.stdout)["path"] == "/curl"
