"""gRPC with grpcio at both ends, through CONNECT (`http_proxy`) and by HTTP/2 prior knowledge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.support.clients import H2Client
from tests.support.h2_app import start_h2_app
from tests.support.pairs import DOMAIN, Peer, World
from tests.support.processes import eventually

LARGE = 10_000_000
STREAMS = 100
SIZES: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 2 * LARGE),
    ("grpc.max_send_message_length", 2 * LARGE),
]


GRPC = [("content-type", "application/grpc"), ("te", "trailers")]


class Greeter:
    """Messages are bytes. What callers leave behind is in `events`."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.metadata: dict[str, str] = {}
        self.remaining = 0.0

    def hello(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.metadata = {str(n): str(v) for n, v in context.invocation_metadata()}
        self.remaining = context.time_remaining() or 0.0
        context.set_trailing_metadata((("x-served", "1"),))
        return b"hello " + request

    def fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("x-why", "asked"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "100 % as wished: grüße")

    def hang(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        over = threading.Event()
        context.add_callback(over.set)
        self.events.append("hanging")
        over.wait(30)
        self.events.append("over")
        return b""

    def listing(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for i in range(int(request)):
            yield b"%d" % i

    def total(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return b"%d" % sum(map(len, requests))

    def chat(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from requests


def serve(greeter: Greeter, address: str) -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(STREAMS + 10), options=SIZES)
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    handlers = {
        "Hello": unary(greeter.hello),
        "Fail": unary(greeter.fail),
        "Hang": unary(greeter.hang),
        "Listing": grpc.unary_stream_rpc_method_handler(greeter.listing),
        "Total": grpc.stream_unary_rpc_method_handler(greeter.total),
        "Chat": stream(greeter.chat),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Greeter", handlers),))
    server.add_insecure_port(address)
    server.start()
    return server


@pytest.fixture(scope="module")
def greeter(world: World) -> Iterator[Greeter]:
    made = Greeter()
    server = serve(made, f"{world.host}:50051")
    yield made
    server.stop(None).wait(10)


def open_channel(world: World, way: str, service: str = "greeter", port: int = 50051) -> grpc.Channel:
    """`connect`: a client with http_proxy set. `direct`: one that is pointed at the sidecar and says whom it
    means in :authority."""
    options = [*SIZES, ("grpc.use_local_subchannel_pool", 1)]
    target = f"{service}.{DOMAIN}:{port}"
    if way == "connect":
        options.append(("grpc.http_proxy", f"http://{world.proxy[0]}:{world.proxy[1]}"))
    else:
        options += [("grpc.default_authority", target), ("grpc.enable_http_proxy", 0)]
        target = f"{world.proxy[0]}:{world.proxy[1]}"
    return grpc.insecure_channel(target, options=options)


@pytest.fixture(scope="module", params=["connect", "direct"])
def channel(world: World, greeter: Greeter, request: pytest.FixtureRequest) -> Iterator[grpc.Channel]:
    with open_channel(world, request.param) as made:
        yield made


@pytest.fixture(scope="module")
def undeclared(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An application of HTTP/2 on a port of which nothing is said."""
    with start_h2_app(world.host, 7100, "undeclared", tmp_path_factory.mktemp("undeclared")):
        yield "guess:7100"


def hello(channel: grpc.Channel) -> Callable[..., Any]:
    return channel.unary_unary("/test.Greeter/Hello")


def test_unary_with_metadata_both_ways(channel: grpc.Channel, greeter: Greeter) -> None:
    answer, call = hello(channel).with_call(
        b"you", metadata=[("x-a", "1"), ("x-b-bin", b"\x00\xff")], timeout=20
    )
    assert answer == b"hello you"
    assert greeter.metadata["x-a"] == "1"
    assert ("x-served", "1") in call.trailing_metadata()


def test_three_kinds_of_streaming(channel: grpc.Channel) -> None:
    listing = channel.unary_stream("/test.Greeter/Listing")(b"1000", timeout=20)
    assert [int(item) for item in listing] == list(range(1000))
    total = channel.stream_unary("/test.Greeter/Total")
    assert total((b"x" * 1000 for _ in range(500)), timeout=20) == b"500000"
    words = [b"a", b"b" * 100_000, b"", b"c"]
    assert list(channel.stream_stream("/test.Greeter/Chat")(iter(words), timeout=20)) == words


def test_a_status_of_the_application_arrives_with_message_and_metadata(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary("/test.Greeter/Fail")(b"", timeout=20)
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.value.details() == "100 % as wished: grüße"
    assert ("x-why", "asked") in failed.value.trailing_metadata()


def test_trailers_only_stays_trailers_only(world: World, greeter: Greeter) -> None:
    """A method that nobody has: the server answers with one HEADERS frame, and so does the mesh."""
    with H2Client(world.proxy) as client:
        answer = client.fetch("/test.Greeter/None", method="POST", authority="greeter:50051", headers=GRPC)
    assert answer.headers["grpc-status"] == "12"
    assert (answer.body, answer.trailers) == (b"", {})


def test_the_deadline_is_forwarded_less_the_time_spent(channel: grpc.Channel, greeter: Greeter) -> None:
    hello(channel)(b"", timeout=10)
    assert 5 < greeter.remaining < 10.2  # grpcio rounds up by 1 %


def test_the_field_of_the_deadline_shrinks_on_its_way(world: World, undeclared: str) -> None:
    """The application shows what the second sidecar has sent."""
    with H2Client(world.proxy) as client:
        headers = [*GRPC, ("grpc-timeout", "5S")]
        answer = client.fetch("/a.B/C", method="POST", authority=undeclared, headers=headers)
    value = answer.headers["echo-grpc-timeout"]
    seconds = int(value[:-1]) * {"n": 1e-9, "u": 1e-6, "m": 1e-3, "S": 1.0}[value[-1]]
    assert 3 < seconds < 5


def test_the_mesh_keeps_the_deadline_when_the_application_does_not(world: World) -> None:
    """The raw application takes the call and says nothing: only the sidecar can end it in time."""
    app = world.tcp(7199, lambda peer: peer.rest() and None)
    with H2Client(world.proxy) as client:
        headers = [*GRPC, ("grpc-timeout", "300m")]
        started = time.monotonic()
        answer = client.fetch("/a.B/C", method="POST", authority="nobody:7199", headers=headers)
    app.stop()
    assert answer.headers["grpc-status"] == "4", answer
    assert 0.25 < time.monotonic() - started < 5


def test_a_compressed_call_is_understood(channel: grpc.Channel) -> None:
    text = b"again and " * 10_000
    assert hello(channel)(text, timeout=20, compression=grpc.Compression.Gzip) == b"hello " + text


def test_compressed_messages_are_passed_untouched(world: World, undeclared: str) -> None:
    """Nothing here could be decompressed."""
    message = b"\x01\x00\x00\x00\x07garbage"
    headers = [*GRPC, ("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip, zstd")]
    with H2Client(world.proxy) as client:
        stream = client.send("/a.B/Zip", "POST", undeclared, headers, end=False)
        client.data(stream, message, end=True)
        answer = client.wait(stream)
    assert answer.body == message
    assert answer.headers["echo-grpc-encoding"] == "gzip"
    assert answer.headers["echo-grpc-accept-encoding"] == "gzip, zstd"


def test_a_call_is_http2_at_a_port_that_says_nothing_and_other_requests_are_http1(
    world: World, undeclared: str
) -> None:
    with H2Client(world.proxy) as client:
        assert client.fetch("/a.B/C", method="POST", authority=undeclared, headers=GRPC).status == 200
        # What the application answers to HTTP/1.1 is no HTTP/1.1.
        assert client.fetch("/a.B/C", method="POST", authority=undeclared).status == 502


def test_a_hundred_streams_with_messages_in_flight(channel: grpc.Channel) -> None:
    """All are open at once: none gets its first answer before the last has asked."""
    open_streams = threading.Barrier(STREAMS, timeout=30)

    def talk(number: int) -> list[bytes]:
        def words() -> Iterator[bytes]:
            for i in range(10):
                yield b"%d/%d" % (number, i) + bytes(2000)

        call = channel.stream_stream("/test.Greeter/Chat")(words(), timeout=40)
        try:
            first = next(call)
        except grpc.RpcError:
            open_streams.abort()
            raise
        open_streams.wait()
        return [first, *call]

    with ThreadPoolExecutor(STREAMS) as pool:
        calls = [pool.submit(talk, number) for number in range(STREAMS)]
        failures = [call.exception() for call in calls]
        assert [f for f in failures if f and not isinstance(f, threading.BrokenBarrierError)] == []
        answers = [call.result() for call in calls]
    assert answers == [[b"%d/%d" % (n, i) + bytes(2000) for i in range(10)] for n in range(STREAMS)]


def test_messages_of_ten_megabytes(channel: grpc.Channel) -> None:
    large = bytes(range(250)) * (LARGE // 250)
    assert hello(channel)(large, timeout=40) == b"hello " + large


def test_cancelling_ends_the_call_at_the_application_at_once(channel: grpc.Channel, greeter: Greeter) -> None:
    before = len(greeter.events)
    call = channel.unary_unary("/test.Greeter/Hang").future(b"", timeout=30)
    eventually(lambda: len(greeter.events) == before + 1, "the call to arrive", 10)
    cancelled = time.monotonic()
    call.cancel()
    eventually(lambda: len(greeter.events) == before + 2, "the call to end", 10)
    assert time.monotonic() - cancelled < 1


def test_a_cancellation_is_a_reset_stream_and_spares_the_connection(world: World) -> None:
    frames: list[bytes] = []
    reset = threading.Event()

    def serve(peer: Peer) -> None:
        """Enough HTTP/2 to see which frames come."""
        peer.exactly(24)
        peer.send(bytes(3) + b"\x04" + bytes(5))
        while True:
            header = peer.exactly(9)
            payload = peer.exactly(int.from_bytes(header[:3], "big"))
            if header[3] == 4 and not header[4] & 1:
                peer.send(bytes(3) + b"\x04\x01" + bytes(4))
            if header[3] in (1, 3):
                frames.append(header[3:4] + header[5:9] + (payload if header[3] == 3 else b""))
            if header[3] == 3:
                reset.set()

    app = world.tcp(8081, serve)
    with open_channel(world, "direct", "stream", 8081) as channel:
        call = channel.unary_unary("/a.B/C").future(b"", timeout=30)
        eventually(lambda: len(frames) == 1, "the call to arrive", 10)
        call.cancel()
        assert reset.wait(5)
        again = channel.unary_unary("/a.B/C").future(b"", timeout=30)
        eventually(lambda: len(frames) == 3, "the next call on the same connection", 10)
        again.cancel()
    assert [frame[:1] for frame in frames[:3]] == [b"\x01", b"\x03", b"\x01"]
    assert frames[1][1:] == frames[0][1:] + (8).to_bytes(4, "big")  # CANCEL
    assert app.connections == 1
    app.stop()


@pytest.mark.parametrize("way", ["connect", "direct"])
@pytest.mark.parametrize(("service", "port"), [("missing", 50051), ("nobody", 7199)])
def test_errors_of_the_mesh_are_grpc_statuses(world: World, way: str, service: str, port: int) -> None:
    """A name that does not resolve, and an application that does not listen."""
    with open_channel(world, way, service, port) as channel, pytest.raises(grpc.RpcError) as failed:
        hello(channel)(b"", timeout=10)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("place", [0, 2], ids=["first", "last"])
def test_a_call_with_too_large_metadata_is_resource_exhausted(world: World, place: int) -> None:
    with H2Client(world.proxy) as client:
        headers = list(GRPC)
        headers.insert(place, ("x-large", "x" * 70_000))
        answer = client.fetch("/a.B/C", method="POST", authority="greeter:50051", headers=headers)
    assert (answer.status, answer.headers.get("grpc-status")) == (200, "8")
