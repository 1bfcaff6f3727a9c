"""A trace collector that counts: OTLP over HTTP, JSON or protobuf. `GET /spans` answers with the count.

Run by the rig as its own process, so that its CPU is nobody's: `python -m benchmarks.sink PORT`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections.abc import Iterator
from typing import cast

import httptools
import uvloop


def count_spans(body: bytes, content_type: str) -> int:
    """Spans in one ExportTraceServiceRequest (resource_spans = 1, scope_spans = 2, spans = 2)."""
    if content_type.startswith("application/json"):
        request = json.loads(body)
        return sum(
            len(scope["spans"]) for resource in request["resourceSpans"] for scope in resource["scopeSpans"]
        )
    return sum(
        1
        for resource in _fields(memoryview(body), 1)
        for scope in _fields(resource, 2)
        for _ in _fields(scope, 2)
    )


def _fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The length-delimited fields with this number (protobuf encoding: wire type 2)."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 2:
            size, position = _varint(message, position)
            if tag >> 3 == wanted:
                yield message[position : position + size]
            position += size
        elif kind == 0:
            _, position = _varint(message, position)
        else:
            position += {1: 8, 5: 4}[kind]


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


class Sink(asyncio.Protocol):
    """One connection; `spans` is the count of all."""

    spans = 0

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._start()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            print(f"trace sink: bad request: {error}", file=sys.stderr)
            self._transport.close()

    def _start(self) -> None:
        self._type = self._encoding = ""
        self._body: list[bytes] = []

    def on_message_begin(self) -> None:
        self._start()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._type = value.decode()
        elif name.lower() == b"content-encoding":
            self._encoding = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"POST":
            body = b"".join(self._body)
            if self._encoding == "gzip":
                body = gzip.decompress(body)
            Sink.spans += count_spans(body, self._type)
            answer = b"{}" if self._type.startswith("application/json") else b""
        else:
            answer = b"%d" % Sink.spans
        content_type = self._type.encode() or b"text/plain"
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (content_type, len(answer), answer)
        )


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
