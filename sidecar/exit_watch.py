"""Whether the applications of a pod have ended, where the sidecar is an ordinary container.

`app.py` runs `watch` when the injector asked for it, for a pod that is to complete, and `applications_end` in
every pod that ends. Pods may share one process namespace: in it process 1 is the pod's own, and those of
other users than the sidecar's are the applications'. A native sidecar needs nothing of this: the kubelet ends
it after them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

from sidecar.pod import OutboundUntil, Pod

QUIET = 2.0
"""Seconds without a process after which the applications are held to have completed."""
RESTART_LATENCY = 15.0
FIRST_BACK_OFF = 10.0
LONGEST_BACK_OFF = 300.0
"""Seconds that the kubelet waits before it starts a failed container anew; doubles with each time."""
_EAGER = 0.05
_INTERVAL = 0.5
"""Seconds between two looks: while containers may begin and end, and once all have been seen."""

_log = logging.getLogger(__name__)


class Completion:
    """Decides from which containers have processes. No I/O, no clock."""

    def __init__(self, expected: int, restarts: bool) -> None:
        """`expected` containers; with `restarts` those that fail are started anew."""
        self._expected = expected
        self._restarts = restarts
        self._seen: set[str] = set()
        self._quiet_since: float | None = None

    @property
    def all_seen(self) -> bool:
        return len(self._seen) >= self._expected

    def observe(self, now: float, containers: Iterable[str]) -> bool:
        """Whether all have completed, at `now` (seconds, monotonic)."""
        running = set(containers)
        self._seen |= running
        if running or not self.all_seen:
            self._quiet_since = None
            return False
        if self._quiet_since is None:
            self._quiet_since = now
        return now - self._quiet_since >= self._pause()

    def _pause(self) -> float:
        if not self._restarts:
            return QUIET
        failures = min(len(self._seen) - self._expected, 10)  # a restarted container is another one
        return RESTART_LATENCY + min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2.0**failures)

    def __repr__(self) -> str:
        return f"<Completion seen={len(self._seen)} of {self._expected} quiet_since={self._quiet_since}>"


def application_containers(proc: Path, own_user: int) -> set[str]:
    """A name for each container that has a process: its control group."""
    found = set()
    for entry in os.scandir(proc):
        if not entry.name.isdecimal() or entry.name == "1":
            continue
        try:
            if entry.stat().st_uid != own_user:
                found.add((proc / entry.name / "cgroup").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return found


async def watch(pod: Pod, proc: Path = Path("/proc")) -> None:
    """Returns when the applications have completed."""
    completion = Completion(pod.applications, pod.restarts)
    own_user = os.getuid()
    while not completion.observe(time.monotonic(), application_containers(proc, own_user)):  # noqa: ASYNC110
        await asyncio.sleep(_INTERVAL if completion.all_seen else _EAGER)
    _log.info("the applications of this pod have completed")


async def applications_end(pod: Pod, proc: Path = Path("/proc")) -> None:
    """In a pod that ends, where nothing is started anew: returns when no application makes calls any more.
    Where that cannot be seen, it does not return."""
    if pod.outbound_until is OutboundUntil.DEADLINE:
        await asyncio.Event().wait()
    elif pod.outbound_until is OutboundUntil.PROCESSES:
        while application_containers(proc, os.getuid()):  # noqa: ASYNC110
            await asyncio.sleep(_INTERVAL)
