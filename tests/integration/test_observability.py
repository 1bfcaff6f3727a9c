"""One trace through three services, trace context in and out, sampling, metrics, and the admin pages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.apps import start_app
from tests.support.clients import fetch
from tests.support.processes import eventually
from tests.support.shop import Shop
from tests.support.sidecars import (
    APP,
    OUTBOUND,
    Sidecar,
    address,
    bootstrap,
    cluster,
    http_filter,
    listener,
    loopback,
    route,
)
from tests.support.spans import CLIENT, SERVER, Span, SpanCollector

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def attributes(span: Span) -> dict[str, object]:
    return {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}


def chained(spans: list[Span], parent: str) -> list[Span]:
    """The one span below `parent`, the one below that, and so on: clocks say nothing about that."""
    found = []
    while below := [span for span in spans if span.get("parentSpanId") == parent]:
        [span] = below
        found.append(span)
        parent = span["spanId"]
    return found


def test_one_trace_goes_from_the_shopper_through_orders_to_users(shop: Shop) -> None:
    """Each hop is a client span of the caller's sidecar and a server span of the callee's, in one chain."""
    proxy = f"{shop.hosts['orders-1']}:{OUTBOUND}"
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=x"}
    answer = fetch(shop.proxy, f"http://orders/call?proxy={proxy}&url=http://users/inner", headers=headers)
    assert answer.status == 200
    seen = dict(answer.json()["fields"])
    spans = shop.spans.trace(TRACE, 8)
    assert len(spans) == 8
    in_turn = chained(spans, PARENT)
    chain = [(span["service"], span["kind"]) for span in in_turn]
    hop = [("shopper", SERVER), ("shopper", CLIENT), ("orders", SERVER), ("orders", CLIENT)]
    assert chain == [*hop, ("orders", SERVER), ("orders", CLIENT), ("users", SERVER), ("users", CLIENT)]
    assert seen["traceparent"] == f"00-{TRACE}-{in_turn[-1]['spanId']}-01"
    assert seen["tracestate"] == "vendor=x"


def test_spans_say_what_the_request_was(shop: Shop) -> None:
    trace = "5bf92f3577b34da6a3ce929d0e0e4736"
    fetch(shop.proxy, "http://orders/status/503", headers={"traceparent": f"00-{trace}-{PARENT}-01"})
    spans = shop.spans.trace(trace, 4)
    for span in spans:
        found = attributes(span)
        assert found["http.request.method"] == "GET"
        assert str(found["http.response.status_code"]) == "503"
        assert int(span["endTimeUnixNano"]) >= int(span["startTimeUnixNano"])
        assert span["status"]["code"] == 2


def test_a_new_trace_starts_where_there_is_none(shop: Shop) -> None:
    seen = dict(fetch(shop.proxy, "http://orders/new").json()["fields"])
    found = re.fullmatch("00-([0-9a-f]{32})-([0-9a-f]{16})-01", seen["traceparent"])
    assert found is not None
    spans = shop.spans.trace(found[1], 4)
    [root] = [span for span in spans if not span.get("parentSpanId")]
    below = chained(spans, root["spanId"])
    assert len(below) == 3
    assert below[-1]["spanId"] == found[2]


def test_the_access_log_names_the_trace(shop: Shop) -> None:
    trace = "6bf92f3577b34da6a3ce929d0e0e4736"
    fetch(shop.proxy, "http://orders/logged", headers={"traceparent": f"00-{trace}-{PARENT}-01"})
    for name in ("shopper", "orders-1"):
        line = shop.sidecars[name].logged(path="/logged")
        assert (line["trace_id"], line["status"], line["attempts"]) == (trace, 200, 1)


def test_without_sampling_context_passes_as_it_came_and_nothing_is_exported(tmp_path: Path) -> None:
    collector, host = SpanCollector(), loopback()
    uri = f"http://{collector.host}:{collector.port}/v1/traces"
    service = {"http_uri": {"uri": uri, "cluster": "otlp", "timeout": "1s"}}
    config = {
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "service_name": "alone",
        "http_service": service,
    }
    tracing = {
        "random_sampling": {"value": 0.0},
        "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": config},
    }
    made = listener("in", address(host, OUTBOUND), http_filter([route(cluster="app")], tracing=tracing))
    clusters = [cluster("app", [(host, APP)]), cluster("otlp", [(collector.host, collector.port)])]
    sidecar = Sidecar("alone", bootstrap(host, [made], clusters), tmp_path)
    try:
        with start_app(host, APP, "app", tmp_path), sidecar:
            sidecar.ready()
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-00", "tracestate": "a=b"}
            unsampled = dict(fetch((host, OUTBOUND), "/", headers=headers).json()["fields"])
            assert (unsampled["traceparent"], unsampled["tracestate"]) == (headers["traceparent"], "a=b")
            for _ in range(20):
                fetch((host, OUTBOUND), "/none")
            sampled = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            assert fetch((host, OUTBOUND), "/yes", headers=sampled).status == 200
            assert len(collector.trace(TRACE, 2)) == 2
            sidecar.terminate()
            assert sidecar.wait() == 0
        assert len(collector.spans) == 2
    finally:
        collector.close()


def test_metrics_are_prometheus_text_and_count(shop: Shop) -> None:
    def requests() -> float:
        status, text = shop.shopper.get("/metrics")
        assert status == 200
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert families["pilotfish_request_duration_seconds"].type == "histogram"
        wanted = {"direction": "outbound", "cluster": "orders.shop.svc.cluster.local:80", "code": "200"}
        return sum(
            sample.value
            for sample in families["pilotfish_requests"].samples
            if wanted.items() <= sample.labels.items()
        )

    before = requests()
    for _ in range(5):
        fetch(shop.proxy, "http://orders/metrics")
    eventually(lambda: requests() == before + 5)


@pytest.mark.parametrize(
    "page", ["/ready", "/stats", "/stats/prometheus", "/config_dump", "/clusters", "/certs", "/listeners"]
)
def test_admin_pages_answer(shop: Shop, page: str) -> None:
    status, text = shop.shopper.get(page)
    assert status == 200
    if page not in ("/ready", "/stats/prometheus"):
        json.loads(text)
    assert "PRIVATE KEY" not in text


def test_admin_pages_show_identity_and_replicas(shop: Shop) -> None:
    assert shop.shopper.json("/certs")["mesh"]["spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/shopper"
    fetch(shop.proxy, "http://users/")
    [users] = [c for c in shop.shopper.json("/clusters") if c["name"] == "users.shop.svc.cluster.local:80"]
    assert {endpoint["name"] for endpoint in users["endpoints"]} == {"users-1", "users-2"}
