"""Facts about the cluster itself: versions, definitions, and what is left of an earlier installation.

Called by `check`, also before there is a mesh. Each function makes facts of what `World` reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from mesh_api.names import GROUP, NATIVE_SIDECARS
from pilotfish.operator import kinds
from pilotfish.operator.errors import ApiError
from pilotfish.operator.facts import Fact, failed, ok, some, warning
from pilotfish.operator.kinds import GATEWAY_GROUP
from pilotfish.operator.world import World

OWN_DEFINITIONS: tuple[str, ...] = (f"trafficpolicies.{GROUP}",)
"""CustomResourceDefinitions of `deploy/k8s`."""
_INSTALL_GATEWAY_API = (
    "kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/download/"
    "v1.6.1/standard-install.yaml"
)
_NEEDS = "docs/kubernetes.md#what-it-needs"


def kubernetes_version(world: World) -> Iterator[Fact]:
    version = _api_version(world)
    text = f"Kubernetes {version} at {world.api.server}"
    if version_of(version) >= NATIVE_SIDECARS or _native_sidecars(world) == "on":
        yield ok("kubernetes-version", text)
        return
    yield warning(
        "kubernetes-version",
        f"{text} has no native sidecars (1.29 and later): sidecars are ordinary containers",
        "nothing, unless its feature gate SidecarContainers is on: then --native-sidecars=on",
        "docs/kubernetes.md#without-native-sidecars",
    )


def _api_version(world: World) -> str:
    return str(world.about.get("gitVersion", "?"))


def _native_sidecars(world: World) -> str:
    """What the control plane was told (`--native-sidecars`)."""
    deployment = world.deployment
    containers = deployment["spec"]["template"]["spec"]["containers"] if deployment else ()
    lines = "\n".join(str(text) for each in containers for text in each.get("args") or ())
    # In one argument or in two; the last one counts.
    told: list[str] = re.findall(r"^--native-sidecars[=\n](.*)$", lines, re.MULTILINE)
    return told[-1] if told else "auto"


def node_versions(world: World) -> Iterator[Fact]:
    """Where the API server's version decides for native sidecars, the kubelets have to know them too."""
    versions = {
        node["metadata"]["name"]: str(node["status"]["nodeInfo"]["kubeletVersion"]) for node in world.nodes
    }
    old = sorted(name for name, version in versions.items() if version_of(version) < NATIVE_SIDECARS)
    # The Deployment comes last: not everybody may read it, and seldom does it matter.
    if old and version_of(_api_version(world)) >= NATIVE_SIDECARS and _native_sidecars(world) == "auto":
        yield failed(
            "node-versions",
            f"{len(old)} of {len(versions)} nodes are too old for native sidecars (1.29): {some(old)}",
            "give the control plane --native-sidecars=off until they are upgraded",
            _NEEDS,
        )
    else:
        known = ", ".join(sorted(set(versions.values()))) or "none"
        yield ok("node-versions", f"nodes: {len(versions)}, kubelet {known}")


def gateway_definitions(world: World) -> Iterator[Fact]:
    group = world.group(GATEWAY_GROUP, "v1")
    names = {item["name"] for item in (group or {}).get("resources") or ()}
    missing = [kind.plural for kind in (kinds.HTTP_ROUTES, kinds.GRPC_ROUTES) if kind.plural not in names]
    if missing:
        yield warning(
            "gateway-api",
            f"Gateway API's definitions are not installed ({', '.join(missing)} {GATEWAY_GROUP}/v1): "
            "there can be no routes",
            _INSTALL_GATEWAY_API,
            _NEEDS,
        )
        return
    version = _bundle_version(world)
    if version and version_of(version) < (1, 2):
        yield warning(
            "gateway-api",
            f"Gateway API {version} is older than 1.2",
            _INSTALL_GATEWAY_API,
            _NEEDS,
        )
    else:
        # Standard only since 1.6: a cluster without it lacks nothing that it was promised.
        more = ", TCPRoute" if kinds.TCP_ROUTES.plural in names else ""
        said = version or "(version not to be read)"
        yield ok("gateway-api", f"Gateway API {said}: HTTPRoute, GRPCRoute{more}")


def _bundle_version(world: World) -> str:
    """Empty: not said, or not for this user to read."""
    try:
        definition = world.definition(f"httproutes.{GATEWAY_GROUP}") or {"metadata": {}}
    except ApiError as error:
        if error.status != 403:
            raise
        return ""
    annotations = definition["metadata"].get("annotations") or {}
    return str(annotations.get(f"{GATEWAY_GROUP}/bundle-version", ""))


def own_definitions(world: World, names: Iterable[str] = OWN_DEFINITIONS) -> Iterator[Fact]:
    for name in names:
        if world.definition(name) is None:
            yield failed(
                "definitions", f"definition {name} is not installed", "kubectl apply -k deploy/k8s", _NEEDS
            )
        else:
            yield ok("definitions", f"definition {name} is installed")


def leftovers(world: World) -> Iterator[Fact]:
    """A webhook without a control plane behind it, before an installation."""
    webhook, deployment = world.webhook, world.deployment
    if webhook is not None and deployment is None:
        policy = webhook["webhooks"][0].get("failurePolicy", "Fail")
        yield (failed if policy == "Fail" else warning)(
            "leftovers",
            f"MutatingWebhookConfiguration pilotfish-injector is left of another installation ({policy})",
            "kubectl delete mutatingwebhookconfiguration pilotfish-injector",
            "docs/upgrade.md#leftovers",
        )
    elif deployment is not None:
        yield ok("leftovers", "pilotfish is installed already: see docs/upgrade.md")
    else:
        yield ok("leftovers", "nothing is left of another installation")


def version_of(text: str) -> tuple[int, int]:
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
