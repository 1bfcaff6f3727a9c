"""Keeps one store equal to the API server: carries out what a Reflector decides, with a client.

Called by the cluster source, once for each kind. Nothing that was read is dropped because the API server
is away or starting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from control_plane.kube.client import KubeClient, KubeError
from control_plane.kube.reflector import List, Reflector, Wait, Watch
from control_plane.kube.store import ResourceStore

PAGE = 500
"""Objects asked for at a time."""
ABSENT_PROOF = 3
"""How often in a row the server must deny a kind whose objects are in use: it does so while it starts."""

V = TypeVar("V")

_log = logging.getLogger(__name__)


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
            _failed(store, reflector, error, clock())
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

    def opened() -> None:
        if store.error is not None:
            _recovered(store)
            answered()

    async for event in client.watch(path, params, step.seconds, opened):
        kind, item = event.get("type"), event["object"]
        if kind == "ERROR":
            raise KubeError.of_status(0, item)
        if kind in ("ADDED", "MODIFIED"):
            store.put(item)
        elif kind == "DELETED":
            store.remove(item)
        reflector.on_event(str((item.get("metadata") or {}).get("resourceVersion") or ""))


def _recovered(store: ResourceStore[V]) -> None:
    if store.error is not None:
        _log.info("%s: the API server answers again", store.resource.kind)
        store.error = None


def _failed(store: ResourceStore[V], reflector: Reflector, error: KubeError, now: float) -> None:
    reflector.on_error(error, now)
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
