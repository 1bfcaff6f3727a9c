"""Keeping a copy of one kind of object: list, then watch, resume, and list again when history is gone.

`Reflector` decides (sans-IO, virtual time); `follow` carries it out with a client. `ResourceStore` holds
what was read, reduced to what the mesh needs. Nothing that was read is dropped because the API server is
away: a store changes by what the server says, never by its silence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Generic, TypeVar

from control_plane.kube.client import KubeClient, KubeError, Object

PAGE = 500
"""Objects asked for at a time."""
BACKOFF_FIRST, BACKOFF_MOST = 0.5, 30.0
"""Seconds before the first and between later attempts, halved or not at random."""
ABSENT_RETRY = 60.0
"""Seconds between looks for a kind that the cluster does not have."""
ABSENT_PROOF = 3
"""How often in a row the server must deny a kind whose objects are in use: it does so while it starts."""
WATCH_SECONDS = 300.0
"""The least a watch lasts; up to twice that, at random, so that watches do not end all at once."""
TOO_SHORT = 1.0
"""A watch that ends sooner without an event counts as a failure, or one would follow the other."""

Key = tuple[str, str]
"""Namespace (empty for what has none) and name."""
V = TypeVar("V")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class List:
    """Ask for a page; `token` empty: the first."""

    token: str


@dataclass(frozen=True, slots=True)
class Watch:
    version: str
    """The resourceVersion to go on from."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


Step = List | Watch | Wait


class Reflector:
    """What to do next to keep one copy true. Times are in seconds of one monotonic clock."""

    def __init__(self, random: Random) -> None:
        self.synced = False
        """Whether a whole list came once."""
        self.version = ""
        """resourceVersion that the copy is at; empty: a list is due."""
        self.resyncs = 0
        """Lists because history was gone."""
        self.denials = 0
        """How often in a row the server said that there is no such kind."""
        self._token = ""
        self._failures = 0
        self._wait = 0.0
        self._random = random
        self._watch_began = 0.0
        self._events = 0

    def __repr__(self) -> str:
        state = f"at {self.version}" if self.version else "listing"
        return f"<Reflector {state} failures={self._failures} resyncs={self.resyncs}>"

    def step(self, now: float) -> Step:
        """What to do now."""
        if self._wait:
            wait, self._wait = self._wait, 0.0
            return Wait(wait)
        if not self.version:
            return List(self._token)
        self._watch_began, self._events = now, 0
        return Watch(self.version, WATCH_SECONDS * (1.0 + self._random.random()))

    def on_page(self, version: str, token: str) -> bool:
        """A page came. True when it was the last: the copy is whole. `version` is the list's."""
        self._token = token
        self.denials = 0
        if token:
            return False
        self._failures = 0
        self.version, self.synced = version, True
        return True

    def on_event(self, version: str) -> None:
        """An object or a bookmark of `version` came on the watch."""
        self._events += 1
        self._failures = 0
        if version:
            self.version = version

    def on_watch_end(self, now: float) -> None:
        """The server ended the watch in good order."""
        if not self._events and now - self._watch_began < TOO_SHORT:
            self._back_off(None)

    def on_error(self, error: KubeError) -> None:
        """A page or a watch failed, or an ERROR event came."""
        if error.status == 410:
            # What we go on from is forgotten: everything must be read anew. Once that is no failure.
            self.resyncs += 1
            self.version = self._token = ""
            self._failures += 1
            if self._failures > 1:
                self._set_wait(None)
            return
        if error.status == 404:
            self.version = self._token = ""
            self.denials += 1
            self._wait = ABSENT_RETRY * (0.75 + 0.5 * self._random.random())
            return
        self._back_off(error.retry_after)

    def _back_off(self, retry_after: float | None) -> None:
        self._failures += 1
        self._set_wait(retry_after)

    def _set_wait(self, retry_after: float | None) -> None:
        most = min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(self._failures - 1, 16))
        wait = most * (0.5 + 0.5 * self._random.random())
        self._wait = wait if retry_after is None else max(wait, min(retry_after, 600.0))


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


async def follow(
    client: KubeClient,
    store: ResourceStore[V],
    reflector: Reflector,
    answered: Callable[[], object],
) -> None:
    """Keeps the store true until cancelled. `answered` is called when a list came whole, when the kind
    turned out to be absent, and when the API server fell silent or came back."""
    clock = asyncio.get_running_loop().time
    while True:
        step = reflector.step(clock())
        try:
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, List):
                await _list(client, store, reflector, step)
                _recovered(store)
                if reflector.version:
                    answered()
            else:
                await _watch(client, store, reflector, step, answered)
                reflector.on_watch_end(clock())
        except KubeError as error:
            _failed(store, reflector, error)
            answered()


async def _list(client: KubeClient, store: ResourceStore[V], reflector: Reflector, step: List) -> None:
    params = {"limit": str(PAGE)}
    if step.token:
        params["continue"] = step.token
    else:
        store.begin_list()
    version, token = await _list_page(client, store, params)
    if reflector.on_page(version, token):
        store.end_list()


async def _list_page(
    client: KubeClient, store: ResourceStore[V], params: Mapping[str, str]
) -> tuple[str, str]:
    """In the first of the kind's versions that the server has. Raises KubeError."""
    if "continue" in params:
        return await client.list_page(store.resource.path(store.version), params, store.put)
    *others, last = store.resource.versions
    for version in others:
        store.version = version
        try:
            return await client.list_page(store.resource.path(version), params, store.put)
        except KubeError as error:
            if error.status != 404:
                raise
    store.version = last
    return await client.list_page(store.resource.path(last), params, store.put)


async def _watch(
    client: KubeClient,
    store: ResourceStore[V],
    reflector: Reflector,
    step: Watch,
    answered: Callable[[], object],
) -> None:
    params = {"resourceVersion": step.version, "allowWatchBookmarks": "true"}
    path = store.resource.path(store.version)
    async for event in client.watch(path, params, step.seconds):
        kind, item = event.get("type"), event["object"]
        if kind == "ERROR":
            raise KubeError.of_status(0, item)
        if store.error is not None:
            _recovered(store)
            answered()
        if kind in ("ADDED", "MODIFIED"):
            store.put(item)
        elif kind == "DELETED":
            store.remove(item)
        reflector.on_event(str((item.get("metadata") or {}).get("resourceVersion") or ""))


def _recovered(store: ResourceStore[V]) -> None:
    if store.error is not None:
        _log.info("%s: the API server answers again", store.resource.kind)
        store.error = None


def _failed(store: ResourceStore[V], reflector: Reflector, error: KubeError) -> None:
    reflector.on_error(error)
    if error.status == 410:
        _log.info("%s: history is gone (%s); reading all of them anew", store.resource.kind, error.message)
    elif error.status == 404 and store.resource.optional:
        if store.objects and reflector.denials < ABSENT_PROOF:
            return
        if not store.absent:
            _log.info("%s: the cluster does not have this kind (yet)", store.resource.kind)
        store.error = None
        store.set_absent()
    else:
        if store.error is None or store.error.status != error.status:
            _log.warning("%s: %s; what was read last stays in use", store.resource.kind, error)
        store.error = error
