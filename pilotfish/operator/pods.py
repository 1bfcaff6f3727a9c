"""What an object of a pod says of its sidecar. Used by all of the operator's verbs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from mesh_api.names import INJECTED_LABEL, SIDECAR_CONTAINER
from pilotfish.operator.transport import Object


def is_meshed(pod: Object) -> bool:
    """Whether it was given a sidecar."""
    labels = pod["metadata"].get("labels") or {}
    return labels.get(INJECTED_LABEL) == "true" and container_state(pod, SIDECAR_CONTAINER) is not None


def containers(pod: Object) -> Sequence[Object]:
    """Init containers and others."""
    return [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]


def container_state(pod: Object, name: str) -> Object | None:
    """Status of a container; empty: the kubelet has said nothing yet; None: the pod has none so called."""
    if name not in (container.get("name") for container in containers(pod)):
        return None
    status = pod.get("status") or {}
    found = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return next((entry for entry in found if entry["name"] == name), {})


def is_ready(pod: Object) -> bool:
    """Whether its sidecar is."""
    return bool((container_state(pod, SIDECAR_CONTAINER) or {}).get("ready"))


def full_name(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def why_not_running(pod: Object) -> str:
    """Why its sidecar does not run, in the kubelet's words; empty: it runs."""
    state = (container_state(pod, SIDECAR_CONTAINER) or {}).get("state") or {}
    if "running" in state:
        return ""
    found = state.get("waiting") or state.get("terminated") or {}
    return str(found.get("reason") or "not started")
