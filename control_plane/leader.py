"""Which replica writes to the cluster: leader election on a Lease of coordination.k8s.io/v1.

`Election` decides (sans-IO, virtual time), `elect` carries it out. Times of other machines are never
compared with ours: a Lease has run out when it did not change for its duration on our own clock. Only
status is written by the leader; everything that sidecars need comes from every replica.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from control_plane.kube.client import KubeClient, KubeError, Object

NAME = "pilotfish-control-plane"
LEASE = 15.0
"""Seconds without a renewal after which others may take over."""
RENEW_DEADLINE = 10.0
"""Seconds without a renewal after which the leader stops leading, before others can begin."""
RETRY = 2.0
"""Seconds between renewals, and between looks of those who wait."""
GIVE_BACK = 2.0
"""Seconds that a leader which ends spends on giving the Lease back."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    """What is used of a Lease."""

    holder: str = ""
    version: str = ""
    """resourceVersion; empty: there is none yet."""
    duration: float = LEASE
    renewed: str = ""
    acquired: str = ""
    transitions: int = 0

    @classmethod
    def of(cls, item: Object) -> Lease:
        spec = item.get("spec") or {}
        return cls(
            holder=spec.get("holderIdentity") or "",
            version=item["metadata"]["resourceVersion"],
            duration=float(spec.get("leaseDurationSeconds") or LEASE),
            renewed=spec.get("renewTime") or "",
            acquired=spec.get("acquireTime") or "",
            transitions=spec.get("leaseTransitions") or 0,
        )


class Election:
    """One candidate. Times are in seconds of one monotonic clock; `stamp` in texts is the wall clock's."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self._lease: Lease | None = None
        """As it was last seen; None: not looked at yet, or doubtful."""
        self._seen: tuple[str, str] | None = None
        """Holder and renewal."""
        self._seen_at = 0.0
        """When that last changed, for us."""
        self._renewed_at: float | None = None
        """When our own last successful write was begun; None: we do not lead."""

    def __repr__(self) -> str:
        role = "leads" if self._renewed_at is not None else f"follows {self._seen and self._seen[0]}"
        return f"<Election {self.identity} {role}>"

    def leads(self, now: float) -> bool:
        return self._renewed_at is not None and now - self._renewed_at < RENEW_DEADLINE

    @property
    def must_look(self) -> bool:
        """Whether the Lease is to be read before anything is decided."""
        return self._lease is None

    def on_seen(self, lease: Lease, now: float) -> None:
        """The Lease was read; `Lease()`: there is none."""
        if (lease.holder, lease.renewed) != self._seen:
            self._seen, self._seen_at = (lease.holder, lease.renewed), now
        self._lease = lease
        if lease.holder != self.identity:
            self._renewed_at = None

    def claim(self, now: float, stamp: str) -> Lease | None:
        """The Lease to write now: a renewal, or one that is free for us. None: somebody else's, look again
        later."""
        lease = self._lease
        if lease is None:
            return None
        if lease.holder == self.identity:
            return Lease(
                self.identity, lease.version, LEASE, stamp, lease.acquired or stamp, lease.transitions
            )
        if lease.holder and now - self._seen_at < lease.duration:
            return None
        transitions = lease.transitions + (1 if lease.version else 0)
        return Lease(self.identity, lease.version, LEASE, stamp, stamp, transitions)

    def release(self, stamp: str) -> Lease | None:
        """The Lease to write when we end, so that nobody has to wait; None: it is not ours."""
        lease = self._lease
        if lease is None or lease.holder != self.identity:
            return None
        return Lease("", lease.version, 1.0, stamp, stamp, lease.transitions)

    def on_written(self, lease: Lease, began: float) -> None:
        """Our write of `claim` was taken; `began` is when it was sent."""
        self._lease = lease
        self._seen, self._seen_at = (lease.holder, lease.renewed), began
        self._renewed_at = began if lease.holder == self.identity else None

    def on_failed(self, conflict: bool) -> None:
        """A read or write failed. After a conflict, or an answer that never came, what we know of the Lease
        is doubtful; what we have renewed holds until its deadline."""
        self._lease = None
        if conflict:
            self._renewed_at = None


async def elect(
    client: KubeClient,
    namespace: str,
    election: Election,
    on_change: Callable[[bool], object],
    random: Random,
) -> None:
    """Takes part until cancelled, then gives the Lease back. `on_change` is told when we begin and end to
    lead."""
    loop = asyncio.get_running_loop()
    leading, failed = False, ""
    try:
        while True:
            # A write that hangs must not keep us leading past the deadline.
            try:
                async with asyncio.timeout(RENEW_DEADLINE / 2):
                    await _once(client, namespace, election, loop.time)
                failed = ""
            except (KubeError, TimeoutError) as error:
                conflict = isinstance(error, KubeError) and error.status == 409
                election.on_failed(conflict)
                if not conflict and failed != str(error):
                    failed = str(error)
                    log.warning("leader election: %s", failed or "no answer in time")
            if election.leads(loop.time()) != leading:
                leading = not leading
                log.info("leader election: %s %s", election.identity, "leads" if leading else "leads no more")
                on_change(leading)
            await asyncio.sleep(RETRY * (1.0 if leading else 1.0 + 0.2 * random.random()))
    finally:
        if leading:
            on_change(False)
        await _give_back(client, namespace, election)


async def _once(client: KubeClient, namespace: str, election: Election, clock: Callable[[], float]) -> None:
    """One look or renewal. Raises KubeError."""
    began = clock()
    if election.must_look or not election.leads(began):
        election.on_seen(await _read(client, namespace), began)
    wanted = election.claim(began, _stamp())
    if wanted is not None:
        election.on_written(await _write(client, namespace, wanted), began)


async def _read(client: KubeClient, namespace: str) -> Lease:
    try:
        return Lease.of(await client.request("GET", f"{_folder(namespace)}/{NAME}"))
    except KubeError as error:
        if error.status != 404:
            raise
    return Lease()


async def _write(client: KubeClient, namespace: str, lease: Lease) -> Lease:
    metadata = {"name": NAME, "namespace": namespace}
    spec = {
        "holderIdentity": lease.holder,
        "leaseDurationSeconds": int(lease.duration),
        "acquireTime": lease.acquired,
        "renewTime": lease.renewed,
        "leaseTransitions": lease.transitions,
    }
    body: Object = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": spec,
    }
    if not lease.version:
        return Lease.of(await client.request("POST", _folder(namespace), body))
    metadata["resourceVersion"] = lease.version
    return Lease.of(await client.request("PUT", f"{_folder(namespace)}/{NAME}", body))


async def _give_back(client: KubeClient, namespace: str, election: Election) -> None:
    lease = election.release(_stamp())
    if lease is None:
        return
    try:
        async with asyncio.timeout(GIVE_BACK):
            try:
                await _write(client, namespace, lease)
            except KubeError as error:
                if error.status != 409:
                    raise
                # A renewal that was under way when we were told to end may have been taken after all.
                election.on_seen(await _read(client, namespace), asyncio.get_running_loop().time())
                lease = election.release(_stamp())
                if lease is not None:
                    await _write(client, namespace, lease)
    except (KubeError, TimeoutError) as error:
        log.info("leader election: the Lease was not given back (%s); it runs out by itself", error)


def _folder(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def _stamp() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
