"""What the webhook must know of a pod's Namespace: labels and annotations, asked of the API server.

Remembered for some seconds, because a rollout makes many pods. Nothing here may hold the webhook up for
longer than the API server waits for it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from control_plane.kube.client import KubeClient, KubeError, Object

REMEMBERED = 5.0
"""Seconds."""
TIMEOUT = 2.0
MAX_REMEMBERED = 1000

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

log = logging.getLogger(__name__)


class Namespaces:
    """`clock` in seconds, monotonic."""

    def __init__(self, client: KubeClient, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[str, tuple[float, Object]] = {}

    def __repr__(self) -> str:
        return f"<Namespaces known={len(self._known)}>"

    async def metadata(self, name: str) -> Object | None:
        """Empty for one that does not exist; as it was last, when the API server does not answer; None when
        it was never known."""
        known = self._known.get(name)
        now = self._clock()
        if known is not None and now - known[0] < REMEMBERED:
            return known[1]
        if not _NAME.fullmatch(name):
            return {}
        try:
            found = await self._client.request("GET", f"/api/v1/namespaces/{name}", within=TIMEOUT)
        except KubeError as error:
            if error.status != 404:
                log.warning("namespace %s cannot be read: %s", name, error)
                return None if known is None else known[1]
            found = {}
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        metadata = found.get("metadata") or {}
        self._known[name] = (now, metadata)
        return dict(metadata)
