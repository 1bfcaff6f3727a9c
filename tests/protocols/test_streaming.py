"""Bodies that go on for long: nothing is kept back while more is awaited."""

from __future__ import annotations

import threading
import time

from tests.support.clients import H2Client
from tests.support.pairs import Peer, RawApp, World, ok
from tests.support.processes import eventually

REQUEST = b"GET /events HTTP/1.1\r\nHost: web\r\nAccept: text/event-stream\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(text: str) -> bytes:
    return b"%x\r\ndata: %b\n\n\r\n" % (len(text) + 8, text.encode())


def test_each_server_sent_event_arrives_before_the_next_is_made(client: Peer, web: RawApp) -> None:
    """The application makes an event only when the caller has seen the one before."""
    seen = threading.Semaphore(0)

    def script(peer: Peer, head: bytes) -> None:
        peer.send(CHUNKED)
        for i in range(20):
            assert seen.acquire(timeout=10)
            peer.send(event(str(i)))
        peer.send(b"0\r\n\r\n")

    web.on("/events", script)
    client.send(REQUEST)
    assert client.head().startswith(b"HTTP/1.1 200 ")  # before any event
    for i in range(20):
        seen.release()
        assert client.until(b"\n\n\r\n").endswith(b"data: %d\n\n\r\n" % i)
    assert client.until(b"0\r\n\r\n") == b"0\r\n\r\n"


def test_events_arrive_over_http_2_too(world: World, web: RawApp) -> None:
    seen = threading.Event()

    def script(peer: Peer, head: bytes) -> None:
        peer.send(CHUNKED + event("first"))
        assert seen.wait(10)
        peer.send(event("last") + b"0\r\n\r\n")

    web.on("/events", script)
    with H2Client(world.proxy) as client:
        stream = client.send("/events", authority="web")
        while b"first" not in client.answers[stream].body:
            assert client.pump()
        seen.set()
        assert client.wait(stream).body == b"data: first\n\ndata: last\n\n"


def test_a_slow_response_of_known_length_arrives_as_it_comes(client: Peer, web: RawApp) -> None:
    """The application goes on only when the caller has seen what came before."""
    seen = threading.Semaphore(0)

    def script(peer: Peer, head: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n")
        for byte in (b"a", b"b", b"c"):
            assert seen.acquire(timeout=10)
            peer.send(byte)

    web.on("/slow", script)
    client.send(b"GET /slow HTTP/1.1\r\nHost: web\r\n\r\n")
    assert client.head().startswith(b"HTTP/1.1 200 ")
    for byte in (b"a", b"b", b"c"):
        seen.release()
        assert client.exactly(1) == byte


def test_a_long_poll_is_answered_when_the_application_answers(client: Peer, web: RawApp) -> None:
    def script(peer: Peer, head: bytes) -> None:
        time.sleep(1.0)
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nnew")

    web.on("/poll", script)
    started = time.monotonic()
    client.send(b"GET /poll HTTP/1.1\r\nHost: web\r\n\r\n")
    assert client.answer()[1] == b"new"
    assert 1.0 <= time.monotonic() - started < 3.0


def test_a_caller_of_http_2_that_gives_up_a_long_poll_is_missed_at_once(world: World, web: RawApp) -> None:
    gone = threading.Event()

    def script(peer: Peer, head: bytes) -> None:
        try:
            peer.exactly(1)
        except (EOFError, OSError):
            gone.set()

    heads = web.on("/poll", script)
    with H2Client(world.proxy) as client:
        client.send("/poll", authority="web")
        eventually(lambda: heads, "the request to arrive")
    assert gone.wait(5)


def test_an_end_of_a_caller_of_http_1_is_no_wish_to_stop(client: Peer, web: RawApp) -> None:
    """It may only have ended its own direction, as `printf ... | nc` does, and gets its answer."""

    def script(peer: Peer, head: bytes) -> None:
        time.sleep(0.3)
        peer.send(ok(b"still there"))

    web.on("/half", script)
    client.send(b"GET /half HTTP/1.1\r\nHost: web\r\n\r\n")
    client.end()
    assert client.rest().endswith(b"still there")


def test_events_for_a_caller_that_has_left_end_at_the_application(world: World, web: RawApp) -> None:
    """Of HTTP/1: the first event that nobody takes shows it."""
    gone = threading.Event()

    def script(peer: Peer, head: bytes) -> None:
        peer.send(CHUNKED)
        try:
            for i in range(100):
                peer.send(event(str(i)))
                time.sleep(0.05)
        except OSError:
            gone.set()
            raise

    web.on("/left", script)
    with world.dial() as client:
        client.send(b"GET /left HTTP/1.1\r\nHost: web\r\n\r\n")
        client.until(b"data: 1")
    assert gone.wait(4)


def test_each_piece_of_an_upload_arrives_before_the_next_is_sent(client: Peer, web: RawApp) -> None:
    came = threading.Semaphore(0)

    def script(peer: Peer, head: bytes) -> None:
        for _ in range(5):
            peer.until(b"piece\r\n")
            came.release()
        peer.until(b"0\r\n\r\n")
        peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    web.on("/up", script)
    client.send(b"POST /up HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(5):
        client.send(b"5\r\npiece\r\n")
        assert came.acquire(timeout=10)
    client.send(b"0\r\n\r\n")
    assert client.answer()[0].startswith(b"HTTP/1.1 204 ")


def test_request_and_response_may_flow_at_once(world: World, web: RawApp) -> None:
    """An answer that begins before its request has ended, piece by piece in turns."""

    def script(peer: Peer, head: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            piece = peer.until(b"\r\n") + peer.until(b"\r\n")
            peer.send(piece)
        peer.until(b"0\r\n\r\n")
        peer.send(b"0\r\n\r\n")

    web.on("/echo", script)
    with H2Client(world.proxy) as client:
        stream = client.send("/echo", "POST", "web", end=False)
        client.wait_head(stream)
        for i in range(3):
            client.data(stream, b"piece%d" % i)
            while not client.answers[stream].body.endswith(b"piece%d" % i):
                assert client.pump()
        client.h2.end_stream(stream)
        client.flush()
        assert client.wait(stream).body == b"piece0piece1piece2"
