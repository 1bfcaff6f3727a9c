"""Calls the greeter: a plain grpcio client that knows nothing of the mesh.

    http_proxy=http://127.0.1.31:15001 python greeter_client.py Ada

grpcio obeys `http_proxy` by itself: it asks the proxy for a tunnel to `greeter:50051` (CONNECT), and the
sidecar balances each call that comes through it.
"""

from __future__ import annotations

import os
import sys

import greeter_pb2
import greeter_pb2_grpc
import grpc


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "world"
    with grpc.insecure_channel(os.environ.get("GREETER", "greeter:50051")) as channel:
        greeter = greeter_pb2_grpc.GreeterStub(channel)
        request = greeter_pb2.HelloRequest(name=name)
        reply = greeter.SayHello(request, timeout=10)
        print(f"{reply.text} (from {reply.served_by})")
        for reply in greeter.SayHelloInAllLanguages(request, timeout=10):
            print(f"{reply.text} (from {reply.served_by})")


if __name__ == "__main__":
    main()
