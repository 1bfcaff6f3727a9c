"""OTLP JSON against OpenTelemetry's own data model: the same spans, made with the SDK, say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from sidecar.telemetry.otlp import SpanEncoder
from sidecar.telemetry.tracing import (
    KIND_CLIENT,
    KIND_INTERNAL,
    KIND_SERVER,
    NO_ATTRIBUTES,
    AttributeSet,
    Event,
    Span,
)

RESOURCE = {"service.name": "orders", "host.name": 'a"b'}
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
SPAN_ID = 0x00F067AA0BA902B7
PARENT_ID = 0xB7AD6B7169203331
START = 1_700_000_000_123_456_789


def any_value(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    assert isinstance(value, int)
    return {"intValue": str(value)}


def key_values(attributes: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return [{"key": key, "value": any_value(value)} for key, value in (attributes or {}).items()]


def oracle(span: ReadableSpan) -> dict[str, Any]:
    """The OTLP specification's JSON mapping, applied to the SDK's model."""
    context = span.get_span_context()
    assert context is not None
    shown: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": span.name,
        "kind": {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2, SpanKind.CLIENT: 3}[span.kind],
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": key_values(span.attributes),
    }
    if span.parent is not None:
        shown["parentSpanId"] = f"{span.parent.span_id:016x}"
    if context.trace_state:
        shown["traceState"] = context.trace_state.to_header()
    if span.events:
        shown["events"] = [
            {"timeUnixNano": str(e.timestamp), "name": e.name, "attributes": key_values(e.attributes)}
            for e in span.events
        ]
    if span.status.status_code is not StatusCode.UNSET:
        shown["status"] = {"code": span.status.status_code.value}
        if span.status.description:
            shown["status"]["message"] = span.status.description
    return shown


def encode(*spans: Span, resource: Mapping[str, str] = RESOURCE) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(SpanEncoder(resource, "pilotfish", "0.1.0").encode(spans))
    return decoded


def encoded_spans(*spans: Span) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = encode(*spans)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return found


def sdk_context(span_id: int, state: Sequence[tuple[str, str]] = ()) -> SpanContext:
    return SpanContext(TRACE_ID, span_id, False, TraceFlags(1), TraceState(list(state)))


def pairs() -> Iterator[tuple[Span, ReadableSpan]]:
    """The same span as our tuple and as the SDK's object."""
    scope, resource = InstrumentationScope("pilotfish", "0.1.0"), Resource(RESOURCE)
    ids = b"%032x" % TRACE_ID, b"%016x" % SPAN_ID
    parent = b"%016x" % PARENT_ID
    yield (
        Span(*ids, b"", KIND_SERVER, "GET", START, START + 5),
        ReadableSpan(
            "GET", sdk_context(SPAN_ID), None, resource, {}, (), (), SpanKind.SERVER,
            instrumentation_scope=scope, start_time=START, end_time=START + 5,
        ),
    )  # fmt: skip
    yield (
        Span(
            *ids, parent, KIND_CLIENT, 'POST "ü"', START, START + 2**40,
            (("http.request.method", b"POST"), ("http.response.status_code", 503)),
            AttributeSet((("pilotfish.cluster", "users"),)), 2, "reset\nby peer",
            (Event(START + 1, "retry", (("pilotfish.retry.reason", "connect-failure"),)),), b"a=1,b=2",
        ),
        ReadableSpan(
            'POST "ü"', sdk_context(SPAN_ID, [("a", "1"), ("b", "2")]), sdk_context(PARENT_ID), resource,
            {"http.request.method": "POST", "http.response.status_code": 503, "pilotfish.cluster": "users"},
            (SdkEvent("retry", {"pilotfish.retry.reason": "connect-failure"}, START + 1),), (),
            SpanKind.CLIENT, instrumentation_scope=scope, status=Status(StatusCode.ERROR, "reset\nby peer"),
            start_time=START, end_time=START + 2**40,
        ),
    )  # fmt: skip
    yield (
        Span(*ids, parent, KIND_INTERNAL, "x", 1, 2, (("k", 2**53 + 1), ("n", -3)), NO_ATTRIBUTES, 1),
        ReadableSpan(
            "x", sdk_context(SPAN_ID), sdk_context(PARENT_ID), resource, {"k": 2**53 + 1, "n": -3}, (), (),
            SpanKind.INTERNAL, instrumentation_scope=scope, status=Status(StatusCode.OK),
            start_time=1, end_time=2,
        ),
    )  # fmt: skip


def test_spans_say_what_the_sdks_spans_say() -> None:
    for ours, theirs in pairs():
        assert encoded_spans(ours) == [oracle(theirs)]


def test_a_batch_keeps_order_under_one_resource_and_scope() -> None:
    ours = [ours for ours, _ in pairs()]
    decoded = encode(*ours)
    [resource_spans] = decoded["resourceSpans"]
    assert resource_spans["resource"] == {"attributes": key_values(RESOURCE)}
    [scope_spans] = resource_spans["scopeSpans"]
    assert scope_spans["scope"] == {"name": "pilotfish", "version": "0.1.0"}
    assert scope_spans["spans"] == [oracle(theirs) for _, theirs in pairs()]


def with_attributes(*attributes: tuple[str, str | bytes | int]) -> Span:
    return Span(b"%032x" % 1, b"%016x" % 1, b"", KIND_SERVER, "GET", 1, 2, attributes)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b'"},{"key":"forged', '"},{"key":"forged'),
        (b"\\", "\\"),
        (b"\x00\x1b\x7f\r\n", "\x00\x1b\x7f\r\n"),
        ("ü€😀".encode(), "ü€😀"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\u2028</script>", "\u2028</script>"),
        (b"", ""),
        (b"x" * 10_000, "x" * 10_000),
    ],
)
def test_nothing_from_the_wire_can_break_out_of_its_string(value: str | bytes, text: str) -> None:
    [span] = encoded_spans(with_attributes(("url.path", value)))
    assert span["attributes"] == [{"key": "url.path", "value": {"stringValue": text}}]


def test_a_remembered_attribute_is_not_confused_with_one_of_another_type() -> None:
    encoder = SpanEncoder(RESOURCE, "pilotfish", "0.1.0")
    for value in ("1", 1, b"1", "1", 1):
        decoded = json.loads(encoder.encode([with_attributes(("k", value))]))
        [attribute] = decoded["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"]
        assert attribute["value"] == ({"intValue": "1"} if value == 1 else {"stringValue": "1"})


def test_what_is_remembered_is_bounded() -> None:
    encoder = SpanEncoder(RESOURCE, "pilotfish", "0.1.0")
    encoder.encode([with_attributes(("url.path", b"/%d" % index)) for index in range(10_000)])
    assert len(encoder._pairs) <= 2048
    encoder.encode([with_attributes(("url.path", b"x" * 5000))])
    assert all(len(text) <= 100 for text in encoder._pairs.values())
