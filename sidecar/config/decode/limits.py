"""Envoy `CircuitBreakers` and `OutlierDetection` of a cluster."""

from __future__ import annotations

from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import CircuitBreakers, OutlierDetection

_BREAKERS = Fields("thresholds")
_THRESHOLDS = Fields(
    "priority max_connections max_pending_requests max_requests max_retries retry_budget", "track_remaining"
)
_BUDGET = Fields("budget_percent min_retry_concurrency")
_OUTLIER = Fields(
    "consecutive_5xx enforcing_consecutive_5xx base_ejection_time max_ejection_time max_ejection_percent "
    "enforcing_success_rate enforcing_consecutive_gateway_failure enforcing_failure_percentage "
    "enforcing_local_origin_success_rate enforcing_consecutive_local_origin_failure "
    "enforcing_failure_percentage_local_origin",
    # Ejection is decided and ended at once, not in sweeps; the rest are settings of detectors that are off.
    "interval max_ejection_time_jitter success_rate_minimum_hosts success_rate_request_volume "
    "success_rate_stdev_factor consecutive_gateway_failure consecutive_local_origin_failure "
    "failure_percentage_threshold failure_percentage_minimum_hosts failure_percentage_request_volume "
    "successful_active_health_check_uneject_host always_eject_one_host",
)
_OTHER_DETECTORS = (
    "enforcing_success_rate",
    "enforcing_consecutive_gateway_failure",
    "enforcing_failure_percentage",
    "enforcing_local_origin_success_rate",
    "enforcing_consecutive_local_origin_failure",
    "enforcing_failure_percentage_local_origin",
)


def circuit_breakers(view: View) -> CircuitBreakers:
    """The thresholds of DEFAULT priority. HIGH has no effect, because no route can ask for it."""
    breakers = view.sub("circuit_breakers", _BREAKERS)
    result = CircuitBreakers()
    for thresholds in breakers.subs("thresholds"):
        if thresholds.choice("priority", {"DEFAULT": True, "HIGH": False}, False):
            result = _thresholds(thresholds)
        else:
            thresholds.without_effect()
    return result


def _thresholds(view: View) -> CircuitBreakers:
    view.check(_THRESHOLDS)
    standard = CircuitBreakers()
    percent, minimum = standard.retry_budget_percent, standard.min_retries_per_second
    max_retries = view.message.max_retries.value if view.has("max_retries") else None
    if view.has("retry_budget"):
        budget = view.sub("retry_budget", _BUDGET)
        percent = budget.percent("budget_percent", 20.0)
        # Envoy counts retries that are under way, the budget here those of each second.
        minimum = float(budget.number("min_retry_concurrency", 3))
        max_retries = None
    return CircuitBreakers(
        max_connections=view.number("max_connections", standard.max_connections),
        max_pending_requests=view.number("max_pending_requests", standard.max_pending_requests),
        max_requests=view.number("max_requests", standard.max_requests),
        max_retries=max_retries,
        retry_budget_percent=percent,
        min_retries_per_second=minimum,
    )


def outlier_detection(view: View) -> OutlierDetection | None:
    """The detector of consecutive failures; None when absent or not enforced."""
    if not view.has("outlier_detection"):
        return None
    outlier = view.sub("outlier_detection", _OUTLIER)
    for name in _OTHER_DETECTORS:
        if outlier.number(name, 0) != 0:
            outlier.error("only consecutive_5xx is implemented; set this to 0", name)
    enforcing = outlier.number("enforcing_consecutive_5xx", 100)
    if enforcing not in (0, 100):
        outlier.error("only 0 (off) and 100 are supported", "enforcing_consecutive_5xx")
    standard = OutlierDetection()
    base = outlier.seconds("base_ejection_time", standard.base_ejection_time, positive=True)
    longest = outlier.seconds("max_ejection_time", max(standard.max_ejection_time, base), positive=True)
    if longest < base:
        outlier.error("must not be less than base_ejection_time", "max_ejection_time")
    if enforcing == 0:
        return None
    return OutlierDetection(
        consecutive_5xx=outlier.number("consecutive_5xx", standard.consecutive_5xx, 1),
        base_ejection_time=base,
        max_ejection_time=longest,
        max_ejection_percent=outlier.number("max_ejection_percent", standard.max_ejection_percent, 0, 100),
    )
