"""W3C Trace Context in and out, the sampling decision, and the bounded buffer of recorded spans.

http/ and server/ call `Tracer.start` once per request and, when the context is sampled, put finished
`Span`s into the sink; `sidecar/trace_exporter.py` takes them out in batches. An unsampled request costs
one context object and no clock. Nothing here does I/O. References: W3C Trace Context (level 1
recommendation, and level 2 for the random flag and tracestate keys).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, NamedTuple, Protocol

from sidecar.telemetry.w3c import Field, is_trace_field, traceparent_of, tracestate_of

AttributeValue = str | bytes | int
"""bytes are decoded (and escaped where they are not UTF-8) when the span is exported."""
Attribute = tuple[str, AttributeValue]

KIND_INTERNAL, KIND_SERVER, KIND_CLIENT = 1, 2, 3
"""OTLP `Span.SpanKind`."""
STATUS_UNSET, STATUS_OK, STATUS_ERROR = 0, 1, 2
"""OTLP `Status.StatusCode`."""

BATCH = 512
_MEMO_KEY = "trace context fields"
_MASK_64 = 2**64 - 1


class Sampling(Protocol):
    """The part of `TracingConfig` that decides; percentages 0..100."""

    @property
    def random_sampling(self) -> float: ...
    @property
    def overall_sampling(self) -> float: ...


class AttributeSet:
    """Attributes that many spans share (a route's, an endpoint's): made once, encoded once."""

    __slots__ = ("encoded", "pairs")

    def __init__(self, pairs: tuple[Attribute, ...]) -> None:
        self.pairs = pairs
        self.encoded: str | None = None
        """The exporter's place to remember its encoding of `pairs`."""

    def __repr__(self) -> str:
        return f"<AttributeSet {dict(self.pairs)}>"


NO_ATTRIBUTES = AttributeSet(())


class Event(NamedTuple):
    """Something that happened during a span, for example a retry."""

    time_ns: int
    name: str
    attributes: tuple[Attribute, ...] = ()


class Span(NamedTuple):
    """A finished span. Ids are lower-case hex; times nanoseconds since the Unix epoch."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    """Empty for the root of a trace."""
    kind: int
    name: str
    start_ns: int
    end_ns: int
    attributes: tuple[Attribute, ...] = ()
    shared: AttributeSet = NO_ATTRIBUTES
    status: int = STATUS_UNSET
    message: str = ""
    """What went wrong, when `status` is an error."""
    events: tuple[Event, ...] = ()
    tracestate: bytes = b""


class SpanSink:
    """Finished spans until the exporter takes them; at most `capacity`, later ones are dropped and counted.

    `on_batch` is called each time another `BATCH` spans are there, from whoever added the last one.
    """

    def __init__(self, capacity: int = 16384, on_batch: Callable[[], None] | None = None) -> None:
        self._spans: list[Span] = []
        self._capacity = capacity
        self.on_batch = on_batch
        self.added = 0
        self.dropped = 0

    def add(self, span: Span) -> None:
        spans = self._spans
        if len(spans) >= self._capacity:
            self.dropped += 1
            return
        spans.append(span)
        self.added += 1
        if not len(spans) % BATCH and self.on_batch is not None:
            self.on_batch()

    def take(self, limit: int = BATCH) -> list[Span]:
        """Remove and return the oldest spans, at most `limit`."""
        taken = self._spans[:limit]
        del self._spans[:limit]
        return taken

    def __len__(self) -> int:
        return len(self._spans)

    def __repr__(self) -> str:
        return f"<SpanSink {len(self._spans)}/{self._capacity} added={self.added} dropped={self.dropped}>"


class TraceContext:
    """Where one request stands in its trace.

    `span_id` is for this process' server span, `parent_id` the caller's span (empty at a root).
    `unchanged` says that the fields that came in, if any, may be forwarded exactly as they are.
    """

    __slots__ = (
        "_flags",
        "_incoming",
        "_random_bits",
        "parent_id",
        "sampled",
        "span_id",
        "trace_id",
        "tracestate",
    )

    def __init__(
        self,
        trace_id: bytes,
        parent_id: bytes,
        span_id: bytes,
        sampled: bool,
        tracestate: bytes,
        flags: bytes,
        incoming: tuple[Field, ...],
        random_bits: Callable[[int], int],
    ) -> None:
        self.trace_id = trace_id
        self.parent_id = parent_id
        self.span_id = span_id
        self.sampled = sampled
        self.tracestate = tracestate
        self._flags = flags
        self._incoming = incoming
        self._random_bits = random_bits

    @property
    def unchanged(self) -> bool:
        return bool(self._incoming)

    def new_span_id(self) -> bytes:
        """An id for another span of this request (each upstream attempt has one)."""
        return b"%016x" % self._random_bits(64)

    def outgoing(self, span_id: bytes) -> tuple[Field, ...]:
        """The fields to send upstream in place of those that came in.

        `span_id` is the client span's. Unsampled requests have no span: the caller's fields go on
        unchanged, or, where there were none, the ids made here with the sampled flag off.
        """
        if self._incoming:
            return self._incoming
        if not self.sampled:
            span_id = self.span_id
        traceparent = (b"traceparent", b"00-%b-%b-%b" % (self.trace_id, span_id, self._flags))
        if self.tracestate:
            return traceparent, (b"tracestate", self.tracestate)
        return (traceparent,)

    def __repr__(self) -> str:
        ids = f"{self.trace_id.decode()} {self.parent_id.decode() or 'root'} → {self.span_id.decode()}"
        return f"<TraceContext {ids} {'sampled' if self.sampled else 'unsampled'}>"


class Tracer:
    """Starts a context for each request.

    Who sent a valid `traceparent` has decided on sampling. Otherwise the trace id decides, with
    probability `random_sampling` and at most `overall_sampling`, by the rule of OpenTelemetry's
    TraceIdRatioBased sampler. `resource` describes this process to the exporter.
    """

    def __init__(
        self,
        config: Sampling,
        resource: Mapping[str, str],
        sink: SpanSink,
        random: Random,
        now_ns: Callable[[], int],
    ) -> None:
        percent = min(config.random_sampling, config.overall_sampling)
        self._bound = round(percent / 100 * 2**64)
        self._random_bits = random.getrandbits
        self.resource = resource
        self.sink = sink
        self.now_ns = now_ns

    def start(
        self, fields: Iterable[Field], fresh: Iterable[Field], memo: dict[Any, Any] | None = None
    ) -> TraceContext:
        """The context of a request that arrived with these fields (`RequestHead.fields` and `fresh`).

        With the head's `memo`, `fields` are searched once for all requests that share it.
        """
        steady: tuple[Field, ...] | None = None if memo is None else memo.get(_MEMO_KEY)
        if steady is None:
            steady = tuple(filter(is_trace_field, fields))
            if memo is not None:
                memo[_MEMO_KEY] = steady
        incoming = steady
        for field in fresh:
            if field[0] == b"traceparent" or field[0] == b"tracestate":
                incoming += (field,)
        if incoming:
            parent = traceparent_of(incoming)
            if parent is not None:
                return self._continue(parent, incoming)
        bits = self._random_bits(192)
        ids = b"%048x" % bits
        sampled = (bits >> 64) & _MASK_64 < self._bound
        return TraceContext(
            ids[:32], b"", ids[32:], sampled, b"", b"01" if sampled else b"00", (), self._random_bits
        )

    def _continue(self, parent: bytes, incoming: tuple[Field, ...]) -> TraceContext:
        random_bits = self._random_bits
        trace_id, parent_id = parent[3:35], parent[36:52]
        if parent[54] not in b"13579bdf":
            return TraceContext(trace_id, parent_id, parent_id, False, b"", b"00", incoming, random_bits)
        # Only flags that are known go on (level 1 section 3.2.2.5): sampled and, from level 2, random.
        flags = b"03" if parent[54] in b"37bf" else b"01"
        span_id = b"%016x" % random_bits(64)
        return TraceContext(
            trace_id, parent_id, span_id, True, tracestate_of(incoming), flags, (), random_bits
        )

    def __repr__(self) -> str:
        return f"<Tracer sampling={self._bound / 2**64:.2%} sink={self.sink!r}>"


class UntracedContext:
    """A request where tracing is not configured: what came in goes on, nothing is made or recorded."""

    __slots__ = ("_incoming",)

    trace_id = b""
    parent_id = b""
    span_id = b""
    sampled = False
    tracestate = b""

    def __init__(self, incoming: tuple[Field, ...]) -> None:
        self._incoming = incoming

    def outgoing(self, span_id: bytes) -> tuple[Field, ...]:
        return self._incoming

    def new_span_id(self) -> bytes:
        return b""


class Untraced:
    """Takes a `Tracer`'s place where tracing is not configured."""

    _NONE = UntracedContext(())

    def __init__(self) -> None:
        self.sink = SpanSink(0)
        self.now_ns = lambda: 0

    def start(
        self, fields: Iterable[Field], fresh: Iterable[Field], memo: dict[Any, Any] | None = None
    ) -> UntracedContext:
        """Of what the caller sent, its trace fields alone."""
        incoming = tuple(filter(is_trace_field, fields)) + tuple(filter(is_trace_field, fresh))
        return UntracedContext(incoming) if incoming else self._NONE
