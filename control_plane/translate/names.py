"""Names of xDS resources, and which service a name means to whom.

A service's port has one canonical name, `users.shop.svc.cluster.local:80`, for its routes, its cluster
and its endpoints. Listeners are asked for by what a client calls the service, `users:80` or an address;
a short name means the caller's own namespace. One port of one workload is named by its address,
`10.1.2.3:8080`, in all four types. Used by the other translators and the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from control_plane.model.service import Service, ServiceKey

_PREFIX = "type.googleapis.com/"
LISTENER = _PREFIX + "envoy.config.listener.v3.Listener"
ROUTE_CONFIGURATION = _PREFIX + "envoy.config.route.v3.RouteConfiguration"
CLUSTER = _PREFIX + "envoy.config.cluster.v3.Cluster"
LOAD_ASSIGNMENT = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"


class Target(NamedTuple):
    """A port of a Service, by number."""

    service: ServiceKey
    port: int


def canonical(target: Target, domain: str) -> str:
    """`domain` is the cluster's, such as `cluster.local`."""
    return f"{target.service.name}.{target.service.namespace}.svc.{domain}:{target.port}"


def _split(name: str) -> tuple[str, int] | None:
    host, colon, port = name.rpartition(":")
    # Only the digits that a number prints as: `080` would be a second name for one resource.
    if not colon or not port.isascii() or not port.isdigit() or str(int(port)) != port:
        return None
    return host, int(port)


def parse_canonical(name: str, domain: str) -> Target | None:
    """The target that `canonical` makes this name of; None for any other name."""
    parts = _split(name)
    if parts is None or not parts[0].endswith(f".svc.{domain}"):
        return None
    labels = parts[0].removesuffix(f".svc.{domain}").split(".")
    return Target(ServiceKey(labels[1], labels[0]), parts[1]) if len(labels) == 2 and all(labels) else None


def parse_authority(name: str, namespace: str, domain: str) -> Target | None:
    """What `host:port` means to a caller in `namespace`, if it has the form of a service's name."""
    parts = _split(name)
    if parts is None:
        return None
    host, port = parts
    labels = host.removesuffix(f".{domain}").split(".")
    if host.endswith(f".{domain}") and (len(labels) != 3 or labels[2] != "svc"):
        return None
    if len(labels) == 3 and labels[2] == "svc":
        labels.pop()
    if not all(labels) or len(labels) > 2 or ":" in host:
        return None
    return Target(ServiceKey(labels[1] if len(labels) == 2 else namespace, labels[0]), port)


class PodTarget(NamedTuple):
    """A port under a replica's own name."""

    service: ServiceKey
    label: str
    port: int


def parse_pod_authority(name: str, namespace: str, domain: str) -> PodTarget | None:
    """What `host:port` means to a caller in `namespace`, if it has the form of a replica's name under its
    Service's: `db-0.db` up to `db-0.db.shop.svc.cluster.local`."""
    parts = _split(name)
    if parts is None:
        return None
    host, port = parts
    absolute = host.endswith(f".svc.{domain}")
    labels = host.removesuffix(f".svc.{domain}").split(".")
    if not absolute:
        if host.endswith(f".{domain}") or (len(labels) == 3 and labels[2] == "svc"):
            return None
        if len(labels) == 4 and labels[3] == "svc":
            labels.pop()
        elif len(labels) == 2:
            labels.append(namespace)
    if len(labels) != 3 or not all(labels) or ":" in host:
        return None
    return PodTarget(ServiceKey(labels[2], labels[1]), labels[0], port)


def pod_listener_names(service: ServiceKey, label: str, port: int, domain: str) -> Iterator[str]:
    """Every name by which somebody may ask for this port of a replica."""
    host = f"{label}.{service.name}"
    for suffix in ("", f".{service.namespace}", f".{service.namespace}.svc"):
        yield f"{host}{suffix}:{port}"
    yield f"{host}.{service.namespace}.svc.{domain}:{port}"


def address_name(address: str, port: int) -> str:
    """`10.0.0.1:80` or `[fd00::1]:80`: the opposite of `address_of`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def address_of(name: str) -> tuple[str, int] | None:
    """`10.0.0.1:80` or `[fd00::1]:80` as address and port; other text comes out as something that is
    no address."""
    parts = _split(name)
    return (parts[0].removeprefix("[").removesuffix("]"), parts[1]) if parts else None


def listener_names(service: Service, port: int, domain: str) -> Iterator[str]:
    """Every name by which somebody may ask for this port of the service."""
    name, namespace = service.name, service.namespace
    for host in (name, f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.{domain}"):
        yield f"{host}:{port}"
    for address in service.cluster_ips:
        yield address_name(address, port)


def inbound_cluster_name(address: str, port: int) -> str:
    """The application behind the sidecar at `address`."""
    return f"inbound|{port}|{address}"
