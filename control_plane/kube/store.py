"""What is kept of all objects of one kind, reduced to what the mesh needs. Filled by `watch`.

A store changes by what the API server says, never by its silence; an object that cannot be used stays as
it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from control_plane.kube.client import KubeError, Object

Key = tuple[str, str]
"""Namespace (empty for what has none) and name."""
V = TypeVar("V")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resource(Generic[V]):
    """A kind of object and what is kept of it."""

    kind: str
    versions: tuple[str, ...]
    """`apiVersion`s in order of preference; the first that the server has is used."""
    plural: str
    reduce: Callable[[Object, V | None], V | None]
    """From an object, and what was kept of it so far, to what is to be kept; None: nothing. Raises
    ReduceError."""
    optional: bool = False
    """The cluster may lack the kind."""

    def path(self, version: str) -> str:
        return f"{'/apis' if '/' in version else '/api'}/{version}/{self.plural}"


class ReduceError(Exception):
    """An object cannot be used; what was kept of it stays. `field` is the path in the object."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class ResourceStore(Generic[V]):
    """What is kept of all objects of one kind. `changed(key, before, after)` is called for each difference,
    with None for what is not there, and when an object was refused, with what stays."""

    def __init__(self, resource: Resource[V], changed: Callable[[Key, V | None, V | None], object]) -> None:
        self.resource = resource
        self.version = resource.versions[0]
        """The `apiVersion` in use."""
        self.objects: dict[Key, V] = {}
        self.refused: dict[Key, ReduceError] = {}
        """Objects that cannot be used as they are now."""
        self.error: KubeError | None = None
        """Why the copy may be old; None while the API server answers."""
        self.absent = False
        """The cluster does not have this kind."""
        self.answered = False
        """The server has given a whole list, or said that there is no such kind."""
        self._changed = changed
        self._listed: set[Key] | None = None

    def __repr__(self) -> str:
        state = "absent" if self.absent else f"{len(self.objects)} objects"
        return f"<ResourceStore {self.resource.kind} {state} refused={len(self.refused)} error={self.error}>"

    def begin_list(self) -> None:
        self._listed = set()

    def put(self, item: Object) -> None:
        key = _key(item)
        if self._listed is not None:
            self._listed.add(key)
        before = self.objects.get(key)
        # Items of lists do not say what they are.
        item["kind"], item["apiVersion"] = self.resource.kind, self.version
        try:
            after = self.resource.reduce(item, before)
        except ReduceError as error:
            self._refuse(key, error)
            return
        except Exception as error:  # one object of a shape nobody foresaw must not stop the others
            self._refuse(key, ReduceError(f"cannot be read ({type(error).__name__}: {error})"))
            return
        self.refused.pop(key, None)
        self._set(key, before, after)

    def remove(self, item: Object) -> None:
        key = _key(item)
        self.refused.pop(key, None)
        self._set(key, self.objects.get(key), None)

    def end_list(self) -> None:
        """What the list did not name is gone."""
        listed, self._listed = self._listed or set(), None
        for key in [key for key in self.objects if key not in listed]:
            self._set(key, self.objects[key], None)
        for key in [key for key in self.refused if key not in listed]:
            del self.refused[key]
        self.absent, self.answered = False, True

    def set_absent(self) -> None:
        """The server has no such kind (any more)."""
        self.begin_list()
        self.end_list()
        self.absent = True

    def _refuse(self, key: Key, error: ReduceError) -> None:
        known = self.refused.get(key)
        if known is None or known.message != error.message:
            _log.warning("%s %s/%s: %s %s", self.resource.kind, *key, error.field, error.message)
        self.refused[key] = error
        self._changed(key, self.objects.get(key), self.objects.get(key))

    def _set(self, key: Key, before: V | None, after: V | None) -> None:
        if before == after:
            return
        if after is None:
            del self.objects[key]
        else:
            self.objects[key] = after
        self._changed(key, before, after)


def _key(item: Mapping[str, Any]) -> Key:
    metadata = item.get("metadata") or {}
    return (str(metadata.get("namespace") or ""), str(metadata.get("name") or ""))
