"""What the injector tells the sidecar of its pod beside the bootstrap. `main.py` reads it, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from sidecar.probes import Probe, parse_probes


class OutboundUntil(Enum):
    """How long after SIGTERM the applications' own calls have to work."""

    SIGTERM = ""
    """It comes after they have ended: a native sidecar, or no pod."""
    PROCESSES = "processes"
    """It comes to them too; they have ended when their processes have, which the sidecar sees."""
    DEADLINE = "deadline"
    """The same, but the sidecar sees nothing of them."""


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
    outbound_until: OutboundUntil = OutboundUntil.SIGTERM


def read_pod(environment: Mapping[str, str]) -> Pod:
    """Raises ValueError for a variable that the injector does not write."""
    applications = environment.get("PILOTFISH_APPLICATIONS", "") or "0"
    if not applications.isdecimal():
        raise ValueError(f"PILOTFISH_APPLICATIONS is {applications!r}; it takes a number of containers")
    until = environment.get("PILOTFISH_OUTBOUND_UNTIL", "")
    if until not in [each.value for each in OutboundUntil]:
        raise ValueError(f"PILOTFISH_OUTBOUND_UNTIL is {until!r}; it takes processes or deadline")
    return Pod(
        address=environment.get("POD_IP", ""),
        captured=environment.get("PILOTFISH_CAPTURE") == "true",
        probes=parse_probes(environment.get("PILOTFISH_PROBES", "")),
        applications=int(applications),
        restarts=environment.get("PILOTFISH_APPLICATION_RESTARTS") == "true",
        outbound_until=OutboundUntil(until),
    )
