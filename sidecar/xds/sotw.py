"""State-of-the-world ADS (`StreamAggregatedResources`): a response of Listeners or Clusters holds all."""

from __future__ import annotations

from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from sidecar.config.decode import ConfigError
from sidecar.xds.ads import WILDCARD, AdsClient, TypeState, Update

_WRAPPER = "type.googleapis.com/" + discovery_pb2.Resource.DESCRIPTOR.full_name


class SotwVariant:
    """Remembers per type the version that was accepted last and the names of the last request.

    A response does not say which request it answers. What is missing from it does not exist only if every
    request since the response before has asked for it.
    """

    def __init__(self) -> None:
        self._asked: dict[str, list[str]] = {}
        self._steady: dict[str, set[str]] = {}
        """Names in all of those requests."""
        self._versions: dict[str, str] = {}

    def connect(self, state: TypeState) -> None:
        """A new stream: nonces start anew, the accepted version is told again."""
        self._asked.pop(state.type.url, None)
        self._steady.pop(state.type.url, None)

    def changes(self, state: TypeState) -> Any | None:
        """A request with all names, when they are not those of the last request."""
        asked = self._asked.get(state.type.url)
        if asked is None and not state.wanted:
            return None
        return None if asked == sorted(state.wanted) else self._request(state)

    def _request(self, state: TypeState) -> Any:
        url = state.type.url
        names = self._asked[url] = sorted(state.wanted)
        self._steady[url] = self._steady.get(url, state.wanted) & state.wanted
        return discovery_pb2.DiscoveryRequest(
            type_url=url,
            version_info=self._versions.get(url, ""),
            response_nonce=state.nonce,
            # No names at all is the form of the wildcard that every server understands.
            resource_names=[] if names == [WILDCARD] else names,
        )

    def receive(self, body: bytes, client: AdsClient) -> None:
        """A response is answered with its nonce and the names that are wanted now."""
        response = discovery_pb2.DiscoveryResponse.FromString(body)
        url = response.type_url
        state = client.state(url)
        if state is None:
            reply = discovery_pb2.DiscoveryRequest(type_url=url, response_nonce=response.nonce)
            client.reply(reply, f"nothing of type {url} was asked for")
            return
        state.nonce = response.nonce
        update = Update()
        present = set()
        for index, value in enumerate(response.resources):
            name = self._decode(value, f"resources[{index}]", state, client, update)
            present.add(name)
        removed: frozenset[str] = frozenset()
        # A name that was never held may be one that the server had not heard of when it answered.
        if state.type.full_state:
            removed = frozenset(
                name for name in state.versions.keys() - present if self._asked_for(name, state)
            )
        for name in removed:
            del state.versions[name]
        for name in update.accepted:
            state.versions[name] = response.version_info
        if not update.errors:
            self._versions[url] = response.version_info
        self._steady.pop(url, None)
        client.reply(self._request(state), update.error_text)
        client.report(state, update.accepted, removed)

    def _asked_for(self, name: str, state: TypeState) -> bool:
        """In every request that the response may answer, by its name or, for want of it, by wildcard."""
        steady = self._steady.get(state.type.url, set())
        return name in steady or (name not in state.wanted and WILDCARD in steady)

    def _decode(self, value: Any, where: str, state: TypeState, client: AdsClient, update: Update) -> str:
        """Decode one resource, wrapped or not; returns its name."""
        name = ""
        if value.type_url == _WRAPPER:
            wrapper = discovery_pb2.Resource.FromString(value.value)
            name, value = wrapper.name, wrapper.resource
        try:
            name = name or state.type.name_of(value.value)
        except ConfigError as error:
            update.errors[where] = str(error)
            return name
        if state.wants(name):
            client.decode(state, name, value, update)
        return name

    def __repr__(self) -> str:
        return f"<SotwVariant versions={self._versions}>"
