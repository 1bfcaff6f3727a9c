"""The init container that redirects a pod's connections to its sidecar, and what it needs. Used by `patch`.

Its command is `pilotfish capture install`. It alone runs as root, with two capabilities, and ends before any
application starts.
"""

from __future__ import annotations

from typing import Any

from control_plane.injector.annotations import Annotations
from control_plane.injector.sidecar_container import InjectionSettings, PodPlan, container_resources
from mesh_api.names import INIT_CONTAINER

_RUN_VOLUME = "pilotfish-run"


def init_container(settings: InjectionSettings, pod: Annotations, plan: PodPlan) -> dict[str, Any]:
    options = {
        "--skip-inbound-ports": pod.skip_inbound_ports,
        "--skip-outbound-ports": pod.skip_outbound_ports,
        "--exclude-cidr": pod.exclude_outbound_cidrs,
    }
    given = [part for option, values in options.items() if values for part in (option, ",".join(values))]
    return {
        "name": INIT_CONTAINER,
        "image": settings.init_image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["capture", "install", *given],
        # A pod needs the most that one of its init containers needs: these add nothing to the sidecar's.
        "resources": container_resources(settings, pod, plan),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # For the lock of iptables.
        "volumeMounts": [{"name": _RUN_VOLUME, "mountPath": "/run"}],
    }


def init_volumes() -> list[dict[str, Any]]:
    return [{"name": _RUN_VOLUME, "emptyDir": {"sizeLimit": "1Mi"}}]
