"""Tracers and access logs, shared by the listeners that are configured alike, and what carries them out.

Owned by app.py: it hands out a tracer for each tracing configuration and runs one exporter for each
collector. Nothing here is on the request path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import version
from random import Random

from sidecar.config.resources import TracingConfig
from sidecar.http.client import CallError, call
from sidecar.protocol.events import RequestHead
from sidecar.runtime import tasks
from sidecar.runtime.tasks import spawn
from sidecar.telemetry.access_log import AccessLog, open_sink
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.otlp import SpanEncoder
from sidecar.telemetry.process import LoopLag, ProcessMetrics
from sidecar.telemetry.prometheus import Family, labels
from sidecar.telemetry.tracing import SpanSink, Tracer, Untraced
from sidecar.trace_exporter import CONTENT_TYPE, SCOPE, TraceExporter, otlp_resource
from sidecar.upstream.cluster_manager import ClusterManager


class TelemetryExports:
    def __init__(self, clusters: ClusterManager, metrics: Metrics, random: Random) -> None:
        self._clusters = clusters
        self._metrics = metrics
        self._random = random
        self._tracers: dict[TracingConfig, Tracer] = {}
        self._exporters: list[tuple[TraceExporter, asyncio.Task[None]]] = []
        self._access_logs: dict[str, AccessLog] = {}
        loop = asyncio.get_running_loop()
        lag = LoopLag(loop.call_later, loop.time)
        lag.start()
        metrics.register(ProcessMetrics(version("pilotfish"), lag, tasks.running))
        metrics.register(self._access_log_families)

    def tracer(self, config: TracingConfig | None) -> Tracer | Untraced:
        """The tracer for this configuration; without one, trace context passes through untouched."""
        if config is None:
            return Untraced()
        tracer = self._tracers.get(config)
        if tracer is None:
            tracer = self._tracers[config] = self._make_tracer(config)
        return tracer

    def _make_tracer(self, config: TracingConfig) -> Tracer:
        sink = SpanSink()
        resource = otlp_resource(config.service_name, version("pilotfish"))
        if config.collector_cluster:
            encoder = SpanEncoder(resource, SCOPE, version("pilotfish"))
            exporter = TraceExporter(sink, self._poster(config), encoder, self._random)
            self._metrics.register(exporter.families)
            self._exporters.append((exporter, spawn(exporter.run(), f"traces to {config.collector_cluster}")))
        return Tracer(config, resource, sink, self._random, time.time_ns)

    def _poster(self, config: TracingConfig) -> Callable[[bytes], Awaitable[int]]:
        path = config.collector_uri.encode()
        authority = config.collector_cluster.encode()

        async def post(body: bytes) -> int:
            cluster = self._clusters.get(config.collector_cluster)
            if cluster is None:
                raise CallError(
                    f"cluster {config.collector_cluster} of the trace collector is not configured"
                )
            fields = (
                (b"content-type", CONTENT_TYPE.encode()),
                (b"content-length", b"%d" % len(body)),
            )
            head = RequestHead(b"POST", b"http", authority, path, fields)
            status, _ = await call(cluster, head, body, config.collector_timeout)
            return status

        return post

    def access_log(self, path: str) -> AccessLog:
        """The log that appends to this file. Raises OSError when it cannot be opened."""
        log = self._access_logs.get(path)
        if log is None:
            log = self._access_logs[path] = AccessLog(open_sink(path), asyncio.get_running_loop().call_later)
        return log

    def _access_log_families(self) -> Iterable[Family]:
        logs = [(labels({"path": path}), log) for path, log in self._access_logs.items()]
        return (
            Family("pilotfish_access_log_lines_total", "counter", "Access log lines made",
                   [(each, log.written) for each, log in logs]),
            Family("pilotfish_access_log_dropped_total", "counter", "Lines lost to a slow or absent reader",
                   [(each, log.dropped) for each, log in logs]),
        )  # fmt: skip

    async def close(self, deadline: float) -> None:
        """Flush everything, for at most `deadline` seconds."""
        for exporter, _ in self._exporters:
            await exporter.close(deadline)
        for log in self._access_logs.values():
            log.flush()

    def __repr__(self) -> str:
        return f"<TelemetryExports exporters={len(self._exporters)} access_logs={len(self._access_logs)}>"
