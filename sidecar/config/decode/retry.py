"""Envoy `RetryPolicy`."""

from __future__ import annotations

# Imported for its side effect: the type is known when it appears in an Any.
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2

from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import RetryPolicy

_POLICY = Fields(
    "retry_on num_retries per_try_timeout retriable_status_codes retry_back_off retry_host_predicate",
    # A replica tried before is chosen only when no other is left, in any case.
    "host_selection_retry_max_attempts",
)
_BACK_OFF = Fields("base_interval max_interval")
_PREVIOUS_HOSTS: str = previous_hosts_pb2.PreviousHostsPredicate.DESCRIPTOR.full_name
_CONDITIONS = frozenset(
    {
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "refused-stream",
        "retriable-4xx",
        "retriable-status-codes",
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
        "unavailable",
    }
)


def retry_policy(view: View) -> RetryPolicy:
    """A retry policy with Envoy's names and defaults."""
    view.check(_POLICY)
    conditions = {name.strip() for name in view.text("retry_on").split(",")} - {""}
    for name in sorted(conditions - _CONDITIONS):
        view.error(f"{name!r} is not supported; supported are {', '.join(sorted(_CONDITIONS))}", "retry_on")
    for predicate in view.subs("retry_host_predicate", Fields("name typed_config")):
        if predicate.any("typed_config")[0] == _PREVIOUS_HOSTS:
            predicate.without_effect()
        else:
            predicate.error("only envoy.retry_host_predicates.previous_hosts is supported")
    codes = tuple(view.message.retriable_status_codes)
    for index, code in enumerate(codes):
        view.in_range(code, 100, 599, f"retriable_status_codes[{index}]")
    base, longest = 0.025, 0.25
    if view.has("retry_back_off"):
        back_off = view.sub("retry_back_off", _BACK_OFF)
        if not back_off.has("base_interval"):
            back_off.error("required", "base_interval")
        base = back_off.seconds("base_interval", base, positive=True)
        longest = back_off.seconds("max_interval", base * 10, positive=True)
        if longest < base:
            back_off.error("must not be less than base_interval", "max_interval")
    return RetryPolicy(
        retry_on=frozenset(conditions & _CONDITIONS),
        num_retries=view.number("num_retries", 1),
        per_try_timeout=view.seconds("per_try_timeout", 0.0),
        retriable_status_codes=frozenset(codes),
        back_off_base=base,
        back_off_max=longest,
    )
