"""One ADS stream as a state machine without input or output: subscriptions, nonces, ACK and NACK.

The server feeds requests and changes to a session and writes what `responses` returns. Both variants of
the protocol are here: DeltaSession (incremental) and SotwSession (state of the world). The rules that
they share:

- one push of a type is outstanding at most; what changes meanwhile is pushed, merged, after its ACK;
- CDS, EDS, LDS, RDS in this order, and no type overtakes an earlier one that waits for its ACK;
- after a NACK nothing is sent again until the configuration itself changes;
- endpoints are sent again with every cluster pushed: Envoy warms a changed cluster until they come.

Protocol: "xDS REST and gRPC protocol" in Envoy's documentation. Must never do I/O or read a clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from control_plane.model.discovery import NodeInfo, Resource
from control_plane.xds import types
from control_plane.xds.snapshot_cache import ResourceSource, WatchIndex
from control_plane.xds.subscription import ABSENT, Acknowledgement, NackInfo, Subscription
from control_plane.xds.wire import encode_delta, encode_sotw

MAX_TYPES = 32
MAX_NAMES = 100_000


class ProtocolError(Exception):
    """The client broke the protocol in a way that leaves nothing to answer; its text is for the client."""


class Session(ABC):
    """One ADS stream; see the module's text. Not thread-safe."""

    def __init__(
        self, node: NodeInfo, source: ResourceSource, watches: WatchIndex[Session], nonce_prefix: str
    ) -> None:
        self.node = node
        self.subscriptions: dict[str, Subscription] = {}
        self._source = source
        self._watches = watches
        self._nonce_prefix = nonce_prefix
        self._nonces = 0

    def __repr__(self) -> str:
        types_ = ", ".join(
            f"{types.short_name(s.type_url)}:{len(s.names)}{'*' if s.wildcard else ''}"
            f"{'' if s.in_step else ' waiting' if s.awaiting else ' behind'}"
            for s in self.subscriptions.values()
        )
        return f"<{type(self).__name__} {self.node.id!r} {self.node.identity} [{types_}]>"

    @staticmethod
    @abstractmethod
    def parse(data: bytes) -> Any:
        """The variant's request message. Raises ProtocolError."""

    def on_request(self, request: Any, now: float) -> Acknowledgement | None:
        """Takes a (Delta)DiscoveryRequest in. Returns what it acknowledged, if anything. `now` in seconds
        since the epoch. Raises ProtocolError."""
        type_url = request.type_url
        if not type_url:
            raise ProtocolError("a request on an aggregated stream has no type_url")
        first = type_url not in self.subscriptions
        if first:
            if len(self.subscriptions) >= MAX_TYPES:
                raise ProtocolError(f"more than {MAX_TYPES} resource types on one stream")
            self.subscriptions[type_url] = Subscription(type_url)
        state = self.subscriptions[type_url]
        acknowledged = None
        if state.awaiting and request.response_nonce == state.nonce:
            acknowledged = self._acknowledge(state, request, now)
        self._subscribe(state, request, first)
        if sum(len(s.names) for s in self.subscriptions.values()) > MAX_NAMES:
            raise ProtocolError(f"more than {MAX_NAMES} resource names on one stream")
        return acknowledged

    def mark(self, type_url: str, names: frozenset[str] | None) -> None:
        """Resources of a type may have changed; None: any of them."""
        state = self.subscriptions.get(type_url)
        if state is None:
            return
        if names is None:
            state.dirty_all = True
        else:
            state.dirty |= names if state.wildcard else names & state.names

    def responses(self, now: float) -> list[bytes]:
        """Encoded responses that are due now, in the order to be written in."""
        return list(self._responses(now))

    def _responses(self, now: float) -> Iterator[bytes]:
        others = (url for url in self.subscriptions if url not in types.PUSH_ORDER)
        for type_url in others:
            yield from self._push(self.subscriptions[type_url], now)
        for type_url in types.PUSH_ORDER:
            state = self.subscriptions.get(type_url)
            if state is None:
                continue
            if state.awaiting and state.pending:
                return
            yield from self._push(state, now)
        # Removals held back for the types that were just pushed, where those had nothing to send.
        for type_url in (types.CLUSTER, types.ENDPOINTS):
            state = self.subscriptions.get(type_url)
            if state is not None and not self._referrers_busy():
                yield from self._push(state, now)

    def close(self) -> None:
        """Ends all subscriptions in the index."""
        for state in self.subscriptions.values():
            for name in state.names:
                self._watches.remove(self, state.type_url, name)
            self._watches.remove(self, state.type_url, None)
            self._watches.remove_type(self, state.type_url)
        self.subscriptions.clear()

    @abstractmethod
    def _subscribe(self, state: Subscription, request: Any, first: bool) -> None:
        """Takes in what the request says of names."""

    @abstractmethod
    def _build(self, state: Subscription) -> tuple[bytes, Mapping[str, Resource]] | None:
        """The response that `state` is due, and the resources in it that are new to the client; None if
        there is nothing to say. Settles the state, and keeps `sent`, `sent_version` and `sent_names`."""

    def _acknowledge(self, state: Subscription, request: Any, now: float) -> Acknowledgement:
        state.awaiting = False
        if request.HasField("error_detail"):
            state.nack = NackInfo(
                node=self.node.id,
                type_url=state.type_url,
                version=state.sent_version,
                names=state.sent_names,
                text=request.error_detail.message,
                time=now,
            )
        else:
            state.nack = None
            state.acked_version = state.sent_version
        return Acknowledgement(state.type_url, max(0.0, now - state.sent_at), state.nack)

    def _push(self, state: Subscription, now: float) -> Iterator[bytes]:
        if state.awaiting or not state.pending:
            return
        self._nonces += 1
        previous, state.nonce = state.nonce, f"{self._nonce_prefix}-{self._nonces}"
        built = self._build(state)
        if built is None:
            state.nonce = previous
            return
        response, fresh = built
        state.awaiting = True
        state.sent_at = now
        if state.type_url == types.CLUSTER:
            self._force_endpoints(fresh.values())
        yield response

    def _force_endpoints(self, clusters: Iterable[Resource]) -> None:
        state = self.subscriptions.get(types.ENDPOINTS)
        if state is None:
            return
        names = {name for c in clusters if (name := types.endpoints_name(c.body)) is not None}
        state.force(names if state.wildcard else names & state.names)

    def _referrers_busy(self) -> bool:
        """Whether a listener or route that may still name an old cluster is on its way."""
        states = (self.subscriptions.get(url) for url in (types.LISTENER, types.ROUTE))
        return any(state is not None and (state.awaiting or state.pending) for state in states)

    def _add(self, state: Subscription, name: str) -> None:
        state.names.add(name)
        self._watches.add(self, state.type_url, name)

    def _drop(self, state: Subscription, name: str) -> None:
        state.names.discard(name)
        state.forget(name)
        self._watches.remove(self, state.type_url, name)

    def _set_wildcard(self, state: Subscription, wanted: bool, legacy: bool = False) -> None:
        state.legacy_wildcard = legacy
        if wanted:
            self._watches.add(self, state.type_url, None)
            state.dirty_all = state.must_answer = True
        elif state.wildcard:
            self._watches.remove(self, state.type_url, None)
            for name in state.sent.keys() - state.names:
                state.forget(name)
        state.wildcard = wanted

    def _current(self, state: Subscription, wanted: frozenset[str] | None) -> dict[str, Resource]:
        """Those of `wanted` (None: all that is subscribed to) that exist. A name that only the wildcard
        covers is looked up in the wildcard's set, which may be smaller than what names can reach."""
        found: dict[str, Resource] = {}
        if state.wildcard:
            everything = self._source.resources(self.node, state.type_url, None)
            found = (
                dict(everything)
                if wanted is None
                else {name: everything[name] for name in wanted if name in everything}
            )
        named = frozenset(state.names if wanted is None else wanted & state.names)
        if named:
            found.update(self._source.resources(self.node, state.type_url, named))
        return found


class DeltaSession(Session):
    """Incremental xDS: DeltaDiscoveryRequest in, DeltaDiscoveryResponse out."""

    @staticmethod
    def parse(data: bytes) -> Any:
        return _parse(discovery_pb2.DeltaDiscoveryRequest, data)

    def _subscribe(self, state: Subscription, request: Any, first: bool) -> None:
        # Names count whatever the nonce says: a stale nonce voids the ACK, not the subscription.
        subscribe: Sequence[str] = request.resource_names_subscribe
        known = request.initial_resource_versions if first else {}
        if first and not subscribe and state.type_url in types.FULL_SET:
            self._set_wildcard(state, True, legacy=True)
            state.sent.update(known)
        for name in subscribe:
            if name == types.WILDCARD:
                self._set_wildcard(state, True)
                state.sent.update(known)
                continue
            self._add(state, name)
            if name in known:
                state.sent[name] = known[name]
                state.dirty.add(name)
            else:
                # Also for a name subscribed to before: asking again is asking for it to be sent again.
                state.force((name,))
        for name in request.resource_names_unsubscribe:
            if name == types.WILDCARD:
                self._set_wildcard(state, False)
                continue
            was_sent = state.sent.get(name)
            self._drop(state, name)
            if state.wildcard:
                # The client cannot tell whether the wildcard still covers the name: it is told.
                if was_sent is not None:
                    state.sent[name] = was_sent
                state.force((name,))

    def _build(self, state: Subscription) -> tuple[bytes, Mapping[str, Resource]] | None:
        wanted = None if state.dirty_all else frozenset(state.dirty)
        found = self._current(state, wanted)
        candidates = state.names | state.sent.keys() | found.keys() if wanted is None else wanted
        hold = state.type_url in (types.CLUSTER, types.ENDPOINTS) and self._referrers_busy()
        updated: dict[str, Resource] = {}
        removed: list[str] = []
        held: list[str] = []
        for name in sorted(candidates):
            resource, had = found.get(name), state.sent.get(name)
            if resource is not None:
                if name in state.forced or had != resource.version:
                    updated[name] = resource
            elif name in state.forced or (had is None and name in state.names):
                removed.append(name)
            elif had:
                (held if hold else removed).append(name)
        must_answer = state.must_answer
        state.settle(held)
        if not updated and not removed and not must_answer:
            return None
        for name, resource in updated.items():
            state.sent[name] = resource.version
        for name in removed:
            if name in state.names:
                state.sent[name] = ABSENT
            else:
                state.sent.pop(name, None)
        state.sent_version = _digest((name, resource.version) for name, resource in updated.items())
        state.sent_names = (*updated, *removed)
        body = encode_delta(state.type_url, state.sent_version, state.nonce, updated.items(), removed)
        return body, updated


class SotwSession(Session):
    """State of the world: DiscoveryRequest in, DiscoveryResponse out."""

    @staticmethod
    def parse(data: bytes) -> Any:
        return _parse(discovery_pb2.DiscoveryRequest, data)

    def _subscribe(self, state: Subscription, request: Any, first: bool) -> None:
        # A request that does not answer the newest response was sent before that one arrived; the
        # client's answer to the newest repeats all names. A nonce from an earlier stream means nothing.
        if not first and request.response_nonce != state.nonce:
            return
        asked = set(request.resource_names)
        wildcard = types.WILDCARD in asked
        asked.discard(types.WILDCARD)
        legacy = not asked and not wildcard and state.type_url in types.FULL_SET
        legacy = legacy and (first or state.legacy_wildcard)
        wildcard = wildcard or legacy
        for name in state.names - asked:
            self._drop(state, name)
        new = asked - state.names
        for name in new:
            self._add(state, name)
        state.force(new)
        if wildcard != state.wildcard:
            self._set_wildcard(state, wildcard, legacy)
        if first:
            state.dirty_all = state.must_answer = True

    def _build(self, state: Subscription) -> tuple[bytes, Mapping[str, Resource]] | None:
        full = state.type_url in types.FULL_SET
        everything = full or state.dirty_all or state.wildcard
        found = self._current(state, None if everything else frozenset(state.dirty))
        fresh = {
            name: resource
            for name, resource in sorted(found.items())
            if name in state.forced or state.sent.get(name) != resource.version
        }
        # A full set also tells what does not exist, so new names are answered even by an empty one.
        gone = full and state.sent.keys() - found.keys()
        answer_empty = full and (state.must_answer or bool(state.forced))
        state.settle()
        if not fresh and not gone and not answer_empty:
            return None
        if full:
            state.sent = {name: resource.version for name, resource in found.items()}
        else:
            for name, resource in fresh.items():
                state.sent[name] = resource.version
        carried = dict(sorted(found.items())) if full else fresh
        state.sent_version = _digest(sorted(state.sent.items()))
        state.sent_names = tuple(carried)
        return encode_sotw(state.type_url, state.sent_version, state.nonce, carried.values()), fresh


def _parse(message: Any, data: bytes) -> Any:
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"not a {message.DESCRIPTOR.full_name}: {error}") from error


def _digest(versions: Iterable[tuple[str, str]]) -> str:
    hasher = blake2b(digest_size=8)
    for name, version in versions:
        hasher.update(f"{name}\0{version}\0".encode())
    return hasher.hexdigest()
