"""What the replicas of the control plane say: every sidecar is connected to one of them, so all are asked.

Used by `status` and `check`. Their status pages are asked through the API server, or at addresses.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mesh_api.names import ADMIN_PORT, STATUS_PORT
from pilotfish.operator.api import Api
from pilotfish.operator.errors import NOT_READY_PAGE, ApiError, OperatorError
from pilotfish.operator.kinds import PODS
from pilotfish.operator.transport import Object

CONTROL_PLANE = "pilotfish-control-plane"
"""Name of Deployment, Service and ServiceAccount in `deploy/k8s`."""
SYSTEM_NAMESPACE = "pilotfish-system"
SELECTOR = f"app.kubernetes.io/name={CONTROL_PLANE}"
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of the control plane."""

    name: str
    status: Object
    """`/status.json`; empty when there is an error."""
    error: OperatorError | None = None
    """Why it was not to be asked."""
    asked_at: float | None = None
    """Seconds since the epoch, by this machine's clock."""

    @property
    def version(self) -> str:
        """`unknown` of one that is older than this field."""
        return str(self.status.get("version") or "unknown")


@dataclass(frozen=True, slots=True)
class Client:
    """One sidecar (or other xDS client) that is connected."""

    node: str
    namespace: str
    version: str
    in_step: bool
    why: tuple[str, ...]
    """Why it is not in step: what it refused, with its own words, and what is under way."""
    not_after: datetime | None
    """When its certificate ends; None: not known to any replica."""
    replica: str
    connected_at: str

    @property
    def name(self) -> str:
        """Of the pod or workload: sidecars call themselves NAME.NAMESPACE."""
        return self.node.removesuffix(f".{self.namespace}")


def replicas_in(api: Api, namespace: str) -> list[Replica]:
    """Asks all that run. Raises OperatorError when there is none, and ApiError."""
    pods = [pod for pod in api.items(PODS, namespace, SELECTOR) if _runs(pod)]
    if not pods:
        raise OperatorError(
            f"no control plane runs in namespace {namespace}",
            f"kubectl -n {namespace} get pods; if it is elsewhere, use --system-namespace",
            NOT_READY_PAGE,
        )
    return api.at_once(lambda pod: _asked(api, namespace, str(pod["metadata"]["name"])), pods)


def _runs(pod: Object) -> bool:
    running = (pod.get("status") or {}).get("phase") == "Running"
    return running and not pod["metadata"].get("deletionTimestamp")


def _asked(api: Api, namespace: str, pod: str) -> Replica:
    hint = f"kubectl -n {namespace} logs {pod}"
    try:
        answer = api.page(namespace, pod, STATUS_PORT, "/status.json")
        if answer.status != 200:
            text = f"its status page answered with {answer.status}: {answer.text()[:200]}"
            return Replica(pod, {}, OperatorError(text, hint, NOT_READY_PAGE))
        return Replica(pod, _object(answer.body), asked_at=time.time())
    except ApiError as error:
        return Replica(pod, {}, error)
    except ValueError:
        return Replica(pod, {}, OperatorError("its status page is no JSON object", hint, NOT_READY_PAGE))


def replicas_at(addresses: Iterable[str]) -> list[Replica]:
    """Asks `HOST:PORT` of status ports. Raises OperatorError."""
    return [Replica(address, fetch(address, "/status.json", "control plane")) for address in addresses]


def fetch(address: str, path: str, what: str) -> Any:
    """The JSON at a plain HTTP address, `what` it belongs to. Raises OperatorError."""
    port = {"control plane": STATUS_PORT, "sidecar": ADMIN_PORT}[what]
    hint = f"HOST:PORT of its port {port}; kubectl -n NAMESPACE port-forward pod/POD {port} brings it here"
    try:
        connection = http.client.HTTPConnection(address, timeout=_TIMEOUT)
    except http.client.InvalidURL as error:
        raise OperatorError(f"{address!r} is no address of a {what}: {error}", hint) from error
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            text = body.decode("utf-8", "replace").strip()
            raise OperatorError(f"{what} at {address} answered {path} with {response.status}: {text}", hint)
        return json.loads(body)
    except (OSError, http.client.HTTPException) as error:
        text = f"no answer from the {what} at {address}: {error or type(error).__name__}"
        raise OperatorError(text, hint) from error
    except ValueError as error:
        raise OperatorError(f"what {address} sends for {path} is no JSON: is it a {what}?", hint) from error
    finally:
        connection.close()


def _object(body: bytes) -> Object:
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def clients_of(replicas: Sequence[Replica]) -> list[Client]:
    """All clients by namespace and name. One that two replicas know is with the one it came to last."""
    ends: dict[tuple[str, str], datetime] = {}
    for replica in replicas:
        for entry in (replica.status.get("certificates") or {}).get("issued") or ():
            key, end = (entry["identity"], entry["host"]), parse_time(entry["not_after"])
            ends[key] = max(end, ends.get(key, end))
    newest: dict[tuple[str, str], Client] = {}
    for replica in replicas:
        for entry in replica.status.get("clients") or ():
            client = _client(entry, replica.name, ends)
            known = newest.get((client.namespace, client.node))
            if known is None or client.connected_at > known.connected_at:
                newest[client.namespace, client.node] = client
    return [newest[key] for key in sorted(newest)]


def _client(entry: Object, replica: str, ends: dict[tuple[str, str], datetime]) -> Client:
    identity = str(entry["identity"])
    return Client(
        node=str(entry["node"]),
        namespace=identity.partition("/")[0],
        version=str(entry.get("version") or "unknown"),
        in_step=bool(entry["in_step"]),
        why=tuple(_reason(state) for state in entry["types"] if not state["in_step"]),
        not_after=ends.get((identity, str(entry["peer"]).rpartition(":")[0])),
        replica=replica,
        connected_at=str(entry["connected_at"]),
    )


def _reason(state: Object) -> str:
    refused = state.get("refused")
    if not refused:
        return f"{state['type']}: {state['state']}"
    names = ", ".join(refused["names"])
    return f"{state['type']} refused {names} since {refused['time']}: {refused['text']}"


def parse_time(text: str) -> datetime:
    """Of the status page and of Kubernetes objects."""
    return datetime.fromisoformat(text)
