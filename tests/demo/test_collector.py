"""The demo's collector: keeps what sidecars export, and sends copies on. Real sockets."""

from __future__ import annotations

import json

import requests

from pilotfish.demo.collector import PATH, Collector

BODY = {
    "resourceSpans": [
        {
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "users"}}]},
            "scopeSpans": [
                {
                    "spans": [
                        {
                            "traceId": "t",
                            "spanId": "s",
                            "name": "GET",
                            "kind": 2,
                            "startTimeUnixNano": "1",
                            "endTimeUnixNano": "2000001",
                            "attributes": [],
                        }
                    ]
                }
            ],
        }
    ]
}


def post(collector: Collector, path: str, body: bytes) -> int:
    with requests.Session() as session:
        return session.post(f"http://{collector.address}{path}", body, timeout=5).status_code


def test_spans_are_kept_and_their_body_goes_on_unchanged() -> None:
    real = Collector("")
    real.start()
    collector = Collector(f"http://{real.address}/")
    collector.start()
    assert post(collector, PATH, json.dumps(BODY).encode()) == 200
    collector.stop()
    real.stop()
    (span,) = collector.spans
    assert (span.service, span.kind, span.milliseconds) == ("users", "server", 2.0)
    assert real.spans == [span]
    assert collector.forwarded() == f"1 batches of spans sent on to http://{real.address}{PATH}"


def test_a_real_collector_that_is_away_costs_its_copies_alone() -> None:
    collector = Collector("http://127.0.0.1:1")
    collector.start()
    assert post(collector, PATH, json.dumps(BODY).encode()) == 200
    collector.stop()
    assert len(collector.spans) == 1
    assert ", 1 lost (" in collector.forwarded()


def test_what_is_no_export_is_refused() -> None:
    collector = Collector("")
    collector.start()
    assert post(collector, PATH, b"{}") == 400
    assert post(collector, PATH, b"not json") == 400
    assert post(collector, "/v1/metrics", b"{}") == 404
    collector.stop()
    assert (collector.spans, collector.refused) == ([], 2)
