"""Spans as OTLP/HTTP JSON, written straight from the recorded tuples.

`sidecar/trace_exporter.py` calls it with whole batches. The encoding follows the OTLP specification's
JSON Protobuf rules: ids as hex, 64-bit integers as strings, enums as numbers. Pure; no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from json.encoder import encode_basestring_ascii

from sidecar.telemetry.tracing import Attribute, AttributeSet, AttributeValue, Event, Span

_CACHED_PAIRS = 2048
_CACHED_LENGTH = 100


class SpanEncoder:
    """Encodes batches for one resource. Attributes that come again are remembered, within bounds."""

    def __init__(
        self, resource: Mapping[str, AttributeValue | Sequence[str]], scope: str, version: str
    ) -> None:
        attributes = ",".join(
            f'{{"key":{encode_basestring_ascii(key)},"value":{_value(value)}}}'
            for key, value in resource.items()
        )
        name, version = encode_basestring_ascii(scope), encode_basestring_ascii(version)
        self._head = (
            f'{{"resourceSpans":[{{"resource":{{"attributes":[{attributes}]}},"scopeSpans":['
            f'{{"scope":{{"name":{name},"version":{version}}},"spans":['
        )
        self._pairs: dict[Attribute, str] = {}
        self._names: dict[str, str] = {}

    def encode(self, spans: Iterable[Span]) -> bytes:
        """One `ExportTraceServiceRequest` that holds all `spans`."""
        return f"{self._head}{','.join(map(self._span, spans))}]}}]}}]}}".encode("ascii")

    def _span(self, span: Span) -> str:
        (trace_id, span_id, parent_id, kind, name, start, end, attributes, shared, status, message, events,
         tracestate) = span  # fmt: skip
        pairs = self._pairs
        encoded = [pairs.get(attribute) or self._attribute(attribute) for attribute in attributes]
        if shared.pairs:
            encoded.append(shared.encoded or self._shared(shared))
        name_text = self._names.get(name) or self._name(name)
        parent = f'"parentSpanId":"{parent_id.decode()}",' if parent_id else ""
        rest = self._rest(status, message, events, tracestate) if status or events or tracestate else ""
        return (
            f'{{"traceId":"{trace_id.decode()}","spanId":"{span_id.decode()}",{parent}"name":{name_text},'
            f'"kind":{kind},"startTimeUnixNano":"{start}","endTimeUnixNano":"{end}",'
            f'"attributes":[{",".join(encoded)}]{rest}}}'
        )

    def _rest(self, status: int, message: str, events: tuple[Event, ...], tracestate: bytes) -> str:
        text = ""
        if status:
            why = f',"message":{encode_basestring_ascii(message)}' if message else ""
            text += f',"status":{{"code":{status}{why}}}'
        if events:
            text += f',"events":[{",".join(map(self._event, events))}]'
        if tracestate:
            text += f',"traceState":{_value_text(tracestate)}'
        return text

    def _event(self, event: Event) -> str:
        attributes = ",".join(map(self._attribute, event.attributes))
        name = encode_basestring_ascii(event.name)
        return f'{{"timeUnixNano":"{event.time_ns}","name":{name},"attributes":[{attributes}]}}'

    def _shared(self, shared: AttributeSet) -> str:
        shared.encoded = ",".join(map(self._attribute, shared.pairs))
        return shared.encoded

    def _name(self, name: str) -> str:
        text = encode_basestring_ascii(name)
        if len(text) <= _CACHED_LENGTH:
            if len(self._names) >= _CACHED_PAIRS:
                self._names.clear()
            self._names[name] = text
        return text

    def _attribute(self, attribute: Attribute) -> str:
        key, value = attribute
        text = f'{{"key":"{key}","value":{_value(value)}}}'
        if len(text) <= _CACHED_LENGTH:
            if len(self._pairs) >= _CACHED_PAIRS:
                self._pairs.clear()
            self._pairs[attribute] = text
        return text

    def __repr__(self) -> str:
        return f"<SpanEncoder {len(self._pairs)} attributes remembered>"


def _value(value: AttributeValue | Sequence[str]) -> str:
    """An `AnyValue`."""
    if isinstance(value, str):
        return f'{{"stringValue":{encode_basestring_ascii(value)}}}'
    if isinstance(value, bytes):
        return f'{{"stringValue":{_value_text(value)}}}'
    if isinstance(value, int):
        return f'{{"intValue":"{value:d}"}}'
    return f'{{"arrayValue":{{"values":[{",".join(map(_value, value))}]}}}}'


def _value_text(value: bytes) -> str:
    return encode_basestring_ascii(value.decode("utf-8", "backslashreplace"))
