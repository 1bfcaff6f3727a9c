"""Between translation and xDS: who asks, what is handed out, what changed.

`control_plane.pipeline` produces these values and `control_plane.xds` serves them; the two never
import each other's helpers. Nothing here may know protobuf, gRPC or where configuration comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Dialect(Enum):
    """Which flavour of resources a client understands, told by its `node.user_agent_name`."""

    PILOTFISH = "pilotfish"
    """Our sidecar: subscribes by name, like a proxyless client."""
    GRPC = "grpc"
    """A proxyless gRPC client: rejects SDS fields and several cluster types."""
    ENVOY = "envoy"
    """An Envoy proxy: wildcard socket listeners, certificates over SDS."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A workload's proven account. It comes from a verified token, never from what a node says of itself."""

    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service_account}"


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The client of one xDS stream. Equal values get equal resources, so this is fit for a cache key."""

    id: str
    """`node.id`, for people; not trusted."""
    cluster: str
    """`node.cluster`, for people; not trusted."""
    dialect: Dialect
    identity: Identity
    """From the stream's bearer token."""
    address: str = ""
    """The workload's IP address, from `node.metadata["WORKLOAD_IP"]`; empty if it said none."""

    @property
    def namespace(self) -> str:
        return self.identity.namespace

    @property
    def service_account(self) -> str:
        return self.identity.service_account


@dataclass(frozen=True, slots=True)
class Resource:
    """One encoded xDS resource."""

    version: str
    """Changes exactly when `body` does: a hash of it. Opaque to clients."""
    body: bytes
    """The message, serialised deterministically: the `value` of the Any that carries it."""


@dataclass(frozen=True, slots=True)
class Change:
    """What may have changed. May name too much (versions are compared before anything is sent), never
    too little."""

    names: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    """Type URL to the names of resources that were made, changed or removed; None: any of that type."""
    everything: bool = False
    """Any resource of any type."""
