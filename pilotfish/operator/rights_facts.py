"""Facts about the rights of the user: to read what `check` looks at, and to install.

Called by `check`. What is needed is written down here, and held by tests against the manifests and against
what the commands ask. Asks for reviews of rights, and for nothing that they are about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pilotfish.operator import kinds
from pilotfish.operator.api import at_once
from pilotfish.operator.facts import Fact, failed, ok, some
from pilotfish.operator.kinds import Kind
from pilotfish.operator.world import World

_RIGHTS = "docs/operations.md#rights"
_INSTALLER = (
    "somebody with the role cluster-admin installs, or gives it to you: kubectl create clusterrolebinding "
    "pilotfish-installer --clusterrole=cluster-admin --user=NAME  (kubectl auth whoami)"
)


@dataclass(frozen=True, slots=True)
class Right:
    """To do something with one kind of objects."""

    verb: str
    kind: Kind
    namespaces: str = ""
    """`system`: that of the control plane; `each`: those that are looked at; empty: the kind is in none."""
    sub: str = ""

    def namespace(self, world: World) -> str:
        """Empty: all of them, or none."""
        return {"system": world.system, "each": world.namespace, "": ""}[self.namespaces]

    def text(self, world: World) -> str:
        namespace = self.namespace(world)
        where = f" in {namespace}" if namespace else " in all namespaces" if self.namespaces else ""
        return f"{self.verb} {self.kind.resource(self.sub)}{where}"


READING = (
    Right("list", kinds.PODS, "each"),
    Right("get", kinds.PODS, "each", "proxy"),
    Right("list", kinds.NAMESPACES),
    Right("get", kinds.PODS, "system", "proxy"),
    Right("get", kinds.DEPLOYMENTS, "system"),
    Right("get", kinds.SERVICES, "system"),
    Right("list", kinds.ENDPOINT_SLICES, "system"),
    Right("get", kinds.WEBHOOKS),
    Right("get", kinds.DEFINITIONS),
    Right("list", kinds.HTTP_ROUTES, "each"),
    Right("list", kinds.GRPC_ROUTES, "each"),
    Right("list", kinds.TCP_ROUTES, "each"),
    Right("list", kinds.TRAFFIC_POLICIES, "each"),
)
_INSTALLED = (
    (kinds.NAMESPACES, ""),
    (kinds.DEFINITIONS, ""),
    (kinds.CLUSTER_ROLES, ""),
    (kinds.CLUSTER_ROLE_BINDINGS, ""),
    (kinds.WEBHOOKS, ""),
    (kinds.SERVICE_ACCOUNTS, "system"),
    (kinds.ROLES, "system"),
    (kinds.ROLE_BINDINGS, "system"),
    (kinds.SERVICES, "system"),
    (kinds.DEPLOYMENTS, "system"),
    (kinds.DISRUPTION_BUDGETS, "system"),
    (kinds.AUTOSCALERS, "system"),
    (kinds.NETWORK_POLICIES, "system"),
)
"""The kinds of `deploy/k8s/base`."""
INSTALLING = tuple(
    Right(verb, kind, namespaces) for kind, namespaces in _INSTALLED for verb in ("get", "create", "patch")
)
"""What `kubectl apply` does: it looks, makes what is not there, and changes what is."""


def reading(world: World) -> Iterator[Fact]:
    missing = _missing(world, (right for right in READING if world.serves(right.kind)))
    if not missing:
        yield ok("rights", "you may read what this command looks at")
        return
    first = missing[0]
    yield failed(
        "rights",
        f"you may not read what this command looks at: no right to {_texts(world, missing)}",
        kinds.missing_right(first.verb, first.kind, first.namespace(world), first.sub)
        if len(missing) == 1
        else "kubectl apply -f deploy/k8s/operator/clusterrole.yaml && kubectl create clusterrolebinding "
        "pilotfish-operator --clusterrole=pilotfish-operator --user=NAME  (kubectl auth whoami)",
        _RIGHTS,
    )


def installing(world: World) -> Iterator[Fact]:
    missing = _missing(world, INSTALLING)
    if not missing:
        yield ok("install-rights", "you may install the mesh")
        return
    yield failed(
        "install-rights",
        f"you may not install the mesh: no right to {_texts(world, missing)}",
        _INSTALLER,
        _RIGHTS,
    )


def _missing(world: World, rights: Iterable[Right]) -> list[Right]:
    asked = list(rights)
    held = at_once(lambda one: world.api.may(one.verb, one.kind, one.namespace(world), one.sub), asked)
    return [right for right, may in zip(asked, held, strict=True) if not may]


def _texts(world: World, rights: Iterable[Right]) -> str:
    return some([right.text(world) for right in rights])
