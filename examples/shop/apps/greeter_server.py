"""Says hello: a plain grpcio server that knows nothing of the mesh.

ADDRESS=127.0.1.21 PORT=50051 python greeter_server.py
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import greeter_pb2
import greeter_pb2_grpc
import grpc

REPLICA = os.environ.get("REPLICA", "greeter")
GREETINGS = ("Hello", "Bonjour", "Hallo", "Hola", "Ciao")


class Greeter(greeter_pb2_grpc.GreeterServicer):
    def SayHello(
        self, request: greeter_pb2.HelloRequest, context: grpc.ServicerContext
    ) -> greeter_pb2.HelloReply:
        return greeter_pb2.HelloReply(text=f"{GREETINGS[0]}, {request.name}!", served_by=REPLICA)

    def SayHelloInAllLanguages(
        self, request: greeter_pb2.HelloRequest, context: grpc.ServicerContext
    ) -> Iterator[greeter_pb2.HelloReply]:
        for greeting in GREETINGS:
            yield greeter_pb2.HelloReply(text=f"{greeting}, {request.name}!", served_by=REPLICA)


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    greeter_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    server.add_insecure_port(f"{os.environ.get('ADDRESS', '127.0.0.1')}:{os.environ.get('PORT', '50051')}")
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(grace=2))
    server.wait_for_termination()


if __name__ == "__main__":
    main()
