"""Facts about the rights of the user: to read what `check` looks at, and to install.

Called by `check`. What is needed is written down here, and held by tests against the manifests and against
what the commands ask. Asks for reviews of rights, and for dry runs of roles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mesh_api.names import GROUP
from pilotfish.operator import kinds
from pilotfish.operator.errors import RIGHTS_PAGE
from pilotfish.operator.facts import Fact, failed, ok, some, warning
from pilotfish.operator.kinds import Kind
from pilotfish.operator.transport import Answer, Object
from pilotfish.operator.world import World

_ESCALATES = "attempting to grant RBAC permissions not currently held:"
"""In the words of the API server; a line for each missing rule comes after it."""
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


def _rule(group: str, resources: str, verbs: str, *names: str) -> Object:
    rule = {"apiGroups": [group], "resources": resources.split(), "verbs": verbs.split()}
    return rule | ({"resourceNames": list(names)} if names else {})


CLUSTER_RULES = (
    _rule("", "services pods nodes serviceaccounts", "list watch"),
    _rule("discovery.k8s.io", "endpointslices", "list watch"),
    _rule(kinds.GATEWAY_GROUP, "httproutes grpcroutes tcproutes referencegrants", "list watch"),
    _rule(kinds.GATEWAY_GROUP, "httproutes/status grpcroutes/status tcproutes/status", "patch"),
    _rule(GROUP, "trafficpolicies", "list watch"),
    _rule(GROUP, "trafficpolicies/status", "patch"),
    _rule("", "namespaces", "get list watch"),
    _rule("authentication.k8s.io", "tokenreviews", "create"),
    _rule("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "get patch", "pilotfish-injector"),
)
SYSTEM_RULES = (
    _rule("", "secrets configmaps", "create"),
    _rule("", "secrets", "get", "pilotfish-ca"),
    _rule("", "configmaps", "get patch", "pilotfish-root"),
    _rule("coordination.k8s.io", "leases", "create"),
    _rule("coordination.k8s.io", "leases", "get update", "pilotfish-control-plane"),
)
"""What the roles of `deploy/k8s/base` give the control plane, in the cluster and in its own namespace."""


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
        RIGHTS_PAGE,
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
        RIGHTS_PAGE,
    )


def granting(world: World) -> Iterator[Fact]:
    """Nobody may give rights that he does not have himself (RBAC's prevention of escalation). The API server
    alone knows: reviews also count rights that other authorizers than RBAC give."""
    name = "grant-rights"
    for rules, namespace in ((CLUSTER_RULES, ""), (SYSTEM_RULES, world.system)):
        answer = _try_role(world, rules, namespace)
        if namespace and answer.status == 404:
            # The namespace is not there yet: nobody has rights in it alone.
            answer = _try_role(world, rules, "")
        message = str((answer.status_object() or {}).get("message") or answer.text())
        _, escalates, lacking = message.partition(_ESCALATES)
        if escalates:
            rights = some([line.strip() for line in lacking.strip().splitlines()], 3)
            text = f"you may not give the control plane rights that you lack yourself (dry run): {rights}"
            yield failed(name, text, _INSTALLER, RIGHTS_PAGE)
            return
        if answer.status == 403 and "cannot create" in message:
            return  # `installing` has said so
        if answer.status != 201:
            text = (
                f"a dry run of the control plane's roles was answered with {answer.status}: {message[:500]}"
            )
            yield warning(
                name, text, "a policy of the cluster, perhaps: kubectl apply may fail too", RIGHTS_PAGE
            )
            return
    if world.api.may("escalate", kinds.CLUSTER_ROLES) and not world.api.may("bind", kinds.CLUSTER_ROLES):
        text = "you may make any role (escalate), but bind none (bind) whose rights you lack yourself"
        yield warning(name, text, _INSTALLER, RIGHTS_PAGE)
        return
    yield ok(name, "you may give the control plane its rights")


def _try_role(world: World, rules: Iterable[Object], namespace: str) -> Answer:
    kind, name = (kinds.ROLES, "Role") if namespace else (kinds.CLUSTER_ROLES, "ClusterRole")
    role = {
        "apiVersion": f"{kind.group}/{kind.version}",
        "kind": name,
        "metadata": {"generateName": "pilotfish-check-"},
        "rules": list(rules),
    }
    return world.api.dry_run(kind, namespace, role)


def _missing(world: World, rights: Iterable[Right]) -> list[Right]:
    asked = list(rights)
    held = world.api.at_once(
        lambda one: world.api.may(one.verb, one.kind, one.namespace(world), one.sub), asked
    )
    return [right for right, may in zip(asked, held, strict=True) if not may]


def _texts(world: World, rights: Iterable[Right]) -> str:
    return some([right.text(world) for right in rights])
