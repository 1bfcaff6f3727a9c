"""An HTTP/2 application without TLS on the `h2` package: `python tests/support/h2_app.py HOST PORT NAME`.

Sends a request's body and its `grpc-` fields back, then its trailers, each name with `echo-` before it.
`/refuse` answers with a RST_STREAM of the code in the path: `/refuse/7`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import h2.config
import h2.connection
import h2.events

if TYPE_CHECKING:
    from tests.support.processes import Process


class Connection(asyncio.Protocol):
    def __init__(self, name: str) -> None:
        self.name = name
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self.bodies: dict[int, bytes] = {}
        self.fields: dict[int, list[tuple[str, str]]] = {}
        self.trailers: dict[int, list[tuple[str, str]]] = {}
        self.answers: dict[int, bytes] = {}
        self.refused: set[int] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.h2.initiate_connection()
        self.transport.write(self.h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.bodies[event.stream_id] = b""
                self.fields[event.stream_id] = [
                    (f"echo-{name}", value) for name, value in event.headers if name.startswith("grpc-")
                ]
                path = dict(event.headers)[":path"]
                if path.startswith("/refuse/"):
                    self.refused.add(event.stream_id)
                    self.h2.reset_stream(event.stream_id, int(path.rpartition("/")[2]))
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers[event.stream_id] = [(f"echo-{n}", v) for n, v in event.headers]
            elif isinstance(event, h2.events.StreamEnded):
                self.start(event.stream_id)
        self.send()
        self.transport.write(self.h2.data_to_send())

    def start(self, stream: int) -> None:
        if stream in self.refused:
            return
        fields = self.fields.pop(stream)
        self.h2.send_headers(stream, [(":status", "200"), ("x-replica", self.name), *fields])
        self.answers[stream] = self.bodies.pop(stream)

    def send(self) -> None:
        """As much of each answer as there is credit for."""
        for stream, body in list(self.answers.items()):
            trailers = self.trailers.get(stream)
            while body and (
                room := min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            ):
                self.h2.send_data(stream, body[:room])
                body = body[room:]
            self.answers[stream] = body
            if not body:
                del self.answers[stream]
                if trailers:
                    self.h2.send_headers(stream, trailers, end_stream=True)
                else:
                    self.h2.end_stream(stream)


async def main(host: str, port: int, name: str) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(name), host, port)
    async with server:
        await server.serve_forever()


def start_h2_app(host: str, port: int, name: str, directory: Path) -> Process:
    """Runs it; returns when it takes connections."""
    import socket

    from tests.support.processes import Process, eventually

    process = Process(f"app-{name}", [sys.executable, __file__, host, str(port), name], directory)

    def answers() -> bool:
        process.check()
        socket.create_connection((host, port), 1.0).close()
        return True

    eventually(answers, f"{process} to listen")
    return process


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
