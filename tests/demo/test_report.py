"""What the demo makes of spans and access logs, and that it prints it whole in 80 columns."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from pilotfish.demo import report
from pilotfish.demo.facts import Fact
from pilotfish.demo.routes import access_records, route_rows
from pilotfish.demo.show import mark_routes
from pilotfish.demo.spans import complete_traces, parse_export
from pilotfish.demo.topology import WORKLOADS, wanted_addresses


def printed(what: RenderableType) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def a_record(**changes: Any) -> dict[str, Any]:
    return {
        "direction": "outbound",
        "route": "shop/users/0",
        "status": 200,
        "grpc_status": None,
        "attempts": 1,
        "duration_ms": 2.0,
        "upstream": "users-1",
    } | changes


def an_export(service: str, *spans: dict[str, Any]) -> dict[str, Any]:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}


def a_span(span_id: str, parent: str, kind: int, start: int, end: int, **attributes: Any) -> dict[str, Any]:
    values = [
        {
            "key": key.replace("__", "."),
            "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value},
        }
        for key, value in attributes.items()
    ]
    return {
        "traceId": "t",
        "spanId": span_id,
        "parentSpanId": parent,
        "name": "GET shop/users/0",
        "kind": kind,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(end),
        "attributes": values,
    }


def test_a_row_counts_what_callers_got_and_who_gave_it() -> None:
    records = [
        ("shopper", a_record(duration_ms=1.0)),
        ("orders", a_record(attempts=2, upstream="users-2", duration_ms=9.0)),
        ("shopper", a_record(status=503, duration_ms=3.0)),
        ("shopper", a_record(direction="inbound")),
    ]
    (row,) = route_rows(records)
    assert (row.requests, row.failed, row.retries) == (3, 1, 1)
    assert row.served == {"users-1": 1, "users-2": 1}
    assert row.callers == {"shopper": 2, "orders": 1}
    assert (row.quantile(0.5), row.quantile(0.99)) == (3.0, 9.0)


@pytest.mark.parametrize(("status", "grpc_status"), [(0, None), (500, None), (200, 14)])
def test_no_answer_a_server_error_and_grpcs_unavailable_count_as_failed(
    status: int, grpc_status: int | None
) -> None:
    (row,) = route_rows([("shopper", a_record(status=status, grpc_status=grpc_status))])
    assert row.failed == 1
    assert "0.00 %" in "".join(printed(report.route_table([row])))


def test_one_failure_in_a_million_is_not_shown_as_all_well() -> None:
    (row,) = route_rows([("shopper", a_record())])
    row.requests, row.failed = 1_000_000, 1
    assert "99.99 %" in "".join(printed(report.route_table([row])))


def test_messages_and_a_line_cut_short_are_no_access_records() -> None:
    log = f'INFO ready\n{json.dumps(a_record())}\n{{"direction":"outb'
    assert list(access_records(log)) == [a_record()]


def test_a_trace_is_drawn_with_every_span_under_its_cause() -> None:
    spans = [
        *parse_export(
            an_export(
                "shopper",
                a_span("a", "", 2, 0, 10_000_000),
                a_span("b", "a", 3, 0, 1_000_000, pilotfish__endpoint="users-2", error__type="reset"),
                a_span(
                    "c",
                    "a",
                    3,
                    5_000_000,
                    10_000_000,
                    pilotfish__endpoint="users-1",
                    http__request__resend_count=1,
                ),
            )
        ),
        *parse_export(an_export("users", a_span("d", "c", 2, 6_000_000, 9_000_000))),
    ]
    (trace,) = complete_traces(spans)
    assert trace.services == {"shopper", "users"}
    assert trace.retries == 1
    lines = [line.split("  ")[0] for line in printed(report.trace_tree(trace)) if not line.startswith(" ")]
    assert lines == [
        "shopper server GET shop/users/0",
        "└ shopper client → users-2",
        "└ shopper client → users-1 (attempt 2)",
    ]
    assert "  └ users server GET shop/users/0" in printed(report.trace_tree(trace))[3]


def test_a_trace_with_a_missing_parent_is_not_shown_as_whole() -> None:
    assert complete_traces(parse_export(an_export("users", a_span("d", "c", 2, 0, 1)))) == []


def test_the_identities_fit_a_terminal_of_80_columns() -> None:
    rows = [(replica, f"spiffe://cluster.local/ns/shop/sa/{replica.service}") for replica in WORKLOADS]
    lines = printed(report.identity_table(rows))
    assert not any("…" in line for line in lines)
    assert any(
        "greeter-2" in line and line.endswith("spiffe://cluster.local/ns/shop/sa/greeter") for line in lines
    )


def test_the_verdict_names_what_did_not_hold() -> None:
    assert "All 1 facts held" in report.verdict([Fact("a", True, "")])
    text = report.verdict([Fact("a", True, ""), Fact("no GET failed", False, "3 of 9 failed")])
    assert "1 of 2 facts did not hold" in text
    assert "no GET failed: 3 of 9 failed" in text


def test_a_taken_port_is_named_with_what_needs_it() -> None:
    console = Console(file=io.StringIO(), width=80)
    report.show_taken(console, [("127.0.1.1", 8080, "is taken")], wanted_addresses())
    assert isinstance(console.file, io.StringIO)
    assert "127.0.1.1:8080 for users-1's application is taken" in console.file.getvalue()


def test_the_last_lines_of_a_failed_parts_log_are_shown(tmp_path: Path) -> None:
    log = tmp_path / "users-1-app.log"
    log.write_text("\n".join(f"line {number}" for number in range(100)))
    console = Console(file=io.StringIO(), width=80)
    report.show_failure(console, "users-1-app ended by itself, with exit status 1", log, tmp_path)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "users-1-app ended by itself" in text
    assert "line 99" in text
    assert "line 84\n" not in text


def test_marking_keeps_every_rule_and_its_other_filters() -> None:
    other = {"type": "RequestHeaderModifier"}
    routes = {"kind": "HTTPRoute", "spec": {"rules": [{"filters": [other]}, {}]}}
    mark_routes([{"kind": "Service"}, routes], "x-shop-route", "new")
    change = {"set": [{"name": "x-shop-route", "value": "new"}]}
    marked = {"type": "ResponseHeaderModifier", "responseHeaderModifier": change}
    assert routes["spec"] == {"rules": [{"filters": [other, marked]}, {"filters": [marked]}]}
