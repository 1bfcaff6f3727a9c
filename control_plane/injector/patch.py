"""Adds the sidecar to a pod: pure functions of pod and settings.

Called by the webhook for each new pod and by `pilotfish inject` for pod templates. Nothing that the pod's
author set is changed or taken away, and of a pod that has the sidecar already only what is new is led to it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from control_plane.injector.annotations import (
    INJECT,
    Annotations,
    InjectionError,
    read_annotations,
)
from control_plane.injector.host_aliases import add_host_aliases
from control_plane.injector.init_container import init_container, init_volumes
from control_plane.injector.operating_system import is_windows
from control_plane.injector.probes import probes_variable, refused_hooks, rewrite_probes
from control_plane.injector.proxy_variables import add_proxy_variables
from control_plane.injector.second_pass import lead_new_containers
from control_plane.injector.sidecar_container import (
    InjectionSettings,
    PodPlan,
    drain_seconds,
    sidecar_container,
    sidecar_volumes,
)
from mesh_api.names import CAPTURE_ANNOTATION as CAPTURE
from mesh_api.names import GROUP, INJECTED_LABEL, SIDECAR_CONTAINER
from mesh_api.names import INBOUND_ANNOTATION as INBOUND

__all__ = ["Injection", "InjectionError", "inject", "json_patch", "skip_reason"]

Object = dict[str, Any]

_HAS_SIDECAR = "it has a sidecar"
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
"""Annotation of a pod: the container that kubectl takes where it is told none."""
_ENFORCE = "pod-security.kubernetes.io/enforce"
"""Label of a namespace: `privileged`, or what allows no container that may set rules."""


@dataclass(frozen=True, slots=True)
class Injection:
    """What became of one pod."""

    metadata: Object
    spec: Object
    skipped: str = ""
    """Why it stays as it is; empty: it does not."""
    outcome: str = "sidecar added"
    """What became of it otherwise."""
    warnings: tuple[str, ...] = ()
    """For whoever makes the pod."""


def inject(
    metadata: Mapping[str, Any],
    spec: Mapping[str, Any],
    settings: InjectionSettings,
    namespace: Mapping[str, Any] | None = None,
) -> Injection:
    """The pod (or template) with the sidecar. `namespace`: metadata of the pod's Namespace, where that is
    known. What is given is not changed. Raises InjectionError."""
    reason = skip_reason(metadata, spec)
    if reason == _HAS_SIDECAR:
        led = lead_new_containers(metadata, spec)
        if led != spec:
            return Injection(dict(metadata), led, outcome="new containers led to the sidecar")
    if reason:
        return Injection(dict(metadata), dict(spec), reason)
    annotations, unknown = read_annotations(metadata, namespace)
    warnings = [*unknown]
    captured = _captured(annotations, settings, namespace or {}, warnings)
    native = settings.native if annotations.native is None else annotations.native
    new_metadata, new_spec = copy.deepcopy(dict(metadata)), copy.deepcopy(dict(spec))
    new_metadata["labels"] = {**(new_metadata.get("labels") or {}), INJECTED_LABEL: "true"}
    containers, initial = new_spec["containers"], new_spec.get("initContainers") or []
    # Of a sidecar that is an ordinary container, init containers know nothing: they run before it.
    beside = [*containers, *(initial if native else ())]
    inbound = annotations.inbound or settings.inbound
    probes = ""
    if captured:
        written = _for_control_plane(annotations, inbound)
        new_metadata["annotations"] = {**(new_metadata.get("annotations") or {}), **written}
        probes = _captured_probes(beside, inbound, warnings)
    else:
        for container in beside:
            add_proxy_variables(container)
    seconds = _drain_seconds(annotations, spec)
    plan = PodPlan(captured, inbound, native, seconds, spec.get("resources") or {}, probes)
    if not native:
        plan = _as_ordinary(plan, new_spec, warnings)
        # Which would be the sidecar, the first of them.
        default = {_DEFAULT_CONTAINER: containers[0].get("name")}
        new_metadata["annotations"] = {**default, **(new_metadata.get("annotations") or {})}
    _add_containers(new_spec, settings, annotations, plan)
    add_host_aliases(new_spec, settings, warnings)
    return Injection(new_metadata, new_spec, warnings=tuple(warnings))


def _captured(
    annotations: Annotations, settings: InjectionSettings, namespace: Mapping[str, Any], warnings: list[str]
) -> bool:
    wanted = annotations.capture
    if wanted and not settings.init_image:
        raise InjectionError(f"{CAPTURE} is 'enabled', and the injector was given no --init-image")
    if wanted is not None:
        return wanted
    if not settings.capture or not settings.init_image:
        return False
    level = (namespace.get("labels") or {}).get(_ENFORCE)
    if level in ("baseline", "restricted"):
        warnings.append(
            f"pilotfish: not captured, because the namespace enforces pod security {level!r}: the "
            f"application reaches its sidecar through HTTP_PROXY; {CAPTURE}: disabled says the same"
        )
        return False
    return True


def _captured_probes(beside: list[Object], inbound: str, warnings: list[str]) -> str:
    """Leads the probes of these containers through the sidecar, and returns its variable."""
    originals = rewrite_probes(beside)
    if inbound == "strict":
        warnings += (
            f"pilotfish: {hook}.httpGet will be refused, because {INBOUND} is strict and the kubelet "
            "calls in plain text; use exec or sleep"
            for hook in refused_hooks(beside)
        )
    return probes_variable(originals) if originals else ""


def _for_control_plane(annotations: Annotations, inbound: str) -> dict[str, str]:
    """What the control plane reads on the pod, also where it was the namespace or the mesh that said it."""
    ports = {
        "opaque-ports": annotations.opaque_ports,
        "skip-inbound-ports": annotations.skip_inbound_ports,
        "skip-outbound-ports": annotations.skip_outbound_ports,
    }
    lists = {f"{GROUP}/{knob}": ",".join(values) for knob, values in ports.items() if values}
    return {CAPTURE: "enabled", INBOUND: inbound, **lists}


def _drain_seconds(annotations: Annotations, spec: Mapping[str, Any]) -> int:
    given = spec.get("terminationGracePeriodSeconds")
    grace_period = 30 if given is None else int(given)
    seconds = drain_seconds(annotations, grace_period)
    if annotations.drain_deadline and seconds > grace_period:
        raise InjectionError(
            f"{GROUP}/drain-deadline is '{seconds}'; it takes at most the pod's "
            f"terminationGracePeriodSeconds, {grace_period}"
        )
    return seconds


def _as_ordinary(plan: PodPlan, spec: Object, warnings: list[str]) -> PodPlan:
    """An ordinary sidecar would keep a pod that is to complete from doing so: it has to see the processes of
    the others, and end after them. In other pods it is their author's choice whether it can."""
    policy = spec.get("restartPolicy")
    if policy in ("Never", "OnFailure"):
        if spec.get("hostPID") or spec.get("shareProcessNamespace") is False:
            warnings.append(
                "pilotfish: the sidecar will not end by itself, because the pod shares no processes of its "
                "own (shareProcessNamespace); end it with POST /quitquitquit on port 15000"
            )
        else:
            spec["shareProcessNamespace"] = True
            plan = replace(plan, applications=len(spec["containers"]), restarts=policy == "OnFailure")
    seen = spec.get("shareProcessNamespace")
    return replace(plan, outbound_until="processes" if seen else "deadline")


def _add_containers(
    spec: Object, settings: InjectionSettings, annotations: Annotations, plan: PodPlan
) -> None:
    sidecar = sidecar_container(settings, annotations, plan)
    initial = spec.get("initContainers") or []
    rules = [init_container(settings, annotations, plan)] if plan.captured else []
    if plan.native:
        # First, so that the init containers after it have the mesh too.
        spec["initContainers"] = [*rules, sidecar, *initial]
    else:
        # Rules last: what runs between them and the sidecar would reach nothing.
        if rules:
            spec["initContainers"] = [*initial, *rules]
        # First, because the kubelet starts the next container when this one's postStart hook has ended.
        spec["containers"] = [sidecar, *spec["containers"]]
    volumes = sidecar_volumes() + (init_volumes() if plan.captured else [])
    spec["volumes"] = [*(spec.get("volumes") or []), *volumes]


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
            return _HAS_SIDECAR
    if spec.get("hostNetwork"):
        return "it uses the node's network (hostNetwork), whose ports are not the sidecar's to bind"
    if is_windows(spec):
        return "it is a Windows pod"
    return ""
