"""What the injector tells the sidecar of its pod beside the bootstrap. `main.py` reads it, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.probes import Probe, parse_probes


@dataclass(frozen=True, slots=True)
class Pod:
    """Without variables: no pod, and nothing to do for one."""

    address: str = ""
    captured: bool = False
    probes: Mapping[str, Probe] = field(default_factory=dict)
    """By path on the admin port."""
    applications: int = 0
    """So many containers, and when all have completed the sidecar ends; 0: it does not by itself."""
    restarts: bool = False
    """Containers that fail are started anew."""


def read_pod(environment: Mapping[str, str]) -> Pod:
    """Raises ValueError for a variable that the injector does not write."""
    applications = environment.get("PILOTFISH_APPLICATIONS", "") or "0"
    if not applications.isdecimal():
        raise ValueError(f"PILOTFISH_APPLICATIONS is {applications!r}; it takes a number of containers")
    return Pod(
        address=environment.get("POD_IP", ""),
        captured=environment.get("PILOTFISH_CAPTURE") == "true",
        probes=parse_probes(environment.get("PILOTFISH_PROBES", "")),
        applications=int(applications),
        restarts=environment.get("PILOTFISH_APPLICATION_RESTARTS") == "true",
    )
