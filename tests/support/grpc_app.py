"""A plain grpcio server of its own process: `python tests/support/grpc_app.py HOST PORT NAME`.

Messages are bytes, methods are of service `test.Greeter`. Tests use the functions at the end.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from tests.support.processes import Process

SERVICE = "test.Greeter"
LARGE = 16 * 1024 * 1024


class Greeter:
    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()

    def hello(self, request: bytes, context: Any) -> bytes:
        """The request after the server's name; metadata `x-*` come back as trailers."""
        context.set_trailing_metadata(
            [(n, v) for n, v in context.invocation_metadata() if n.startswith("x-test")]
        )
        return f"{self.name}: ".encode() + request

    def fail(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata([("x-why", "asked")])
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wished: 100 %")

    def count(self, request: bytes, context: Any) -> bytes:
        return str(self.counts[request.decode()]).encode()

    def remaining(self, request: bytes, context: Any) -> bytes:
        return str(context.time_remaining()).encode()

    def hang(self, request: bytes, context: Any) -> bytes:
        """Until the call is over; then `cancelled` counts one more."""
        over = threading.Event()
        context.add_callback(over.set)
        self.counts["hanging"] += 1
        over.wait(60)
        self.counts["cancelled"] += 1
        return b""

    def listing(self, request: bytes, context: Any) -> Iterator[bytes]:
        """As many messages as the request says, `0.05` s apart after a comma says so."""
        number, _, pause = request.decode().partition(",")
        for i in range(int(number)):
            yield str(i).encode()
            time.sleep(float(pause or 0))

    def total(self, requests: Iterator[bytes], context: Any) -> bytes:
        return str(sum(map(len, requests))).encode()

    def chat(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from requests


def make_server(name: str, *addresses: str) -> grpc.Server:
    """Not started yet."""
    greeter = Greeter(name)
    options = [("grpc.max_receive_message_length", LARGE), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(16), options=options)
    unary, to_stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    from_stream, both = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    handlers = {
        "Hello": unary(greeter.hello),
        "Fail": unary(greeter.fail),
        "Count": unary(greeter.count),
        "Remaining": unary(greeter.remaining),
        "Hang": unary(greeter.hang),
        "Listing": to_stream(greeter.listing),
        "Total": from_stream(greeter.total),
        "Chat": both(greeter.chat),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    for address in addresses:
        server.add_insecure_port(address)
    return server


def serve(host: str, port: int, name: str) -> None:
    server = make_server(name, f"{host}:{port}")
    server.start()
    server.wait_for_termination()


def start_grpc_app(host: str, port: int, name: str, directory: Path) -> Process:
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


def grpc_channel(target: str, proxy: str) -> grpc.Channel:
    """What a plain grpcio client with `http_proxy` set has."""
    options = [("grpc.http_proxy", f"http://{proxy}"), ("grpc.max_receive_message_length", LARGE)]
    options += [("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(target, options=options)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
