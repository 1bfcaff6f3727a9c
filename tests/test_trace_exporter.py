"""The exporter: batches, retries, bounded loss and the flush at shutdown, under virtual time."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.otlp import SpanEncoder
from sidecar.telemetry.tracing import BATCH, Span, SpanSink
from sidecar.trace_exporter import ATTEMPTS, TraceExporter, otlp_resource


class _InstantSelector(selectors.SelectSelector):
    """Never waits: where the loop would sleep, its clock jumps instead."""

    slept = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout:
            self.slept += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._instant = _InstantSelector()
        super().__init__(self._instant)

    def time(self) -> float:
        return self._instant.slept


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


class Collector:
    """Answers from `answers` (a status or an exception), then 200; remembers when and what it got."""

    def __init__(self, *answers: int | Exception, delay: float = 0.0) -> None:
        self.answers = list(answers)
        self.delay = delay
        self.posts: list[tuple[float, int]] = []
        self.busy = 0

    async def __call__(self, body: bytes) -> int:
        spans = json.loads(body)["resourceSpans"][0]["scopeSpans"][0]["spans"]
        self.posts.append((now(), len(spans)))
        self.busy += 1
        assert self.busy == 1
        await asyncio.sleep(self.delay)
        self.busy -= 1
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return answer


def span(index: int = 1) -> Span:
    return Span(b"%032x" % index, b"%016x" % index, b"", 2, "GET", 1, 2)


def make(post: Callable[[bytes], Awaitable[int]], capacity: int = 16384) -> tuple[SpanSink, TraceExporter]:
    sink = SpanSink(capacity)
    return sink, TraceExporter(sink, post, SpanEncoder({}, "pilotfish", "0"), Random(1))


def add(sink: SpanSink, count: int) -> None:
    for index in range(count):
        sink.add(span(index + 1))


async def run_for(exporter: TraceExporter, seconds: float) -> None:
    """Let the exporter run for a while, then cancel it."""
    try:
        async with asyncio.timeout(seconds):
            await exporter.run()
    except TimeoutError:
        pass


def test_a_few_spans_leave_within_a_second_in_one_post() -> None:
    async def main() -> None:
        collector = Collector()
        sink, exporter = make(collector)
        add(sink, 3)
        await run_for(exporter, 5)
        assert collector.posts == [(pytest.approx(1.0), 3)]
        assert (exporter.exported, exporter.failed) == (3, 0)

    run(main)


def test_nothing_recorded_is_nothing_sent() -> None:
    async def main() -> None:
        collector = Collector()
        _, exporter = make(collector)
        await run_for(exporter, 10)
        assert collector.posts == []

    run(main)


def test_full_batches_leave_at_once_and_the_rest_waits_to_fill() -> None:
    async def main() -> None:
        collector = Collector()
        sink, exporter = make(collector)
        asyncio.get_running_loop().call_later(0.25, add, sink, 2 * BATCH + 10)
        await run_for(exporter, 3)
        assert collector.posts == [
            (pytest.approx(0.25), BATCH),
            (pytest.approx(0.25), BATCH),
            (pytest.approx(1.25), 10),
        ]

    run(main)


@pytest.mark.parametrize(
    "answer", [429, 502, 503, 504, ConnectionRefusedError("no"), ConnectionResetError(), TimeoutError()]
)
def test_what_may_succeed_later_is_sent_again_after_a_pause(answer: int | Exception) -> None:
    async def main() -> None:
        collector = Collector(answer, answer)
        sink, exporter = make(collector)
        add(sink, 2)
        await run_for(exporter, 10)
        first, second, third = (when for when, _ in collector.posts)
        assert 0.25 <= second - first <= 0.5
        assert 0.5 <= third - second <= 1.0
        assert (exporter.exported, exporter.failed) == (2, 0)

    run(main)


@pytest.mark.parametrize("answer", [400, 401, 404, 413, 500, 301])
def test_a_definite_refusal_is_not_repeated(answer: int) -> None:
    async def main() -> None:
        collector = Collector(answer)
        sink, exporter = make(collector)
        add(sink, 2)
        await run_for(exporter, 10)
        assert len(collector.posts) == 1
        assert (exporter.exported, exporter.failed) == (0, 2)
        assert exporter.last_error == f"the collector answered {answer}"

    run(main)


def test_a_dead_collector_costs_the_batch_after_its_attempts_and_the_next_gets_its_own() -> None:
    async def main() -> None:
        collector = Collector(*[503] * ATTEMPTS)
        sink, exporter = make(collector)
        add(sink, BATCH + 1)
        await run_for(exporter, 60)
        assert len(collector.posts) == ATTEMPTS + 1
        assert (exporter.exported, exporter.failed) == (1, BATCH)

    run(main)


def test_while_a_batch_is_retried_the_sink_stays_bounded_and_counts() -> None:
    async def main() -> None:
        collector = Collector(delay=1000.0)
        sink, exporter = make(collector, capacity=BATCH)
        add(sink, BATCH)
        asyncio.get_running_loop().call_later(1.0, add, sink, 3 * BATCH)
        await run_for(exporter, 10)
        assert (len(sink), sink.dropped) == (BATCH, 2 * BATCH)

    run(main)


def test_close_flushes_what_is_left_at_once() -> None:
    async def main() -> None:
        collector = Collector()
        sink, exporter = make(collector)
        add(sink, 5)
        async with asyncio.TaskGroup() as group:
            group.create_task(exporter.run())
            await asyncio.sleep(0.1)
            await exporter.close(5.0)
            assert collector.posts == [(pytest.approx(0.1), 5)]
        assert exporter.exported == 5

    run(main)


def test_close_gives_up_at_its_deadline_and_every_span_is_accounted_for() -> None:
    async def main() -> None:
        collector = Collector(delay=1000.0)
        sink, exporter = make(collector)
        add(sink, 2 * BATCH + 3)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(exporter.run())
            await asyncio.sleep(0.1)
            await exporter.close(2.0)
            assert now() == pytest.approx(2.1)
            task.cancel()
        assert (exporter.exported, exporter.failed, len(sink)) == (0, 2 * BATCH + 3, 0)

    run(main)


def test_its_counters_can_be_scraped() -> None:
    async def main() -> None:
        sink, exporter = make(Collector(), capacity=1)
        metrics = Metrics()
        metrics.register(exporter.families)
        add(sink, 3)
        await run_for(exporter, 3)
        values = {
            sample.name: sample.value
            for family in text_string_to_metric_families(metrics.prometheus_text())
            for sample in family.samples
        }
        assert values["pilotfish_spans_exported_total"] == 1
        assert values["pilotfish_spans_dropped_total"] == 2
        assert values["pilotfish_spans_failed_total"] == 0

    run(main)


@pytest.mark.parametrize(
    ("configured", "environment", "name"),
    [
        ("orders", {}, "orders"),
        ("orders", {"OTEL_SERVICE_NAME": "other"}, "orders"),
        ("unknown_service:pilotfish", {"OTEL_SERVICE_NAME": "other"}, "other"),
        ("unknown_service:pilotfish", {"OTEL_RESOURCE_ATTRIBUTES": "service.name=third"}, "third"),
        ("unknown_service:pilotfish", {}, "unknown_service:pilotfish"),
    ],
)
def test_the_service_name_comes_from_configuration_then_environment(
    configured: str, environment: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert otlp_resource(configured, "0.1.0")["service.name"] == name


def test_resource_attributes_of_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=orders-1,deployment.environment=test")
    resource = otlp_resource("orders", "0.1.0")
    assert resource["k8s.pod.name"] == "orders-1"
    assert resource["deployment.environment"] == "test"
    assert resource["telemetry.sdk.language"] == "python"
