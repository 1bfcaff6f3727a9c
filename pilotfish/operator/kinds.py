"""The kinds of objects that the operator's commands read: their paths, and the right that each needs.

Used by `api` and by whoever asks it. Knows names, makes no requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh_api.names import GROUP

INJECT = f"{GROUP}/inject"
"""Label of namespaces whose pods get sidecars, and of pods that do not want one."""
CONTROLLER = f"{GROUP}/controller"
"""Who we are in the status of routes and policies."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource of the API."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str
    by_name: bool = False
    """Whether a right is given for one object: others of the kind are nobody's business."""

    def path(self, namespace: str = "", name: str = "", sub: str = "") -> str:
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [base, *(("namespaces", namespace) if namespace else ()), self.plural, name, sub]
        return "/".join(part for part in parts if part)

    def resource(self, sub: str = "") -> str:
        """As `kubectl create role --resource` takes it."""
        plural = f"{self.plural}.{self.group}" if self.group else self.plural
        return f"{plural}/{sub}" if sub else plural


GATEWAY_GROUP = "gateway.networking.k8s.io"
_CALICO_GROUPS = {"crd.projectcalico.org": "v1", "projectcalico.org": "v3"}
"""With their versions: as Calico stores its objects, by default and by its native definitions."""
DEFINED_GROUPS = (GATEWAY_GROUP, GROUP, *_CALICO_GROUPS)
"""Of kinds that a cluster has only by definitions."""

PODS = Kind("", "v1", "pods")
NAMESPACES = Kind("", "v1", "namespaces")
NODES = Kind("", "v1", "nodes")
CONFIG_MAPS = Kind("", "v1", "configmaps", by_name=True)
FELIX_CONFIGURATIONS = tuple(
    Kind(group, version, "felixconfigurations", by_name=True) for group, version in _CALICO_GROUPS.items()
)
SERVICES = Kind("", "v1", "services")
SERVICE_ACCOUNTS = Kind("", "v1", "serviceaccounts")
ENDPOINT_SLICES = Kind("discovery.k8s.io", "v1", "endpointslices")
LEASES = Kind("coordination.k8s.io", "v1", "leases")
DEPLOYMENTS = Kind("apps", "v1", "deployments")
WEBHOOKS = Kind("admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations")
DEFINITIONS = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions")
CLUSTER_ROLES = Kind("rbac.authorization.k8s.io", "v1", "clusterroles")
CLUSTER_ROLE_BINDINGS = Kind("rbac.authorization.k8s.io", "v1", "clusterrolebindings")
ROLES = Kind("rbac.authorization.k8s.io", "v1", "roles")
ROLE_BINDINGS = Kind("rbac.authorization.k8s.io", "v1", "rolebindings")
NETWORK_POLICIES = Kind("networking.k8s.io", "v1", "networkpolicies")
DISRUPTION_BUDGETS = Kind("policy", "v1", "poddisruptionbudgets")
AUTOSCALERS = Kind("autoscaling", "v2", "horizontalpodautoscalers")
HTTP_ROUTES = Kind(GATEWAY_GROUP, "v1", "httproutes")
GRPC_ROUTES = Kind(GATEWAY_GROUP, "v1", "grpcroutes")
TCP_ROUTES = Kind(GATEWAY_GROUP, "v1", "tcproutes")
TRAFFIC_POLICIES = Kind(GROUP, "v1alpha1", "trafficpolicies")
ACCESS_REVIEWS = Kind("authorization.k8s.io", "v1", "selfsubjectaccessreviews")


def missing_right(verb: str, kind: Kind, namespace: str, sub: str = "", of: str = "") -> str:
    """What gives a user the right that the API server said is missing. `of`: what was asked for by name."""
    what = f"--verb={verb} --resource={kind.resource(sub)}"
    if kind.by_name and of:
        what += f" --resource-name={of}"
    # A name of its own: the roles that the user has already stay as they are.
    name = "-".join(filter(None, ("pilotfish", verb, kind.plural, sub)))
    scope, where = ("", f" --namespace={namespace}") if namespace else ("cluster", "")
    return (
        f"kubectl create {scope}role {name}{where} {what} && kubectl create {scope}rolebinding "
        f"{name}{where} --{scope}role={name} --user=NAME  (kubectl auth whoami)"
    )
