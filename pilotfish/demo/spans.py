"""Spans out of OTLP/HTTP JSON bodies, and the traces that they make up. Pure; used all over the demo."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

KINDS = {2: "server", 3: "client"}
"""OTLP `Span.SpanKind`; the mesh writes no other."""
_ERROR = 2


@dataclass(frozen=True, slots=True)
class Span:
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the root of a trace."""
    name: str
    kind: str
    start: int
    end: int
    """Unix time in nanoseconds."""
    service: str
    instance: str
    """The replica whose sidecar wrote it."""
    attributes: Mapping[str, str | int]
    failed: bool

    @property
    def milliseconds(self) -> float:
        return (self.end - self.start) / 1e6


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace whose every parent is known."""

    root: Span
    children: Mapping[str, tuple[Span, ...]]
    """By parent's span id, in order of time."""

    def walk(self) -> Iterator[tuple[int, Span]]:
        """Every span after its parent, with its depth (the root's is 0)."""
        waiting = [(0, self.root)]
        while waiting:
            depth, span = waiting.pop()
            yield depth, span
            waiting += ((depth + 1, child) for child in reversed(self.children.get(span.span_id, ())))

    @property
    def services(self) -> frozenset[str]:
        return frozenset(span.service for _, span in self.walk())

    @property
    def retries(self) -> int:
        return sum("http.request.resend_count" in span.attributes for _, span in self.walk())


def parse_export(body: Mapping[str, Any]) -> Iterator[Span]:
    """The spans of one ExportTraceServiceRequest. Raises KeyError and ValueError for what is none."""
    for resource_spans in body["resourceSpans"]:
        resource = _attributes(resource_spans["resource"]["attributes"])
        for scope in resource_spans["scopeSpans"]:
            for span in scope["spans"]:
                yield Span(
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId", ""),
                    name=span["name"],
                    kind=KINDS[span["kind"]],
                    start=int(span["startTimeUnixNano"]),
                    end=int(span["endTimeUnixNano"]),
                    service=str(resource["service.name"]),
                    instance=str(resource.get("service.instance.id", "")),
                    attributes=_attributes(span["attributes"]),
                    failed=span.get("status", {}).get("code") == _ERROR,
                )


def _attributes(pairs: Iterable[Mapping[str, Any]]) -> dict[str, str | int]:
    """OTLP's list of keys and values; 64-bit integers come as strings in JSON."""
    found: dict[str, str | int] = {}
    for pair in pairs:
        value = pair["value"]
        found[pair["key"]] = (
            int(value["intValue"]) if "intValue" in value else str(value.get("stringValue", ""))
        )
    return found


def complete_traces(spans: Iterable[Span]) -> list[Trace]:
    """The traces that have one root and no span without its parent, oldest first."""
    by_trace: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_trace[span.trace_id].append(span)
    traces = []
    for members in by_trace.values():
        ids = {span.span_id for span in members}
        roots = [span for span in members if not span.parent_id]
        if len(roots) == 1 and all(span.parent_id in ids for span in members if span.parent_id):
            children: dict[str, list[Span]] = defaultdict(list)
            for span in sorted(members, key=lambda span: span.start):
                if span.parent_id:
                    children[span.parent_id].append(span)
            traces.append(Trace(roots[0], {key: tuple(value) for key, value in children.items()}))
    return sorted(traces, key=lambda trace: trace.root.start)
