"""Which fields travel on: what is taken out of a head, what is put in, computed once for each distinct head.

Called by the router. Connection-specific fields never get here (the codecs remove them). Trace context
fields are always taken out: each attempt sends its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.config.resources import HeaderOperation
from sidecar.protocol.events import Field, RequestHead, ResponseHead

XFCC = b"x-forwarded-client-cert"
_TRACE = frozenset({b"traceparent", b"tracestate"})
_TRACE_AND_XFCC = _TRACE | {XFCC}


def strip(fields: tuple[Field, ...], keep_client_cert: bool) -> tuple[Field, ...]:
    """Without trace context and, unless kept, without x-forwarded-client-cert."""
    taken = _TRACE if keep_client_cert else _TRACE_AND_XFCC
    for name, _ in fields:
        if name in taken:
            # Between sidecars the trace context is often all that there is.
            return () if len(fields) == 1 else tuple([f for f in fields if f[0] not in taken])
    return fields


def apply_operations(fields: tuple[Field, ...], operations: Iterable[HeaderOperation]) -> tuple[Field, ...]:
    """Header operations in order (Envoy `HeaderValueOption.append_action`, then removals)."""
    out = list(fields)
    for op in operations:
        present = any(name == op.name for name, _ in out)
        if op.action == "remove":
            out = [f for f in out if f[0] != op.name]
        elif op.action == "append" or (op.action == "add_if_absent" and not present):
            out.append((op.name, op.value))
        elif op.action == "overwrite" or (op.action == "overwrite_if_exists" and present):
            out = [f for f in out if f[0] != op.name]
            out.append((op.name, op.value))
    return tuple(out)


def rewrite_request(
    head: RequestHead,
    operations: tuple[HeaderOperation, ...],
    authority: bytes,
    added: tuple[Field, ...],
    keep_client_cert: bool,
    drop: bytes = b"",
) -> RequestHead:
    """The stable part of the head to send upstream, for `vary`: the path is as it came, and fresh fields are
    left out. `drop` names one more field that does not travel on."""
    fields = strip(head.fields, keep_client_cert)
    if drop:
        fields = tuple([f for f in fields if f[0] != drop])
    if operations:
        fields = apply_operations(fields, operations)
    return RequestHead(
        head.method, head.scheme, authority, head.path, fields + added, protocol=head.protocol, memo={}
    )


def rewrite_response(head: ResponseHead, operations: tuple[HeaderOperation, ...]) -> ResponseHead:
    """The head to send downstream."""
    if not operations:
        return head
    return ResponseHead(head.status, apply_operations(head.fields + head.fresh, operations))
