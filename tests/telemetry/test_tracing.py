"""Trace contexts as W3C Trace Context has them, and sampling as OpenTelemetry's samplers decide it."""

from __future__ import annotations

from random import Random

import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from opentelemetry.trace.propagation import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.span import Span as OtelSpan

from sidecar.config.resources import TracingConfig
from sidecar.telemetry.tracing import BATCH, Span, SpanSink, TraceContext, Tracer

TRACE = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"b7ad6b7169203331"
SAMPLED = b"00-" + TRACE + b"-" + PARENT + b"-01"
UNSAMPLED = b"00-" + TRACE + b"-" + PARENT + b"-00"


def tracer(random: float = 0.0, overall: float = 100.0) -> Tracer:
    config = TracingConfig(random_sampling=random, overall_sampling=overall)
    return Tracer(config, {}, SpanSink(), Random(1), lambda: 0)


def start(*fields: tuple[bytes, bytes], random: float = 0.0) -> TraceContext:
    return tracer(random).start((), fields)


def traceparent(value: bytes) -> tuple[bytes, bytes]:
    return b"traceparent", value


def test_a_sampled_parent_is_continued_with_a_span_of_ours() -> None:
    context = start(traceparent(SAMPLED))
    assert (context.trace_id, context.parent_id, context.sampled) == (TRACE, PARENT, True)
    assert context.outgoing(b"00f067aa0ba902b7") == (traceparent(b"00-" + TRACE + b"-00f067aa0ba902b7-01"),)


def test_an_unsampled_parent_goes_on_unchanged_whatever_we_would_sample() -> None:
    fields = (traceparent(UNSAMPLED), (b"tracestate", b"a=1"), (b"tracestate", b"b=2"))
    context = start(*fields, random=100.0)
    assert not context.sampled
    assert context.unchanged
    assert context.outgoing(context.new_span_id()) == fields


def test_without_a_parent_ids_are_made_and_the_flag_says_unsampled() -> None:
    context = start((b"x-other", b"1"))
    [(name, value)] = context.outgoing(b"")
    assert name == b"traceparent"
    assert value == b"00-" + context.trace_id + b"-" + context.span_id + b"-00"
    assert (len(context.trace_id), len(context.span_id), context.parent_id) == (32, 16, b"")
    assert not context.unchanged


def test_every_request_gets_a_trace_of_its_own() -> None:
    one = tracer()
    assert len({one.start((), ()).trace_id for _ in range(1000)}) == 1000
    context = one.start((), ())
    assert len({context.new_span_id() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        b"00-" + TRACE + b"-" + PARENT,
        b"00-" + TRACE + b"-" + PARENT + b"-",
        b"00-" + TRACE + b"-" + PARENT + b"-1",
        b"00-" + TRACE + b"-" + PARENT + b"-011",
        b"00-" + TRACE + b"-" + PARENT + b"-01-",
        b"00-" + TRACE + b"-" + PARENT + b"-01-what-the-future-holds",
        b"ff-" + TRACE + b"-" + PARENT + b"-01",
        b"FF-" + TRACE + b"-" + PARENT + b"-01",
        b"0-" + TRACE + b"-" + PARENT + b"-01",
        b"00-" + b"0" * 32 + b"-" + PARENT + b"-01",
        b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
        b"00-" + TRACE.upper() + b"-" + PARENT + b"-01",
        b"00-" + TRACE + b"-" + PARENT.upper() + b"-01",
        b"00-" + TRACE[:-1] + b"g-" + PARENT + b"-01",
        b"00_" + TRACE + b"_" + PARENT + b"_01",
        b"00-" + TRACE[:-1] + b"--" + PARENT[1:] + b"0-01",
        b"00-" + TRACE + b"-" + PARENT + b"-0G",
        b"cc-" + TRACE + b"-" + PARENT + b"-01.what",
        b" 00-" + TRACE + b"-" + PARENT + b"-01",
        SAMPLED + b"\x00",
        b"\xff" * 55,
    ],
)
def test_an_invalid_traceparent_starts_a_new_trace_and_drops_the_tracestate(value: bytes) -> None:
    context = start(traceparent(value), (b"tracestate", b"a=1"), random=100.0)
    assert context.trace_id != TRACE
    assert context.parent_id == b""
    assert [name for name, _ in context.outgoing(context.new_span_id())] == [b"traceparent"]


def test_two_traceparents_are_as_good_as_none() -> None:
    assert start(traceparent(SAMPLED), traceparent(SAMPLED)).trace_id != TRACE


@pytest.mark.parametrize("suffix", [b"", b"-what-the-future-holds"])
def test_a_future_version_is_read_as_00_and_goes_out_as_00(suffix: bytes) -> None:
    context = start(traceparent(b"cc" + SAMPLED[2:] + suffix))
    assert (context.trace_id, context.parent_id) == (TRACE, PARENT)
    assert context.outgoing(PARENT) == (traceparent(SAMPLED),)


@pytest.mark.parametrize(
    ("incoming", "outgoing"), [(b"01", b"01"), (b"03", b"03"), (b"09", b"01"), (b"ff", b"03"), (b"fb", b"03")]
)
def test_unknown_flags_are_cleared_and_the_random_flag_is_kept(incoming: bytes, outgoing: bytes) -> None:
    context = start(traceparent(SAMPLED[:-2] + incoming))
    assert context.outgoing(PARENT) == (traceparent(SAMPLED[:-2] + outgoing),)


@pytest.mark.parametrize("flags", [b"00", b"02", b"fe", b"08"])
def test_only_the_lowest_bit_means_sampled(flags: bytes) -> None:
    assert not start(traceparent(SAMPLED[:-2] + flags), random=100.0).sampled


def outgoing_state(*states: bytes) -> bytes | None:
    context = start(traceparent(SAMPLED), *((b"tracestate", state) for state in states))
    return dict(context.outgoing(PARENT)).get(b"tracestate")


@pytest.mark.parametrize(
    "state",
    [
        b"foo=1",
        b"foo=1,bar=2",
        b"foo=1 , \tbar=2",
        b"foo=1,,bar=2",
        b"fw529a3039@dt=FfUyc3JS, rojo=00f067aa0ba902b7",
        b"0a=x/y",
        b"foo=" + b"x" * 256,
        b"k" * 256 + b"=1",
        b"foo= !\"#$%&'()*+-./:;<>?@[]^_`{|}~",
        b",".join(b"k%d=1" % index for index in range(32)),
        b",".join(b"k%d=%b" % (index, b"v" * 200) for index in range(32)),
    ],
)
def test_a_valid_tracestate_goes_on_as_it_came_however_long(state: bytes) -> None:
    assert outgoing_state(state) == state


def test_several_tracestate_fields_are_one_list_in_order() -> None:
    assert outgoing_state(b"foo=1", b"bar=2,baz=3") == b"foo=1,bar=2,baz=3"


@pytest.mark.parametrize(
    "state",
    [
        b"foo",
        b"foo =1",
        b"FOO=1",
        b"foo=",
        b"foo@=1,=2",
        b"foo=1;bar=2=3",
        b"foo=bar=baz",
        b"foo=\x01",
        b"foo=\xc3\xa9",
        b"foo=" + b"x" * 257,
        b"k" * 257 + b"=1",
        b",".join(b"k%d=1" % index for index in range(33)),
        b"",
        b" \t",
        b",,",
    ],
)
def test_a_malformed_or_empty_tracestate_is_dropped_and_the_traceparent_kept(state: bytes) -> None:
    context = start(traceparent(SAMPLED), (b"tracestate", state))
    assert context.trace_id == TRACE
    assert context.outgoing(PARENT) == (traceparent(SAMPLED),)


def test_a_tracestate_without_a_traceparent_is_dropped() -> None:
    context = start((b"tracestate", b"foo=1"), random=100.0)
    assert [name for name, _ in context.outgoing(PARENT)] == [b"traceparent"]


def test_opentelemetry_reads_what_we_send() -> None:
    context = start(traceparent(SAMPLED), (b"tracestate", b"a=1,b=2"))
    span_id = context.new_span_id()
    carrier = {name.decode(): value.decode() for name, value in context.outgoing(span_id)}
    span: OtelSpan = get_current_span(TraceContextTextMapPropagator().extract(carrier))
    read = span.get_span_context()
    assert f"{read.trace_id:032x}".encode() == TRACE
    assert f"{read.span_id:016x}".encode() == span_id
    assert read.trace_flags.sampled
    assert dict(read.trace_state) == {"a": "1", "b": "2"}


@pytest.mark.parametrize("percent", [0.0, 1.0, 30.0, 100.0])
def test_roots_are_sampled_as_the_ratio_sampler_of_opentelemetry_samples_them(percent: float) -> None:
    oracle = TraceIdRatioBased(percent / 100)
    one = tracer(percent)
    taken = 0
    for _ in range(2000):
        context = one.start((), ())
        decision = oracle.should_sample(None, int(context.trace_id, 16), "").decision
        assert context.sampled == (decision is Decision.RECORD_AND_SAMPLE)
        assert context.outgoing(context.span_id)[0][1].endswith(b"-01" if context.sampled else b"-00")
        taken += context.sampled
    assert abs(taken - 20 * percent) < 100


def test_overall_sampling_is_an_upper_limit() -> None:
    one = tracer(random=100.0, overall=0.0)
    assert not any(one.start((), ()).sampled for _ in range(1000))


def test_fields_in_the_decoders_table_are_searched_once_for_a_shared_memo() -> None:
    memo: dict[str, object] = {}
    one = tracer()
    assert one.start((traceparent(SAMPLED), (b"a", b"b")), (), memo).trace_id == TRACE
    assert one.start(iter(()), (), memo).trace_id == TRACE
    assert one.start((), ((b"tracestate", b"z=1"),), memo).tracestate == b"z=1"


def span(index: int) -> Span:
    return Span(b"%032x" % index, b"%016x" % index, b"", 2, "GET", 0, 1)


def test_the_sink_calls_at_every_full_batch_and_gives_spans_in_order() -> None:
    calls: list[int] = []
    sink = SpanSink()
    sink.on_batch = lambda: calls.append(len(sink))
    for index in range(BATCH * 2 + 1):
        sink.add(span(index))
    assert calls == [BATCH, 2 * BATCH]
    assert [one.span_id for one in sink.take()] == [b"%016x" % index for index in range(BATCH)]
    assert (len(sink), len(sink.take(10_000)), len(sink)) == (BATCH + 1, BATCH + 1, 0)


def test_a_full_sink_drops_the_newest_and_counts_them() -> None:
    sink = SpanSink(capacity=3)
    for index in range(5):
        sink.add(span(index))
    assert (sink.added, sink.dropped) == (3, 2)
    assert [one.span_id[-1:] for one in sink.take()] == [b"0", b"1", b"2"]
