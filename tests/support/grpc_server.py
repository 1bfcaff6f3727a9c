"""A real grpcio server with byte-string methods and TLS, for testing our own gRPC client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

UnaryMethod = Callable[[bytes, Any], bytes]
StreamMethod = Callable[[Iterator[bytes], Any], Iterator[bytes]]


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, unary: Mapping[str, UnaryMethod], streams: Mapping[str, StreamMethod]) -> None:
        self._methods = {
            **{path: grpc.unary_unary_rpc_method_handler(method) for path, method in unary.items()},
            **{path: grpc.stream_stream_rpc_method_handler(method) for path, method in streams.items()},
        }

    def service(self, details: Any) -> Any:
        return self._methods.get(details.method)


@contextmanager
def grpc_server(
    unary: Mapping[str, UnaryMethod] | None = None,
    streams: Mapping[str, StreamMethod] | None = None,
    tls: tuple[bytes, bytes] | None = None,
) -> Iterator[int]:
    """Serves on 127.0.0.1 in threads; yields the port. `tls` is (certificate chain, key) in PEM."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_Handler(unary or {}, streams or {}),))
    if tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(tls[1], tls[0])]))
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()
