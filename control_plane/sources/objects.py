"""Kubernetes objects (plain dictionaries) to the model. Shared by every source of them.

Kinds that the mesh has no use for are told apart from those it knows. A field that cannot be used
raises FieldError with its path; nothing is repaired silently, no file and no network is touched, and
references between objects are left to `references`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType

from control_plane.model.mesh import Mesh, ReferenceGrant
from control_plane.model.policy import TrafficPolicy
from control_plane.model.route import Route, RouteKind
from control_plane.model.service import (
    AppProtocol,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Service,
    ServicePort,
    WorkloadSettings,
    app_protocol,
    is_declared,
    speaks_tls,
)
from control_plane.sources.fields import FieldError, Fields
from control_plane.sources.policies import parse_policy
from control_plane.sources.routes import GATEWAY_GROUP, parse_route
from mesh_api.names import (
    CAPTURE_ANNOTATION,
    GROUP,
    INBOUND_ANNOTATION,
    OPAQUE_PORTS,
    OPAQUE_PORTS_ANNOTATION,
    SERVICE_ACCOUNT_ANNOTATION,
    SKIP_INBOUND_PORTS_ANNOTATION,
)

POLICY_VERSION = f"{GROUP}/v1alpha1"

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PORT_LIST = re.compile(r"\s*([0-9]{1,5}(\s*,\s*[0-9]{1,5})*)?\s*")
_NAME_RULE = "lower-case letters, digits and '-', starting and ending with a letter or digit"

_VERSIONS = {
    "Namespace": ("v1",),
    "Service": ("v1",),
    "ServiceAccount": ("v1",),
    "EndpointSlice": ("discovery.k8s.io/v1",),
    "HTTPRoute": (f"{GATEWAY_GROUP}/v1", f"{GATEWAY_GROUP}/v1beta1"),
    "GRPCRoute": (f"{GATEWAY_GROUP}/v1",),
    "TCPRoute": (f"{GATEWAY_GROUP}/v1",),
    "ReferenceGrant": (f"{GATEWAY_GROUP}/v1", f"{GATEWAY_GROUP}/v1beta1"),
    "TrafficPolicy": (POLICY_VERSION,),
}


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """What names an object: kind, namespace (empty for a Namespace) and name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    namespace: str
    name: str


Parsed = Service | EndpointSlice | Route | ReferenceGrant | ServiceAccount | TrafficPolicy


def describe(value: object) -> ObjectRef:
    """What an object is, before it is read. Raises FieldError if it is not a Kubernetes object."""
    fields = Fields(value)
    kind = fields.text("kind")
    fields.text("apiVersion")
    metadata = fields.mapping("metadata")
    name = metadata.matching("name", _SUBDOMAIN, f"{_NAME_RULE}; parts may be joined by dots")
    namespace = "" if kind == "Namespace" else metadata.matching("namespace", _LABEL, _NAME_RULE, "default")
    return ObjectRef(kind, namespace, name)


def is_known(value: object) -> bool:
    """Whether the mesh has a use for the object: by kind and API group, so that a version that is
    not supported is an error of `parse` and not silence."""
    fields = Fields(value)
    versions = _VERSIONS.get(fields.text("kind"), ())
    group = fields.text("apiVersion").rpartition("/")[0]
    return any(version.rpartition("/")[0] == group for version in versions)


def parse(value: object) -> tuple[Parsed, ...]:
    """One object of a kind that `is_known`. Nothing comes of a Namespace; a ReferenceGrant may hold several
    grants. Raises FieldError."""
    fields = Fields(value)
    ref = describe(value)
    version = fields.text("apiVersion")
    if version not in _VERSIONS[ref.kind]:
        raise FieldError(
            ("apiVersion",), f"is {version!r}; write {_VERSIONS[ref.kind][0]!r} for a {ref.kind}"
        )
    match ref.kind:
        case "Service":
            return _service(ref, fields)
        case "EndpointSlice":
            return (_endpoint_slice(ref, fields),)
        case "HTTPRoute" | "GRPCRoute" | "TCPRoute":
            return (parse_route(RouteKind(ref.kind), ref.namespace, ref.name, fields),)
        case "ReferenceGrant":
            return _grants(ref, fields)
        case "TrafficPolicy":
            return (parse_policy(ref.namespace, ref.name, fields),)
        case "ServiceAccount":
            return (ServiceAccount(ref.namespace, ref.name),)
        case _:
            return ()


def assemble(parsed: Iterable[Parsed]) -> Mesh:
    """The mesh of these objects, which are unique; references between them are not checked here."""
    found = list(parsed)
    return Mesh(
        services=MappingProxyType({item.key: item for item in found if isinstance(item, Service)}),
        slices=tuple(item for item in found if isinstance(item, EndpointSlice)),
        routes=tuple(item for item in found if isinstance(item, Route)),
        grants=tuple(item for item in found if isinstance(item, ReferenceGrant)),
        policies=tuple(item for item in found if isinstance(item, TrafficPolicy)),
        service_accounts=frozenset((i.namespace, i.name) for i in found if isinstance(i, ServiceAccount)),
    )


def workload_settings(annotations: Fields) -> WorkloadSettings:
    """What the annotations of a Pod or of an EndpointSlice say of how it is reached. Raises FieldError."""
    return WorkloadSettings(
        captured=annotations.choice(CAPTURE_ANNOTATION, ("enabled", "disabled"), "disabled") == "enabled",
        strict=annotations.choice(INBOUND_ANNOTATION, ("strict", "permissive"), "permissive") == "strict",
        opaque_ports=_port_list(annotations, OPAQUE_PORTS_ANNOTATION),
        skip_inbound_ports=_port_list(annotations, SKIP_INBOUND_PORTS_ANNOTATION),
    )


def _port_list(annotations: Fields, name: str) -> tuple[int, ...]:
    what = "port numbers with commas between them, such as 3306,6379"
    text = annotations.matching(name, _PORT_LIST, what, "").strip()
    found = tuple(sorted({int(part) for part in text.split(",")})) if text else ()
    if found and not 1 <= found[0] <= found[-1] <= 65535:
        raise annotations.error(name, f"is {text!r}; port numbers are from 1 to 65535")
    return found


def _service(ref: ObjectRef, fields: Fields) -> tuple[Service, ...]:
    spec = fields.mapping("spec")
    if spec.text("type", "ClusterIP") == "ExternalName":
        # A resolver follows the name whatever the port, so that its own ports mean nothing.
        name = spec.text("externalName").lower().removesuffix(".")
        return (Service(ref.namespace, ref.name, (), external_name=name),)
    opaque = _port_list(fields.mapping("metadata").mapping("annotations"), OPAQUE_PORTS_ANNOTATION)
    ports = []
    seen: dict[object, int] = {}
    for index, item in enumerate(spec.mappings("ports")):
        if item.choice("protocol", ("TCP", "UDP", "SCTP"), "TCP") != "TCP":
            continue
        port = _service_port(item, opaque)
        for field_name, key in (("name", port.name), ("port", port.port)):
            if seen.setdefault(key, index) != index:
                raise item.error(
                    field_name, f"{key!r} is used by ports[{seen[key]}] already; ports need their own"
                )
        ports.append(port)
    return (Service(ref.namespace, ref.name, tuple(ports), *_cluster_ips(spec)),)


def _service_port(item: Fields, opaque: tuple[int, ...]) -> ServicePort:
    """`opaque`: what the Service's annotation says; it may name the port or the one that it leads to."""
    name = item.text("name", "")
    number = item.port("port")
    target = item.value.get("targetPort", number)
    if isinstance(target, bool) or not isinstance(target, (int, str)):
        raise item.error("targetPort", "expected a port number or the name of a container's port")
    said = item.text("appProtocol", "")
    protocol = app_protocol(said, name, number in OPAQUE_PORTS)
    port = ServicePort(name, number, target, protocol, is_declared(said, name), speaks_tls(said, name))
    if number in opaque or target in opaque:
        port = replace(port, protocol=AppProtocol.TCP, declared=True)
    return port


def _cluster_ips(spec: Fields) -> tuple[tuple[str, ...], bool]:
    """Cluster addresses, and whether the Service is headless."""
    found = spec.texts("clusterIPs") or [spec.text("clusterIP", "")]
    if found[0] == "None":
        return (), True
    return tuple(_address(spec, "clusterIPs", text) for text in found if text), False


def _address(fields: Fields, name: str, text: str) -> str:
    """The address in its canonical form. Raises FieldError."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise fields.error(name, f"{text!r} is not an IP address") from None


def _endpoint_slice(ref: ObjectRef, fields: Fields) -> EndpointSlice:
    metadata = fields.mapping("metadata")
    labels = metadata.mapping("labels")
    if not labels.has("kubernetes.io/service-name"):
        raise metadata.error(
            "labels",
            "the label kubernetes.io/service-name, which names the Service of these endpoints, is missing",
        )
    fields.choice("addressType", ("IPv4", "IPv6"))
    annotations = metadata.mapping("annotations")
    account = annotations.matching(
        SERVICE_ACCOUNT_ANNOTATION, _SUBDOMAIN, f"the name of a ServiceAccount: {_NAME_RULE}", ""
    )
    ports = []
    for item in fields.mappings("ports"):
        if item.choice("protocol", ("TCP", "UDP", "SCTP"), "TCP") != "TCP":
            continue
        ports.append(endpoint_port(item, item.text("appProtocol", ""), item.port("port")))
    endpoints = tuple(_endpoint(item) for item in fields.mappings("endpoints"))
    service = labels.text("kubernetes.io/service-name")
    settings = workload_settings(annotations)
    return EndpointSlice(ref.namespace, ref.name, service, account, tuple(ports), endpoints, settings)


def endpoint_port(item: Fields, said: str, number: int) -> EndpointPort:
    """A port of an application; `said` is its appProtocol."""
    name = item.text("name", "")
    protocol = app_protocol(said, name, number in OPAQUE_PORTS)
    return EndpointPort(name, number, protocol, is_declared(said, name), speaks_tls(said, name))


def _endpoint(item: Fields) -> Endpoint:
    addresses = item.texts("addresses")
    if not addresses:
        raise item.error("addresses", "is required: one IP address")
    # Kubernetes defines no meaning for addresses beyond the first.
    address = _address(item, "addresses", addresses[0])
    conditions = item.mapping("conditions")
    ready = conditions.boolean("ready", True)
    label = item.text("hostname", "").lower()
    hostname = item.mapping("targetRef").text("name", "") or label
    return Endpoint(
        address=address,
        hostname=hostname or "endpoint-" + address.replace(".", "-").replace(":", "-"),
        ready=ready,
        serving=conditions.boolean("serving", ready),
        terminating=conditions.boolean("terminating", False),
        zone=item.text("zone", ""),
        hints=tuple(sorted(zone.text("name") for zone in item.mapping("hints").mappings("forZones"))),
        dns_label=label,
    )


def _grants(ref: ObjectRef, fields: Fields) -> tuple[ReferenceGrant, ...]:
    """What it allows routes to do; what it says of other kinds is left out."""
    spec = fields.mapping("spec")
    services = [
        to.text("name", "")
        for to in spec.mappings("to")
        if (to.text("group", ""), to.text("kind")) in (("", "Service"), ("core", "Service"))
    ]
    sources = [
        (source.text("kind"), source.text("namespace"))
        for source in spec.mappings("from")
        if source.text("group") == GATEWAY_GROUP
    ]
    return tuple(
        ReferenceGrant(ref.namespace, kind, namespace, service)
        for kind, namespace in sources
        for service in services
    )
