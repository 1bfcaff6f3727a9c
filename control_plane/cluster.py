"""A control plane's parts that only a cluster has, run together: source, leader election, status writer.

Made by the app with `--kubernetes`. Decides nothing; each part is told of the others only what it needs.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable
from random import Random

from control_plane.kube.access import AccessError, ClusterAccess, from_kubeconfig, in_cluster
from control_plane.kube.client import KubeClient
from control_plane.leader import Election, elect
from control_plane.model.mesh import Mesh
from control_plane.model.problem import Problem
from control_plane.settings import Settings
from control_plane.sources.kubernetes import KubernetesSource
from control_plane.sources.status_writer import StatusWriter


def cluster_access(settings: Settings) -> ClusterAccess:
    """Raises AccessError."""
    if settings.kubeconfig is not None:
        return from_kubeconfig(settings.kubeconfig)
    return in_cluster(os.environ)


def own_namespace(settings: Settings, access: ClusterAccess) -> str:
    """Where our Secret and Lease are. Raises AccessError."""
    namespace = settings.namespace or access.namespace
    if not namespace:
        raise AccessError("own namespace unknown: give --namespace or set POD_NAMESPACE")
    return namespace


class Cluster:
    """Follows one cluster and writes to it what is to be written."""

    def __init__(
        self, client: KubeClient, namespace: str, publish: Callable[[Mesh], object], random: Random
    ) -> None:
        # The host's name is the Pod's; the rest tells this process from the one before it there.
        self.election = Election(f"{socket.gethostname()}_{secrets.token_hex(4)}")
        self.writer = StatusWriter(client, self._leads)
        self.source = KubernetesSource(client, publish, self.writer.on_verdicts, random)
        self._client = client
        self._namespace = namespace
        self._random = random

    def __repr__(self) -> str:
        return f"<Cluster {self.source!r} {self.election!r} {self.writer!r}>"

    @property
    def loaded(self) -> bool:
        """Whether the whole cluster was read once."""
        return self.source.published > 0

    @property
    def problems(self) -> tuple[Problem, ...]:
        return (*self.source.problems, *self.writer.problems)

    async def follow(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; then the Lease is given back."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    elect(self._client, self._namespace, self.election, self.writer.on_leading, self._random)
                ),
                group.create_task(self.writer.run()),
            ]
            await self.source.run(stop)
            for task in tasks:
                task.cancel()

    def _leads(self) -> bool:
        return self.election.leads(asyncio.get_running_loop().time())
