"""Writes what became of each route and policy into its status, as Gateway API's conditions; the leader alone.

The source tells it every verdict, the election whether we lead. A status is written by server-side apply
and only when it says something new. An object whose status the API server refuses waits by itself and holds
up no other. Others may have their say too: `status.parents` of a route and `status.ancestors` of a policy
are one list for all controllers, so theirs are written back as they were, and only onto the version they
were read from.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from control_plane.kube.client import APPLY, KubeClient, KubeError, Object
from control_plane.kube.store import Key
from control_plane.model.problem import Problem, Severity
from control_plane.sources.kube_objects import POLICIES
from control_plane.sources.policy_admission import PolicyVerdict
from control_plane.sources.route_admission import Condition, RouteVerdict
from mesh_api.names import GROUP

CONTROLLER = f"{GROUP}/controller"
FIELD_MANAGER = "pilotfish"
RETRY_FIRST, RETRY_MOST = 1.0, 60.0
"""Seconds between attempts for an object that is refused, and for all while there is no use in trying."""
MAX_MESSAGE = 4096
_OF_ALL = (0, 401, 429)
"""No answer, not known to the API server, throttled: another object would fare no better."""

log = logging.getLogger(__name__)

Verdict = RouteVerdict | PolicyVerdict
Name = tuple[str, Key]
"""Kind, and namespace and name."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why the status of an object was not written."""

    error: KubeError
    wait: float
    due: float
    """When it is tried again, `wait` seconds or more after it failed."""


class _List(NamedTuple):
    """Where the status of a kind of object says what became of it."""

    name: str
    reference: str
    """What an entry is about."""
    most: int
    """Gateway API's limit."""


_PARENTS = _List("parents", "parentRef", 32)
_ANCESTORS = _List("ancestors", "ancestorRef", 16)


def _list_of(verdict: Verdict) -> _List:
    return _PARENTS if isinstance(verdict, RouteVerdict) else _ANCESTORS


def wanted_entries(verdict: Verdict, now: datetime) -> list[Object] | None:
    """The whole `status.parents` or `status.ancestors` that the object should have; None: it is that
    already. Conditions that say the same as before keep their time."""
    listed = _list_of(verdict)
    entries = verdict.parents if isinstance(verdict, RouteVerdict) else verdict.ancestors
    current: list[Object] = json.loads(verdict.facts.status)
    ours = {
        json.dumps(entry.get(listed.reference), sort_keys=True): entry
        for entry in current
        if entry.get("controllerName") == CONTROLLER
    }
    others = [entry for entry in current if entry.get("controllerName") != CONTROLLER]
    wanted = []
    for reference, conditions in entries[: max(0, listed.most - len(others))]:
        before = {c.get("type"): c for c in ours.get(reference, {}).get("conditions") or []}
        wanted.append(
            {
                listed.reference: json.loads(reference),
                "controllerName": CONTROLLER,
                "conditions": [
                    _condition(condition, verdict.facts.generation, before.get(condition.type), now)
                    for condition in conditions
                ],
            }
        )
    return None if _same(wanted, ours.values(), listed.reference) else [*others, *wanted]


def _condition(wanted: Condition, generation: int, before: Object | None, now: datetime) -> Object:
    status = "True" if wanted.status else "False"
    since = f"{now:%Y-%m-%dT%H:%M:%SZ}"
    if before is not None and before.get("status") == status:
        since = before.get("lastTransitionTime") or since
    return {
        "type": wanted.type,
        "status": status,
        "reason": wanted.reason,
        "message": wanted.message[:MAX_MESSAGE],
        "observedGeneration": generation,
        "lastTransitionTime": since,
    }


def _same(wanted: Iterable[Object], current: Iterable[Object], reference: str) -> bool:
    def comparable(entries: Iterable[Object]) -> list[Any]:
        return [
            (entry.get(reference), sorted(entry.get("conditions") or [], key=lambda c: str(c.get("type"))))
            for entry in entries
        ]

    return comparable(wanted) == comparable(current)


class StatusWriter:
    """One for the control plane. `leads` is asked before every write."""

    def __init__(self, client: KubeClient, leads: Callable[[], bool]) -> None:
        self.writes = 0
        self._client = client
        self._leads = leads
        self._verdicts: dict[Name, Verdict] = {}
        self._written: dict[Name, tuple[str, str]] = {}
        """The resourceVersion that was written onto, and what: it comes back by the watch a little later."""
        self._failures: dict[Name, _Failure] = {}
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        counts = f"objects={len(self._verdicts)} writes={self.writes} failures={len(self._failures)}"
        return f"<StatusWriter {counts}>"

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The first object whose status is not up to date; none while somebody else leads."""
        if not self._failures:
            return ()
        (kind, (namespace, name)), failure = next(iter(self._failures.items()))
        others = f" (as that of {len(self._failures) - 1} more)" if len(self._failures) > 1 else ""
        message = f"its status cannot be written{others}: {failure.error}"
        return (Problem(Severity.WARNING, message, object=f"{kind} {namespace}/{name}"),)

    def on_verdicts(self, verdicts: tuple[Verdict, ...]) -> None:
        """What became of all routes and policies."""
        self._verdicts = {(verdict.kind, verdict.key): verdict for verdict in verdicts}
        self._wake.set()

    def on_leading(self, _leads: bool) -> None:
        self._written.clear()
        self._failures.clear()
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        pause = 0.0
        while True:
            due = min((failure.due for failure in self._failures.values()), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            self._wake.clear()
            futile = await self._write_all(asyncio.get_running_loop().time)
            pause = 0.0 if futile is None else _longer(pause)
            if futile is not None:
                await asyncio.sleep(_seconds(pause, futile))
                self._wake.set()

    async def _write_all(self, clock: Callable[[], float]) -> KubeError | None:
        """What is due. Returns the failure after which the rest was not tried."""
        for name, verdict in list(self._verdicts.items()):
            if not self._leads():
                self._failures.clear()
                return None
            failure = self._failures.get(name)
            if failure is not None and clock() < failure.due:
                continue
            try:
                entries = wanted_entries(verdict, datetime.now(UTC))
                if entries is not None:
                    await self._write(name, verdict, entries)
                self._failures.pop(name, None)
            except KubeError as error:
                self._fail(name, error, clock())
                if error.status in _OF_ALL:
                    return error
        for kept in (self._written, self._failures):
            for name in [name for name in kept if name not in self._verdicts]:
                del kept[name]
        return None

    def _fail(self, name: Name, error: KubeError, now: float) -> None:
        kind, (namespace, own_name) = name
        known = {(other[0], failure.error.status) for other, failure in self._failures.items()}
        if (kind, error.status) not in known:
            text = "the status of %s %s/%s, maybe of others, cannot be written: %s"
            log.warning(text, kind, namespace, own_name, error)
        before = self._failures.get(name)
        wait = _longer(before.wait if before else 0.0)
        self._failures[name] = _Failure(error, wait, now + _seconds(wait, error))

    async def _write(self, name: Name, verdict: Verdict, entries: list[Object]) -> None:
        """Raises KubeError, but not when the object has changed or gone: the watch will tell."""
        version, says = verdict.facts.version, json.dumps(_timeless(entries), sort_keys=True)
        if self._written.get(name) == (version, says):
            return
        namespace, own_name = verdict.key
        body = {
            "apiVersion": verdict.facts.api_version,
            "kind": verdict.kind,
            "metadata": {"name": own_name, "namespace": namespace, "resourceVersion": version},
            "status": {_list_of(verdict).name: entries},
        }
        plural = f"{verdict.kind.lower()}s" if isinstance(verdict, RouteVerdict) else POLICIES.plural
        path = f"/apis/{verdict.facts.api_version}/namespaces/{namespace}/{plural}/{own_name}/status"
        params = {"fieldManager": FIELD_MANAGER, "force": "true"}
        try:
            await self._client.request("PATCH", path, body, params=params, content_type=APPLY)
            self.writes += 1
        except KubeError as error:
            if error.status not in (404, 409):
                raise
        self._written[name] = (version, says)


def _longer(wait: float) -> float:
    return min(max(RETRY_FIRST, 2.0 * wait), RETRY_MOST)


def _seconds(wait: float, error: KubeError) -> float:
    """To wait, unless the API server asked for more."""
    return max(wait, min(error.retry_after or 0.0, 600.0))


def _timeless(entries: Iterable[Object]) -> list[Object]:
    return [
        {
            **entry,
            "conditions": [
                {key: value for key, value in condition.items() if key != "lastTransitionTime"}
                for condition in entry.get("conditions") or []
            ],
        }
        for entry in entries
    ]
