"""TrafficPolicy objects to the model: each field checked where it stands, as the definition in
`deploy/k8s/base/crds` has it, because a folder has no API server that would.

Called by `objects`. What a newer version of the mesh may know is an error here, never left out.
"""

from __future__ import annotations

import re

from control_plane.model.policy import (
    Connections,
    LoadBalancer,
    OutlierDetection,
    PolicyTarget,
    RetryBudget,
    TrafficPolicy,
    TrafficSettings,
)
from control_plane.sources.fields import FieldError, Fields

MAX_TARGETS = 16
"""As many as a status has room for."""
_MOST = 2**32 - 1
_SECTIONS = ("connections", "loadBalancer", "outlierDetection", "retryBudget")
_LIMITS = ("connectTimeout", "maxConnections", "maxPendingRequests", "maxRequests")
_EJECTION = ("baseEjectionTime", "consecutiveFailures", "maxEjectionPercent", "maxEjectionTime")
_PORT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def parse_policy(namespace: str, name: str, fields: Fields) -> TrafficPolicy:
    """Raises FieldError."""
    spec = fields.mapping("spec")
    spec.only(("targetRefs", *_SECTIONS))
    if not any(spec.has(section) for section in _SECTIONS):
        raise spec.error(None, f"says nothing but what it is for; give one of {', '.join(_SECTIONS)}")
    settings = TrafficSettings(
        _load_balancer(spec), _connections(spec), _outlier_detection(spec), _retry_budget(spec)
    )
    created = fields.mapping("metadata").text("creationTimestamp", "")
    return TrafficPolicy(namespace, name, _targets(spec), settings, created)


def _targets(spec: Fields) -> tuple[PolicyTarget, ...]:
    found = [_target(item) for item in spec.mappings("targetRefs")]
    if not 1 <= len(found) <= MAX_TARGETS:
        raise spec.error("targetRefs", f"has {len(found)} entries; expected from 1 to {MAX_TARGETS} Services")
    for index, target in enumerate(found):
        if target in found[:index]:
            where = f"targetRefs[{found.index(target)}]"
            raise FieldError(target.path, f"says the same as {where}; remove one of the two")
    return tuple(found)


def _target(item: Fields) -> PolicyTarget:
    item.only(("group", "kind", "name", "sectionName"))
    if item.value.get("group") != "":
        raise item.error("group", 'a Service is in the core group: write group: ""')
    item.choice("kind", ("Service",))
    rule = "the name of one of the Service's ports: at most 63 lower-case letters, digits and '-'"
    return PolicyTarget(item.text("name"), item.matching("sectionName", _PORT_NAME, rule, ""), item.path)


def _load_balancer(spec: Fields) -> LoadBalancer:
    if not spec.has("loadBalancer"):
        return LoadBalancer.PEAK_EWMA
    item = spec.mapping("loadBalancer")
    item.only(("type",))
    return LoadBalancer(item.choice("type", [kind.value for kind in LoadBalancer]))


def _connections(spec: Fields) -> Connections:
    item = _section(spec, "connections", _LIMITS)

    def limit(name: str) -> int | None:
        return item.integer(name, 1, _MOST) if item.has(name) else None

    return Connections(
        connect_timeout=_positive(item, "connectTimeout", Connections().connect_timeout),
        max_connections=limit("maxConnections"),
        max_pending_requests=limit("maxPendingRequests"),
        max_requests=limit("maxRequests"),
    )


def _outlier_detection(spec: Fields) -> OutlierDetection | None:
    item, standard = _section(spec, "outlierDetection", ("disabled", *_EJECTION)), OutlierDetection()
    if item.boolean("disabled", False):
        if others := [name for name in _EJECTION if item.has(name)]:
            raise item.error(others[0], "has no effect beside disabled: true; remove one of the two")
        return None
    base = _positive(item, "baseEjectionTime", standard.base_ejection_time)
    longest = _positive(item, "maxEjectionTime", max(standard.max_ejection_time, base))
    if longest < base:
        raise item.error("maxEjectionTime", f"is shorter than baseEjectionTime, which is {base:g}s")
    return OutlierDetection(
        consecutive_failures=item.integer("consecutiveFailures", 1, _MOST, standard.consecutive_failures),
        base_ejection_time=base,
        max_ejection_time=longest,
        max_ejection_percent=item.integer("maxEjectionPercent", 0, 100, standard.max_ejection_percent),
    )


def _retry_budget(spec: Fields) -> RetryBudget:
    item, standard = _section(spec, "retryBudget", ("minRetriesPerSecond", "percent")), RetryBudget()
    return RetryBudget(
        percent=item.integer("percent", 0, 100, standard.percent),
        min_retries_per_second=item.integer("minRetriesPerSecond", 0, _MOST, standard.min_retries_per_second),
    )


def _section(spec: Fields, name: str, known: tuple[str, ...]) -> Fields:
    """A part of the spec; one that is there says something."""
    item = spec.mapping(name)
    item.only(known)
    if spec.has(name) and not any(item.has(field) for field in known):
        raise spec.error(name, f"is empty; give one of {', '.join(known)}")
    return item


def _positive(item: Fields, name: str, default: float) -> float:
    seconds = item.duration(name, default)
    if not seconds:
        raise item.error(name, "is 0; expected more than that")
    return seconds
