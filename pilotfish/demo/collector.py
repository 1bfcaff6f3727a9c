"""An OTLP/HTTP collector of traces: keeps the spans of the demo's sidecars for the report.

With OTEL_EXPORTER_OTLP_ENDPOINT set, each body goes on, as it is, to a real collector such as Jaeger.
Runs on threads of its own beside the demo; a real collector that is away costs its copies and nothing else.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

from pilotfish.demo.spans import Span, parse_export

PATH = "/v1/traces"
FORWARD_TIMEOUT = 5.0
_WAITING = 1000
"""Bodies that may wait to be forwarded."""


class Collector:
    """Listens on an ephemeral port of 127.0.0.1 from `start` to `stop`."""

    def __init__(self, forward_to: str) -> None:
        """`forward_to`: base URL of another collector; empty: there is none."""
        self.spans: list[Span] = []
        self.refused = 0
        """Bodies that are no OTLP traces."""
        self._forwarder = Forwarder(forward_to.rstrip("/") + PATH) if forward_to else None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._take))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="collector", daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Takes no more, and waits for what is still to be forwarded."""
        self._server.shutdown()
        self._server.server_close()
        if self._forwarder is not None:
            self._forwarder.stop()

    def forwarded(self) -> str:
        """What became of the copies, in words; empty when nobody asked for any."""
        return "" if self._forwarder is None else self._forwarder.summary()

    def _take(self, body: bytes) -> bool:
        try:
            self.spans += list(parse_export(json.loads(body)))
        except (KeyError, ValueError):
            self.refused += 1
            return False
        if self._forwarder is not None:
            self._forwarder.put(body)
        return True

    def __repr__(self) -> str:
        return f"<Collector {self.address} spans={len(self.spans)} refused={self.refused}>"


class Forwarder:
    """Posts bodies to another collector, one after the other."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._queue: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._sent = 0
        self._lost = 0
        self._last_error = ""
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)
        self._thread.start()

    def put(self, body: bytes) -> None:
        try:
            self._queue.put_nowait(body)
        except queue.Full:
            self._lost += 1
            self._last_error = "too slow"

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join(2 * FORWARD_TIMEOUT)

    def summary(self) -> str:
        text = f"{self._sent} batches of spans sent on to {self.url}"
        return f"{text}, {self._lost} lost ({self._last_error})" if self._lost else text

    def _run(self) -> None:
        with requests.Session() as session:
            while (body := self._queue.get()) is not None:
                try:
                    headers = {"content-type": "application/json"}
                    response = session.post(self.url, body, headers=headers, timeout=FORWARD_TIMEOUT)
                    response.raise_for_status()
                    self._sent += 1
                except requests.RequestException as error:
                    self._lost += 1
                    self._last_error = str(error)

    def __repr__(self) -> str:
        return f"<Forwarder {self.summary()}>"


def _handler(take: Callable[[bytes], bool]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            if self.path == PATH:
                self._answer(200 if take(body) else 400)
            else:
                self._answer(404)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            """The sidecars' own metrics say how exports go."""

    return Handler
