"""Names that both halves of the mesh must agree on: ports, annotations, headers, resource names."""

from __future__ import annotations

GROUP = "mesh.pilotfish.dev"

SERVICE_ACCOUNT_ANNOTATION = f"{GROUP}/service-account"
"""On an EndpointSlice without Pods behind it: the account that its endpoints run as. An endpoint
with an account has a sidecar and is reached over mTLS; one without is outside the mesh."""

CAPTURE_ANNOTATION = f"{GROUP}/capture"
"""`enabled`: rules in the pod's network redirect its connections to the sidecar."""
INBOUND_ANNOTATION = f"{GROUP}/inbound"
"""Of a captured pod: `strict` (mesh peers alone) or `permissive` (plain text too)."""
OPAQUE_PORTS_ANNOTATION = f"{GROUP}/opaque-ports"
"""Ports with commas between them that carry opaque TCP; on a Service its own ports are meant."""
SKIP_INBOUND_PORTS_ANNOTATION = f"{GROUP}/skip-inbound-ports"
"""Ports with commas between them that the sidecar leaves alone."""

INJECTED_LABEL = f"{GROUP}/injected"
"""On a Pod that was given a sidecar; `false`: it has none, whatever its containers are called."""
SIDECAR_CONTAINER = "pilotfish-sidecar"
"""Name of the sidecar's container in a Pod."""
INIT_CONTAINER = "pilotfish-init"
"""Name of the init container that sets a Pod's rules of capture."""

NATIVE_SIDECARS = (1, 29)
"""First version of Kubernetes whose init containers may run on (SidecarContainers, on by default)."""

DEFAULT_TRUST_DOMAIN = "cluster.local"
CLUSTER_DOMAIN = "cluster.local"

XDS_PORT = 15010
"""Control plane: ADS and the signing RPC, gRPC over TLS."""
STATUS_PORT = 15014
"""Control plane: status page, metrics, readiness, plain HTTP."""
ADMIN_PORT = 15000
"""Sidecar: admin, plain HTTP."""
OUTBOUND_PORT = 15001
"""Sidecar: outbound listener for HTTP_PROXY, CONNECT and HTTP/2 prior knowledge."""
INBOUND_PORT = 15006
"""Sidecar of a captured workload: where connections to every port of the workload are redirected."""

SIDECAR_USER = 15099
"""User and group id of the sidecar: what it sends is not captured."""
INBOUND_SOURCE = ("127.0.0.6", "::6")
"""From these, IPv4 and IPv6, the sidecar of a captured workload calls its own application: so such
connections are not captured again."""

MESH_ALPN = "pilotfish-h2"
"""Offered before `h2` between sidecars: tells mesh TLS from an application's own on a shared port."""

CA_AUDIENCE = "mesh-ca"
"""Audience of the tokens that workloads present to the control plane."""
CERTIFICATE_PROVIDER = "mesh"
"""`instance_name` that xDS resources use for the workload's own identity (gRFC A29)."""
CA_PROVIDER_TYPE = f"{GROUP}/CaProvider"
"""TypedStruct type URL of the bootstrap's certificate provider that signs through the control plane."""

OPAQUE_PORTS = frozenset({25, 587, 3306, 4444, 5432, 5672, 6379, 9300, 11211, 27017})
"""Where nothing is declared, these carry no HTTP: SMTP, MySQL and Galera, PostgreSQL, AMQP, Redis,
Elasticsearch's transport, memcached, MongoDB."""


def inbound_port(application_port: int) -> int:
    """The port where a sidecar that captures nothing listens for `application_port`: 10,000 above it
    (below it where that would leave the range), beside the application on the same address. 20,000 above
    for 5000 and 5001, where the first would be a port of the sidecar's own."""
    port = application_port + 10000 if application_port <= 55535 else application_port - 10000
    return port + 10000 if port in (ADMIN_PORT, OUTBOUND_PORT) else port


def inbound_listener_name(address: str, application_port: int) -> str:
    """Name of the Listener resource for one application port of the workload at `address`."""
    return f"inbound|{address}|{application_port}"
