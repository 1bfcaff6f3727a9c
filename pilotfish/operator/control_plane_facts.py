"""Facts about the control plane: is it there, whole, of one version, reachable, and of one root.

Called by `check`. Each function makes facts of what `World` reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from mesh_api.names import STATUS_PORT
from pilotfish.operator.cluster_facts import version_of
from pilotfish.operator.errors import NOT_READY_PAGE
from pilotfish.operator.facts import Fact, failed, logs, ok, some, warning
from pilotfish.operator.replicas import CONTROL_PLANE, SELECTOR, parse_time
from pilotfish.operator.table import span
from pilotfish.operator.transport import Object
from pilotfish.operator.world import World

SERVICES = (CONTROL_PLANE, "pilotfish-injector")
ROOT_WARNING_DAYS = 180
ROOT_FAILURE_DAYS = 30
SERVING_WARNING = 3600.0
"""Seconds; the control plane's own certificates are renewed at half of their life, which is a day."""
_INSTALL = "docs/kubernetes.md#install"
_UPGRADE = "docs/upgrade.md#upgrade"
_CERTIFICATES = "docs/troubleshooting.md#certificates"


def deployment(world: World) -> Iterator[Fact]:
    found = world.deployment
    if found is None:
        yield failed(
            "control-plane",
            f"there is no Deployment {CONTROL_PLANE} in namespace {world.system}",
            "kubectl apply -k deploy/k8s",
            _INSTALL,
        )
        return
    wanted, status = int(found["spec"].get("replicas", 1)), found.get("status") or {}
    ready, updated = int(status.get("readyReplicas") or 0), int(status.get("updatedReplicas") or 0)
    text = f"{ready} of {wanted} replicas of the control plane are ready"
    describe = f"kubectl -n {world.system} describe deployment {CONTROL_PLANE}"
    if ready == 0:
        yield failed("control-plane", text, describe, NOT_READY_PAGE)
    elif ready < wanted or updated < wanted:
        being = f"; {updated} are of the newest generation" if updated < wanted else ""
        yield warning("control-plane", text + being, describe, NOT_READY_PAGE)
    elif wanted < 2:
        scale = f"kubectl -n {world.system} scale deployment {CONTROL_PLANE} --replicas=2"
        yield warning("control-plane", f"{text}: one alone is no reserve", scale, _INSTALL)
    else:
        yield ok("control-plane", text)


def services(world: World) -> Iterator[Fact]:
    ready: dict[str, int] = dict.fromkeys(SERVICES, 0)
    for entry in world.endpoint_slices:
        name = (entry["metadata"].get("labels") or {}).get("kubernetes.io/service-name")
        if name in ready:
            ready[name] += sum(_takes_traffic(endpoint) for endpoint in entry.get("endpoints") or ())
    for name in SERVICES:
        if world.service(name) is None:
            yield failed(
                "services",
                f"there is no Service {name} in namespace {world.system}",
                "kubectl apply -k deploy/k8s",
                _INSTALL,
            )
        elif not ready[name]:
            yield failed(
                "services",
                f"Service {name} has no ready endpoints",
                f"kubectl -n {world.system} get endpointslices -l kubernetes.io/service-name={name}",
                NOT_READY_PAGE,
            )
        else:
            yield ok("services", f"Service {name} has {ready[name]} ready endpoints")


def _takes_traffic(endpoint: Object) -> bool:
    return bool((endpoint.get("conditions") or {}).get("ready", True))


def replicas(world: World) -> Iterator[Fact]:
    """Whether each answers on its status port and serves."""
    for replica in world.replicas:
        name = f"{world.system}/{replica.name}"
        if replica.error:
            error = replica.error
            yield failed("status-page", f"{name}: {error.text}", error.hint, error.link)
        elif replica.status["not_ready"]:
            text = f"{name} is not ready: {replica.status['not_ready']}"
            yield failed("status-page", text, logs(name), NOT_READY_PAGE)
        else:
            yield ok("status-page", f"{name} answers, version {replica.version}")


def one_version(world: World) -> Iterator[Fact]:
    known = sorted({replica.version for replica in world.answering})
    if len(known) > 1:
        yield warning(
            "control-plane-version",
            f"the replicas of the control plane are of versions {', '.join(known)}",
            f"kubectl -n {world.system} rollout status deployment {CONTROL_PLANE}",
            _UPGRADE,
        )
        return
    own = version("pilotfish")
    if known and apart(own, known[0]) > 1:
        yield warning(
            "control-plane-version",
            f"this command is of version {own}, the control plane of {known[0]}: more than one minor apart",
            "take that of the control plane's version: pip install . from a clone of it",
            _UPGRADE,
        )
    elif known:
        yield ok("control-plane-version", f"control plane {known[0]}, this command {own}")


def apart(one: str, other: str) -> int:
    """Minor versions between two versions; another major is far away, and so is what is not known."""
    a, b = version_of(one), version_of(other)
    if a[0] != b[0] or "unknown" in (one, other):
        return 99
    return abs(a[1] - b[1])


def root(world: World) -> Iterator[Fact]:
    found = [replica.status["certificates"] for replica in world.answering]
    if not found:
        return
    prints = {entry.get("root_sha256") for entry in found}
    if len(prints) > 1:
        yield failed(
            "root",
            "the replicas of the control plane sign with different roots",
            f"kubectl -n {world.system} rollout restart deployment {CONTROL_PLANE}  (they share a Secret)",
            _CERTIFICATES,
        )
        return
    days = min(int(entry["root_days_left"]) for entry in found)
    text = f"the mesh's root ends in {days} days"
    if days >= ROOT_WARNING_DAYS:
        yield ok("root", text)
        return
    make = failed if days < ROOT_FAILURE_DAYS else warning
    yield make("root", text, "a new root means new pods: plan it", _CERTIFICATES)


def serving_certificates(world: World) -> Iterator[Fact]:
    for replica in world.answering:
        for key, what in (("serving_not_after", "of discovery"), ("webhook_not_after", "of the webhook")):
            end = replica.status["certificates"].get(key)
            if end is None:
                continue
            left = parse_time(end).timestamp() - world.now()
            ends = f"ends in {span(left)}" if left > 0 else f"ended {span(-left)} ago"
            text = f"{replica.name}: the certificate {what} {ends}"
            if left > SERVING_WARNING:
                yield ok("serving-certificate", text)
            else:
                make = failed if left <= 0 else warning
                hint = f"it was not renewed: {logs(f'{world.system}/{replica.name}')}"
                yield make("serving-certificate", text, hint, _CERTIFICATES)


def all_logs(system: str) -> str:
    """The command that shows what all replicas say: `logs` of a Deployment shows those of one."""
    return f"kubectl -n {system} logs -l {SELECTOR} --prefix --tail=-1"


def configuration(world: World) -> Iterator[Fact]:
    """What the control plane thinks of Services, routes and policies; the replicas read the same."""
    for replica in world.answering[:1]:
        problems = replica.status["problems"]
        for severity, make in (("error", failed), ("warning", warning)):
            found = [p for p in problems if p["severity"] == severity]
            if found:
                texts = [f"{p['object'] or p['file']} {p['field']}: {p['message']}".strip() for p in found]
                number = f"{len(found)} {severity}{'s' if len(found) > 1 else ''}"
                yield make(
                    "configuration",
                    f"{number} in the configuration: {some(texts, 3)}",
                    f"all: kubectl -n {world.system} port-forward deployment/{CONTROL_PLANE} {STATUS_PORT}, "
                    f"and http://127.0.0.1:{STATUS_PORT}",
                    "docs/troubleshooting.md#a-route-has-no-effect",
                )
        if not any(p["severity"] in ("error", "warning") for p in problems):
            yield ok("configuration", "the control plane found no errors in Services, routes and policies")
