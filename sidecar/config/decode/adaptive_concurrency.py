"""Envoy `AdaptiveConcurrency`: the HTTP filter that limits what an application is given at once."""

from __future__ import annotations

from envoy.extensions.filters.http.adaptive_concurrency.v3 import adaptive_concurrency_pb2

from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import AdaptiveConcurrency

TYPE: str = adaptive_concurrency_pb2.AdaptiveConcurrency.DESCRIPTOR.full_name

_FILTER = Fields("gradient_controller_config enabled")
_ENABLED = Fields("default_value", "runtime_key")
# Several quantiles and the mean are used; the baseline is never measured by squeezing healthy traffic.
_GRADIENT = Fields("concurrency_limit_params min_rtt_calc_params", "sample_aggregate_percentile")
_LIMIT = Fields("max_concurrency_limit concurrency_update_interval")
_BASELINE = Fields("min_concurrency buffer", "interval request_count jitter")


def adaptive_concurrency(view: View) -> AdaptiveConcurrency | None:
    """The filter's settings, None when it is switched off; `buffer` is the rise that begins an overload."""
    view.check(_FILTER)
    if view.has("enabled") and not view.sub("enabled", _ENABLED).flag("default_value", True):
        return None
    gradient = view.sub("gradient_controller_config", _GRADIENT)
    limit = gradient.sub("concurrency_limit_params", _LIMIT)
    baseline = gradient.sub("min_rtt_calc_params", _BASELINE)
    standard = AdaptiveConcurrency()
    buffer = (standard.tolerance - 1) * 100
    return AdaptiveConcurrency(
        max_limit=limit.number("max_concurrency_limit", standard.max_limit, 1),
        min_limit=baseline.number("min_concurrency", standard.min_limit, 1),
        update_interval=limit.seconds("concurrency_update_interval", standard.update_interval, positive=True),
        tolerance=1 + baseline.percent("buffer", buffer) / 100,
    )
