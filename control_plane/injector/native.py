"""Whether the cluster knows native sidecars: init containers with `restartPolicy: Always`.

The app asks once, before the webhook answers. An API server that does not know the field drops it without a
word, and the pod would wait for ever for its sidecar to end: so where nobody says, the version decides.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress

from control_plane.kube.client import KubeClient, KubeError
from mesh_api.names import NATIVE_SIDECARS

RETRY = 2.0
"""Seconds between attempts while the API server does not answer."""

log = logging.getLogger(__name__)


async def native_sidecars(client: KubeClient, choice: str, stop: asyncio.Event) -> bool | None:
    """`choice`: `on`, `off` or `auto`. Waits for an API server that does not answer; None: `stop` was set
    meanwhile. Raises KubeError where the version is not for us to read."""
    while choice == "auto" and not stop.is_set():
        try:
            version = str((await client.request("GET", "/version")).get("gitVersion", ""))
        except KubeError as error:
            if error.status in (401, 403, 404):
                raise
            log.warning("the API server's version: %s; trying again", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(RETRY, min(error.retry_after or 0.0, 60.0)))
        else:
            native = _minor(version) >= NATIVE_SIDECARS
            log.info("Kubernetes %s: sidecars are %s containers", version, "native" if native else "ordinary")
            return native
    return None if choice == "auto" else choice == "on"


def _minor(version: str) -> tuple[int, int]:
    found = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
