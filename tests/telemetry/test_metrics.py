"""Counters, latency histograms and their Prometheus text, with prometheus_client's parser as the oracle."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.telemetry.histogram import BINS, BOUNDS, BUCKETS, cumulative, quantile
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.process import LoopLag, ProcessMetrics
from sidecar.telemetry.prometheus import Family
from tests.support.virtual_clock import VirtualClock


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.prometheus_text())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


ROUTE = {"direction": "inbound", "route": "all", "cluster": "app", "peer": "ns/shop/sa/orders"}


def bins_of(*seconds: float) -> list[int]:
    bins = [0] * BINS
    for one in seconds:
        bins[bisect_left(BOUNDS, one)] += 1
    return bins


def test_bounds_rise_and_hold_every_prometheus_bucket() -> None:
    assert sorted(set(BOUNDS)) == BOUNDS
    assert tuple(BOUNDS[::4]) == BUCKETS


def test_a_value_on_a_bound_counts_as_at_or_below_it() -> None:
    counts = cumulative(bins_of(0.001, 0.0011, 100.0))
    assert counts[BUCKETS.index(0.0005)] == 0
    assert counts[BUCKETS.index(0.001)] == 1
    assert counts[BUCKETS.index(0.0025)] == 2
    assert counts[-2:] == [2, 3]


def test_quantiles_are_within_a_bin_of_the_exact_ones() -> None:
    values = [index / 1000 for index in range(1, 1001)]
    bins = bins_of(*values)
    for q in (0.1, 0.5, 0.9, 0.99, 1.0):
        assert quantile(bins, q) == pytest.approx(q, rel=0.02)


def test_quantile_without_values_is_zero_and_above_all_bounds_the_highest() -> None:
    assert quantile([0] * BINS, 0.5) == 0.0
    assert quantile(bins_of(1000.0), 0.5) == BUCKETS[-1]


def test_requests_are_counted_by_exact_status_and_grpc_status() -> None:
    metrics = Metrics()
    route = metrics.route(**ROUTE)
    route.record(200, None, 0.002)
    route.record(200, None, 0.002)
    route.record(200, 14, 0.002)
    route.record(503, None, 0.002)
    name = "pilotfish_requests_total"
    assert value(metrics, name, **ROUTE, code="200", grpc_status="") == 2
    assert value(metrics, name, **ROUTE, code="200", grpc_status="14") == 1
    assert value(metrics, name, **ROUTE, code="503", grpc_status="") == 1
    assert (route.requests, route.failures) == (4, 2)


def test_codes_that_no_specification_defines_cannot_make_series() -> None:
    metrics = Metrics()
    route = metrics.route(**ROUTE)
    for status in (999, 600, 700, 42):
        route.record(status, None, 0.001)
    for grpc_status in (17, 99999, -5):
        route.record(200, grpc_status, 0.001)
    name = "pilotfish_requests_total"
    assert value(metrics, name, **ROUTE, code="invalid", grpc_status="") == 4
    assert value(metrics, name, **ROUTE, code="200", grpc_status="2") == 3
    assert route.failures == 7
    assert len(route.codes) == 2


def test_a_caller_that_left_is_counted_and_is_no_failure() -> None:
    route = Metrics().route(**ROUTE)
    route.record(0, None, 0.5)
    assert (route.requests, route.failures) == (1, 0)


@pytest.mark.parametrize(
    ("grpc_status", "failed"), [(0, 0), (5, 0), (1, 0), (2, 1), (4, 1), (13, 1), (15, 1)]
)
def test_grpc_failures_are_the_servers_own_alone(grpc_status: int, failed: int) -> None:
    route = Metrics().route(**ROUTE)
    route.record(200, grpc_status, 0.001)
    assert route.failures == failed


def test_failures_of_http_and_grpc_have_a_series_before_the_first() -> None:
    metrics = Metrics()
    route = metrics.route(*ROUTE.values())
    assert value(metrics, "pilotfish_request_failures_total", **ROUTE) == 0
    for status, grpc_status in ((200, None), (404, None), (200, 0), (503, None), (200, 14)):
        route.record(status, grpc_status, 0.1)
    assert value(metrics, "pilotfish_request_failures_total", **ROUTE) == 2


def test_the_duration_histogram_is_in_seconds_and_adds_up() -> None:
    metrics = Metrics()
    route = metrics.route(**ROUTE)
    for seconds in (0.0004, 0.004, 4.0, 400.0):
        route.record(200, None, seconds)
    name = "pilotfish_request_duration_seconds"
    assert value(metrics, f"{name}_bucket", **ROUTE, le="0.0005") == 1
    assert value(metrics, f"{name}_bucket", **ROUTE, le="0.005") == 2
    assert value(metrics, f"{name}_bucket", **ROUTE, le="60.0") == 3
    assert value(metrics, f"{name}_bucket", **ROUTE, le="+Inf") == 4
    assert value(metrics, f"{name}_count", **ROUTE) == 4
    assert value(metrics, f"{name}_sum", **ROUTE) == pytest.approx(404.0044)


def test_every_family_has_help_and_type_once_and_counters_end_in_total() -> None:
    metrics = Metrics()
    metrics.route(**ROUTE).record(200, None, 0.001)
    metrics.cluster("app").requests += 1
    metrics.endpoint("app", "10.0.0.1:80").requests += 1
    metrics.listener("inbound", "in").detected["http2"] = 3
    metrics.register(ProcessMetrics("0.1.0", LoopLag(VirtualClock().call_later, VirtualClock().time), int))
    text = metrics.prometheus_text()
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(names) == len(set(names))
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram"), family.name
    assert all(line.split()[2].endswith("_total") for line in text.splitlines() if line.endswith(" counter"))


def test_the_same_labels_give_the_same_object() -> None:
    metrics = Metrics()
    assert metrics.route(**ROUTE) is metrics.route(**ROUTE)
    assert metrics.endpoint("a", "b") is not metrics.endpoint("b", "a")


def test_series_past_the_limit_share_one_labelled_overflow() -> None:
    metrics = Metrics(max_series=2)
    for index in range(5):
        metrics.endpoint("app", f"10.0.0.{index}:80").requests += 1
    assert metrics.endpoint("app", "10.0.0.3:80") is metrics.endpoint("app", "10.0.0.4:80")
    name = "pilotfish_endpoint_requests_total"
    assert value(metrics, name, cluster="overflow", endpoint="overflow") == 3
    assert value(metrics, name, cluster="app", endpoint="10.0.0.0:80") == 1


def test_endpoints_that_go_make_room() -> None:
    metrics = Metrics(max_series=2)
    for index in range(50):
        metrics.endpoint("app", str(index)).requests += 1
        metrics.remove_endpoint("app", str(index))
    metrics.endpoint("app", "last").requests += 1
    assert metrics.snapshot()["endpoints"] == [
        {"cluster": "app", "endpoint": "last", "active": 0, "failures": 0, "requests": 1}
    ]


def test_removing_a_cluster_forgets_its_endpoints_and_no_others() -> None:
    metrics = Metrics()
    metrics.cluster("gone")
    metrics.endpoint("gone", "a")
    metrics.endpoint("kept", "a")
    metrics.remove_cluster("gone")
    assert metrics.snapshot()["clusters"] == []
    assert [item["cluster"] for item in metrics.snapshot()["endpoints"]] == ["kept"]


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "new\nline", "end\\", "ünï", ""])
def test_label_values_survive_the_parser(name: str) -> None:
    metrics = Metrics()
    metrics.cluster(name).requests = 7
    assert value(metrics, "pilotfish_cluster_requests_total", cluster=name) == 7


def test_listener_detection_is_counted_by_protocol() -> None:
    metrics = Metrics()
    metrics.listener("inbound", "in").detected.update(http2=3, other=1)
    name = "pilotfish_listener_detected_total"
    assert value(metrics, name, direction="inbound", listener="in", protocol="http2") == 3
    assert value(metrics, name, direction="inbound", listener="in", protocol="other") == 1


def test_a_registered_collector_is_asked_at_each_scrape() -> None:
    metrics = Metrics()
    state = {"days": 1.5}
    metrics.register(
        lambda: [Family("pilotfish_x_seconds", "gauge", "A help\nof two lines", [("", state["days"])])]
    )
    assert value(metrics, "pilotfish_x_seconds") == 1.5
    state["days"] = float("inf")
    assert value(metrics, "pilotfish_x_seconds") == float("inf")


def test_a_family_of_several_collectors_appears_once_and_adds_up() -> None:
    metrics = Metrics()
    for value_of_one in (2, 3):
        samples_of_one = [("", value_of_one), (f'only="{value_of_one}"', 1)]
        metrics.register(
            lambda samples=samples_of_one: [Family("pilotfish_y_total", "counter", "y", samples)]
        )
    assert metrics.prometheus_text().count("# TYPE pilotfish_y_total") == 1
    assert value(metrics, "pilotfish_y_total") == 5
    assert value(metrics, "pilotfish_y_total", only="3") == 1


def test_the_snapshot_holds_what_a_person_asks_of_a_route() -> None:
    metrics = Metrics()
    route = metrics.route(**ROUTE)
    for _ in range(3):
        route.record(200, None, 0.001)
    route.record(500, None, 0.001)
    route.retries = 2
    [shown] = metrics.snapshot()["routes"]
    assert shown.pop("p50_seconds") == pytest.approx(0.001, rel=0.3)
    assert shown.pop("p99_seconds") == pytest.approx(0.001, rel=0.3)
    assert shown == {
        **ROUTE,
        "requests": 4,
        "successes": 3,
        "failures": 1,
        "success_rate": 0.75,
        "retries": 2,
        "timeouts": 0,
        "request_bytes": 0,
        "response_bytes": 0,
        "codes": {"200": 3, "500": 1},
    }


def test_a_route_without_requests_shows_no_rate_and_no_latency() -> None:
    metrics = Metrics()
    metrics.route(**ROUTE)
    [shown] = metrics.snapshot()["routes"]
    assert (shown["requests"], shown["success_rate"], shown["p99_seconds"]) == (0, None, None)


def test_process_metrics_are_of_this_process() -> None:
    metrics = Metrics()
    clock = VirtualClock()
    metrics.register(ProcessMetrics("0.1.0", LoopLag(clock.call_later, clock.time), lambda: 3))
    assert value(metrics, "process_resident_memory_bytes") > 5e6
    assert value(metrics, "process_open_fds") >= 3
    assert value(metrics, "pilotfish_tasks") == 3
    assert value(metrics, "process_cpu_seconds_total") > 0
    assert value(metrics, "process_start_time_seconds") > 1.7e9


def test_loop_lag_is_the_worst_of_late_and_forgets() -> None:
    now = [0.0]
    due: list[tuple[float, object]] = []
    lag = LoopLag(
        lambda delay, callback: due.append((now[0] + delay, callback)), lambda: now[0], 0.5, window=3
    )
    lag.start()
    for late in (0.0, 0.2, 0.01, 0.01):
        when, callback = due.pop()
        now[0] = when + late
        callback()  # type: ignore[operator]
        assert not due[1:]
        if late == 0.01:
            assert lag.seconds == pytest.approx(0.2)
    when, callback = due.pop()
    now[0] = when
    callback()  # type: ignore[operator]
    assert lag.seconds == pytest.approx(0.01)
