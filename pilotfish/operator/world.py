"""What `pilotfish check` reads of a cluster, each thing once and only when a fact needs it.

Every attribute raises ApiError when it cannot be read. Failures are remembered: what is denied is asked once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from pilotfish.operator import kinds
from pilotfish.operator.api import DISCOVERY, Api
from pilotfish.operator.errors import OperatorError
from pilotfish.operator.kinds import INJECT, Kind
from pilotfish.operator.pods import is_meshed
from pilotfish.operator.replicas import Client, Replica, clients_of, replicas_in
from pilotfish.operator.transport import Answer, Object

T = TypeVar("T")


class World:
    """One cluster at one time."""

    def __init__(
        self, api: Api, system: str, namespace: str = "", now: Callable[[], float] = time.time
    ) -> None:
        """`system`: namespace of the control plane; `namespace`: the only one to look at, empty for all."""
        self.api = api
        self.system = system
        self.namespace = namespace
        self.now = now
        self._read: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<World {self.api!r} {sorted(self._read)}>"

    def _once(self, what: str, read: Callable[[], T]) -> T:
        if what not in self._read:
            try:
                self._read[what] = read()
            except OperatorError as error:
                self._read[what] = error
        found = self._read[what]
        if isinstance(found, OperatorError):
            raise found
        return found  # type: ignore[no-any-return]

    @property
    def version(self) -> tuple[float, Answer]:
        """Our time when it was asked, and the answer of `/version`."""
        return self._once("version", lambda: (self.now(), self.api.ask("GET", "/version")))

    @property
    def about(self) -> Object:
        """What `/version` says."""
        return self.api.read(self.version[1], "get /version", DISCOVERY)

    @property
    def nodes(self) -> list[Object]:
        return self._list(kinds.NODES)

    @property
    def node_leases(self) -> tuple[float, list[Object]]:
        """Our time when they were there, and what kubelets write to show that they live."""
        return self._once(
            "leases", lambda: (self.api.items(kinds.LEASES, "kube-node-lease"), self.now())[::-1]
        )

    @property
    def namespaces(self) -> list[Object]:
        return self._list(kinds.NAMESPACES)

    @property
    def labelled(self) -> list[str]:
        """Namespaces whose new pods get a sidecar, of those that are looked at."""
        return [name for name in self._labelled if name not in self._never]

    @property
    def labelled_in_vain(self) -> list[str]:
        return [name for name in self._labelled if name in self._never]

    @property
    def _never(self) -> tuple[str, str]:
        """What the webhook itself needs to run, which its configuration leaves out whatever labels say."""
        return self.system, "kube-system"

    @property
    def _labelled(self) -> list[str]:
        return [
            item["metadata"]["name"]
            for item in self.namespaces
            if (item["metadata"].get("labels") or {}).get(INJECT) == "enabled"
            and self.namespace in ("", item["metadata"]["name"])
            and not item["metadata"].get("deletionTimestamp")
        ]

    @property
    def pods(self) -> list[Object]:
        """That have not ended, of the namespaces that are looked at."""
        found = self._once("pods", lambda: self.api.items(kinds.PODS, self.namespace))
        return [pod for pod in found if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]

    @property
    def meshed(self) -> list[Object]:
        return [pod for pod in self.pods if is_meshed(pod)]

    @property
    def deployment(self) -> Object | None:
        return self.one(kinds.DEPLOYMENTS, self.system, "pilotfish-control-plane")

    @property
    def webhook(self) -> Object | None:
        return self.one(kinds.WEBHOOKS, "", "pilotfish-injector")

    @property
    def endpoint_slices(self) -> list[Object]:
        return self._once("slices", lambda: self.api.items(kinds.ENDPOINT_SLICES, self.system))

    @property
    def replicas(self) -> list[Replica]:
        return self._once("replicas", lambda: replicas_in(self.api, self.system))

    @property
    def answering(self) -> list[Replica]:
        return [replica for replica in self.replicas if not replica.error]

    @property
    def clients(self) -> list[Client]:
        found = clients_of(self.answering)
        return [client for client in found if self.namespace in ("", client.namespace)]

    def service(self, name: str) -> Object | None:
        return self.one(kinds.SERVICES, self.system, name)

    def routes(self, kind: Kind) -> list[Object]:
        """Or policies; none where the cluster does not have the kind."""
        if not self.serves(kind):
            return []
        return self._once(kind.plural, lambda: self.api.items(kind, self.namespace))

    def serves(self, kind: Kind) -> bool:
        """Whether the cluster has the kind. Asked before a list, whose refusal would come first."""
        if kind.group not in kinds.DEFINED_GROUPS:
            return True
        known = self.group(kind.group, kind.version) or {}
        return kind.plural in (item["name"] for item in known.get("resources") or ())

    def definition(self, name: str) -> Object | None:
        return self.one(kinds.DEFINITIONS, "", name)

    def one(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return self._once(kind.path(namespace, name), lambda: self.api.get(kind, namespace, name))

    def group(self, group: str, version: str) -> Object | None:
        """What the API server has of a group; everybody may ask."""
        path = f"/apis/{group}/{version}"
        return self._once(path, lambda: self.api.document(path))

    def _list(self, kind: Kind) -> list[Object]:
        return self._once(kind.plural, lambda: self.api.items(kind))
