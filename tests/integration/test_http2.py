"""HTTP/2 callers that choose the destination by authority, and applications that speak HTTP/2."""

from __future__ import annotations

import hashlib

import h2.errors
import pytest

from tests.support.clients import H2Client
from tests.support.shop import Shop

MIRROR = "mirror.shop:8081"


def test_streams_of_one_connection_go_to_different_services(shop: Shop) -> None:
    with H2Client(shop.proxy) as client:
        streams = {name: client.send("/who", authority=name) for name in ("users", "orders.shop", "users:80")}
        replicas = {name: client.wait(stream).json()["replica"] for name, stream in streams.items()}
    assert replicas["orders.shop"] == "orders-1"
    assert {replicas["users"], replicas["users:80"]} <= {"users-1", "users-2"}


def test_trailers_pass_both_ways(shop: Shop) -> None:
    with H2Client(shop.proxy) as client:
        stream = client.send("/a", "POST", MIRROR, [("te", "trailers")], end=False)
        client.data(stream, b"body")
        client.trailers(stream, [("x-sum", "4"), ("x-other", "a b")])
        answer = client.wait(stream)
    assert (answer.status, answer.body) == (200, b"body")
    assert answer.trailers == {"echo-x-sum": "4", "echo-x-other": "a b"}


def test_megabytes_up_and_down_at_once_on_many_streams(shop: Shop) -> None:
    bodies = [bytes([i]) * 500_000 for i in range(6)]
    with H2Client(shop.proxy) as client:
        streams = []
        for body in bodies:
            streams.append(client.send("/", "POST", MIRROR, end=False))
            client.data(streams[-1], body, end=True)
        answers = [client.wait(stream).body for stream in streams]
    assert [hashlib.sha256(body).digest() for body in answers] == [
        hashlib.sha256(body).digest() for body in bodies
    ]


def test_a_reset_of_the_application_after_it_had_the_request_reaches_the_caller_as_503(shop: Shop) -> None:
    """A POST: it may have been processed, so it is not sent again."""
    with H2Client(shop.proxy) as client:
        stream = client.send(f"/refuse/{int(h2.errors.ErrorCodes.INTERNAL_ERROR)}", "POST", MIRROR)
        answer = client.wait(stream)
    assert answer.status == 503
    assert b"POST may have been processed" in answer.body


def test_a_stream_that_the_application_refused_is_sent_again(shop: Shop) -> None:
    """There is one replica, which refuses always: three attempts, then the reason."""
    with H2Client(shop.proxy) as client:
        assert client.fetch("/", authority=MIRROR).status == 200  # from here on the cluster is known
        before = shop.shopper.stats("clusters", cluster="mirror.shop.svc.cluster.local:8081")["retries"]
        answer = client.fetch("/refuse/7", "POST", authority=MIRROR)
    assert answer.status == 503
    assert b"after 3 attempts" in answer.body
    after = shop.shopper.stats("clusters", cluster="mirror.shop.svc.cluster.local:8081")["retries"]
    assert after == before + 2


@pytest.mark.parametrize("authority", ["nobody.invalid:80"])
def test_a_destination_that_does_not_resolve_is_503_and_named(shop: Shop, authority: str) -> None:
    with H2Client(shop.proxy) as client:
        answer = client.fetch("/", authority=authority)
    assert answer.status == 503
    assert authority.encode() in answer.body
