"""HTTP/2 as a client: an application that breaks RFC 9113 in one place. What the sidecar says to it is the
error that the section names, and its caller gets an answer of the mesh or a response that is visibly cut."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import h2_frames as f
from tests.support.clients import fetch
from tests.support.hostile import EVIL_H2, EvilServer
from tests.support.processes import eventually, loopback
from tests.support.sidecars import (
    OUTBOUND,
    Sidecar,
    address,
    bootstrap,
    cluster,
    http_filter,
    listener,
    route,
)

PROTOCOL, FLOW_CONTROL, STREAM_CLOSED, FRAME_SIZE, COMPRESSION, CALM = 1, 3, 5, 6, 9, 11
OK = [(b":status", b"200")]
RST, AWAY = f.RST_STREAM, f.GOAWAY
SETTINGS = f.settings({4: 2**31})  # 6.5.2: above 2^31-1
LARGE = [(b"x-large", b"x" * 16_000)] * 5
BLOCK = f.block(OK + LARGE)


def ok(*fields: tuple[bytes, bytes]) -> bytes:
    return f.headers(1, [*OK, *fields])


def large() -> bytes:
    pieces = [BLOCK[i : i + 16384] for i in range(0, len(BLOCK), 16384)]
    middle = [f.frame(f.CONTINUATION, 0, 1, piece) for piece in pieces[1:-1]]
    last = f.frame(f.CONTINUATION, f.END_HEADERS, 1, pieces[-1])
    return f.frame(f.HEADERS, 0, 1, pieces[0]) + b"".join(middle) + last


WRONG: dict[str, tuple[bytes, int, int]] = {
    "3.4 settings acknowledged before any came": (f.frame(f.SETTINGS, f.ACK, 0, b"x"), AWAY, FRAME_SIZE),
    "4.2 frame above SETTINGS_MAX_FRAME_SIZE": (f.frame(f.DATA, 0, 1, bytes(16385)), AWAY, FRAME_SIZE),
    "4.3 field block that cannot be decoded": (f.frame(f.HEADERS, 5, 1, b"\xff\0"), AWAY, COMPRESSION),
    "4.3 field block that is interrupted": (
        f.frame(f.HEADERS, 0, 1, f.block(OK)) + f.ping(),
        AWAY,
        PROTOCOL,
    ),
    "5.1 DATA on an idle stream": (f.data(5, b"x"), AWAY, PROTOCOL),
    "5.1 HEADERS on an idle stream": (f.headers(5, OK), AWAY, PROTOCOL),
    "5.1 RST_STREAM on an idle stream": (f.rst_stream(5, 8), AWAY, PROTOCOL),
    "5.1 WINDOW_UPDATE on an idle stream": (f.window_update(5, 1), AWAY, PROTOCOL),
    "5.1 DATA after END_STREAM": (f.headers(1, OK, True) + f.data(1, b"x"), AWAY, STREAM_CLOSED),
    "5.1.1 a stream opened by the server": (f.headers(2, OK), AWAY, PROTOCOL),
    "6.1 DATA on stream 0": (f.data(0, b"x"), AWAY, PROTOCOL),
    "6.1 padding as long as the frame": (ok() + f.frame(f.DATA, f.PADDED, 1, b"\5abcd"), AWAY, PROTOCOL),
    "6.2 HEADERS on stream 0": (f.headers(0, OK), AWAY, PROTOCOL),
    "6.3 PRIORITY on stream 0": (f.priority(0), AWAY, PROTOCOL),
    "6.4 RST_STREAM of three octets": (f.frame(f.RST_STREAM, 0, 1, b"abc"), AWAY, FRAME_SIZE),
    "6.5 SETTINGS on a stream": (f.frame(f.SETTINGS, 0, 1), AWAY, PROTOCOL),
    "6.5 SETTINGS of five octets": (f.frame(f.SETTINGS, 0, 0, b"abcde"), AWAY, FRAME_SIZE),
    "6.5.2 a server that enables push": (f.settings({2: 1}), AWAY, PROTOCOL),
    "6.5.2 initial window above 2^31-1": (SETTINGS, AWAY, FLOW_CONTROL),
    "6.5.2 frame size below 2^14": (f.settings({5: 16383}), AWAY, PROTOCOL),
    "6.6 PUSH_PROMISE": (f.frame(f.PUSH_PROMISE, 4, 1, b"\0\0\0\2" + f.block(f.GET)), AWAY, PROTOCOL),
    "6.7 PING on a stream": (f.frame(f.PING, 0, 1, bytes(8)), AWAY, PROTOCOL),
    "6.7 PING of seven octets": (f.frame(f.PING, 0, 0, bytes(7)), AWAY, FRAME_SIZE),
    "6.8 GOAWAY on a stream": (f.frame(f.GOAWAY, 0, 1, bytes(8)), AWAY, PROTOCOL),
    "6.9 WINDOW_UPDATE of 0 on the connection": (f.window_update(0, 0), AWAY, PROTOCOL),
    "6.9 WINDOW_UPDATE of 0 on the stream": (f.window_update(1, 0), RST, PROTOCOL),
    "6.9.1 connection's window above 2^31-1": (f.window_update(0, 2**31 - 1), AWAY, FLOW_CONTROL),
    "6.9.1 stream's window above 2^31-1": (f.window_update(1, 2**31 - 1), RST, FLOW_CONTROL),
    "6.10 CONTINUATION without HEADERS": (f.frame(f.CONTINUATION, 4, 1, b""), AWAY, PROTOCOL),
    "8.1 DATA before HEADERS": (f.data(1, b"x"), RST, PROTOCOL),
    "8.1 trailers that do not end the stream": (ok() + f.headers(1, [(b"a", b"b")]), RST, PROTOCOL),
    "8.1 trailers with a pseudo-header": (ok() + f.headers(1, OK, True), RST, PROTOCOL),
    "8.1 informational response that ends the stream": (
        f.headers(1, [(b":status", b"103")], True),
        RST,
        PROTOCOL,
    ),
    "8.1.1 less content than content-length": (ok((b"content-length", b"5")) + f.data(1, b"x", True), RST, 1),
    "8.1.1 more content than content-length": (ok((b"content-length", b"1")) + f.data(1, b"xx"), RST, 1),
    "8.1.1 content-length without content": (
        f.headers(1, [*OK, (b"content-length", b"5")], True),
        RST,
        PROTOCOL,
    ),
    "8.2.1 upper case": (ok((b"X-Upper", b"1")), RST, PROTOCOL),
    "8.2.1 line feed in a value": (ok((b"x-a", b"1\nx-b: 2")), RST, PROTOCOL),
    "8.2.1 space before a value": (ok((b"x-a", b" 1")), RST, PROTOCOL),
    "8.2.2 connection": (ok((b"connection", b"close")), RST, PROTOCOL),
    "8.2.2 te": (ok((b"te", b"trailers")), RST, PROTOCOL),
    "8.2.2 transfer-encoding": (ok((b"transfer-encoding", b"chunked")), RST, PROTOCOL),
    "8.3 pseudo-header behind a field": (f.headers(1, [(b"a", b"b"), *OK]), RST, PROTOCOL),
    "8.3 pseudo-header of a request": (ok((b":path", b"/")), RST, PROTOCOL),
    "8.3 :status twice": (f.headers(1, OK * 2), RST, PROTOCOL),
    "8.3.2 no :status": (f.headers(1, [(b"a", b"b")]), RST, PROTOCOL),
    "8.3.2 :status that is no number": (f.headers(1, [(b":status", b"2xx")]), RST, PROTOCOL),
    "8.6 101 does not exist": (f.headers(1, [(b":status", b"101")]), RST, PROTOCOL),
    "10.5.1 header section above the limit": (large(), RST, CALM),
}


PASSED_ON = {
    "5.1 DATA after END_STREAM",
    "6.1 padding as long as the frame",
    "8.1 trailers that do not end the stream",
    "8.1 trailers with a pseudo-header",
    "8.1.1 less content than content-length",
    "8.1.1 more content than content-length",
}
"""The response had begun before its error."""


class Server:
    """Takes a request, says what it was told to say, and listens for the verdict."""

    def __init__(self) -> None:
        self.octets = b""
        self.verdict: list[tuple[int, int]] = []

    def behave(self, sock: socket.socket) -> None:
        sock.settimeout(5.0)
        sock.sendall(f.settings())
        said = b""
        answered = False
        while more := sock.recv(65536):
            said += more
            frames = f.parse_prefix(said.removeprefix(f.PREFACE)) if len(said) > len(f.PREFACE) else []
            if not answered and any(frame.type == f.HEADERS for frame in frames):
                answered = True
                sock.sendall(self.octets)
            found = [(frame.type, frame.code) for frame in frames if frame.type in (RST, AWAY)]
            if found:
                self.verdict = found
                sock.close()  # the next case begins with a connection and stream 1 of its own
                return


@pytest.fixture(scope="module")
def hop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    host = loopback()
    routes = [route("/", "wrong", timeout="2s")]
    at = [listener("out", address(host, OUTBOUND), http_filter(routes))]
    tree = bootstrap(host, at, [cluster("wrong", [(host, EVIL_H2)], http2=True)])
    directory: Path = tmp_path_factory.mktemp("wrong")
    server = Server()
    sidecar = Sidecar("right", tree, directory).ready()
    try:
        with EvilServer(host, EVIL_H2, server.behave):
            yield host, server
    finally:
        sidecar.stop()


@pytest.mark.parametrize("name", WRONG)
def test_the_error_is_the_one_that_the_section_names(hop: tuple[str, Server], name: str) -> None:
    host, server = hop
    server.octets, kind, code = WRONG[name]
    server.verdict = []
    begun = name in PASSED_ON
    try:
        answer = fetch((host, OUTBOUND), "/")
    except (OSError, http.client.HTTPException):
        assert begun, "cut although nothing had been passed on"
    else:
        assert answer.status in ((200, 502, 503) if begun else (502, 503)), bytes(answer.body)
        assert answer.body or begun, "no reason was given"
    assert eventually(lambda: server.verdict, "the sidecar to say so", 3.0)[0] == (kind, code)
