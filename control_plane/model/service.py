"""Services and the workloads behind them: what Kubernetes' Service and EndpointSlice say, validated.

`sources` make these values, `registry` indexes them and `translate` turns them into xDS. Nothing here
may know YAML, Kubernetes' clients or protobuf. Fields mean what Kubernetes' fields of that name mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from mesh_api.names import inbound_port


class ServiceKey(NamedTuple):
    """A Service's place: namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class AppProtocol(Enum):
    """What an application speaks on a port."""

    HTTP = "http"
    """HTTP/1.1; also a port that says nothing."""
    HTTP2 = "http2"
    """HTTP/2 with prior knowledge, gRPC among it."""
    TCP = "tcp"
    """Opaque bytes: databases, brokers, TLS of the application's own."""


_HTTP2 = frozenset({"kubernetes.io/h2c", "grpc", "http2", "h2c"})
_TCP = frozenset(
    {
        "amqp",
        "amqps",
        "cassandra",
        "grpcs",
        "https",
        "imap",
        "imaps",
        "kafka",
        "kafkas",
        "ldap",
        "ldaps",
        "mariadb",
        "memcached",
        "mongo",
        "mongodb",
        "mqtt",
        "mqtts",
        "mysql",
        "nats",
        "pop3",
        "postgres",
        "postgresql",
        "redis",
        "rediss",
        "smtp",
        "smtps",
        "ssh",
        "tcp",
        "tls",
        "kubernetes.io/wss",
    }
)


_HTTP = frozenset({"http", "http1", "kubernetes.io/ws"})
_TLS = frozenset(
    {
        "amqps",
        "grpcs",
        "https",
        "imaps",
        "kafkas",
        "kubernetes.io/wss",
        "ldaps",
        "rediss",
        "smtps",
        "tls",
    }
)


def app_protocol(declared: str, port_name: str, opaque: bool = False) -> AppProtocol:
    """What a port speaks: `appProtocol` decides; without one the port's name does, up to its first `-`
    (`grpc`, `http2-admin`, `redis`). What says nothing is HTTP, unless its number makes it `opaque`."""
    word = declared.lower() or port_name.lower().partition("-")[0]
    if word in _HTTP2:
        return AppProtocol.HTTP2
    if word in _TCP or (opaque and not is_declared(declared, port_name)):
        return AppProtocol.TCP
    return AppProtocol.HTTP


def is_declared(declared: str, port_name: str) -> bool:
    """Whether `appProtocol` or the port's name says what the port speaks."""
    return bool(declared) or port_name.lower().partition("-")[0] in _HTTP | _HTTP2 | _TCP


def speaks_tls(declared: str, port_name: str) -> bool:
    """Whether `appProtocol` or the port's name says that the application itself terminates TLS there."""
    return (declared.lower() or port_name.lower().partition("-")[0]) in _TLS


@dataclass(frozen=True, slots=True, order=True)
class WorkloadSettings:
    """How a workload takes traffic: what the annotations of its Pod, or of its EndpointSlice, say."""

    captured: bool = False
    """Its sidecar takes what was sent to the application's own ports. Otherwise the sidecar listens beside
    the application, at `inbound_port`."""
    strict: bool = False
    """Captured: only mesh peers get in, nobody in plain text."""
    opaque_ports: tuple[int, ...] = ()
    """Application ports that carry opaque TCP, whatever is declared."""
    skip_inbound_ports: tuple[int, ...] = ()
    """Application ports that the sidecar leaves alone: everybody reaches them in plain text."""

    def peers_port(self, port: int) -> int:
        """Where the sidecars of others reach an application port that is not skipped."""
        return port if self.captured else inbound_port(port)


@dataclass(frozen=True, slots=True)
class ServicePort:
    name: str
    """Empty on a Service with one port."""
    port: int
    target_port: int | str
    """The application's port, or the name of one in the Pod."""
    protocol: AppProtocol
    declared: bool = False
    """`appProtocol` or its name says the protocol. Otherwise it is a guess: clients look at the bytes."""
    tls: bool = False
    """The application itself terminates TLS there."""


@dataclass(frozen=True, slots=True)
class Service:
    namespace: str
    name: str
    ports: tuple[ServicePort, ...]
    """TCP ports alone: the mesh carries nothing else."""
    cluster_ips: tuple[str, ...] = ()
    """Of both families."""
    headless: bool = False
    external_name: str = ""
    """Of type ExternalName: another name for this host. It has no ports then."""

    @property
    def key(self) -> ServiceKey:
        return ServiceKey(self.namespace, self.name)

    def port(self, number: int) -> ServicePort | None:
        return next((port for port in self.ports if port.port == number), None)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One replica."""

    address: str
    hostname: str
    """What it calls itself (`targetRef.name`, `hostname`, or made from the address), for logs and metrics."""
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zone: str = ""
    hints: tuple[str, ...] = ()
    """Zones whose clients should prefer it, sorted; empty: nothing is said."""
    dns_label: str = ""
    """Its own name under a headless Service's, as the Pods of a StatefulSet have one; empty: none."""


@dataclass(frozen=True, slots=True)
class EndpointPort:
    name: str
    """Equal to the name of the Service's port that it stands for."""
    port: int
    """Where the application listens."""
    protocol: AppProtocol
    declared: bool = False
    tls: bool = False
    """Both as for a ServicePort."""


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Replicas of one Service that share ports, an account and settings."""

    namespace: str
    name: str
    service: str
    service_account: str
    """The account that the replicas run as; with one they have a sidecar and are reached over mTLS.
    Empty: outside the mesh, reached in plaintext."""
    ports: tuple[EndpointPort, ...]
    endpoints: tuple[Endpoint, ...]
    settings: WorkloadSettings = WorkloadSettings()

    def takes_mtls(self, port: int) -> bool:
        """Whether a sidecar stands before this application port."""
        return bool(self.service_account) and port not in self.settings.skip_inbound_ports

    @property
    def service_key(self) -> ServiceKey:
        return ServiceKey(self.namespace, self.service)

    def port(self, name: str) -> EndpointPort | None:
        return next((port for port in self.ports if port.name == name), None)


@dataclass(frozen=True, slots=True)
class Workload:
    """A Pod with a sidecar, with what it says of itself. Services may say more of its ports."""

    namespace: str
    name: str
    service_account: str
    addresses: tuple[str, ...]
    """Of both families, the primary one first."""
    ports: tuple[EndpointPort, ...] = ()
    """Those that its containers declare."""
    settings: WorkloadSettings = WorkloadSettings()
    zone: str = ""
    terminating: bool = False


class WorkloadPort(NamedTuple):
    """One application port of one workload: a destination by address, and what its sidecar listens for.
    A tuple, because all of them are made anew for every state of the mesh."""

    address: str
    port: int
    protocol: AppProtocol
    namespace: str
    service_account: str
    """Empty: no sidecar."""
    declared: bool = False
    tls: bool = False
    """Both as for a ServicePort."""
    hostname: str = ""
    """For logs and metrics."""
    settings: WorkloadSettings = WorkloadSettings()
    terminating: bool = False

    @property
    def takes_mtls(self) -> bool:
        """Whether a sidecar stands before the port."""
        return bool(self.service_account) and self.port not in self.settings.skip_inbound_ports
