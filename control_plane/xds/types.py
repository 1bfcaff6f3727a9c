"""xDS type URLs, the order in which types are pushed, and what a client's `node` says of itself.

Used by the sessions and the server of this package and by their tests. Knows nothing of gRPC.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2

from control_plane.model.discovery import Dialect, Identity, NodeInfo

LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

PUSH_ORDER = (CLUSTER, ENDPOINTS, LISTENER, ROUTE)
"""What is referred to goes before what refers to it, where references cross: a listener or route never
names a cluster that its client has not been sent. Types outside of it are pushed without any order."""

FULL_SET = frozenset({LISTENER, CLUSTER})
"""Types of which a state-of-the-world response must name every resource: one left out is deleted.
The same types take an empty first subscription as a wildcard."""

WILDCARD = "*"

_SHORT = {LISTENER: "LDS", ROUTE: "RDS", CLUSTER: "CDS", ENDPOINTS: "EDS", SECRET: "SDS"}
_OTHER = "other"
METRIC_LABELS = (*_SHORT.values(), _OTHER)


def short_name(type_url: str) -> str:
    """`CDS` for the cluster type and so on; the message's last name for others. For people."""
    return _SHORT.get(type_url) or type_url.rpartition(".")[2]


def metric_label(type_url: str) -> str:
    """One of METRIC_LABELS: `CDS` and so on; `other` for types that only the wire names."""
    return _SHORT.get(type_url, _OTHER)


def node_info(node: Any, identity: Identity) -> NodeInfo:
    """The client of a stream, from `core.v3.Node` and the identity that its token proved."""
    agent = node.user_agent_name.lower()
    if agent == "envoy":
        dialect = Dialect.ENVOY
    elif agent.startswith("pilotfish"):
        dialect = Dialect.PILOTFISH
    else:
        # Proxyless gRPC is the strictest reader: what it takes, an unknown client takes too.
        dialect = Dialect.GRPC
    address = (
        node.metadata.fields["WORKLOAD_IP"].string_value if "WORKLOAD_IP" in node.metadata.fields else ""
    )
    return NodeInfo(id=node.id, cluster=node.cluster, dialect=dialect, identity=identity, address=address)


@lru_cache(maxsize=4096)
def endpoints_name(cluster_body: bytes) -> str | None:
    """Name of the ClusterLoadAssignment that an encoded Cluster takes from EDS; None if it takes none."""
    cluster = cluster_pb2.Cluster.FromString(cluster_body)
    if cluster.type != cluster_pb2.Cluster.EDS:
        return None
    name: str = cluster.eds_cluster_config.service_name or cluster.name
    return name
