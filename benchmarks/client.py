"""Loads that h2load cannot make: a new connection for every request, and header blocks that never repeat.

Run by the rig as its own process, so that its CPU is nobody's: `python -m benchmarks.client KIND COUNT TAG`.
Prints `DONE FAILED SECONDS` when all have ended; a request that is not answered by its 2xx has failed.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import string
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

import hpack
import uvloop
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from benchmarks import h2_wire
from benchmarks.processes import INBOUND, OUTBOUND

AT_ONCE = 16
"""Plain connections at a time; with mTLS half of them."""
CONNECTIONS, STREAMS = 8, 16
TOKEN_LENGTH = 800
REQUEST_TIMEOUT = 30.0
_TOKEN_ALPHABET = string.ascii_letters + string.digits + "-_"


def tokens(count: int, tag: str) -> list[str]:
    """Bearer tokens of random base64url; the same ones for the same tag."""
    source = random.Random(tag)
    return ["".join(source.choices(_TOKEN_ALPHABET, k=TOKEN_LENGTH)) for _ in range(count)]


def unique_blocks(count: int, tag: str) -> Iterator[bytes]:
    """Header blocks of GETs as nghttp2 codes them: Huffman, path not indexed, authorization never indexed."""
    huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
    authority = b"\x01" + h2_wire.string(huffman.encode(b"127.0.0.1:20001"), huffman=True)
    for index, token in enumerate(tokens(count, tag)):
        path = h2_wire.string(huffman.encode(f"/128?{tag}-{index}".encode()), huffman=True)
        bearer = h2_wire.string(huffman.encode(f"Bearer {token}".encode()), huffman=True)
        yield b"\x82\x86\x04" + path + authority + b"\x1f\x08" + bearer


class UniqueLoad(asyncio.Protocol):
    """One connection that keeps `STREAMS` requests open until `blocks` is used up."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.done = self.failed = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._blocks = blocks
        self._decoder = hpack.Decoder()
        self._statuses: dict[int, bytes] = {}
        self._open = 0
        self._next_stream = 1
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(h2_wire.OPENING + b"".join(self._request() for _ in range(STREAMS)))
        self._finish_when_idle()

    def _request(self) -> bytes:
        block = next(self._blocks, None)
        if block is None:
            return b""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._open += 1
        return h2_wire.headers(stream, block, end_stream=True)

    def data_received(self, data: bytes) -> None:
        frames, self._buffer = h2_wire.split(self._buffer + data)
        output = []
        for kind, flags, stream, payload in frames:
            if kind == h2_wire.HEADERS:
                fields = self._decoder.decode(payload, raw=True)
                self._statuses.setdefault(stream, dict(fields).get(b":status", b""))
            elif kind == h2_wire.SETTINGS and not flags & h2_wire.ACK:
                output.append(h2_wire.SETTINGS_ACK)
            reset = kind == h2_wire.RST_STREAM
            if reset or (kind in (h2_wire.HEADERS, h2_wire.DATA) and flags & h2_wire.END_STREAM):
                self._count(not reset and self._statuses.pop(stream, b"").startswith(b"2"))
                output.append(self._request())
        self._transport.write(b"".join(output))
        self._finish_when_idle()

    def _count(self, good: bool) -> None:
        self._open -= 1
        self.done += 1
        self.failed += not good

    def _finish_when_idle(self) -> None:
        if not self._open and not self.ended.done():
            self.ended.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        while self._open:
            self._count(False)
        if not self.ended.done():
            self.ended.set_result(None)


async def unique_load(count: int, tag: str) -> tuple[int, float]:
    """How many failed, and the seconds that it took; the tokens are made before the clock starts."""
    blocks = iter(list(unique_blocks(count, tag)))
    start = time.monotonic()
    loop = asyncio.get_running_loop()
    loads = [
        (await loop.create_connection(lambda: UniqueLoad(blocks), *OUTBOUND))[1] for _ in range(CONNECTIONS)
    ]
    await asyncio.gather(*(load.ended for load in loads))
    missing = count - sum(load.done for load in loads)
    return missing + sum(load.failed for load in loads), time.monotonic() - start


async def request_plain() -> bool:
    """One HTTP/1.1 request on a connection of its own."""
    reader, writer = await asyncio.open_connection(*OUTBOUND)
    try:
        writer.write(b"GET /1k HTTP/1.1\r\nhost: 127.0.0.1:20001\r\nconnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return head.startswith(b"HTTP/1.1 200") and len(body) == 1024
    finally:
        writer.close()


def request_mtls() -> Callable[[], Awaitable[bool]]:
    """One HTTP/2 request to the inbound proxy on a TLS connection of its own; nothing is resumed."""
    context = h2_wire.client_context()
    block = h2_wire.plain_block("/1k")

    async def request() -> bool:
        reader, writer = await asyncio.open_connection(*INBOUND, ssl=context, server_hostname="inbound.bench")
        try:
            writer.write(h2_wire.OPENING + h2_wire.headers(1, block, end_stream=True))
            size, buffer, status = 0, b"", b""
            while data := await reader.read(65536):
                frames, buffer = h2_wire.split(buffer + data)
                for kind, flags, stream, payload in frames:
                    if kind == h2_wire.HEADERS:
                        status = status or dict(hpack.Decoder().decode(payload, raw=True))[b":status"]
                    elif kind == h2_wire.DATA:
                        size += len(payload)
                    if stream == 1 and flags & h2_wire.END_STREAM and kind in (h2_wire.HEADERS, h2_wire.DATA):
                        return status == b"200" and size == 1024
            return False
        finally:
            writer.close()

    return request


async def new_connections(
    count: int, at_once: int, request: Callable[[], Awaitable[bool]]
) -> tuple[int, float]:
    """How many of `count` requests failed, and the seconds that it took."""
    left = iter(range(count))
    failed = 0

    async def worker() -> None:
        nonlocal failed
        for _ in left:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    failed += not await request()
            except (OSError, ssl.SSLError) as error:
                print(f"client: {error!r}", file=sys.stderr)
                failed += 1

    start = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return failed, time.monotonic() - start


async def main(kind: str, count: int, tag: str) -> None:
    if kind == "unique":
        failed, seconds = await unique_load(count, tag)
    elif kind == "new-plain":
        failed, seconds = await new_connections(count, AT_ONCE, request_plain)
    elif kind == "new-mtls":
        failed, seconds = await new_connections(count, AT_ONCE // 2, request_mtls())
    else:
        raise SystemExit(f"client: no load is called {kind}")
    print(count, failed, f"{seconds:.6f}")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
