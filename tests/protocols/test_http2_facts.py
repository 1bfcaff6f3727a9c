"""Callers of HTTP/2 before an application of HTTP/1.1, with both sidecars between them: what may not pass as
it is. The rows are in docs/protocols.md."""

from __future__ import annotations

import re

import pytest

from tests.support.clients import H2Client
from tests.support.pairs import Peer, RawApp, World, ok


def test_cookie_fields_are_joined_for_an_application_of_http_1(world: World, web: RawApp) -> None:
    heads = web.on("/crumbs", ok())
    crumbs = [("cookie", "a=1"), ("x-a", "b"), ("cookie", "b=2"), ("cookie", "c=3")]
    with H2Client(world.proxy) as client:
        for _ in range(3):  # remembered heads are written anew
            assert client.fetch("/crumbs", authority="web", headers=crumbs).status == 200
    assert [re.findall(rb"cookie: .*", head) for head in heads] == [[b"cookie: a=1; b=2; c=3\r"]] * 3


def test_trailers_carry_no_credentials(world: World, web: RawApp) -> None:
    said = []

    def script(peer: Peer, head: bytes) -> None:
        said.append(peer.until(b"0\r\n") + peer.until(b"\r\n\r\n"))
        peer.send(ok())

    web.on("/late", script)
    identity = "URI=spiffe://cluster.local/ns/shop/sa/admin"
    trailers = [("x-forwarded-client-cert", identity), ("authorization", "Bearer x"), ("x-sum", "1")]
    with H2Client(world.proxy) as client:
        stream = client.send("/late", "POST", "web", end=False)
        client.trailers(stream, trailers)
        assert client.wait(stream).status == 200
    assert said == [b"0\r\nx-sum: 1\r\n\r\n"]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", "content-length"),
        (ok(b"", "TE: trailers"), "te"),
    ],
)
def test_what_no_response_may_have_ends_at_the_first_sidecar(
    world: World, web: RawApp, answer: bytes, name: str
) -> None:
    web.on("/answer", answer)
    with H2Client(world.proxy) as client:
        found = client.fetch("/answer", authority="web")
    assert found.status == int(answer[9:12])
    assert name not in found.headers
