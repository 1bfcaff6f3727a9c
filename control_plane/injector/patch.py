"""Adds the sidecar to a pod: pure functions of pod and settings.

Called by the webhook for each new pod and by `pilotfish inject` for pod templates. Nothing that the pod's
author set is changed or taken away, and a pod that has the sidecar already stays as it is.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from control_plane.injector.sidecar_container import (
    Annotations,
    InjectionSettings,
    proxy_environment,
    sidecar_container,
    sidecar_volumes,
)
from mesh_api.names import GROUP, INJECTED_LABEL, SIDECAR_CONTAINER

INJECT = f"{GROUP}/inject"
"""Label or annotation of a pod, label of a namespace: `enabled` or `disabled`."""

Object = dict[str, Any]

_QUANTITY = re.compile(r"(\d+(\.\d*)?|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
_LEVELS = ("debug", "info", "warning", "error")
_KNOBS = ("proxy-cpu", "proxy-memory", "log-level", "trace-sampling")


class InjectionError(Exception):
    """The pod asks for something that cannot be; the text names the annotation and what it takes."""


@dataclass(frozen=True, slots=True)
class Injection:
    """What became of one pod."""

    metadata: Object
    spec: Object
    skipped: str = ""
    """Why it got no sidecar; empty: it has got one."""


def inject(metadata: Mapping[str, Any], spec: Mapping[str, Any], settings: InjectionSettings) -> Injection:
    """The pod (or template) with the sidecar. What is given is not changed. Raises InjectionError."""
    reason = skip_reason(metadata, spec)
    if reason:
        return Injection(dict(metadata), dict(spec), reason)
    annotations = read_annotations(metadata)
    new_metadata, new_spec = copy.deepcopy(dict(metadata)), copy.deepcopy(dict(spec))
    new_metadata["labels"] = {**(new_metadata.get("labels") or {}), INJECTED_LABEL: "true"}
    sidecar = sidecar_container(settings, annotations, _grace_period(spec))
    containers, initial = new_spec["containers"], new_spec.get("initContainers") or []
    for container in (*containers, *(initial if settings.native else ())):
        _add_environment(container)
    if settings.native:
        # First, so that the init containers after it have the mesh too.
        new_spec["initContainers"] = [sidecar, *initial]
    else:
        # First, because the kubelet starts the next container when this one's postStart hook has ended.
        new_spec["containers"] = [sidecar, *containers]
    new_spec["volumes"] = [*(new_spec.get("volumes") or []), *sidecar_volumes()]
    return Injection(new_metadata, new_spec)


def json_patch(before: Mapping[str, Any], after: Injection) -> list[Object]:
    """RFC 6902 operations that make the injected pod of the pod `before`."""
    operations: list[Object] = []
    for part, new in (("metadata", after.metadata), ("spec", after.spec)):
        old = before.get(part) or {}
        operations += [
            {"op": "add", "path": f"/{part}/{key}", "value": value}
            for key, value in new.items()
            if key not in old or old[key] != value
        ]
    return operations


def skip_reason(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """Why a pod gets no sidecar; empty when it gets one. Raises InjectionError."""
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    for wanted in (annotations.get(INJECT), labels.get(INJECT)):
        if wanted == "disabled":
            return f"{INJECT} is disabled"
        if wanted not in (None, "enabled"):
            raise InjectionError(f"{INJECT} is {wanted!r}; it takes enabled and disabled")
    if not isinstance(spec.get("containers"), list) or not spec["containers"]:
        raise InjectionError("the pod has no containers")
    for container in (*spec["containers"], *(spec.get("initContainers") or ())):
        if container.get("name") == SIDECAR_CONTAINER:
            return "it has a sidecar"
    if spec.get("hostNetwork"):
        return "it uses the node's network (hostNetwork), whose ports are not the sidecar's to bind"
    if (spec.get("os") or {}).get("name") == "windows":
        return "it is a Windows pod"
    return ""


def read_annotations(metadata: Mapping[str, Any]) -> Annotations:
    """The knobs that the pod sets. Raises InjectionError for values that cannot be."""
    given = metadata.get("annotations") or {}
    values = {knob: given.get(f"{GROUP}/{knob}") for knob in _KNOBS}
    for knob in ("proxy-cpu", "proxy-memory"):
        text = values[knob]
        if text is not None and not (isinstance(text, str) and _QUANTITY.fullmatch(text)):
            raise InjectionError(f"{GROUP}/{knob} is {text!r}; it takes a quantity like 100m or 128Mi")
    level, sampling = values["log-level"], values["trace-sampling"]
    if level is not None and level not in _LEVELS:
        raise InjectionError(f"{GROUP}/log-level is {level!r}; it takes {', '.join(_LEVELS)}")
    if sampling is not None and not _is_percentage(sampling):
        raise InjectionError(f"{GROUP}/trace-sampling is {sampling!r}; it takes a percentage from 0 to 100")
    return Annotations(values["proxy-cpu"], values["proxy-memory"], level, sampling)


def _is_percentage(text: object) -> bool:
    return isinstance(text, str) and bool(re.fullmatch(r"\d{1,3}(\.\d+)?", text)) and 0 <= float(text) <= 100


def _grace_period(spec: Mapping[str, Any]) -> int:
    seconds = spec.get("terminationGracePeriodSeconds")
    return 30 if seconds is None else int(seconds)


def _add_environment(container: Object) -> None:
    """The proxy variables, except those that the author of the pod has set in any spelling of case."""
    given = container.get("env") or []
    names = {str(variable.get("name", "")).lower() for variable in given}
    added = [variable for variable in proxy_environment() if variable["name"].lower() not in names]
    if added:
        container["env"] = [*given, *added]
