"""What is taken out of heads and put in."""

from __future__ import annotations

from sidecar.config.resources import HeaderOperation
from sidecar.http.forwarding import apply_operations, rewrite_request, rewrite_response, strip
from sidecar.protocol.events import RequestHead, ResponseHead

A = (b"accept", b"*/*")
XFCC = (b"x-forwarded-client-cert", b"By=evil")
TRACE = (b"traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01")


def test_client_certificates_that_callers_claim_are_stripped() -> None:
    assert strip((A, XFCC, TRACE), keep_client_cert=False) == (A,)
    assert strip((A, XFCC, TRACE), keep_client_cert=True) == (A, XFCC)


def test_fields_with_nothing_to_strip_stay_the_same_object() -> None:
    fields = (A, (b"user-agent", b"curl"))
    assert strip(fields, keep_client_cert=False) is fields


def test_header_operations_apply_in_order() -> None:
    fields = ((b"x", b"1"), (b"y", b"1"))
    operations = (
        HeaderOperation("append", b"x", b"2"),
        HeaderOperation("overwrite", b"y", b"2"),
        HeaderOperation("add_if_absent", b"z", b"3"),
        HeaderOperation("add_if_absent", b"z", b"4"),
        HeaderOperation("overwrite_if_exists", b"w", b"5"),
        HeaderOperation("remove", b"x"),
    )
    assert apply_operations(fields, operations) == ((b"y", b"2"), (b"z", b"3"))


def test_the_rewritten_request_carries_authority_and_added_fields() -> None:
    head = RequestHead(b"GET", b"http", b"old", b"/a", (A, XFCC), (TRACE,))
    out = rewrite_request(head, (), b"new", ((b"x-forwarded-client-cert", b"By=me"),), False)
    assert (out.authority, out.path, out.fields, out.fresh) == (
        b"new",
        b"/a",
        (A, (b"x-forwarded-client-cert", b"By=me")),
        (),
    )


def test_a_response_without_operations_passes_as_the_same_object() -> None:
    head = ResponseHead(200, (A,), (TRACE,))
    assert rewrite_response(head, ()) is head
    changed = rewrite_response(head, (HeaderOperation("remove", b"traceparent"),))
    assert changed.fields + changed.fresh == (A,)
