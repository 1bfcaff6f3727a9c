"""The process itself as metrics: CPU, memory, descriptors, and how late its event loop runs.

`telemetry_exports.py` registers a `ProcessMetrics` with `Metrics` and starts one `LoopLag`. Linux only:
read from `/proc/self` at each scrape, never in between.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from sidecar.telemetry.prometheus import Family, labels

CallLater = Callable[[float, Callable[[], None]], object]


class LoopLag:
    """Measures by how much a timer fires late, which is how long a ready request may have to wait.

    `call_later(seconds, callback)` and `now() -> seconds` are the loop's own. Runs until the loop ends.
    """

    def __init__(
        self, call_later: CallLater, now: Callable[[], float], interval: float = 0.5, window: int = 20
    ) -> None:
        self._call_later = call_later
        self._now = now
        self._interval = interval
        self._due = 0.0
        self._recent: deque[float] = deque(maxlen=window)

    def start(self) -> None:
        self._arm()

    @property
    def seconds(self) -> float:
        """The largest lag among the last `window` samples."""
        return max(self._recent, default=0.0)

    def _arm(self) -> None:
        self._due = self._now() + self._interval
        self._call_later(self._interval, self._fired)

    def _fired(self) -> None:
        self._recent.append(max(0.0, self._now() - self._due))
        self._arm()

    def __repr__(self) -> str:
        return f"<LoopLag {self.seconds * 1000:.1f} ms over {len(self._recent)} samples>"


class ProcessMetrics:
    """A collector for `Metrics.register`. `version` is the distribution's; `tasks` counts those alive."""

    def __init__(self, version: str, loop_lag: LoopLag, tasks: Callable[[], int]) -> None:
        self._loop_lag = loop_lag
        self._tasks = tasks
        self._started = time.time()
        self._build = labels({"version": version, "python": platform.python_version()})

    def __call__(self) -> Iterable[Family]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            _family("process_cpu_seconds_total", "User and system CPU time", usage.ru_utime + usage.ru_stime),
            _family("process_resident_memory_bytes", "Resident memory", resident_bytes()),
            _family("process_open_fds", "Open file descriptors", len(os.listdir("/proc/self/fd")) - 1),
            _family("process_max_fds", "Limit of open file descriptors", soft_limit),
            _family("process_start_time_seconds", "Start of the process, Unix time", self._started),
            _family("pilotfish_loop_lag_seconds", "Largest event loop lag of late", self._loop_lag.seconds),
            _family("pilotfish_tasks", "Tasks that have not ended", self._tasks()),
            Family("pilotfish_build_info", "gauge", "What is running; always 1", [(self._build, 1)]),
        )

    def __repr__(self) -> str:
        return f"<ProcessMetrics {self._build} {self._loop_lag!r}>"


def _family(name: str, help_text: str, value: float) -> Family:
    return Family(name, "counter" if name.endswith("_total") else "gauge", help_text, [("", value)])


def resident_bytes() -> int:
    """Resident set size of this process (proc(5), `statm`)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
