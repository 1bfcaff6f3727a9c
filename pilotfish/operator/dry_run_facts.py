"""Facts about new pods: whether each labelled namespace would take one with its sidecar.

Called by `check`. The webhook is tried as it is used: by making a pod, as a dry run. Pod security, quotas and
limits differ between namespaces, so each is tried, up to a number.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from control_plane.injector.sidecar_container import InjectionSettings
from mesh_api.names import GROUP, INJECTED_LABEL, SIDECAR_CONTAINER
from pilotfish.operator.errors import RIGHTS_PAGE, WEBHOOK_PAGE, ApiError
from pilotfish.operator.facts import Fact, State, some
from pilotfish.operator.kinds import PODS, missing_right
from pilotfish.operator.transport import Answer, Object
from pilotfish.operator.world import World

MOST = 20
"""Namespaces that are tried."""
_OURS = f'"inject.{GROUP}"'
"""The webhook, as the API server names it."""
_LINK = "docs/troubleshooting.md#pods-have-no-sidecar"
_ANNOTATIONS = "docs/kubernetes.md#put-workloads-into-the-mesh"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means, whichever namespace it came from."""

    state: State
    text: str
    """`{where}`: the namespaces; `{run}`: how they were tried."""
    hint: str = ""
    """`{namespace}`: the first of them."""
    link: str = ""


INJECTED = Verdict(State.OK, "a new pod in {where} would get its sidecar ({run})")
MISSED = Verdict(
    State.FAILED,
    "a new pod in {where} would get no sidecar ({run}): the webhook did not answer",
    "can the API server reach port 15017 of the control plane's pods? Is caBundle right?",
    WEBHOOK_PAGE,
)
UNANSWERED = Verdict(
    State.FAILED,
    "no pod can be made in {where}",
    "the words behind the last colon say why: x509 is the caBundle, timeout a firewall",
    WEBHOOK_PAGE,
)
REFUSED = Verdict(
    State.FAILED,
    "the injector refuses pods in {where}",
    "an annotation of the namespace is wrong: kubectl get namespace {namespace} -o yaml",
    _ANNOTATIONS,
)
STUCK = Verdict(
    State.FAILED,
    "a new pod in {where} would never start ({run}): the API server takes away what lets its sidecar run on "
    "(restartPolicy of an init container)",
    "give the control plane --native-sidecars=off",
    "docs/kubernetes.md#without-native-sidecars",
)
POD_SECURITY = Verdict(
    State.FAILED,
    "a pod with a sidecar is refused in {where}",
    "capture needs NET_ADMIN in an init container: let the namespace have it, "
    f"or annotate pods with {GROUP}/capture: disabled",
    _LINK,
)
LIMITS = Verdict(
    State.FAILED,
    "a pod with a sidecar is outside of the limits of {where}",
    "kubectl -n {namespace} describe limitrange,resourcequota; the sidecar's share is "
    f"{GROUP}/proxy-cpu, proxy-cpu-limit and proxy-memory",
    _ANNOTATIONS,
)
FULL = Verdict(
    State.WARNING,
    "no room for another pod with a sidecar in {where}",
    "kubectl -n {namespace} describe resourcequota",
    _ANNOTATIONS,
)
FOREIGN = Verdict(
    State.WARNING,
    "another webhook stops a pod with a sidecar in {where}",
    "is it about the sidecar (its image; NET_ADMIN and NET_RAW of pilotfish-init), or about any pod "
    "(the tried one has the image `probe`)?",
    _LINK,
)
DENIED = Verdict(
    State.WARNING,
    "whether new pods get sidecars was not tried in {where}: you may not create pods",
    missing_right("create", PODS, "{namespace}"),
    RIGHTS_PAGE,
)
OTHER = Verdict(
    State.WARNING,
    "a pod with a sidecar cannot be made in {where}",
    "a policy of the cluster, perhaps: the API server's words are above",
    _LINK,
)
_BY_WORDS = (
    (f"failed calling webhook {_OURS}", UNANSWERED),
    (f"admission webhook {_OURS} denied", REFUSED),
    (" webhook ", FOREIGN),
    ("violates PodSecurity", POD_SECURITY),
    ("exceeded quota", FULL),
    ("failed quota", LIMITS),
    (" usage per ", LIMITS),
    (" ratio per ", LIMITS),
    ("cannot create resource", DENIED),
)
"""The first whose words the API server uses."""


def new_pods(world: World) -> Iterator[Fact]:
    if world.webhook is None or not world.labelled:
        return
    tried, known = world.labelled[:MOST], len(world.labelled)
    verdicts = world.api.at_once(lambda namespace: _try(world, namespace), tried)
    found: dict[Verdict, dict[str, str]] = defaultdict(dict)
    for namespace, (verdict, message) in zip(tried, verdicts, strict=True):
        found[verdict][namespace] = message
    run = "dry run" if known <= MOST else f"dry run in {MOST} of {known} namespaces; -n tries another"
    for verdict, messages in found.items():
        yield _fact(verdict, messages, run)


def _try(world: World, namespace: str) -> tuple[Verdict, str]:
    """Raises ApiError where that says nothing of the namespace."""
    try:
        return verdict_of(world.api.dry_run(PODS, namespace, probe_pod()))
    except ApiError as error:
        if error.status != 504:
            raise
        # A webhook that is slow may be one of this namespace alone.
        text = "no answer came to a new pod in {where}"
        return Verdict(State.FAILED, text, error.hint, error.link), error.text


def probe_pod() -> Object:
    """A pod that the strictest namespace takes, no larger than its sidecar: limits refuse both or none."""
    sidecar = InjectionSettings(image="")
    share = {"cpu": sidecar.cpu, "memory": sidecar.memory_request}
    container = {
        "name": "probe",
        "image": "probe",
        "resources": {"requests": share, "limits": share},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "pilotfish-check-"},
        "spec": {"containers": [container]},
    }


def verdict_of(answer: Answer) -> tuple[Verdict, str]:
    """With the words of the API server where they say more than the verdict."""
    if answer.status == 201:
        return _admitted(json.loads(answer.body)), ""
    message = str((answer.status_object() or {}).get("message") or answer.text())[:500]
    verdict = next((verdict for words, verdict in _BY_WORDS if words in message), None)
    if verdict is None:
        return OTHER, f"{answer.status}: {message}"
    return verdict, "" if verdict is DENIED else message


def _admitted(pod: Object) -> Verdict:
    """Of a pod as it would be stored."""
    if (pod["metadata"].get("labels") or {}).get(INJECTED_LABEL) != "true":
        return MISSED
    initial = {container["name"]: container for container in pod["spec"].get("initContainers") or ()}
    sidecar = initial.get(SIDECAR_CONTAINER)
    return STUCK if sidecar is not None and sidecar.get("restartPolicy") != "Always" else INJECTED


def _fact(verdict: Verdict, messages: Mapping[str, str], run: str) -> Fact:
    first, message = next(iter(messages.items()))
    where = f"namespace{'s' if len(messages) > 1 else ''} {some(list(messages))}"
    text = verdict.text.format(where=where, run=run)
    if message:
        text += f": {message}" if len(messages) == 1 else f" ({first}: {message})"
    return Fact("new-pods", verdict.state, text, verdict.hint.format(namespace=first), verdict.link)
