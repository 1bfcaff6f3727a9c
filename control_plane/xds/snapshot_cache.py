"""Where sessions get resources from, and which sessions watch which of them.

The pipeline implements ResourceSource; the sessions keep the WatchIndex; the server asks it who is
touched by a change, so that nobody else is looked at. Nothing here may know how resources are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from control_plane.model.discovery import Change, NodeInfo, Resource


class ResourceSource(Protocol):
    """What the mesh's configuration comes to for each client."""

    def resources(
        self, node: NodeInfo, type_url: str, names: frozenset[str] | None
    ) -> Mapping[str, Resource]:
        """Those of `names` that exist, by name; for None all that a wildcard subscription of this node
        gets. Called on the event loop, so it must not block: a look-up, not a computation."""

    def subscribe(self, callback: Callable[[Change], None]) -> None:
        """`callback` is called on the event loop whenever what `resources` returns may have changed."""


Watcher = TypeVar("Watcher")


class WatchIndex(Generic[Watcher]):
    """Who subscribed to what. Each watcher removes its own entries before it goes."""

    def __init__(self) -> None:
        self._by_name: dict[tuple[str, str], set[Watcher]] = {}
        self._by_type: dict[str, set[Watcher]] = {}
        self._wildcard: dict[str, set[Watcher]] = {}

    def __repr__(self) -> str:
        return f"<WatchIndex names={len(self._by_name)} types={sorted(self._by_type)}>"

    def add(self, watcher: Watcher, type_url: str, name: str | None) -> None:
        """Notes a subscription to one name, or to the wildcard (None)."""
        self._by_type.setdefault(type_url, set()).add(watcher)
        if name is None:
            self._wildcard.setdefault(type_url, set()).add(watcher)
        else:
            self._by_name.setdefault((type_url, name), set()).add(watcher)

    def remove(self, watcher: Watcher, type_url: str, name: str | None) -> None:
        """Forgets a subscription to one name, or to the wildcard (None); unknown ones are ignored."""
        if name is None:
            _discard(self._wildcard, type_url, watcher)
        else:
            _discard(self._by_name, (type_url, name), watcher)

    def remove_type(self, watcher: Watcher, type_url: str) -> None:
        """To be called when a watcher with no subscription left to this type goes."""
        _discard(self._by_type, type_url, watcher)

    def touched(self, change: Change) -> Iterator[tuple[Watcher, str, frozenset[str] | None]]:
        """(watcher, type URL, names that it should look at again; None: all it has). A watcher may come
        up several times, for several types or for its names and its wildcard."""
        if change.everything:
            for type_url, watchers in self._by_type.items():
                for watcher in watchers:
                    yield watcher, type_url, None
            return
        for type_url, names in change.names.items():
            if names is None:
                for watcher in self._by_type.get(type_url, ()):
                    yield watcher, type_url, None
                continue
            for watcher in self._wildcard.get(type_url, ()):
                yield watcher, type_url, names
            for name in names:
                for watcher in self._by_name.get((type_url, name), ()):
                    yield watcher, type_url, frozenset((name,))


Key = TypeVar("Key")


def _discard(index: dict[Key, set[Watcher]], key: Key, watcher: Watcher) -> None:
    watchers = index.get(key)
    if watchers is None:
        return
    watchers.discard(watcher)
    if not watchers:
        del index[key]
