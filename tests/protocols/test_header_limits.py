"""One limit for header sections on every hop and in both directions: 64 KiB and 100 fields."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.clients import H2Client
from tests.support.pairs import Peer, RawApp, World, ok
from tests.support.sidecars import APP, OUTBOUND, Pair

LARGE = ["X-Large: " + "x" * 66_000]
MANY = [f"X-{i}: {i}" for i in range(101)]
OVER = pytest.mark.parametrize("fields", [LARGE, MANY], ids=["size", "count"])
NEARLY = ["X-Large: " + "x" * 60_000, *(f"X-{i}: {i}" for i in range(80))]


def pairs(fields: list[str]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, _, value in (field.partition(": ") for field in fields)]


@OVER
def test_an_http_1_request_over_the_limit_is_431(client: Peer, web: RawApp, fields: list[str]) -> None:
    heads = web.on("/limit", ok())
    client.send("\r\n".join(["GET /limit HTTP/1.1", "Host: web", *fields, "", ""]).encode())
    head, body = client.answer()
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"\r\nconnection: close\r\n" in head
    assert body.startswith(
        (b"request header section larger than 65536 bytes", b"more than 100 header fields")
    )
    assert heads == []


@OVER
def test_an_http_2_request_over_the_limit_is_431(world: World, web: RawApp, fields: list[str]) -> None:
    web.on("/after", ok())
    with H2Client(world.proxy) as client:
        assert client.fetch("/limit", authority="web", headers=pairs(fields)).status == 431
        assert client.fetch("/after", authority="web").status == 200  # on the same connection


@OVER
def test_a_response_over_the_limit_is_502_with_the_reason(
    client: Peer, web: RawApp, fields: list[str]
) -> None:
    web.on("/limit", ok(b"", *fields))
    client.send(b"GET /limit HTTP/1.1\r\nHost: web\r\n\r\n")
    head, body = client.answer()
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"larger than 65536 bytes" in body or b"more than 100 header fields" in body


def test_what_is_under_the_limit_passes_both_ways_over_all_hops(client: Peer, web: RawApp) -> None:
    heads = web.on("/nearly", ok(b"", *NEARLY))
    client.send("\r\n".join(["GET /nearly HTTP/1.1", "Host: web", *NEARLY, "", ""]).encode())
    head = client.head()
    assert head.startswith(b"HTTP/1.1 200 ")
    for seen in (head, heads[0]):
        assert b"x" * 60_000 in seen
        assert b"\r\nx-79: 79\r\n" in seen


def test_fields_that_the_first_sidecar_adds_do_not_count_at_the_second(world: World, web: RawApp) -> None:
    fields = [(f"x-{i}", str(i)) for i in range(100)]
    web.on("/full", ok())
    with H2Client(world.proxy) as client:
        assert client.fetch("/full", authority="web", headers=fields).status == 200
        large = [("x-large", "x" * (65536 - 32 - 200))]
        assert client.fetch("/full", authority="web", headers=large).status == 200


def test_trailers_have_the_same_limit(client: Peer, web: RawApp) -> None:
    large = b"X-Large: " + b"x" * 66_000
    web.on(
        "/late", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + large + b"\r\n\r\n"
    )
    client.send(b"GET /late HTTP/1.1\r\nHost: web\r\n\r\n")
    client.head()
    with pytest.raises((ConnectionResetError, EOFError)):
        client.until(b"0\r\n\r\n")  # the response is cut, not passed off as whole


def test_bodies_have_no_limit(client: Peer, web: RawApp) -> None:
    size = 20_000_000

    def script(peer: Peer, head: bytes) -> None:
        left = size
        while left:
            left -= len(peer.exactly(min(left, 65536)))
        peer.send(ok(b"all"))

    web.on("/body", script)
    client.send(b"POST /body HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % size)
    client.send(bytes(size))
    assert client.answer()[1] == b"all"


@pytest.mark.parametrize(
    ("outbound", "inbound", "request_status", "response_status"),
    [(128, 128, 200, 200), (128, 64, 431, 502), (64, 128, 431, 502)],
)
def test_one_setting_is_the_limit_of_every_hop_in_both_directions(
    tmp_path: Path, outbound: int, inbound: int, request_status: int, response_status: int
) -> None:
    """100 KB; the sidecar that allows less refuses, be it the first or the second to see them."""
    field = "X-Large: " + "x" * 100_000
    options = {
        "outbound": ("--header-limit", str(outbound)),
        "inbound": ("--header-limit", str(inbound)),
    }
    with Pair(tmp_path) as pair:
        app = RawApp(pair.hosts[0], APP)
        app.on("/ask", ok(b"small"))
        app.on("/answer", ok(b"large", field))
        pair.start(options=options)
        for path, fields, status in (("/ask", [field], request_status), ("/answer", [], response_status)):
            with Peer(socket.create_connection((pair.host, OUTBOUND), 10.0)) as client:
                client.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *fields, "", ""]).encode())
                head, body = client.answer()
                assert int(head[9:12]) == status
                if status == 502:
                    assert b"65536 bytes" in body
        app.stop()
