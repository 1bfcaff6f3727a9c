"""What is kept of each kind of Kubernetes object: the fields that the mesh needs, read once, as it comes.

The reducers are called by the watches with one object at a time. They build on `objects`, which the
folder source reads with too, and add what only a cluster says: which Pod an endpoint is, where it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from control_plane.kube.client import Object
from control_plane.kube.store import ReduceError, Resource
from control_plane.model.mesh import ReferenceGrant
from control_plane.model.policy import TrafficPolicy
from control_plane.model.route import Route
from control_plane.model.service import EndpointPort, EndpointSlice, Service, WorkloadSettings
from control_plane.sources.fields import FieldError, Fields, path_text
from control_plane.sources.objects import POLICY_VERSION, Parsed, endpoint_port, parse, workload_settings
from control_plane.sources.routes import GATEWAY_GROUP
from mesh_api.names import (
    CAPTURE_ANNOTATION,
    GROUP,
    INBOUND_ANNOTATION,
    INJECTED_LABEL,
    OPAQUE_PORTS_ANNOTATION,
    SIDECAR_CONTAINER,
    SKIP_INBOUND_PORTS_ANNOTATION,
)

_UNSET = WorkloadSettings()
ZONE_LABEL = "topology.kubernetes.io/zone"
_READ = (f"{GROUP}/", "pod-security.kubernetes.io/")
"""Prefixes of the labels and annotations of Namespaces that are kept."""
_SETTINGS = (
    CAPTURE_ANNOTATION,
    INBOUND_ANNOTATION,
    OPAQUE_PORTS_ANNOTATION,
    SKIP_INBOUND_PORTS_ANNOTATION,
)


@dataclass(frozen=True, slots=True)
class PodFacts:
    service_account: str = ""
    """Empty: it has no sidecar."""
    node: str = ""
    leaving: bool = False
    """It is being deleted: its endpoints say so a little later."""
    settings: WorkloadSettings = _UNSET
    addresses: tuple[str, ...] = ()
    """Of a Pod with a sidecar, the primary one first; none in the network of its node."""
    ports: tuple[EndpointPort, ...] = ()
    """Of a Pod with a sidecar: those that its containers declare."""


@dataclass(frozen=True, slots=True)
class SliceFacts:
    """An EndpointSlice, and beside each of its endpoints which Pod it is and where it runs."""

    item: EndpointSlice
    family: str
    """`IPv4` or `IPv6`."""
    pods: tuple[str, ...]
    """Names in the slice's namespace; empty for an endpoint that is no Pod."""
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RouteFacts:
    route: Route | None
    """As it was last without a mistake; None: it never was."""
    refusal: str
    """What is wrong with it as it is now; empty: nothing."""
    field: str
    """Where that is."""
    api_version: str
    generation: int
    version: str
    """resourceVersion."""
    parents: tuple[str, ...]
    """Its references to Services, as JSON."""
    status: str
    """`status.parents`, as JSON."""


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """As RouteFacts."""

    policy: TrafficPolicy | None
    refusal: str
    field: str
    api_version: str
    generation: int
    version: str
    targets: tuple[str, ...]
    """Its references to Services, as JSON."""
    status: str
    """`status.ancestors`, as JSON."""


OUTSIDE = PodFacts()
_LEAVING_OUTSIDE = PodFacts(leaving=True)


def _parsed(item: Object) -> tuple[Parsed, ...]:
    try:
        return parse(item)
    except FieldError as error:
        raise ReduceError(error.message, path_text(error.path)) from None


def service(item: Object, _before: Service | None) -> Service | None:
    found = _parsed(item)
    return found[0] if found and isinstance(found[0], Service) else None


def endpoint_slice(item: Object, _before: SliceFacts | None) -> SliceFacts | None:
    """None for endpoints of no Service and for host names, which the mesh cannot reach."""
    labels = item["metadata"].get("labels") or {}
    if not labels.get("kubernetes.io/service-name") or item.get("addressType") == "FQDN":
        return None
    item["ports"] = [port for port in item.get("ports") or [] if port.get("port") is not None]
    found = _parsed(item)[0]
    if not isinstance(found, EndpointSlice):
        raise TypeError(f"an EndpointSlice was read as {type(found).__name__}")
    endpoints = item.get("endpoints") or []
    return SliceFacts(
        found,
        item["addressType"],
        tuple(_pod_name(endpoint.get("targetRef") or {}, found.namespace) for endpoint in endpoints),
        tuple(endpoint.get("nodeName") or "" for endpoint in endpoints),
    )


def _pod_name(target: Object, namespace: str) -> str:
    ours = target.get("kind") == "Pod" and target.get("namespace", namespace) == namespace
    return str(target.get("name") or "") if ours else ""


def pod(item: Object, _before: PodFacts | None) -> PodFacts | None:
    """Of a Pod without a sidecar only that it exists, and what it says of its ports."""
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    leaving = metadata.get("deletionTimestamp") is not None
    settings = _settings(metadata.get("annotations") or {})
    if not _has_sidecar(metadata.get("labels") or {}, spec):
        if settings == _UNSET:
            return _LEAVING_OUTSIDE if leaving else OUTSIDE
        return PodFacts(leaving=leaving, settings=settings)
    own_network = not spec.get("hostNetwork")
    return PodFacts(
        spec.get("serviceAccountName") or "default",
        spec.get("nodeName") or "",
        leaving,
        settings,
        tuple(entry["ip"] for entry in status.get("podIPs") or ()) if own_network else (),
        _container_ports(tuple(_declared_ports(spec))),
    )


def _settings(annotations: Object) -> WorkloadSettings:
    try:
        return _shared_settings(tuple(annotations.get(name) for name in _SETTINGS))
    except FieldError as error:
        raise ReduceError(error.message, path_text(error.path)) from None


@lru_cache(maxsize=1024)
def _shared_settings(values: tuple[str | None, ...]) -> WorkloadSettings:
    """Pods of one template share one value."""
    named = dict(zip(_SETTINGS, values, strict=True))
    return workload_settings(Fields(named, ("metadata", "annotations")))


def _declared_ports(spec: Object) -> Iterator[tuple[str, int]]:
    """Name and number of the TCP ports of all containers that stay, but for the sidecar's."""
    native = (c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always")
    for container in (*(spec.get("containers") or ()), *native):
        if container.get("name") != SIDECAR_CONTAINER:
            for port in container.get("ports") or ():
                if port.get("protocol", "TCP") == "TCP":
                    yield port.get("name") or "", port["containerPort"]


@lru_cache(maxsize=1024)
def _container_ports(declared: tuple[tuple[str, int], ...]) -> tuple[EndpointPort, ...]:
    """Pods of one template share one value."""
    return tuple(endpoint_port(Fields({"name": name}), "", number) for name, number in declared)


def _has_sidecar(labels: Object, spec: Object) -> bool:
    if INJECTED_LABEL in labels:
        return str(labels[INJECTED_LABEL]) != "false"
    containers = (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
    return any(container.get("name") == SIDECAR_CONTAINER for container in containers)


def node(item: Object, _before: str | None) -> str | None:
    """Its zone."""
    return (item["metadata"].get("labels") or {}).get(ZONE_LABEL) or None


def namespace(item: Object, _before: Object | None) -> Object:
    """Of its metadata what the injector reads: defaults of its pods, and what they may be."""
    metadata = item["metadata"]
    return {
        part: {name: text for name, text in (metadata.get(part) or {}).items() if name.startswith(_READ)}
        for part in ("labels", "annotations")
    }


def exists(_item: Object, _before: bool | None) -> bool | None:
    return True


def grants(item: Object, _before: tuple[ReferenceGrant, ...] | None) -> tuple[ReferenceGrant, ...] | None:
    return tuple(found for found in _parsed(item) if isinstance(found, ReferenceGrant))


def route(item: Object, before: RouteFacts | None) -> RouteFacts | None:
    """With the last good version of the route where this one has a mistake."""
    metadata = item["metadata"]
    facts = RouteFacts(
        route=before.route if before else None,
        refusal="",
        field="",
        api_version=item["apiVersion"],
        generation=metadata.get("generation") or 0,
        version=str(metadata.get("resourceVersion") or ""),
        parents=tuple(_service_parents(item)),
        status=json.dumps((item.get("status") or {}).get("parents") or [], sort_keys=True),
    )
    try:
        found = parse(item)[0]
    except FieldError as error:
        return replace(facts, refusal=error.message, field=path_text(error.path))
    if not isinstance(found, Route):
        raise TypeError(f"a route was read as {type(found).__name__}")
    if facts.route == found:
        return facts  # shares what did not change
    return replace(facts, route=found)


def policy(item: Object, before: PolicyFacts | None) -> PolicyFacts | None:
    """With the last good version of the policy where this one has a mistake."""
    metadata, spec = item["metadata"], item.get("spec") or {}
    facts = PolicyFacts(
        policy=before.policy if before else None,
        refusal="",
        field="",
        api_version=item["apiVersion"],
        generation=metadata.get("generation") or 0,
        version=str(metadata.get("resourceVersion") or ""),
        targets=tuple(dict.fromkeys(map(_as_json, spec.get("targetRefs") or []))),
        status=json.dumps((item.get("status") or {}).get("ancestors") or [], sort_keys=True),
    )
    try:
        found = parse(item)[0]
    except FieldError as error:
        return replace(facts, refusal=error.message, field=path_text(error.path))
    if not isinstance(found, TrafficPolicy):
        raise TypeError(f"a policy was read as {type(found).__name__}")
    return replace(facts, policy=found)


def _as_json(reference: Object) -> str:
    return json.dumps({**reference}, sort_keys=True)


def _service_parents(item: Object) -> Iterator[str]:
    """Each once, in order."""
    seen = set()
    for parent in (item.get("spec") or {}).get("parentRefs") or []:
        text = json.dumps(parent, sort_keys=True)
        if parent.get("kind") == "Service" and parent.get("group") in ("", "core") and text not in seen:
            seen.add(text)
            yield text


SERVICES: Resource[Service] = Resource("Service", ("v1",), "services", service)
SLICES: Resource[SliceFacts] = Resource(
    "EndpointSlice", ("discovery.k8s.io/v1",), "endpointslices", endpoint_slice
)
PODS: Resource[PodFacts] = Resource("Pod", ("v1",), "pods", pod)
NODES: Resource[str] = Resource("Node", ("v1",), "nodes", node)
NAMESPACES: Resource[Object] = Resource("Namespace", ("v1",), "namespaces", namespace)
ACCOUNTS: Resource[bool] = Resource("ServiceAccount", ("v1",), "serviceaccounts", exists)
HTTP_ROUTES: Resource[RouteFacts] = Resource(
    "HTTPRoute", (f"{GATEWAY_GROUP}/v1", f"{GATEWAY_GROUP}/v1beta1"), "httproutes", route, True
)
GRPC_ROUTES: Resource[RouteFacts] = Resource("GRPCRoute", (f"{GATEWAY_GROUP}/v1",), "grpcroutes", route, True)
TCP_ROUTES: Resource[RouteFacts] = Resource("TCPRoute", (f"{GATEWAY_GROUP}/v1",), "tcproutes", route, True)
GRANTS: Resource[tuple[ReferenceGrant, ...]] = Resource(
    "ReferenceGrant",
    (f"{GATEWAY_GROUP}/v1", f"{GATEWAY_GROUP}/v1beta1"),
    "referencegrants",
    grants,
    True,
)
POLICIES: Resource[PolicyFacts] = Resource(
    "TrafficPolicy", (POLICY_VERSION,), "trafficpolicies", policy, True
)
