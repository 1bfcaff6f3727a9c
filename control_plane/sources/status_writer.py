"""Writes what became of each route and policy into its status, as Gateway API's conditions; the leader alone.

The source tells it every verdict, the election whether we lead. A status is written by server-side apply
and only when it says something new. Others may have their say too: `status.parents` of a route and
`status.ancestors` of a policy are one list for all controllers, so theirs are written back as they were,
and only onto the version they were read from.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
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
"""Seconds between attempts while the API server refuses."""
MAX_MESSAGE = 4096

log = logging.getLogger(__name__)


Verdict = RouteVerdict | PolicyVerdict


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
        self.error: KubeError | None = None
        """Why statuses are not up to date; None: they are, or somebody else leads."""
        self._client = client
        self._leads = leads
        self._verdicts: dict[tuple[str, Key], Verdict] = {}
        self._written: dict[tuple[str, Key], tuple[str, str]] = {}
        """The resourceVersion that was written onto, and what: it comes back by the watch a little later."""
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        return f"<StatusWriter objects={len(self._verdicts)} writes={self.writes} error={self.error}>"

    @property
    def problems(self) -> tuple[Problem, ...]:
        if self.error is None:
            return ()
        return (
            Problem(Severity.WARNING, f"the status of routes and policies cannot be written: {self.error}"),
        )

    def on_verdicts(self, verdicts: tuple[Verdict, ...]) -> None:
        """What became of all routes and policies."""
        self._verdicts = {(verdict.kind, verdict.key): verdict for verdict in verdicts}
        self._wake.set()

    def on_leading(self, _leads: bool) -> None:
        self._written.clear()
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        wait = 0.0
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._write_all()
                self.error, wait = None, 0.0
            except KubeError as error:
                if self.error is None or self.error.status != error.status:
                    log.warning("the status of routes and policies cannot be written: %s", error)
                self.error = error
                wait = min(max(RETRY_FIRST, 2.0 * wait), RETRY_MOST)
                await asyncio.sleep(max(wait, min(error.retry_after or 0.0, 600.0)))
                self._wake.set()

    async def _write_all(self) -> None:
        for name, verdict in list(self._verdicts.items()):
            if not self._leads():
                return
            entries = wanted_entries(verdict, datetime.now(UTC))
            if entries is not None:
                await self._write(name, verdict, entries)
        for name in [name for name in self._written if name not in self._verdicts]:
            del self._written[name]

    async def _write(self, name: tuple[str, Key], verdict: Verdict, entries: list[Object]) -> None:
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
