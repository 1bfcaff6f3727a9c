"""Plain grpcio clients and servers, the client with `http_proxy` set: all kinds of calls, and their ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest

from tests.support.clients import H2Client
from tests.support.grpc_app import SERVICE, grpc_channel
from tests.support.processes import eventually
from tests.support.shop import Shop

TIMEOUT = 30.0
MEGABYTES = b"m" * 4_000_000


@pytest.fixture(scope="module")
def channel(shop: Shop) -> Iterator[grpc.Channel]:
    with grpc_channel("greeter.shop:50051", shop.proxy_text) as made:
        yield made


def method(name: str) -> str:
    return f"/{SERVICE}/{name}"


def test_a_unary_call_with_metadata_both_ways(channel: grpc.Channel) -> None:
    call = channel.unary_unary(method("Hello"))
    answer, done = call.with_call(
        b"you", timeout=TIMEOUT, metadata=[("x-test", "1"), ("x-test-bin", b"\0\xff")]
    )
    assert answer == b"greeter-1: you"
    assert done.code() is grpc.StatusCode.OK
    assert {(n, v) for n, v in done.trailing_metadata()} >= {("x-test", "1"), ("x-test-bin", b"\0\xff")}


def test_the_applications_status_and_message_arrive(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(method("Fail"))(b"", timeout=TIMEOUT)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert raised.value.details() == "as you wished: 100 %"
    assert ("x-why", "asked") in list(raised.value.trailing_metadata())


def test_a_server_streams(channel: grpc.Channel) -> None:
    messages = list(channel.unary_stream(method("Listing"))(b"1000", timeout=TIMEOUT))
    assert messages == [str(i).encode() for i in range(1000)]


def test_a_client_streams(channel: grpc.Channel) -> None:
    total = channel.stream_unary(method("Total"))(iter([b"x" * 1000] * 500), timeout=TIMEOUT)
    assert total == b"500000"


def test_both_stream_in_turns(channel: grpc.Channel) -> None:
    """Each message is sent only when the one before has come back: nothing may wait for more."""
    turn = threading.Semaphore(1)

    def messages() -> Iterator[bytes]:
        for i in range(100):
            assert turn.acquire(timeout=TIMEOUT)
            yield str(i).encode()

    received = []
    for message in channel.stream_stream(method("Chat"))(messages(), timeout=TIMEOUT):
        received.append(message)
        turn.release()
    assert received == [str(i).encode() for i in range(100)]


def test_messages_of_four_megabytes_pass_both_ways(channel: grpc.Channel) -> None:
    assert channel.unary_unary(method("Hello"))(MEGABYTES, timeout=TIMEOUT) == b"greeter-1: " + MEGABYTES
    echoed = list(channel.stream_stream(method("Chat"))(iter([MEGABYTES] * 3), timeout=TIMEOUT))
    assert echoed == [MEGABYTES] * 3


def counted(channel: grpc.Channel, what: bytes) -> int:
    return int(channel.unary_unary(method("Count"))(what, timeout=TIMEOUT))


def test_a_cancelled_call_is_cancelled_at_the_server(channel: grpc.Channel) -> None:
    hanging, cancelled = counted(channel, b"hanging"), counted(channel, b"cancelled")
    call = channel.unary_unary(method("Hang")).future(b"", timeout=TIMEOUT)
    eventually(lambda: counted(channel, b"hanging") == hanging + 1, "the call to arrive")
    call.cancel()
    eventually(lambda: counted(channel, b"cancelled") == cancelled + 1, "the cancellation to arrive")


def test_a_deadline_ends_the_call_on_both_sides(channel: grpc.Channel) -> None:
    cancelled = counted(channel, b"cancelled")
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(method("Hang"))(b"", timeout=0.5)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: counted(channel, b"cancelled") == cancelled + 1, "the end at the server")


def test_the_server_knows_how_much_time_is_left(channel: grpc.Channel) -> None:
    left = float(channel.unary_unary(method("Remaining"))(b"", timeout=20.0))
    assert 5.0 < left <= 21.0  # grpcio rounds the timeout up


def test_a_local_error_is_a_trailers_only_response(shop: Shop) -> None:
    with H2Client(shop.proxy) as client:
        headers = [("content-type", "application/grpc"), ("te", "trailers")]
        stream = client.send(method("Hello"), "POST", "nobody.invalid:50051", headers)
        answer = client.wait(stream)
    assert (answer.status, answer.body, answer.trailers) == (200, b"", {})
    assert answer.headers["grpc-status"] == "14"
    assert "nobody.invalid:50051" in answer.headers["grpc-message"]
    assert "content-length" not in answer.headers
    line = shop.shopper.logged(authority="nobody.invalid:50051", path=method("Hello"))
    assert (line["status"], line["grpc_status"], line["flags"]) == (200, 14, "UF")
    assert "nobody.invalid" in line["details"]


def test_metrics_and_log_know_the_grpc_status(shop: Shop, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(method("Fail"))(b"", timeout=TIMEOUT)
    for name in ("shopper", "backend-1"):
        line = shop.sidecars[name].logged(path=method("Fail"))
        assert (line["status"], line["grpc_status"], line["flags"]) == (200, 9, "")
