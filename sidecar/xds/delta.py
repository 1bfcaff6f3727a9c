"""Incremental ADS (`DeltaAggregatedResources`): the server tells changes, by resource and version."""

from __future__ import annotations

from collections import Counter
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from sidecar.xds.ads import WILDCARD, AdsClient, TypeState, Update


class DeltaVariant:
    """Remembers per type what the server was told on this stream.

    Beside a wildcard a server answers an unsubscription too: with a removal, unless the wildcard covers the
    name. When the name is wanted again meanwhile, that answer looks like one to the new subscription. So of a
    name that was unsubscribed as many removals are not believed, and it is asked for once more; a server must
    answer that as well ("xDS REST and gRPC protocol", subscribing to resources).
    """

    def __init__(self) -> None:
        self._told: dict[str, set[str]] = {}
        self._dropped: dict[str, Counter[str]] = {}
        """How often a name was unsubscribed beside a wildcard without a removal since."""
        self._started: set[str] = set()

    def connect(self, state: TypeState) -> None:
        """A new stream: the next `changes` asks for all, with the versions that are held."""
        self._told[state.type.url] = set()
        self._dropped[state.type.url] = Counter()
        self._started.discard(state.type.url)

    def changes(self, state: TypeState) -> Any | None:
        """A request with the names that are new and those no longer wanted."""
        url = state.type.url
        told = self._told[url]
        new, gone = state.wanted - (told - state.dropped), told - state.wanted
        state.dropped.clear()
        if not new and not gone:
            return None
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=url)
        request.resource_names_subscribe.extend(sorted(new))
        request.resource_names_unsubscribe.extend(sorted(gone))
        if url not in self._started:
            self._started.add(url)
            request.initial_resource_versions.update(state.versions)
        self._told[url] = set(state.wanted)
        if WILDCARD in state.wanted:
            self._dropped[url].update(gone)
        return request

    def receive(self, body: bytes, client: AdsClient) -> None:
        """Every response is answered with its own nonce."""
        response = discovery_pb2.DeltaDiscoveryResponse.FromString(body)
        reply = discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        state = client.state(response.type_url)
        if state is None:
            client.reply(reply, f"nothing of type {response.type_url} was asked for")
            return
        state.nonce = response.nonce
        update = Update()
        versions = {}
        for resource in response.resources:
            # What was unsubscribed while the response was on its way is of no interest.
            if not state.wants(resource.name) or not resource.HasField("resource"):
                continue
            versions[resource.name] = resource.version
            client.decode(state, resource.name, resource.resource, update)
        removed = frozenset(
            name for name in response.removed_resources if name in state.wanted or name in state.versions
        ) - {WILDCARD}
        answers = self._dropped[response.type_url].keys() & response.removed_resources
        self._dropped[response.type_url] -= Counter(answers)
        doubtful = answers & state.wanted
        state.dropped |= doubtful
        removed -= doubtful
        for name in removed:
            state.versions.pop(name, None)
            state.errors.pop(name, None)
        for name in update.accepted:
            state.versions[name] = versions[name]
        client.reply(reply, update.error_text)
        client.report(state, update.accepted, removed)

    def __repr__(self) -> str:
        return f"<DeltaVariant told={sum(len(names) for names in self._told.values())}>"
