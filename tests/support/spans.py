"""An OTLP/HTTP collector in a thread that keeps what it is sent."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.processes import eventually, loopback

Span = dict[str, Any]
SERVER, CLIENT = 2, 3


class SpanCollector:
    """`spans` are OTLP's JSON objects with the resource's `service` added."""

    def __init__(self, host: str = "") -> None:
        """`host`: an address of this machine; a free one on loopback by default."""
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(json.loads(body))
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        self.host, self.port = host or loopback(), 4318
        self._server = ThreadingHTTPServer((self.host, self.port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def take(self, message: Any) -> None:
        for resource in message["resourceSpans"]:
            named = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
            service = named["service.name"]["stringValue"]
            for scope in resource["scopeSpans"]:
                self.spans += [{**span, "service": service} for span in scope["spans"]]

    def trace(self, trace_id: str, count: int) -> list[Span]:
        """The trace's spans in the order of their start, once there are `count`."""

        def found() -> list[Span] | None:
            spans = [span for span in list(self.spans) if span["traceId"] == trace_id]
            assert len(spans) >= count, spans
            return sorted(spans, key=lambda span: int(span["startTimeUnixNano"]))

        spans = eventually(found, f"{count} spans of trace {trace_id}")
        assert spans is not None
        return spans

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __repr__(self) -> str:
        return f"<SpanCollector {self.host}:{self.port} spans={len(self.spans)}>"
