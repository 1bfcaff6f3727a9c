"""Makes the bootstrap of a sidecar in a pod from the variables that the injector set.

Called by `pilotfish sidecar --from-environment`. Writes to no file system: a pod's may be read-only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pilotfish.capture.host import has_loopback_ipv6
from pilotfish.workload_bootstrap import Workload, bootstrap

LOOPBACK = "127.0.0.1"


class PodError(Exception):
    """A variable is missing or cannot be; the text says which."""


def pod_workload(environment: Mapping[str, str], ipv6: bool = False) -> Workload:
    """The workload that the variables describe, in a network with or without IPv6. Raises PodError."""
    needed = ("POD_NAME", "POD_NAMESPACE", "POD_IP", "POD_SERVICE_ACCOUNT")
    mesh = ("PILOTFISH_CONTROL_PLANE", "PILOTFISH_TOKEN_FILE", "PILOTFISH_ROOT_PEM")
    missing = [name for name in (*needed, *mesh) if not environment.get(name)]
    if missing:
        raise PodError(f"not set: {', '.join(missing)}; the injector sets them, or use --config FILE")
    sampling = environment.get("PILOTFISH_TRACE_SAMPLING", "100")
    try:
        trace_sampling = float(sampling)
    except ValueError:
        raise PodError(f"PILOTFISH_TRACE_SAMPLING is {sampling!r}; it takes a percentage") from None
    inbound = environment.get("PILOTFISH_INBOUND", "permissive")
    if inbound not in ("strict", "permissive"):
        raise PodError(f"PILOTFISH_INBOUND is {inbound!r}; it takes strict or permissive")
    for name in ("PILOTFISH_CONTROL_PLANE", "PILOTFISH_OTLP"):
        value = environment.get(name)
        if value and not value.rpartition(":")[2].isdecimal():
            raise PodError(f"{name} is {value!r}; it takes HOST:PORT")
    return Workload(
        name=environment["POD_NAME"],
        namespace=environment["POD_NAMESPACE"],
        service_account=environment["POD_SERVICE_ACCOUNT"],
        address=environment["POD_IP"],
        token_file=environment["PILOTFISH_TOKEN_FILE"],
        root_pem=environment["PILOTFISH_ROOT_PEM"],
        control_plane=environment["PILOTFISH_CONTROL_PLANE"],
        trust_domain=environment.get("PILOTFISH_TRUST_DOMAIN", "cluster.local"),
        # Whoever reaches this port sends with the pod's identity.
        outbound_address=LOOPBACK,
        # Of loopback too, where `kubectl port-forward` calls.
        admin_address="::" if ipv6 or ":" in environment["POD_IP"] else "0.0.0.0",
        captured=environment.get("PILOTFISH_CAPTURE") == "true",
        strict=inbound == "strict",
        ipv6=ipv6,
        otlp=environment.get("PILOTFISH_OTLP", ""),
        trace_sampling=trace_sampling,
    )


def bootstrap_file(environment: Mapping[str, str]) -> Path:
    """A file in memory with the bootstrap, there as long as this process. Raises PodError."""
    text = json.dumps(bootstrap(pod_workload(environment, has_loopback_ipv6()))).encode()
    descriptor = os.memfd_create("bootstrap.json")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(text)
    return Path(f"/proc/self/fd/{descriptor}")
