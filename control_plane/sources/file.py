"""The folder source: watches a tree of Kubernetes YAML files and keeps the registry equal to it.

The control plane's app awaits `run`. A save is read when the files have rested for 50 ms, so that an
editor's half-written file is never taken for the configuration. A folder with an error changes nothing:
the last good configuration keeps serving and `problems` says what is wrong. Nothing here knows xDS.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import watchfiles

from control_plane.model.mesh import Mesh
from control_plane.model.problem import Problem, Severity
from control_plane.sources.load import FileState, Loaded, load, scan

_log = logging.getLogger(__name__)

REST = 0.05
"""Seconds for which no file may change before the folder is read."""
POLL = 0.1
"""Seconds between looks at the folder where the system cannot report changes."""
RECHECK = 2.0
"""Seconds between looks where it can: network file systems and replaced symbolic links go unreported."""

_LEVELS = {Severity.ERROR: logging.ERROR, Severity.WARNING: logging.WARNING, Severity.NOTE: logging.INFO}


class FileSource:
    """Keeps `publish` informed of the mesh that `folder` describes.

    `publish` is called on the event loop with each new good Mesh; `on_problems`, if given, whenever the
    list of problems changed. `poll` None: the system's change reports, with polling where it has none.
    """

    def __init__(
        self,
        folder: Path,
        publish: Callable[[Mesh], object],
        on_problems: Callable[[tuple[Problem, ...]], object] | None = None,
        *,
        poll: float | None = None,
    ) -> None:
        self.folder = folder
        self.problems: tuple[Problem, ...] = ()
        """Of the folder as it is now; an error among them means that an older state is served."""
        self.loads = 0
        """How often the folder was read."""
        self._publish = publish
        self._on_problems = on_problems
        self._poll = poll
        self._seen: Mapping[Path, FileState] | None = None
        self._served: Mesh | None = None

    def __repr__(self) -> str:
        state = "serving" if self._served is not None else "nothing served yet"
        return f"FileSource({self.folder}, {state}, loads={self.loads}, problems={len(self.problems)})"

    def load_now(self) -> None:
        """Reads the folder once, blocking; for the first look before anything is served."""
        try:
            self._seen = scan(self.folder)
            loaded = load(self.folder)
        except OSError as error:
            loaded = self._unreadable(error)
        self._apply(loaded)

    async def run(self, stop: asyncio.Event) -> None:
        """Reads the folder and follows it until `stop` is set. Cancellation ends it too."""
        if self._seen is None:
            await self._refresh()
        async for _ in self._ticks(stop):
            await self._refresh()

    async def _ticks(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """One for each time that the folder is worth a look."""
        if self._poll is None:
            try:
                async for _ in watchfiles.awatch(
                    self.folder,
                    watch_filter=None,
                    debounce=200,
                    step=10,
                    rust_timeout=int(RECHECK * 1000),
                    yield_on_timeout=True,
                    ignore_permission_denied=True,
                    stop_event=stop,
                ):
                    yield
            except (OSError, RuntimeError) as error:
                # No inotify instances left, a file system without it, or the folder itself was replaced.
                _log.warning("cannot watch %s (%s); looking every %g s instead", self.folder, error, POLL)
        while not stop.is_set():
            try:
                await asyncio.wait_for(stop.wait(), self._poll or POLL)
            except TimeoutError:
                yield

    async def _refresh(self) -> None:
        """Reads the folder if it changed, when it has come to rest and stays so while it is read."""
        while True:
            try:
                before = await asyncio.to_thread(scan, self.folder)
                if before == self._seen:
                    return
                await asyncio.sleep(REST)
                if await asyncio.to_thread(scan, self.folder) != before:
                    continue
                loaded = await asyncio.to_thread(load, self.folder)
                if await asyncio.to_thread(scan, self.folder) != before:
                    continue
                self._seen = before
            except OSError as error:
                loaded = self._unreadable(error)
                self._seen = None
            self._apply(loaded)
            return

    def _unreadable(self, error: OSError) -> Loaded:
        message = f"the folder cannot be read ({error.strerror}); the last good configuration keeps serving"
        return Loaded(None, (Problem(Severity.ERROR, message, file=str(self.folder)),))

    def _apply(self, loaded: Loaded) -> None:
        self.loads += 1
        if loaded.problems != self.problems:
            for problem in loaded.problems:
                if problem not in self.problems:
                    _log.log(_LEVELS[problem.severity], "%s", problem)
            if loaded.mesh is None:
                _log.error("the configuration in %s has errors; the last good one keeps serving", self.folder)
            self.problems = loaded.problems
            if self._on_problems is not None:
                self._on_problems(self.problems)
        if loaded.mesh is not None and loaded.mesh != self._served:
            self._served = loaded.mesh
            self._publish(loaded.mesh)
