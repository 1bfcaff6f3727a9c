"""Memory of a sidecar and of a connection: medians, and whether the bars held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measure import Sample
from benchmarks.memory import MemorySample
from benchmarks.processes import BASELINE

LOADED = "h2-8x16-1k"
"""Memory after load is read after this workload, when it was run."""
PLAIN_LIMIT_KB, BURST_LIMIT_KB = 15.0, 64.0


@dataclass(frozen=True)
class MemoryRow:
    """One quantity of one contender. Limit and ratio's bar are alternatives."""

    what: str
    unit: str
    contender: str
    value: float
    ratio: float | None
    """Beside the baseline's in the same run."""
    limit: float | None = None
    bar: float | None = None

    @property
    def held(self) -> bool | None:
        if self.contender == BASELINE:
            return None
        if self.limit is not None:
            return self.value <= self.limit
        return None if self.ratio is None or self.bar is None else self.ratio <= self.bar


def memory_rows(memory: Sequence[MemorySample], samples: Sequence[Sample]) -> list[MemoryRow]:
    """By quantity, then in the order of the contenders."""
    names = list(dict.fromkeys(sample.contender for sample in memory))
    own = {name: [sample for sample in memory if sample.contender == name] for name in names}
    loaded = {
        name: [max(one.rss_mb) for one in samples if one.contender == name and one.workload == LOADED]
        for name in names
    }
    found = _rows("sidecar, idle", "MB", {n: [s.idle_mb for s in own[n]] for n in names}, bar=1.0)
    found += _rows(f"sidecar, after {LOADED}", "MB", loaded, bar=1.0)
    plain = {name: [sample.plain_kb for sample in own[name]] for name in names}
    found += _rows("idle plain HTTP/1.1 connection", "KB", plain, limit=PLAIN_LIMIT_KB)
    mtls = {name: [sample.mtls_kb for sample in own[name]] for name in names}
    found += _rows("idle mTLS HTTP/2 connection", "KB", mtls, bar=2.0)
    burst = {name: [sample.burst_kb for sample in own[name]] for name in names}
    return found + _rows("mTLS connection, 1 s after 200 KB", "KB", burst, limit=BURST_LIMIT_KB)


def _rows(
    what: str,
    unit: str,
    values: dict[str, list[float]],
    limit: float | None = None,
    bar: float | None = None,
) -> list[MemoryRow]:
    base = median(values[BASELINE]) if values.get(BASELINE) else 0.0
    return [
        MemoryRow(what, unit, name, median(mine), median(mine) / base if base else None, limit, bar)
        for name, mine in values.items()
        if mine
    ]


def memory_table(found: Sequence[MemoryRow]) -> str:
    lines = [f"\n{'Memory (resident)':38}{'':19}{'median':>10}{'ratio':>8}"]
    for row in found:
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        line = f"  {row.what:36}{row.contender:19}{row.value:>7.1f} {row.unit}{ratio:>8}"
        if row.held is not None:
            against = f"limit {row.limit:g} {row.unit}" if row.limit is not None else f"bar {row.bar:.1f}"
            line += f"  {against} {'held' if row.held else 'MISSED'}"
        lines.append(line)
    return "\n".join(lines)
