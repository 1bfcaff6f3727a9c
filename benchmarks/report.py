"""What was measured, for people and for programs: table, JSON, chart."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from benchmarks.measure import Sample
from benchmarks.memory import MemorySample
from benchmarks.memory_report import MemoryRow
from benchmarks.processes import BASELINE
from benchmarks.workloads import WORKLOADS, Workload


@dataclass(frozen=True)
class Row:
    """Medians of one contender on one workload. Memory is of the larger proxy of the pair."""

    workload: Workload
    contender: str
    cpu_us: float
    cpu_range: tuple[float, float]
    ratio: float | None
    """CPU beside the baseline's in the same run."""
    rate: float
    rss_mb: float
    idle_rss_mb: float
    p50_ms: float
    p99_ms: float
    latency_ratios: tuple[float, float] | None
    """p50 and p99 beside the baseline's; only where the workload has a fixed rate."""
    failed: int
    """Over all alternations, so are the missing spans."""
    spans_missing: int

    @property
    def held(self) -> bool | None:
        """Whether the workload's bar held; None where there is none, or no baseline."""
        checks = []
        if self.workload.bar is not None and self.ratio is not None:
            checks.append(self.ratio <= self.workload.bar)
        if self.workload.latency_bar is not None and self.latency_ratios is not None:
            checks.append(max(self.latency_ratios) <= self.workload.latency_bar)
        return all(checks) if checks and self.contender != BASELINE else None

    @property
    def note(self) -> str:
        notes = []
        if self.failed:
            notes.append(f"{self.failed} REQUESTS FAILED")
        if self.spans_missing:
            notes.append(f"{self.spans_missing} SPANS MISSING")
        return ", ".join(notes)


def rows(samples: Sequence[Sample]) -> list[Row]:
    """In the order of the workloads, then of the contenders."""
    found = []
    contenders = list(dict.fromkeys(sample.contender for sample in samples))
    for workload in WORKLOADS:
        chosen = [sample for sample in samples if sample.workload == workload.name]
        base = [sample for sample in chosen if sample.contender == BASELINE]
        for contender in contenders:
            mine = [sample for sample in chosen if sample.contender == contender]
            if mine:
                found.append(_row(workload, contender, mine, base))
    return found


def _row(workload: Workload, contender: str, samples: list[Sample], base: list[Sample]) -> Row:
    cpu = [sum(sample.cpu_us) for sample in samples]
    p50, p99 = median(sample.p50_ms for sample in samples), median(sample.p99_ms for sample in samples)
    latency_ratios = None
    if base and workload.rate:
        latency_ratios = (
            p50 / median(sample.p50_ms for sample in base),
            p99 / median(sample.p99_ms for sample in base),
        )
    return Row(
        workload=workload,
        contender=contender,
        cpu_us=median(cpu),
        cpu_range=(min(cpu), max(cpu)),
        ratio=median(cpu) / median(sum(sample.cpu_us) for sample in base) if base else None,
        rate=median(sample.rate for sample in samples),
        rss_mb=median(max(sample.rss_mb) for sample in samples),
        idle_rss_mb=median(max(sample.idle_rss_mb) for sample in samples),
        p50_ms=p50,
        p99_ms=p99,
        latency_ratios=latency_ratios,
        failed=sum(sample.failed for sample in samples),
        spans_missing=sum(sample.spans_missing for sample in samples),
    )


def table(found: Sequence[Row]) -> str:
    """One block for each workload."""
    lines = []
    for workload in dict.fromkeys(row.workload for row in found):
        unit = "ms CPU/MB" if workload.megabytes else "µs CPU/request"
        lines.append(f"\n{workload.title}  [{workload.name}]")
        heads = f"{'(lowest-highest)':>20}{'ratio':>8}{'requests/s':>12}{'RSS MB':>9}{'idle':>7}"
        lines.append(f"  {'':19}{unit:>16}{heads}")
        for row in found:
            if row.workload == workload:
                lines.append(_line(row))
    return "\n".join(lines)


def _line(row: Row) -> str:
    scale = 1000 * row.workload.megabytes or 1
    low, high = (value / scale for value in row.cpu_range)
    ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
    spread = f"({low:.1f}-{high:.1f})"
    latency = f"  p50 {row.p50_ms:.2f} ms, p99 {row.p99_ms:.2f} ms" if row.workload.rate else ""
    if row.latency_ratios is not None and row.contender != BASELINE:
        latency += " (ratios {:.2f}, {:.2f})".format(*row.latency_ratios)
    bar = row.workload.bar if row.workload.bar is not None else row.workload.latency_bar
    verdict = "" if row.held is None else f"  bar {bar:.1f} {'held' if row.held else 'MISSED'}"
    note = verdict + (f"  {row.note}" if row.note else "")
    return (
        f"  {row.contender:19}{row.cpu_us / scale:>16.1f}{spread:>20}{ratio:>8}{row.rate:>12.0f}"
        f"{row.rss_mb:>9.1f}{row.idle_rss_mb:>7.1f}{latency}{note}"
    )


def machine_facts(tools: dict[str, str]) -> dict[str, str]:
    """What the figures depend on. `tools`: name → command that prints its version."""
    facts = {
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pilotfish": _output("git describe --always --dirty"),
    }
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            facts["cpu"] = line.partition(":")[2].strip()
            break
    for package in ("uvloop", "hpack", "httptools", "opentelemetry-sdk"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts | {name: _output(command) for name, command in tools.items()}


def _output(command: str) -> str:
    try:
        ended = subprocess.run(command.split(), capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return "not installed"
    return " ".join(ended.stdout.split())


def write_json(
    path: Path,
    facts: dict[str, str],
    samples: Sequence[Sample],
    found: Sequence[Row],
    memory: Sequence[MemorySample],
    memory_found: Sequence[MemoryRow],
) -> None:
    """Facts, medians and every single sample."""
    medians = [
        {
            **asdict(row),
            "workload": row.workload.name,
            "bar": row.workload.bar or row.workload.latency_bar,
            "held": row.held,
            "note": row.note,
        }
        for row in found
    ]
    content = {
        "machine": facts,
        "medians": medians,
        "memory": [{**asdict(row), "held": row.held} for row in memory_found],
        "samples": [asdict(sample) for sample in samples],
        "memory_samples": [asdict(sample) for sample in memory],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_chart(path: Path, found: Sequence[Row]) -> None:
    """Bars of CPU by request, relative to the baseline where there is one, with lowest and highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    workloads = list(dict.fromkeys(row.workload for row in found))
    contenders = list(dict.fromkeys(row.contender for row in found))
    baseline = {row.workload: row.cpu_us for row in found if row.contender == BASELINE}
    height = 0.8 / len(contenders)
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.75 * len(workloads)))
    for number, contender in enumerate(contenders):
        mine = {row.workload: row for row in found if row.contender == contender}
        at = [index + number * height for index, workload in enumerate(workloads) if workload in mine]
        shown = [mine[workload] for workload in workloads if workload in mine]
        scales = [1000 * row.workload.megabytes or 1 for row in shown]
        values = [row.cpu_us / scale for row, scale in zip(shown, scales, strict=True)]
        units = [baseline.get(row.workload, scale) for row, scale in zip(shown, scales, strict=True)]
        lengths = [row.cpu_us / unit for row, unit in zip(shown, units, strict=True)]
        spread = [
            [(row.cpu_us - row.cpu_range[0]) / unit for row, unit in zip(shown, units, strict=True)],
            [(row.cpu_range[1] - row.cpu_us) / unit for row, unit in zip(shown, units, strict=True)],
        ]
        bars = axes.barh(
            at, lengths, height * 0.92, xerr=spread, label=contender, ecolor="#555555", capsize=2
        )
        labels = [f"{value:.1f}" + (f"  x{row.ratio:.2f}" if row.ratio and contender != BASELINE else "")
                  for value, row in zip(values, shown, strict=True)]  # fmt: skip
        axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.set_yticks(
        [index + height * (len(contenders) - 1) / 2 for index in range(len(workloads))],
        [workload.title for workload in workloads],
    )
    axes.invert_yaxis()
    axes.set_xlabel(f"CPU beside {BASELINE}'s" if baseline else "CPU, µs a request")
    axes.margins(x=0.25)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(contenders), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
