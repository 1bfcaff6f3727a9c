"""A small HTTP/1.1 application of its own process: `python tests/support/apps.py HOST PORT NAME`.

The path says what it does; `/counts` says how often each path was asked for. Only the standard library, so
that it starts at once. Tests use the class `App` at the end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import sys
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from tests.support.processes import Process

PIECE = 65536
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


class Request:
    """One request; its body is read by whoever answers."""

    def __init__(self, head: bytes, reader: Reader) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, target, _ = first.split(" ")
        self.fields = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)
        ]
        self.headers = dict(self.fields)
        url = urlsplit(target)
        self.path = url.path
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.reader = reader
        self.trailers: dict[str, str] = {}

    async def body(self) -> AsyncIterator[bytes]:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(await self.reader.readline(), 16):
                yield await self.reader.readexactly(size)
                await self.reader.readline()
            while (line := await self.reader.readline()) != b"\r\n":
                name, _, value = line.decode("latin-1").partition(":")
                self.trailers[name.lower()] = value.strip()
            return
        left = int(self.headers.get("content-length", "0"))
        while left:
            data = await self.reader.read(min(left, PIECE))
            if not data:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(data)
            yield data


class Server:
    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.connections = 0
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def serve(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        try:
            while await self.one(reader, writer):
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            self.counts["/lost"] += 1
        finally:
            writer.close()

    async def one(self, reader: Reader, writer: Writer) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        request = Request(head[:-4], reader)
        self.counts[request.path] += 1
        handler = getattr(self, "on_" + request.path.strip("/").partition("/")[0].replace("-", "_"), None)
        await (handler or self.on_headers)(request, writer)
        return request.headers.get("connection", "") != "close" and handler != self.on_upgrade

    def send(self, writer: Writer, status: int, body: bytes | None = b"", *fields: str) -> None:
        """`body` None: none and no length (204, 304)."""
        lines = [f"HTTP/1.1 {status} X", f"x-replica: {self.name}", *fields]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    async def on_headers(self, request: Request, writer: Writer) -> None:
        """What arrived, as JSON."""
        digest, size = hashlib.sha256(), 0
        if "100-continue" in request.headers.get("expect", ""):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async for piece in request.body():
            digest.update(piece)
            size += len(piece)
        seen = {
            "replica": self.name,
            "method": request.method,
            "path": request.path,
            "fields": request.fields,
            "size": size,
            "sha256": digest.hexdigest(),
            "trailers": request.trailers,
        }
        body = json.dumps(seen).encode()
        self.send(writer, 200, body if request.method != "HEAD" else None, "content-type: application/json")

    async def on_counts(self, request: Request, writer: Writer) -> None:
        self.send(writer, 200, json.dumps({**self.counts, "connections": self.connections}).encode())

    async def on_status(self, request: Request, writer: Writer) -> None:
        status = int(request.path.rpartition("/")[2])
        self.send(writer, status, None if status in (204, 304) else b"status\n")

    async def on_bytes(self, request: Request, writer: Writer) -> None:
        """`n` bytes, byte i being i mod 251; chunked with a trailer if `chunked`."""
        left = int(request.query["n"])
        pattern = bytes(range(251)) * (PIECE // 251)
        digest = hashlib.sha256()
        chunked = "chunked" in request.query
        framing = "transfer-encoding: chunked\r\ntrailer: x-sha256" if chunked else f"content-length: {left}"
        writer.write(f"HTTP/1.1 200 OK\r\nx-replica: {self.name}\r\n{framing}\r\n\r\n".encode())
        while left:
            piece = pattern[:left]
            left -= len(piece)
            digest.update(piece)
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\nx-sha256: %b\r\n\r\n" % digest.hexdigest().encode())

    async def on_sleep(self, request: Request, writer: Writer) -> None:
        async for _ in request.body():
            pass
        await asyncio.sleep(float(request.query["s"]))
        self.send(writer, 200, b"slept\n")

    async def on_wait(self, request: Request, writer: Writer) -> None:
        """Answers once `/release` with the same query was asked for: a test says when, not the clock."""
        async for _ in request.body():
            pass
        await self.gates[json.dumps(request.query)].wait()
        self.send(writer, 200, b"waited\n")

    async def on_release(self, request: Request, writer: Writer) -> None:
        self.gates[json.dumps(request.query)].set()
        self.send(writer, 200)

    async def on_hang(self, request: Request, writer: Writer) -> None:
        """Takes the request's body and never answers; ends when the peer does."""
        async for _ in request.body():
            pass
        await request.reader.read()

    async def on_stall(self, request: Request, writer: Writer) -> None:
        """Never reads the body."""
        await asyncio.Event().wait()

    async def on_half(self, request: Request, writer: Writer) -> None:
        """Half a response to the first request for each path, a whole one to all others."""
        body = b"whole\n"
        if self.counts[request.path] == 1:
            # With the end in one segment, so that no pause of this process comes between.
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body[:3])
            writer.close()
        else:
            self.send(writer, 200, body)

    async def on_events(self, request: Request, writer: Writer) -> None:
        """One server-sent event, and no other ever."""
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        writer.write(b"b\r\ndata: one\n\n\r\n")
        await request.reader.read()

    async def on_upgrade(self, request: Request, writer: Writer) -> None:
        """Says 101 and sends back whatever comes."""
        key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = b64encode(hashlib.sha1(key.encode()).digest()).decode()  # RFC 6455 section 4.2.2
        lines = ["connection: upgrade", "upgrade: websocket", f"sec-websocket-accept: {accept}"]
        writer.write("\r\n".join(["HTTP/1.1 101 X", *lines, "", ""]).encode())
        while data := await request.reader.read(PIECE):
            writer.write(data)

    async def on_call(self, request: Request, writer: Writer) -> None:
        """GETs `url` through the HTTP proxy `proxy`, passing trace context on; the answer is the answer."""
        host, _, port = request.query["proxy"].rpartition(":")
        peer, out = await asyncio.open_connection(host, int(port))
        kept = [f"{n}: {v}" for n, v in request.fields if n in ("traceparent", "tracestate")]
        target = request.query["url"]
        lines = [f"GET {target} HTTP/1.1", f"host: {urlsplit(target).netloc}", "connection: close", *kept]
        out.write("\r\n".join([*lines, "", ""]).encode())
        answer = await peer.read()
        out.close()
        self.send(writer, int(answer[9:12]), answer.partition(b"\r\n\r\n")[2])

    async def on_die(self, request: Request, writer: Writer) -> None:
        os._exit(3)


class Echo:
    """Opaque TCP: greets first, then sends back all that comes, then half-closes in its turn."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def serve(self, reader: Reader, writer: Writer) -> None:
        try:
            writer.write(f"hello from {self.name}\n".encode())
            while data := await reader.read(PIECE):
                writer.write(data)
                await writer.drain()
            writer.write(b"bye\n")
            writer.write_eof()
        except OSError as error:
            print(f"lost: {error}", file=sys.stderr)
        finally:
            writer.close()


async def main(kind: str, host: str, port: int, name: str) -> None:
    made = Echo(name) if kind == "echo" else Server(name)
    sock = socket.create_server((host, port), backlog=512)
    # What is not read must not vanish in the kernel, which else takes tens of megabytes.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
    server = await asyncio.start_server(made.serve, sock=sock, limit=2**20)
    async with server:
        await server.serve_forever()


def start_app(host: str, port: int, name: str, directory: Path, kind: str = "http") -> Process:
    """Runs it; returns when it takes connections. `kind`: http or echo."""
    from tests.support.processes import Process, eventually

    process = Process(f"app-{name}", [sys.executable, __file__, kind, host, str(port), name], directory)

    def answers() -> bool:
        process.check()
        socket.create_connection((host, port), 1.0).close()
        return True

    eventually(answers, f"{process} to listen")
    return process


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
