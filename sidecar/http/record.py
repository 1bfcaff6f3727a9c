"""What is left of an exchange when it is over: counters, one access-log line, and the spans of a sampled one.

Called by the exchange, once. An unsampled request with the log switched off only counts.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sidecar.http.plan import stats_for
from sidecar.telemetry.access_log import AccessRecord
from sidecar.telemetry.conventions import (
    mesh_attributes,
    request_attributes,
    result_attributes,
    span_name,
    span_status,
)
from sidecar.telemetry.tracing import KIND_CLIENT, KIND_SERVER, Attribute, Span

if TYPE_CHECKING:
    from sidecar.http.attempt import Attempt
    from sidecar.http.exchange import Exchange
    from sidecar.protocol.events import RequestHead

_MEMO_KEYS = {KIND_SERVER: "server span", KIND_CLIENT: "client span"}

_ERROR_TYPES = {
    "UF": "connect_failure",
    "UH": "no_healthy_endpoint",
    "UO": "overflow",
    "UT": "timeout",
    "SI": "timeout",
    "UR": "reset",
    "UC": "reset",
    "NR": "no_route",
    "NC": "no_cluster",
    "DC": "downstream_left",
    "DT": "drained",
    "OM": "overload",
    "UPE": "upstream_protocol",
    "DPE": "downstream_protocol",
}


def record_exchange(exchange: Exchange) -> None:
    """Count, log and trace it."""
    context = exchange.context
    router = exchange.router
    duration = context.now() - exchange.started
    target = router.target
    if target is not None:
        stats = target.stats
    else:
        stats = stats_for(context, exchange.downstream, router.route_name)
    stats.record(exchange.status, exchange.grpc_status, duration)
    stats.request_bytes += exchange.bytes_in
    stats.response_bytes += exchange.bytes_out
    if context.access_log is not None:
        context.access_log.write(_access_record(exchange, duration))
    if exchange.trace.sampled:
        _add_spans(exchange)


def _route_and_cluster(exchange: Exchange) -> tuple[str, str]:
    router = exchange.router
    return router.route_name, router.target.cluster if router.target is not None else "unknown"


def _access_record(exchange: Exchange, duration: float) -> AccessRecord:
    router = exchange.router
    head = exchange.head
    route, cluster = _route_and_cluster(exchange)
    endpoint = router.endpoint()
    return AccessRecord(
        start=time.time() - duration,
        direction=exchange.context.direction,
        method=head.method,
        path=head.path,
        authority=head.authority,
        protocol=exchange.downstream.protocol,
        status=exchange.status,
        grpc_status=exchange.grpc_status,
        flags=exchange.flag,
        details=exchange.details,
        duration=duration,
        bytes_in=exchange.bytes_in,
        bytes_out=exchange.bytes_out,
        upstream=endpoint.name if endpoint is not None else "",
        attempts=len(router.attempts),
        route=route,
        cluster=cluster,
        peer=exchange.downstream.peer,
        trace_id=exchange.trace.trace_id,
    )


def _add_spans(exchange: Exchange) -> None:
    sink = exchange.context.tracer.sink
    route, cluster = _route_and_cluster(exchange)
    for attempt in exchange.router.attempts:
        sink.add(_client_span(exchange, attempt, route, cluster))
    head = exchange.head
    trace = exchange.trace
    grpc = exchange.router.grpc
    error = _ERROR_TYPES.get(exchange.flag.partition(",")[0], "")
    status, message = span_status(KIND_SERVER, exchange.status, exchange.grpc_status, error)
    sink.add(
        Span(
            trace.trace_id,
            trace.span_id,
            trace.parent_id,
            KIND_SERVER,
            span_name(head.method, head.path, grpc, route if route != "unknown" else ""),
            exchange.start_ns,
            exchange.context.tracer.now_ns(),
            _request_attributes(
                head, KIND_SERVER, exchange.downstream.protocol[5:], head.get(b"user-agent"), grpc
            )
            + result_attributes(exchange.status, exchange.grpc_status, error, exchange.flag),
            mesh_attributes(route, cluster),
            status,
            exchange.details or message,
            (),
            trace.tracestate,
        )
    )


def _request_attributes(
    head: RequestHead, kind: int, version: str, user_agent: bytes | None, grpc: bool
) -> tuple[Attribute, ...]:
    """Kept in the memo, beside what of them the memo does not answer for."""
    beside = (head.path, version, user_agent, grpc)
    known = head.memo.get(_MEMO_KEYS[kind])
    if known is not None and known[0] == beside:
        attributes: tuple[Attribute, ...] = known[1]
        return attributes
    attributes = request_attributes(
        kind, head.method, head.scheme, head.authority, head.path, version, user_agent, grpc
    )
    head.memo[_MEMO_KEYS[kind]] = (beside, attributes)
    return attributes


def _client_span(exchange: Exchange, attempt: Attempt, route: str, cluster: str) -> Span:
    head = exchange.head
    trace = exchange.trace
    grpc = exchange.router.grpc
    grpc_status = exchange.grpc_status if not attempt.outcome else None
    status, message = span_status(KIND_CLIENT, attempt.status, grpc_status, attempt.outcome)
    return Span(
        trace.trace_id,
        attempt.span_id,
        trace.span_id,
        KIND_CLIENT,
        span_name(head.method, head.path, grpc, route),
        attempt.start_ns,
        attempt.end_ns,
        _request_attributes(head, KIND_CLIENT, "2", None, grpc)
        + result_attributes(
            attempt.status,
            grpc_status,
            "reset" if attempt.outcome and not attempt.status else "",
            "",
            attempt.number - 1,
            attempt.reason,
        ),
        mesh_attributes(route, cluster, attempt.endpoint.name),
        status,
        message,
        (),
        trace.tracestate,
    )
