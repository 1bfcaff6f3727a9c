"""Whether a pod runs on Windows, which has no sidecar. Used by `patch`.

Few pods say so in `spec.os`: most only ask for such nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LABELS = ("kubernetes.io/os", "beta.kubernetes.io/os")
"""Of nodes."""
_LINUX = "linux"


def is_windows(spec: Mapping[str, Any]) -> bool:
    """By `os`, or else by the nodes that `nodeSelector` and the required node affinity leave."""
    system = (spec.get("os") or {}).get("name")
    if system is not None:
        return bool(system == "windows")
    selector = spec.get("nodeSelector") or {}
    if any(selector.get(label, _LINUX) != _LINUX for label in _LABELS):
        return True
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    # A node has to fit one term, and all of its expressions.
    terms = required.get("nodeSelectorTerms") or []
    return bool(terms) and all(any(map(_rules_out_linux, _expressions(term))) for term in terms)


def _expressions(term: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [each for each in term.get("matchExpressions") or [] if each.get("key") in _LABELS]


def _rules_out_linux(expression: Mapping[str, Any]) -> bool:
    listed = _LINUX in (expression.get("values") or [])
    operator = expression.get("operator")
    return (operator == "In" and not listed) or (operator == "NotIn" and listed)
