"""Sends recorded spans to an OTLP collector over HTTP, in JSON, away from the request path.

`app.py` makes one per tracing configuration, runs `run` as a task, and awaits `close` when it shuts down.
How a body reaches the collector is the injected `post`'s business (a cluster of the mesh, as for Envoy's
OpenTelemetry provider). It must never hold a request up: what the collector does not take is dropped
and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from random import Random

from sidecar.telemetry.otlp import SpanEncoder
from sidecar.telemetry.prometheus import Family
from sidecar.telemetry.tracing import BATCH, Span, SpanSink

Post = Callable[[bytes], Awaitable[int]]
"""Sends one request body and returns the response's status; raises OSError or TimeoutError when there is
none."""

CONTENT_TYPE = "application/json"
SCOPE = "pilotfish"
INTERVAL = 1.0
"""Seconds after which a batch that is not full is sent."""
ATTEMPTS = 5
BACK_OFF_BASE = 0.5
BACK_OFF_MAX = 8.0
RETRIABLE = frozenset({429, 502, 503, 504})
"""OTLP specification, "Retryable Response Codes"."""


def otlp_resource(service_name: str, version: str) -> Mapping[str, str]:
    """Resource attributes of this process: OpenTelemetry's defaults, OTEL_RESOURCE_ATTRIBUTES, and as
    service.name the configured one or, where that is only the default, OTEL_SERVICE_NAME.

    Imports opentelemetry-sdk (6 MB), so call it only when spans are exported.
    """
    from opentelemetry.sdk.resources import Resource

    own = {"telemetry.sdk.name": SCOPE, "telemetry.sdk.version": version}
    if not service_name.startswith("unknown_service"):
        own["service.name"] = service_name
    attributes = {key: str(value) for key, value in Resource.create(own).attributes.items()}
    if attributes["service.name"].startswith("unknown_service"):
        attributes["service.name"] = service_name
    return attributes


class TraceExporter:
    """Takes batches out of `sink` and posts them, one at a time, oldest first.

    While a batch is being retried the sink fills up to its capacity and then drops. `random` spreads
    the retries of many sidecars.
    """

    def __init__(self, sink: SpanSink, post: Post, encoder: SpanEncoder, random: Random) -> None:
        self._sink = sink
        self._post = post
        self._encoder = encoder
        self._random = random
        self._wake = asyncio.Event()
        self._closing = False
        self._finished = asyncio.Event()
        self.exported = 0
        """Spans that the collector took."""
        self.failed = 0
        """Spans given up after their last attempt or a definite refusal."""
        self.last_error = ""
        sink.on_batch = self._wake.set

    async def run(self) -> None:
        """Export until `close`; returns once the sink is empty then."""
        try:
            while not self._closing:
                if await self._wait() and (spans := self._sink.take()):
                    await self._export(spans)
                while len(self._sink) >= BATCH:
                    await self._export(self._sink.take())
            while spans := self._sink.take():
                await self._export(spans)
        finally:
            self._finished.set()

    async def close(self, deadline: float) -> None:
        """Flush what is recorded, for at most `deadline` seconds; what is left then counts as failed.

        `run` must have been started; the caller cancels its task if it has not ended by itself.
        """
        self._closing = True
        self._wake.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await self._finished.wait()
        self.failed += len(self._sink.take(len(self._sink)))

    def families(self) -> Iterable[Family]:
        """Collector for `Metrics.register`."""
        return (
            _counter("pilotfish_spans_exported_total", "Spans taken by the collector", self.exported),
            _counter("pilotfish_spans_failed_total", "Spans that the collector did not take", self.failed),
            _counter("pilotfish_spans_dropped_total", "Spans dropped at a full buffer", self._sink.dropped),
        )

    async def _wait(self) -> bool:
        """Until a full batch is there (False), or the interval is over (True): a small batch costs the
        sidecar and the collector as much as a large one, so none is sent early."""
        self._wake.clear()
        if len(self._sink) < BATCH and not self._closing:
            try:
                async with asyncio.timeout(INTERVAL):
                    await self._wake.wait()
            except TimeoutError:
                return True
        return False

    async def _export(self, spans: list[Span]) -> None:
        taken = False
        try:
            taken = await self._deliver(self._encoder.encode(spans))
        finally:
            if taken:
                self.exported += len(spans)
            else:
                self.failed += len(spans)

    async def _deliver(self, body: bytes) -> bool:
        """Post with retries; whether the collector took it."""
        for attempt in range(ATTEMPTS):
            if attempt:
                back_off = min(BACK_OFF_MAX, BACK_OFF_BASE * 2.0 ** (attempt - 1))
                await asyncio.sleep(back_off * (0.5 + self._random.random() / 2))
            try:
                status = await self._post(body)
            except (OSError, TimeoutError) as error:
                self.last_error = f"{type(error).__name__}: {error}"
                continue
            if 200 <= status < 300:
                return True
            self.last_error = f"the collector answered {status}"
            if status not in RETRIABLE:
                return False
        return False

    def __repr__(self) -> str:
        error = f" last_error={self.last_error!r}" if self.last_error else ""
        return f"<TraceExporter exported={self.exported} failed={self.failed}{error} {self._sink!r}>"


def _counter(name: str, help_text: str, value: int) -> Family:
    return Family(name, "counter", help_text, [("", value)])
