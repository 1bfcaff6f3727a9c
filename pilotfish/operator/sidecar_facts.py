"""Facts about sidecars: are they ready, connected, in step, of a version that fits, and are their rules set.

Called by `check`. Many sidecars make one line; those that are wrong are named in it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from mesh_api.names import INIT_CONTAINER, SIDECAR_CONTAINER
from pilotfish.operator.control_plane_facts import all_logs, apart
from pilotfish.operator.facts import Fact, failed, logs, ok, some, warning
from pilotfish.operator.pods import container_state, full_name, is_ready, why_not_running
from pilotfish.operator.replicas import Client
from pilotfish.operator.table import remaining, span
from pilotfish.operator.transport import Object
from pilotfish.operator.world import World

CERTIFICATE_WARNING = 3600.0
"""Seconds; sidecars renew at about half of a day."""
_READY = "docs/troubleshooting.md#a-pod-does-not-start"
_CAPTURE = "docs/troubleshooting.md#capture-was-not-set"
_STEP = "docs/troubleshooting.md#a-sidecar-is-not-in-step"
_CERTIFICATES = "docs/troubleshooting.md#certificates"


def rules(world: World) -> Iterator[Fact]:
    """The init container says by its end whether the rules of capture are set."""
    captured = [(pod, container_state(pod, INIT_CONTAINER)) for pod in world.meshed]
    states = [(pod, state) for pod, state in captured if state is not None]
    if not states:
        return
    wrong = {full_name(pod): reason for pod, state in states if (reason := _rules_missing(state))}
    if not wrong:
        yield ok("rules", f"the rules of capture are set (pods: {len(states)})")
        return
    name, reason = next(iter(wrong.items()))
    yield failed(
        "rules",
        f"the rules of capture are not set in {_of(wrong, states)} ({name}: {reason})",
        logs(name, INIT_CONTAINER),
        _CAPTURE,
    )


def _rules_missing(status: Object) -> str:
    """Empty: they are set."""
    for state in (status.get("state") or {}, status.get("lastState") or {}):
        ended = state.get("terminated")
        if ended:
            if ended.get("exitCode") == 0:
                return ""
            last = str(ended.get("message") or ended.get("reason") or "").strip().splitlines()
            return f"exit status {ended.get('exitCode')}: {last[-1] if last else 'it said nothing'}"
    waiting = (status.get("state") or {}).get("waiting") or {}
    return str(waiting.get("reason") or "it has not ended yet")


def ready(world: World) -> Iterator[Fact]:
    meshed = world.meshed
    if not meshed:
        return
    wrong = {
        full_name(pod): why_not_running(pod) or "running, but not ready"
        for pod in meshed
        if not is_ready(pod) and not pod["metadata"].get("deletionTimestamp")
    }
    if not wrong:
        yield ok("sidecars-ready", f"sidecars: {len(meshed)} ready")
        return
    name, reason = next(iter(wrong.items()))
    namespace, pod = name.split("/")
    yield failed(
        "sidecars-ready",
        f"not ready: the sidecars of {_of(wrong, meshed)} ({name}: {reason})",
        f"pilotfish status says what they wait for; kubectl -n {namespace} describe pod {pod}; "
        f"{logs(name, SIDECAR_CONTAINER)}",
        _READY,
    )


def connected(world: World) -> Iterator[Fact]:
    """Every ready sidecar has a stream to a replica, and so proved its identity."""
    if not world.answering:
        return
    known = {(client.namespace, client.name) for client in world.clients}
    running = [pod for pod in world.meshed if is_ready(pod)]
    lost = {full_name(pod): "" for pod in running if tuple(full_name(pod).split("/")) not in known}
    silent = [replica.name for replica in world.replicas if replica.error]
    if lost and silent:
        text = f"{_of(lost, running)} may be connected to {some(silent)}, which did not answer"
        yield warning("sidecars-connected", text, "its line above says why", _STEP)
    elif lost:
        yield failed(
            "sidecars-connected",
            f"not connected to the control plane: {_of(lost, running)}",
            "pilotfish status says why; they go on with what they have until their certificates end",
            _STEP,
        )
    elif running:
        yield ok("sidecars-connected", f"sidecars: {len(running)} connected to the control plane")


def identities(world: World) -> Iterator[Fact]:
    found = [replica.status["certificates"] for replica in world.answering]
    if not found:
        return
    signed, refused = (sum(int(entry[key]) for entry in found) for key in ("signed", "refused"))
    text = f"identities: {signed} certificates were signed since the control plane started, {refused} refused"
    if refused:
        command = f"{all_logs(world.system)} | grep 'certificate refused'"
        yield warning("identities", text, command, _CERTIFICATES)
    elif not signed and world.meshed:
        yield warning("identities", text, "sidecars renew after half a day at the latest", _CERTIFICATES)
    else:
        yield ok("identities", text)
    yield from _ending(world.clients, world.now())


def _ending(clients: Sequence[Client], now: float) -> Iterator[Fact]:
    left = {
        f"{client.namespace}/{client.name}": client.not_after.timestamp() - now
        for client in clients
        if client.not_after is not None
    }
    short = {name: seconds for name, seconds in left.items() if seconds < CERTIFICATE_WARNING}
    if short:
        name = min(short, key=short.__getitem__)
        yield warning(
            "certificates",
            f"certificates that were not renewed: {_of(short, left)} ({name}: {remaining(short[name])})",
            f"{_proxy_config(name)} certs shows the last error",
            _CERTIFICATES,
        )
    elif left:
        yield ok("certificates", f"certificates of sidecars last {span(min(left.values()))} at least")


def in_step(world: World) -> Iterator[Fact]:
    clients = world.clients
    if not clients:
        return
    behind = {
        f"{client.namespace}/{client.name}": "; ".join(client.why) for client in clients if not client.in_step
    }
    if not behind:
        yield ok("sidecars-in-step", f"sidecars: {len(clients)} in step with their configuration")
        return
    name, reason = next(iter(behind.items()))
    refused = any(" refused " in why for why in behind.values())
    yield (failed if refused else warning)(
        "sidecars-in-step",
        f"not in step: {_of(behind, clients)} ({name}: {reason})",
        "pilotfish status shows them all, and what they refused",
        _STEP,
    )


def versions(world: World) -> Iterator[Fact]:
    """Sidecars and control plane may be one minor version apart."""
    planes = {replica.version for replica in world.answering} - {"unknown"}
    by_version: dict[str, list[str]] = defaultdict(list)
    for client in world.clients:
        if client.version != "unknown":
            by_version[client.version].append(f"{client.namespace}/{client.name}")
    if not planes or not by_version:
        return
    far = {
        name: version
        for version, names in by_version.items()
        for name in names
        if _numbered(version) and any(apart(version, plane) > 1 for plane in planes)
    }
    if far:
        yield warning(
            "sidecar-versions",
            f"more than one minor version from the control plane: {_of(far, world.clients)}",
            "restart what made these pods, in each of their namespaces: "
            f"kubectl -n {min(far).split('/')[0]} rollout restart deployment",
            "docs/upgrade.md#upgrade",
        )
    else:
        counts = ", ".join(f"{len(names)} of {version}" for version, names in sorted(by_version.items()))
        yield ok("sidecar-versions", f"versions of sidecars: {counts}")


def _proxy_config(sidecar: str) -> str:
    """The command that asks one of them (`NAMESPACE/NAME`)."""
    namespace, name = sidecar.split("/")
    return f"pilotfish proxy-config {name}.{namespace}"


def _numbered(version: str) -> bool:
    return bool(re.match(r"v?\d+\.\d+", version))


def _of(wrong: Mapping[str, object], everything: Sequence[object] | Mapping[str, object]) -> str:
    """`2 of 7: a, b`."""
    return f"{len(wrong)} of {len(everything)}: {some(sorted(wrong))}"
