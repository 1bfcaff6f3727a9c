"""The client's side of ADS as a state machine: subscriptions in, requests out, responses in, resources out.

`client.py` drives it over a gRPC stream; `config/dependency_manager.py` subscribes through it. Sans-IO: it
knows no socket, clock or task. `delta.py` and `sotw.py` hold the two variants of the protocol.

What was accepted stays accepted: a refused (NACKed) update or a lost stream changes nothing for those who
use a resource. In a response with good and bad resources the good ones are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

from envoy.config.core.v3 import base_pb2
from google.protobuf import json_format
from google.rpc import code_pb2

from sidecar.config.decode import ConfigError
from sidecar.config.resources import Node
from sidecar.xds.resource_types import RESOURCE_TYPES, ResourceType

WILDCARD = "*"
USER_AGENT = "pilotfish"

OnUpdate = Callable[[str, Mapping[str, object], frozenset[str]], None]
"""Called with a type URL, accepted resources by name, and the names that do not exist (any more)."""


@dataclass(slots=True)
class TypeState:
    """What is wanted and known of one resource type."""

    type: ResourceType
    wanted: set[str] = field(default_factory=set)
    """Names, or WILDCARD."""
    versions: dict[str, str] = field(default_factory=dict)
    """Version of each resource that was accepted and is still wanted."""
    errors: dict[str, str] = field(default_factory=dict)
    """Why the latest version of a resource was refused."""
    dropped: set[str] = field(default_factory=set)
    """Unsubscribed since the last request; one that is wanted again by then must be asked for again."""
    nonce: str = ""
    """Of the latest response on this stream."""

    def wants(self, name: str) -> bool:
        return name in self.wanted or WILDCARD in self.wanted


@dataclass(slots=True)
class Update:
    """What one response brought."""

    accepted: dict[str, object] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def error_text(self) -> str:
        """All refusals in one text, for the NACK; "" when there is none."""
        return "\n".join(self.errors[name] for name in sorted(self.errors))


class Variant(Protocol):
    """The part of the protocol in which incremental and state-of-the-world differ."""

    def connect(self, state: TypeState) -> None:
        """A new stream: nothing is known to the server."""

    def changes(self, state: TypeState) -> Any | None:
        """A request that tells the server of changed subscriptions, or None."""

    def receive(self, body: bytes, client: AdsClient) -> None:
        """Handle a response."""


class AdsClient:
    """All subscriptions of this sidecar, over any number of streams, one at a time."""

    def __init__(self, node: Node, variant: Variant) -> None:
        self._node = node_message(node)
        self._variant = variant
        self.on_update: OnUpdate = lambda type_url, accepted, removed: None
        """Set by whoever uses the resources."""
        self.on_output: Callable[[], None] = lambda: None
        """Set by the driver; called when `take_requests` has something, while connected."""
        self._states = {url: TypeState(kind) for url, kind in RESOURCE_TYPES.items()}
        self._replies: list[Any] = []
        self._node_sent = False
        self.connected = False

    # --- for the dependency manager -------------------------------------------------------------

    def subscribe(self, type_url: str, names: Iterable[str]) -> None:
        """Ask for resources by name; WILDCARD for all that the server has for this node."""
        self._states[type_url].wanted.update(names)
        if self.connected:
            self.on_output()

    def unsubscribe(self, type_url: str, names: Iterable[str]) -> None:
        """Forget resources. Whoever wants one again later subscribes again and gets it anew."""
        state = self._states[type_url]
        for name in names:
            state.wanted.discard(name)
            state.dropped.add(name)
            state.versions.pop(name, None)
            state.errors.pop(name, None)
        if self.connected:
            self.on_output()

    def errors(self) -> dict[str, str]:
        """Why the latest versions of resources were refused, by `label name`; for the admin port."""
        return {
            f"{state.type.label} {name}": text
            for state in self._states.values()
            for name, text in state.errors.items()
        }

    # --- for the driver -------------------------------------------------------------------------

    def connect(self) -> None:
        """A stream was opened: everything wanted is asked for again, with the versions that are held."""
        self.connected = True
        self._node_sent = False
        self._replies.clear()
        for state in self._states.values():
            state.nonce = ""
            self._variant.connect(state)
        self.on_output()

    def disconnect(self) -> None:
        """The stream has ended. Accepted resources stay in use."""
        self.connected = False
        self._replies.clear()

    def take_requests(self) -> list[bytes]:
        """Serialised requests to send now, replies to responses first."""
        if not self.connected:
            return []
        messages, self._replies = self._replies, []
        for state in self._states.values():
            message = self._variant.changes(state)
            if message is not None:
                messages.append(message)
        if messages and not self._node_sent:
            messages[0].node.CopyFrom(self._node)
            self._node_sent = True
        return [message.SerializeToString() for message in messages]

    def receive(self, body: bytes) -> None:
        """A serialised response; replies to it and reports what it changed."""
        self._variant.receive(body, self)

    # --- for the variants -----------------------------------------------------------------------

    def state(self, type_url: str) -> TypeState | None:
        return self._states.get(type_url)

    def reply(self, message: Any, error_text: str) -> None:
        """Queue an ACK, or a NACK when there is an error text."""
        if error_text:
            message.error_detail.code = code_pb2.INVALID_ARGUMENT
            message.error_detail.message = error_text
        self._replies.append(message)
        self.on_output()

    def decode(self, state: TypeState, name: str, any_resource: Any, update: Update) -> None:
        """Decode one resource into `update`, as accepted or as refused."""
        label = f"{state.type.label} {name}"
        try:
            if any_resource.type_url != state.type.url:
                raise ConfigError([f"{label}: is of type {any_resource.type_url}, not {state.type.url}"])
            own_name = state.type.name_of(any_resource.value)
            if own_name != name:
                raise ConfigError([f"{label}: names itself {own_name!r}"])
            update.accepted[name] = state.type.decode(any_resource.value, label)
            state.errors.pop(name, None)
        except ConfigError as error:
            update.errors[name] = state.errors[name] = str(error)

    def report(self, state: TypeState, accepted: Mapping[str, object], removed: frozenset[str]) -> None:
        """Hand what changed to whoever uses it; an empty answer says that there is nothing."""
        self.on_update(state.type.url, accepted, removed)

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{state.type.label} {len(state.versions)}/{len(state.wanted)}" for state in self._states.values()
        )
        return f"<AdsClient {'connected' if self.connected else 'disconnected'} {counts}>"


def node_message(node: Node) -> Any:
    """`core.v3.Node` as every first request of a stream carries it."""
    message = base_pb2.Node(
        id=node.id,
        cluster=node.cluster,
        user_agent_name=USER_AGENT,
        user_agent_version=version("pilotfish"),
    )
    message.locality.region = node.region
    message.locality.zone = node.zone
    message.locality.sub_zone = node.sub_zone
    json_format.Parse(node.metadata_json, message.metadata)
    return message
