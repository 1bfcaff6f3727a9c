"""Until when the certificates last that this control plane signed, by account and host of the caller.

The signing service records, the status page reads. Kept in memory alone: another replica, or this one before
its restart, may have signed newer ones.
"""

from __future__ import annotations

from datetime import datetime

from control_plane.model.discovery import Identity

MOST = 20_000
"""Pairs of account and host that are remembered; past it the one that was renewed longest ago goes."""


class IssuedCertificates:
    """The newest certificate of each account on each host (a pod has an address of its own)."""

    def __init__(self) -> None:
        self._ends: dict[tuple[Identity, str], datetime] = {}

    def __repr__(self) -> str:
        return f"<IssuedCertificates {len(self._ends)}>"

    def record(self, identity: Identity, peer: str, not_after: datetime) -> None:
        """`peer` as grpc writes it: `ipv4:HOST:PORT`."""
        key = (identity, host_of(peer))
        self._ends.pop(key, None)
        self._ends[key] = not_after
        if len(self._ends) > MOST:
            del self._ends[next(iter(self._ends))]

    def valid(self, now: datetime) -> list[tuple[Identity, str, datetime]]:
        """Account, host, and end of those that have not ended at `now`."""
        return [(identity, host, end) for (identity, host), end in self._ends.items() if end > now]


def host_of(peer: str) -> str:
    """grpc's name of a host, `ipv4:HOST`."""
    return peer.rpartition(":")[0]
