"""What the sidecar is in a pod: its container, its volume, and the variables that lead applications to it
where nothing is captured.

Used by `patch`. The variables `PILOTFISH_*` and `POD_*` are read by `pilotfish sidecar --from-environment`
(`pilotfish/pod_bootstrap.py`): both sides must agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from control_plane.injector.annotations import Annotations
from control_plane.injector.probes import VARIABLE as PROBES_VARIABLE
from mesh_api.names import ADMIN_PORT, CA_AUDIENCE, OUTBOUND_PORT, SIDECAR_CONTAINER, SIDECAR_USER

ROOT_CONFIG_MAP = "pilotfish-root"
"""ConfigMap with the root under the key `root.pem`; the control plane keeps one in its own namespace."""
ROOT_KEY = "root.pem"
TOKEN_DIRECTORY = "/var/run/secrets/mesh"
_TOKEN_VOLUME = "pilotfish-token"
_TOKEN_SECONDS = 43200
_START_SECONDS = 300
"""How long a sidecar may wait for the control plane before the kubelet starts it anew."""
_BEFORE_KILL = 5
"""Seconds between the end of draining and the end of the pod's grace period."""

_OWN_MEMORY = 96
_LEAST_BUFFER = 16
"""MiB, both: of a sidecar without traffic, and for buffers in any case."""
_BYTES = {
    **{unit: 1000.0**power for power, unit in enumerate(("n", "u", "m"), -3)},
    **{unit: 1000.0**power for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTPE", 1)},
}
"""By suffix of a quantity."""


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
    probes: str = ""
    """What `probes_variable` makes of the probes that the sidecar is to run; empty: none."""
    applications: int = 0
    """So many containers, and when all have completed the sidecar ends too; 0: it never does by itself."""
    restarts: bool = False
    """A container that fails is started anew (`restartPolicy: OnFailure`)."""


def drain_seconds(pod: Annotations, grace_period: int) -> int:
    """How long draining may take in a pod with this grace period, in seconds."""
    return pod.drain_deadline or max(1, grace_period - _BEFORE_KILL)


def sidecar_container(settings: InjectionSettings, pod: Annotations, plan: PodPlan) -> dict[str, Any]:
    deadline = str(plan.drain_seconds)
    memory_limit = pod.memory or settings.memory_limit
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
            str(buffer_mebibytes(memory_limit)),
            "--log-level",
            pod.log_level or settings.log_level,
        ],
        "env": _environment(settings, pod, plan),
        "ports": [{"name": "mesh-admin", "containerPort": ADMIN_PORT, "protocol": "TCP"}],
        "startupProbe": _probe("/ready", 1, _START_SECONDS),
        "readinessProbe": _probe("/ready", 5, 2),
        "livenessProbe": _probe("/live", 10, 6),
        "lifecycle": hooks,
        "resources": _resources(settings, pod, memory_limit),
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


def buffer_mebibytes(memory: str) -> int:
    """MiB of requests and responses that a sidecar with so much memory (a Kubernetes quantity) may hold."""
    mebibytes = _amount(memory) / 2**20
    # Half of what the process itself leaves free: buffers are copied, and Python gives memory back late.
    return max(_LEAST_BUFFER, int(mebibytes - _OWN_MEMORY) // 2)


def _amount(quantity: str) -> float:
    number = quantity.rstrip("numkKMGTPEi")
    return float(number) * _BYTES.get(quantity[len(number) :], 1.0)


def _resources(settings: InjectionSettings, pod: Annotations, memory_limit: str) -> dict[str, Any]:
    requests = {"cpu": pod.cpu or settings.cpu, "memory": pod.memory or settings.memory_request}
    limits = {"memory": memory_limit}
    if pod.cpu_limit is not None:
        limits["cpu"] = pod.cpu_limit
        if pod.cpu is None and _amount(pod.cpu_limit) < _amount(settings.cpu):
            requests["cpu"] = pod.cpu_limit  # the API server takes no request above its limit
    return {"requests": requests, "limits": limits}


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
        "PILOTFISH_CAPTURE": "true" if plan.captured else "",
        "PILOTFISH_INBOUND": plan.inbound if plan.captured else "",
        PROBES_VARIABLE: plan.probes,
        "PILOTFISH_APPLICATIONS": str(plan.applications) if plan.applications else "",
        "PILOTFISH_APPLICATION_RESTARTS": "true" if plan.restarts else "",
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


def proxy_environment() -> list[dict[str, str]]:
    """For application containers. The proxy is on loopback, so nobody else can use the pod's identity."""
    proxy = f"http://127.0.0.1:{OUTBOUND_PORT}"
    # Kubernetes expands $(NAME) from the variables of every container; one that is not there stays as text.
    direct = "localhost,127.0.0.1,::1,kubernetes.default.svc,$(KUBERNETES_SERVICE_HOST)"
    return [
        {"name": "HTTP_PROXY", "value": proxy},
        {"name": "http_proxy", "value": proxy},
        {"name": "grpc_proxy", "value": proxy},
        {"name": "NO_PROXY", "value": direct},
        {"name": "no_proxy", "value": direct},
    ]
