"""What a pod may ask of its sidecar: each annotation with what it takes, read and checked.

Used by `patch`. On a Namespace the same annotations are the defaults of its pods. The table in
`docs/kubernetes.md` lists them all.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from mesh_api.names import GROUP, SERVICE_ACCOUNT_ANNOTATION

INJECT = f"{GROUP}/inject"
"""Label or annotation of a pod, label of a namespace: `enabled` or `disabled`."""

_ENABLED = ("enabled", "disabled")
_QUANTITY = re.compile(r"(\d+(\.\d*)?|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")


class InjectionError(Exception):
    """The pod asks for something that cannot be; the text names the annotation and what it takes."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One annotation: what it takes in words, and the check that a value is that."""

    takes: str
    fits: Callable[[str], bool]


def _quantity(text: str) -> bool:
    return bool(_QUANTITY.fullmatch(text))


def _one_of(*choices: str) -> Knob:
    return Knob(" or ".join((", ".join(choices[:-1]), choices[-1])), lambda text: text in choices)


def _percentage(text: str) -> bool:
    return bool(re.fullmatch(r"\d{1,3}(\.\d+)?", text)) and 0 <= float(text) <= 100


def split_list(text: str) -> tuple[str, ...]:
    """The parts of a list with commas, without white space; none of an empty text."""
    return tuple(part.strip() for part in text.split(",")) if text.strip() else ()


def _ports(text: str) -> bool:
    return all(re.fullmatch(r"\d{1,5}", port) and 1 <= int(port) <= 65535 for port in split_list(text))


def _networks(text: str) -> bool:
    try:
        for part in split_list(text):
            ip_network(part)
    except ValueError:
        return False
    return True


_PORTS = Knob("port numbers with commas between them, such as 3306,6379", _ports)

KNOBS: Mapping[str, Knob] = {
    "capture": _one_of(*_ENABLED),
    "inbound": _one_of("strict", "permissive"),
    "opaque-ports": _PORTS,
    "skip-inbound-ports": _PORTS,
    "skip-outbound-ports": _PORTS,
    "exclude-outbound-cidrs": Knob(
        "networks with commas between them, such as 10.0.0.0/8,fd00::/8", _networks
    ),
    "native-sidecar": _one_of(*_ENABLED),
    "drain-deadline": Knob(
        "whole seconds, at least 1, such as 20", lambda text: bool(re.fullmatch(r"[1-9]\d{0,5}", text))
    ),
    "proxy-cpu": Knob("a quantity like 100m or 2", _quantity),
    "proxy-cpu-limit": Knob("a quantity like 500m or 2", _quantity),
    "proxy-memory": Knob("a quantity like 128Mi or 1Gi", _quantity),
    "log-level": _one_of("debug", "info", "warning", "error"),
    "trace-sampling": Knob("a percentage from 0 to 100", _percentage),
}
"""By name, without the group."""

_OTHERS = frozenset({INJECT, SERVICE_ACCOUNT_ANNOTATION})


@dataclass(frozen=True, slots=True)
class Annotations:
    """What one pod wants different; None: the mesh's setting."""

    cpu: str | None = None
    cpu_limit: str | None = None
    memory: str | None = None
    """Request and limit."""
    log_level: str | None = None
    trace_sampling: str | None = None
    capture: bool | None = None
    inbound: str | None = None
    native: bool | None = None
    drain_deadline: int | None = None
    """Seconds."""
    opaque_ports: tuple[str, ...] = ()
    skip_inbound_ports: tuple[str, ...] = ()
    skip_outbound_ports: tuple[str, ...] = ()
    exclude_outbound_cidrs: tuple[str, ...] = ()


def read_annotations(
    metadata: Mapping[str, Any], namespace: Mapping[str, Any] | None = None
) -> tuple[Annotations, tuple[str, ...]]:
    """The knobs that the pod sets, or else its namespace (the metadata of both), and warnings about those
    that nobody knows. Raises InjectionError for values that cannot be."""
    own = metadata.get("annotations") or {}
    defaults = (namespace or {}).get("annotations") or {}
    values: dict[str, str | None] = {}
    for knob, rule in KNOBS.items():
        name = f"{GROUP}/{knob}"
        whose = "" if name in own else " on the namespace"
        text = own.get(name, defaults.get(name))
        if text is not None and not (isinstance(text, str) and rule.fits(text)):
            raise InjectionError(f"{name}{whose} is {text!r}; it takes {rule.takes}")
        values[knob] = text
    return _annotations(values), tuple(_unknown(own))


def _annotations(values: Mapping[str, str | None]) -> Annotations:
    def flag(knob: str) -> bool | None:
        return None if values[knob] is None else values[knob] == "enabled"

    deadline = values["drain-deadline"]
    return Annotations(
        cpu=values["proxy-cpu"],
        cpu_limit=values["proxy-cpu-limit"],
        memory=values["proxy-memory"],
        log_level=values["log-level"],
        trace_sampling=values["trace-sampling"],
        capture=flag("capture"),
        inbound=values["inbound"],
        native=flag("native-sidecar"),
        drain_deadline=None if deadline is None else int(deadline),
        opaque_ports=split_list(values["opaque-ports"] or ""),
        skip_inbound_ports=split_list(values["skip-inbound-ports"] or ""),
        skip_outbound_ports=split_list(values["skip-outbound-ports"] or ""),
        exclude_outbound_cidrs=split_list(values["exclude-outbound-cidrs"] or ""),
    )


def _unknown(annotations: Mapping[str, Any]) -> list[str]:
    warnings = []
    for name in annotations:
        group, slash, knob = str(name).partition("/")
        if group != GROUP or not slash or knob in KNOBS or name in _OTHERS:
            continue
        near = difflib.get_close_matches(knob, KNOBS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        warnings.append(f"pilotfish: annotation {name} is not known and does nothing{hint}")
    return warnings
