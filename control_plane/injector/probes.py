"""Leads the kubelet's probes of applications through the sidecar of a captured pod.

The kubelet has no certificate of the mesh, and to a sidecar that takes every connection any TCP probe would
succeed. So each probe becomes a GET of the sidecar's admin port, and the sidecar does what the original asked
(`sidecar/probes.py`). Used by `patch` and `second_pass`, on copies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mesh_api.names import ADMIN_PORT

Object = dict[str, Any]

VARIABLE = "PILOTFISH_PROBES"
"""JSON, by path on the admin port: the original probe with its port as a number."""
_PATHS = {"livenessProbe": "livez", "readinessProbe": "readyz", "startupProbe": "startupz"}


def rewrite_probes(containers: Iterable[Object]) -> dict[str, Object]:
    """Changes the probes of these containers; returns the originals by path. Left alone are commands, probes
    of another host (`host`), ports that cannot be told, and what was rewritten before."""
    originals: dict[str, Object] = {}
    for container in containers:
        for field, last in _PATHS.items():
            probe = container.get(field)
            path = f"/app-health/{container['name']}/{last}"
            led = {"path": path, "port": ADMIN_PORT, "scheme": "HTTP"}
            if not isinstance(probe, Mapping) or probe.get("httpGet") == led:
                continue
            original = _original(container, probe)
            if original is None:
                continue
            originals[path] = {**original, "timeoutSeconds": probe.get("timeoutSeconds") or 1}
            kept = {key: value for key, value in probe.items() if key not in original}
            container[field] = {"httpGet": led, **kept}
    return originals


def probes_variable(originals: Mapping[str, Object]) -> str:
    """What the sidecar reads. Kubernetes expands `$(NAME)` in variables, and takes `$$` for a dollar."""
    return json.dumps(originals, separators=(",", ":"), sort_keys=True).replace("$", "$$")


def read_variable(text: str) -> dict[str, Object]:
    """The originals that `probes_variable` wrote."""
    found: dict[str, Object] = json.loads(text.replace("$$", "$"))
    return found


def _original(container: Mapping[str, Any], probe: Mapping[str, Any]) -> Object | None:
    for kind in ("httpGet", "tcpSocket", "grpc"):
        action = probe.get(kind)
        if not isinstance(action, Mapping):
            continue
        port = _port_number(container, action.get("port"))
        return None if action.get("host") or port is None else {kind: {**action, "port": port}}
    return None


def _port_number(container: Mapping[str, Any], port: object) -> int | None:
    """As the kubelet finds it: by name among the container's own ports, or a number as text."""
    if isinstance(port, int):
        return port
    for known in container.get("ports") or ():
        if known.get("name") == port:
            return int(known["containerPort"])
    return int(port) if isinstance(port, str) and port.isdecimal() else None


def refused_hooks(containers: Iterable[Mapping[str, Any]]) -> list[str]:
    """`CONTAINER.HOOK` for each HTTP hook: the kubelet calls it in plain text, which strict mode refuses, and
    it is not for the whole cluster to call, so that the admin port must not offer it."""
    return [
        f"{container.get('name')}.{hook}"
        for container in containers
        for hook, action in (container.get("lifecycle") or {}).items()
        if isinstance(action, Mapping) and "httpGet" in action
    ]
