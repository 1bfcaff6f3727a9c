"""Memory, descriptors and tasks of the soak's processes over time, and whether they grow."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import linear_regression, mean

from benchmarks.processes import Process, get

ALLOWED_SLOPE = 1.0
"""MB a minute, over the second half. The smallest object of CPython takes 16 bytes: one that is kept for
each of 2,000 requests a second makes 1.8 MB a minute, so that a leak on a request's path cannot hide below
this; the allocator's own wavering over some minutes can."""
ALLOWED_GROWTH = 4.0
"""Descriptors, or tasks, between the means of the third and the last quarter: a replica that is gone or
connecting at the moment makes a difference of one or two; one kept for each disturbance many more."""


@dataclass
class Series:
    """One process, seen each second: seconds since the start, and what was seen then."""

    name: str
    process: Process
    metrics: str
    """URL of its Prometheus metrics, for its tasks."""
    times: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    """MB resident."""
    descriptors: list[float] = field(default_factory=list)
    tasks: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Seconds."""

    def sample(self, now: float) -> None:
        self.process.check()
        self.times.append(now)
        self.memory.append(self.process.resident_megabytes())
        self.descriptors.append(len(os.listdir(f"/proc/{self.process.pid}/fd")))
        self.cpu.append(self.process.cpu_seconds())
        found = re.search(r"^pilotfish(?:_control_plane)?_tasks (\d+)", get(self.metrics)[1], re.MULTILINE)
        self.tasks.append(float(found[1]) if found is not None else 0.0)

    @property
    def slope(self) -> float:
        """MB a minute over the second half, by least squares."""
        half = len(self.times) // 2
        if len(self.times) - half < 2:
            return 0.0
        return linear_regression(self.times[half:], self.memory[half:]).slope * 60

    @property
    def half_memory(self) -> float:
        return self.memory[len(self.memory) // 2]

    @property
    def descriptor_growth(self) -> float:
        return growth(self.descriptors)

    @property
    def task_growth(self) -> float:
        return growth(self.tasks)

    def summary(self) -> dict[str, float | str]:
        return {
            "name": self.name,
            "rss_first_mb": round(self.memory[0], 1),
            "rss_half_mb": round(self.half_memory, 1),
            "rss_last_mb": round(self.memory[-1], 1),
            "rss_max_mb": round(max(self.memory), 1),
            "slope_mb_per_minute": round(self.slope, 3),
            "descriptors": self.descriptors[-1],
            "descriptor_growth": round(self.descriptor_growth, 2),
            "tasks": self.tasks[-1],
            "task_growth": round(self.task_growth, 2),
            "cpu_seconds": round(self.cpu[-1] - self.cpu[0], 1),
        }


def growth(values: Sequence[float]) -> float:
    """Mean of the last quarter less the mean of the third."""
    quarter = len(values) // 4
    if not quarter:
        return 0.0
    return mean(values[-quarter:]) - mean(values[-2 * quarter : -quarter])
