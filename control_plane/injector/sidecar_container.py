"""What the sidecar is in a pod: its container and its volume.

Used by `patch`. The variables `PILOTFISH_*` and `POD_*` are read by `pilotfish sidecar --from-environment`
(`pilotfish/pod_bootstrap.py`): both sides must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from control_plane.injector.annotations import Annotations
from control_plane.injector.probes import VARIABLE as PROBES_VARIABLE
from control_plane.injector.quantities import amount, buffer_mebibytes
from mesh_api.names import ADMIN_PORT, CA_AUDIENCE, SIDECAR_CONTAINER, SIDECAR_USER

ROOT_CONFIG_MAP = "pilotfish-root"
"""ConfigMap with the root under the key `root.pem`; the control plane keeps one in its own namespace."""
ROOT_KEY = "root.pem"
CAPTURE_VARIABLE = "PILOTFISH_CAPTURE"
APPLICATIONS_VARIABLE = "PILOTFISH_APPLICATIONS"
"""Of the sidecar; not there where nothing is captured, or where no other container is to be waited for."""
TOKEN_DIRECTORY = "/var/run/secrets/mesh"
_TOKEN_VOLUME = "pilotfish-token"
_TOKEN_SECONDS = 43200
_START_SECONDS = 300
"""How long a sidecar may wait for the control plane before the kubelet starts it anew."""
_BEFORE_KILL = 5
"""Seconds between the end of draining and the end of the pod's grace period."""


@dataclass(frozen=True, slots=True)
class InjectionSettings:
    """What all sidecars have in common."""

    image: str
    init_image: str = ""
    """Of the init container that captures; empty: no pod can be captured."""
    capture: bool = True
    """Whether pods are captured that do not say; needs `init_image`."""
    inbound: str = "permissive"
    """Of captured pods that do not say: whether plain text is taken too (`permissive`) or not (`strict`)."""
    control_plane: str = "pilotfish-control-plane.pilotfish-system.svc:15010"
    """`HOST:PORT` of discovery and signing."""
    root_pem: str = ""
    """The mesh's root, PEM; empty: from the ConfigMap `pilotfish-root` of the pod's own namespace."""
    trust_domain: str = "cluster.local"
    otlp: str = ""
    """`HOST:PORT` of an OTLP/HTTP collector; empty: spans are not exported."""
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of Services that sidecars call, by host name; for pods that do not ask the cluster's DNS."""
    trace_sampling: str = "100"
    """Percent of new traces."""
    log_level: str = "info"
    cpu: str = "50m"
    memory_request: str = "96Mi"
    memory_limit: str = "384Mi"
    native: bool = True
    """An init container with `restartPolicy: Always` (Kubernetes 1.29 and later); else an ordinary one, in
    pods that do not say."""


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What the injector has decided about one pod."""

    captured: bool
    inbound: str
    """`strict` or `permissive`; of captured pods."""
    native: bool
    drain_seconds: int
    pod_level: Mapping[str, Any] = field(default_factory=dict)
    """Requests and limits of all of its containers together (`spec.resources`)."""
    probes: str = ""
    """What `probes_variable` makes of the probes that the sidecar is to run; empty: none."""
    applications: int = 0
    """So many containers, and when all have completed the sidecar ends too; 0: it never does by itself."""
    restarts: bool = False
    """A container that fails is started anew (`restartPolicy: OnFailure`)."""
    outbound_until: str = ""
    """How long applications may make calls after an ordinary sidecar's SIGTERM: until the end of their
    `processes`, or where it cannot see these the `deadline`."""


def drain_seconds(pod: Annotations, grace_period: int) -> int:
    """How long draining may take in a pod with this grace period, in seconds."""
    return pod.drain_deadline or max(1, grace_period - _BEFORE_KILL)


def sidecar_container(settings: InjectionSettings, pod: Annotations, plan: PodPlan) -> dict[str, Any]:
    deadline = str(plan.drain_seconds)
    hooks: dict[str, Any] = {"preStop": {"exec": {"command": ["pilotfish", "drain", "--deadline", deadline]}}}
    container: dict[str, Any] = {
        "name": SIDECAR_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "args": [
            "sidecar",
            "--from-environment",
            "--drain-deadline",
            deadline,
            "--buffer-limit",
            str(buffer_mebibytes(_memory(settings, pod, plan))),
            "--log-level",
            pod.log_level or settings.log_level,
        ],
        "env": _environment(settings, pod, plan),
        "ports": [{"name": "mesh-admin", "containerPort": ADMIN_PORT, "protocol": "TCP"}],
        "startupProbe": _probe("/ready", 1, _START_SECONDS),
        "readinessProbe": _probe("/ready", 5, 2),
        "livenessProbe": _probe("/live", 10, 6),
        "lifecycle": hooks,
        "resources": container_resources(settings, pod, plan),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsGroup": SIDECAR_USER,
            "runAsNonRoot": True,
            "runAsUser": SIDECAR_USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": _TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": True}],
    }
    if plan.native:
        container["restartPolicy"] = "Always"
    else:
        wait = ["pilotfish", "wait", "--deadline", str(_START_SECONDS)]
        hooks["postStart"] = {"exec": {"command": wait}}
    return container


def _memory(settings: InjectionSettings, pod: Annotations, plan: PodPlan) -> str:
    """The most that the sidecar may use."""
    own = pod.memory or settings.memory_limit
    whole = str((plan.pod_level.get("limits") or {}).get("memory", own))
    return min(own, whole, key=amount)


def container_resources(settings: InjectionSettings, pod: Annotations, plan: PodPlan) -> dict[str, Any]:
    """Requests and limits of the sidecar, and of the init container before it. Of what the pod has for all of
    its containers together they share that, unless its annotations say otherwise: the API server adds up."""
    requests = {"cpu": pod.cpu or settings.cpu, "memory": pod.memory or settings.memory_request}
    limits = {"memory": pod.memory or settings.memory_limit}
    if pod.cpu_limit is not None:
        limits["cpu"] = pod.cpu_limit
        if pod.cpu is None and amount(pod.cpu_limit) < amount(settings.cpu):
            requests["cpu"] = pod.cpu_limit  # the API server takes no request above its limit
    asked = {"cpu": pod.cpu or pod.cpu_limit, "memory": pod.memory}
    together = {*(plan.pod_level.get("requests") or ()), *(plan.pod_level.get("limits") or ())}
    shared = {name for name in together if not asked.get(name)}
    return {
        kind: {name: value for name, value in quantities.items() if name not in shared}
        for kind, quantities in (("requests", requests), ("limits", limits))
    }


def _environment(settings: InjectionSettings, pod: Annotations, plan: PodPlan) -> list[dict[str, Any]]:
    root: dict[str, Any] = {"name": "PILOTFISH_ROOT_PEM"}
    if settings.root_pem:
        root["value"] = settings.root_pem
    else:
        root["valueFrom"] = {"configMapKeyRef": {"name": ROOT_CONFIG_MAP, "key": ROOT_KEY}}
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_IP": "status.podIP",
        "POD_SERVICE_ACCOUNT": "spec.serviceAccountName",
    }
    values = {
        "PILOTFISH_CONTROL_PLANE": settings.control_plane,
        "PILOTFISH_TRUST_DOMAIN": settings.trust_domain,
        "PILOTFISH_TOKEN_FILE": f"{TOKEN_DIRECTORY}/token",
        "PILOTFISH_OTLP": settings.otlp,
        "PILOTFISH_TRACE_SAMPLING": pod.trace_sampling or settings.trace_sampling,
        CAPTURE_VARIABLE: "true" if plan.captured else "",
        "PILOTFISH_INBOUND": plan.inbound if plan.captured else "",
        PROBES_VARIABLE: plan.probes,
        APPLICATIONS_VARIABLE: str(plan.applications) if plan.applications else "",
        "PILOTFISH_APPLICATION_RESTARTS": "true" if plan.restarts else "",
        "PILOTFISH_OUTBOUND_UNTIL": plan.outbound_until,
    }
    return [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
        *({"name": name, "value": value} for name, value in values.items() if value),
        root,
    ]


def _probe(path: str, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": ADMIN_PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }


def sidecar_volumes() -> list[dict[str, Any]]:
    """The token that proves the pod's service account to the control plane, and to nobody else."""
    token = {"audience": CA_AUDIENCE, "expirationSeconds": _TOKEN_SECONDS, "path": "token"}
    return [
        {
            "name": _TOKEN_VOLUME,
            "projected": {"sources": [{"serviceAccountToken": token}], "defaultMode": 0o644},
        }
    ]
