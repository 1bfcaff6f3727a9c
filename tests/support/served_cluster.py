"""The cluster of `operator_cluster` behind an API server, and what `pilotfish check` finds in it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pilotfish.operator.api import Api
from pilotfish.operator.check import Look, look
from pilotfish.operator.facts import Fact, State
from pilotfish.operator.kubeconfig import load_context
from pilotfish.operator.transport import TIMEOUT
from pilotfish.operator.world import World
from tests.support.kube_api import KubeApi
from tests.support.operator_cluster import SYSTEM, install


class Served:
    """The cluster behind an API server on a thread of its own, for tests that are not asynchronous."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubeconfig = directory / "kubeconfig"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._api = KubeApi(directory)

    def __enter__(self) -> Served:
        self._thread.start()
        self._await(self._api.__aenter__())
        self._api.kubeconfig()
        return self

    def __exit__(self, *_: object) -> None:
        self._await(self._api.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self, change: Callable[[KubeApi], object]) -> None:
        """A healthy mesh again, then `change`."""

        async def changed() -> None:
            api = self._api
            for state in (api.objects, api.documents, api.denied, api.proxies, api.silent, api.moods):
                state.clear()
            api.date = None
            install(self._api)
            change(self._api)

        self._await(changed())

    def api(self, timeout: float = TIMEOUT) -> Api:
        return Api(load_context({}, self.directory, file=self.kubeconfig), timeout)

    def facts(
        self, one: Look, change: Callable[[KubeApi], object] = lambda api: None, timeout: float = TIMEOUT
    ) -> list[Fact]:
        """What one look finds in a mesh that was healthy before a change. What is not well has to say what to
        do, and where more is written."""
        self.reset(change)
        with self.api(timeout) as api:
            found = [finding.fact for finding in look(World(api, SYSTEM), {"": (one,)})]
        assert not [fact for fact in found if fact.state is not State.OK and not (fact.hint and fact.link)]
        return found

    def _await(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)
