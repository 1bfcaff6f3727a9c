"""What the soak found: the facts that must hold, the table, the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.soak_watch import ALLOWED_GROWTH, ALLOWED_SLOPE, Series

if TYPE_CHECKING:
    from benchmarks.soak import Settings

JUDGED_FROM = 300
"""Seconds of a run from which its memory is judged: in shorter ones the second half is warm-up too."""
MIN_LOAD = 0.95
"""Share of the asked load that must have been made, or the run proves nothing."""
FAILURES_KEPT = 1000


@dataclass(frozen=True)
class Fact:
    text: str
    holds: bool


@dataclass(frozen=True)
class Result:
    requests: int
    failures: list[tuple[float, str]]
    """When each failed request began (Unix time), and its status; -1: its stream was reset."""
    attempts: dict[int, int]
    """How many requests needed how many attempts, by the caller's access log."""
    disturbances: list[tuple[float, str]]
    series: list[Series]
    facts: list[Fact]
    stats: object
    """The caller's sidecar's `/stats` at the end."""


def load_facts(done: int, failed: int, expected: int, disturbed: Mapping[str, int]) -> Iterator[Fact]:
    yield Fact(f"no failed GET: {failed} of {done}", not failed)
    yield Fact(f"the load was made: {done} of {expected} GETs", done >= MIN_LOAD * expected)
    kinds = ", ".join(f"{kind} {count}" for kind, count in disturbed.items())
    yield Fact(f"disturbances: {kinds}", len(disturbed) > 1)


def growth_facts(series: list[Series], judged: bool) -> Iterator[Fact]:
    note = "" if judged else "; too short a run to judge"
    for one in series:
        yield Fact(
            f"{one.name}: memory {one.slope:+.2f} MB a minute over the second half "
            f"(allowed {ALLOWED_SLOPE:g}{note})",
            one.slope <= ALLOWED_SLOPE or not judged,
        )
        for what, grown in (("descriptors", one.descriptor_growth), ("tasks", one.task_growth)):
            yield Fact(
                f"{one.name}: {what} {grown:+.1f} in the last quarter (allowed {ALLOWED_GROWTH:g}{note})",
                grown <= ALLOWED_GROWTH or not judged,
            )


def table(result: Result) -> str:
    titles = f"{'RSS MB first':>14}{'half':>8}{'last':>8}{'MB/min':>9}{'fds':>6}{'tasks':>7}{'CPU s':>8}"
    lines = ["", f"{'process':18}{titles}"]
    for one in result.series:
        lines.append(
            f"{one.name:18}{one.memory[0]:14.1f}{one.half_memory:8.1f}{one.memory[-1]:8.1f}"
            f"{one.slope:9.2f}{one.descriptors[-1]:6.0f}{one.tasks[-1]:7.0f}{one.cpu[-1] - one.cpu[0]:8.1f}"
        )
    attempts = ", ".join(f"{number}: {count}" for number, count in result.attempts.items() if number)
    lines += ["", f"requests by attempts needed: {attempts}"]
    lines += [f"{'holds' if fact.holds else 'FAILS'}  {fact.text}" for fact in result.facts]
    return "\n".join(lines)


def write_json(path: Path, settings: Settings, result: Result) -> None:
    tree = {
        "settings": asdict(settings),
        "requests": result.requests,
        "failed": len(result.failures),
        "failures": result.failures[:FAILURES_KEPT],
        "attempts": result.attempts,
        "disturbances": result.disturbances,
        "facts": [asdict(fact) for fact in result.facts],
        "processes": [one.summary() for one in result.series],
        "series": {one.name: {"seconds": one.times, "rss_mb": one.memory} for one in result.series},
        "stats": result.stats,
    }
    path.write_text(json.dumps(tree, indent=1, default=str) + "\n")
