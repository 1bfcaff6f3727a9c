"""What the webhook must know of a pod's Namespace: labels and annotations.

The source watches Namespaces. One that it does not know (yet) is asked of the API server. Nothing here may
hold the webhook up for longer than the API server waits for it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from control_plane.kube.client import KubeClient, KubeError, Object

TIMEOUT = 2.0
"""Seconds."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

log = logging.getLogger(__name__)


class Namespaces:
    """`watched`: metadata of a Namespace by its name, None where it is not known."""

    def __init__(self, client: KubeClient, watched: Callable[[str], Object | None]) -> None:
        self._client = client
        self._watched = watched

    async def metadata(self, name: str) -> Object | None:
        """Empty for one that does not exist, None when that cannot be told."""
        known = self._watched(name)
        if known is not None:
            return known
        if not _NAME.fullmatch(name):
            return {}
        try:
            found = await self._client.request("GET", f"/api/v1/namespaces/{name}", within=TIMEOUT)
        except KubeError as error:
            if error.status == 404:
                return {}
            log.warning("namespace %s cannot be read: %s", name, error)
            return None
        return dict(found.get("metadata") or {})
