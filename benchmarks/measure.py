"""One alternation: start a contender's pair, load it, read what it cost, stop it."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.memory import MemorySample, measure_memory
from benchmarks.processes import (
    ADMIN_PORTS,
    BenchError,
    Contender,
    Process,
    is_ready,
    machine_seconds,
    settled_spans,
    wait_until,
)
from benchmarks.workloads import Workload, h2load_arguments

SIDES = ("outbound", "inbound")
SPANS_A_REQUEST = 4
"""A server and a client span at each of the two proxies."""
FLUSH_PATIENCE = 7.0
"""Seconds without news after which no more spans are expected; Envoy flushes every 5."""
WARM_UP_SHARE = 0.15
LOAD_TIMEOUT = 300.0
_SAMPLED_1_PERCENT = "random_sampling: {value: 1.0}"


@dataclass(frozen=True)
class Sample:
    """One workload on one contender, once."""

    workload: str
    contender: str
    requests: int
    failed: int
    """Requests that did not end in 2xx."""
    cpu_us: tuple[float, ...]
    """CPU microseconds for each request, of the outbound and the inbound proxy, or the inbound one alone."""
    rate: float
    """Requests a second."""
    rss_mb: tuple[float, ...]
    """Resident memory of each proxy after the load."""
    idle_rss_mb: tuple[float, ...]
    """The same before any load."""
    foreign: float
    """Share of the machine, 0..1, that went to strangers meanwhile."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    """Latencies; only where the workload has a fixed rate."""
    spans_missing: int = 0
    """Only where every request is traced."""


@dataclass(frozen=True)
class Rig:
    """What every measurement needs."""

    folder: Path
    h2load: str
    helpers: tuple[Process, ...]
    """Application and trace sink: their CPU is the bench's own and nobody's figure."""


@dataclass(frozen=True)
class LoadResult:
    done: int
    failed: int
    rate: float


def run_contender(
    contender: Contender, workloads: Iterable[Workload], rig: Rig, turn: int
) -> Iterator[Sample]:
    """Every workload on one contender: those that trace everything on a pair of their own."""
    for traced in (False, True):
        chosen = [workload for workload in workloads if workload.traced is traced]
        if chosen:
            with running_pair(contender, rig, traced) as (pair, idle):
                for workload in chosen:
                    yield measure(contender, workload, pair, rig, idle, turn)


def memory_of(contender: Contender, rig: Rig) -> MemorySample:
    """What connections cost, on a pair of their own."""
    with running_pair(contender, rig, False) as (pair, idle):
        return measure_memory(contender.name, pair[0], pair[1], max(idle))


@contextmanager
def running_pair(
    contender: Contender, rig: Rig, traced: bool
) -> Iterator[tuple[list[Process], tuple[float, ...]]]:
    """Start the pair and stop it in the end. With it comes its resident memory in MB, before any load."""
    with ExitStack() as stack:
        pair: list[Process] = []
        # The inbound side first: the outbound one then finds its upstream at once.
        for index, side in reversed(list(enumerate(SIDES))):
            command = contender.arguments(configuration(side, rig.folder, traced), index)
            process = Process(
                f"{contender.name} {side}", command, rig.folder / f"{contender.name}-{side}.log"
            )
            pair.insert(0, stack.enter_context(process))
            wait_until(process, partial(is_ready, ADMIN_PORTS[index]))
        idle = tuple(process.resident_megabytes() for process in pair)
        yield pair, idle


def configuration(side: str, folder: Path, traced: bool) -> str:
    """The bootstrap as it is or, with `traced`, a copy that samples every request: Envoy lets its own
    percentage overrule a caller's sampled flag, so a header alone would not do."""
    name = f"benchmarks/{side}.yaml"
    if not traced:
        return name
    text = Path(name).read_text()
    if text.count(_SAMPLED_1_PERCENT) != 1:
        raise BenchError(f"{name} has no single {_SAMPLED_1_PERCENT!r} to replace")
    copy = folder / f"{side}-traced.yaml"
    copy.write_text(text.replace(_SAMPLED_1_PERCENT, "random_sampling: {value: 100.0}"))
    return str(copy)


def measure(
    contender: Contender,
    workload: Workload,
    pair: list[Process],
    rig: Rig,
    idle: tuple[float, ...],
    turn: int,
) -> Sample:
    """Warm up, then load and read the pair's CPU before and after."""
    tag = f"{contender.name}-{turn}"
    warm_up = max(100, int((workload.requests or workload.rate * 2) * WARM_UP_SHARE))
    make_load(workload_of_count(workload), rig, warm_up, f"{tag}-w")
    spans = settled_spans(1 << 62, FLUSH_PATIENCE) if workload.traced else 0
    strangers = Strangers((*pair, *rig.helpers))
    counted = pair[1:] if workload.inbound_only else pair
    before = [process.cpu_seconds() for process in counted]
    result = make_load(workload, rig, workload.requests, tag)
    foreign = strangers.share()
    missing = 0
    if workload.traced:
        expected = spans + SPANS_A_REQUEST * result.done
        missing = expected - settled_spans(expected, FLUSH_PATIENCE)
    for process in pair:
        process.check()
    after = [process.cpu_seconds() for process in counted]
    p50, p99 = latencies(rig.folder / "latency.tsv") if workload.rate else (0.0, 0.0)
    return Sample(
        workload=workload.name,
        contender=contender.name,
        requests=result.done,
        failed=result.failed,
        cpu_us=tuple((b - a) * 1e6 / max(1, result.done) for a, b in zip(before, after, strict=True)),
        rate=result.rate,
        rss_mb=tuple(process.resident_megabytes() for process in pair),
        idle_rss_mb=idle,
        foreign=foreign,
        p50_ms=p50,
        p99_ms=p99,
        spans_missing=missing,
    )


class Strangers:
    """How much of the machine went to processes that are not the bench's, since this object was made.

    They share caches and cores with the proxies and make every request dearer, not only slower.
    """

    def __init__(self, own: tuple[Process, ...]) -> None:
        self._own = own
        self._start = self._read()

    def share(self) -> float:
        """0..1 of all cores."""
        ours, busy, total = (now - then for now, then in zip(self._read(), self._start, strict=True))
        return max(0.0, busy - ours) / total if total else 0.0

    def _read(self) -> tuple[float, float, float]:
        usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        ours = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        return (ours + sum(process.cpu_seconds() for process in self._own), *machine_seconds())


def workload_of_count(workload: Workload) -> Workload:
    """The same load as fast as it goes, for warming up."""
    return replace(workload, rate=0, requests=workload.rate) if workload.rate else workload


_DONE = re.compile(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed")
_CODES = re.compile(r"status codes: (\d+) 2xx")
_RATE = re.compile(r"finished in [^,]+, ([\d.]+) req/s")


def make_load(workload: Workload, rig: Rig, requests: int, tag: str) -> LoadResult:
    """Raises BenchError when the load does not finish or its result cannot be understood."""
    if workload.client:
        return run_client([sys.executable, "-m", "benchmarks.client", workload.client, str(requests), tag])
    return run_h2load([rig.h2load, *h2load_arguments(workload, rig.folder, requests, tag)])


def run_client(command: list[str]) -> LoadResult:
    output, errors = run(command)
    words = output.split()
    if len(words) != 3:
        raise BenchError(f"{' '.join(command)} said: {output[-800:]}{errors[-800:]}")
    done, failed = int(words[0]), int(words[1])
    return LoadResult(done, failed, done / float(words[2]))


def run(command: list[str]) -> tuple[str, str]:
    """What the load generator wrote, and its errors."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(command)} did not finish in {LOAD_TIMEOUT:g} s") from error
    return ended.stdout, ended.stderr


def run_h2load(command: list[str]) -> LoadResult:
    output, errors = run(command)
    requests, codes, rate = (pattern.search(output) for pattern in (_DONE, _CODES, _RATE))
    if requests is None or codes is None or rate is None:
        raise BenchError(f"{' '.join(command)} said: {output[-800:]}{errors[-800:]}")
    total, done = int(requests[1]), int(requests[2])
    return LoadResult(done, max(total, done) - int(codes[1]), float(rate[1]))


def latencies(log: Path) -> tuple[float, float]:
    """p50 and p99 in milliseconds from h2load's log (start, status, duration in microseconds)."""
    durations = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    log.unlink()
    if not durations:
        raise BenchError(f"{log} is empty: h2load finished no request")
    return durations[len(durations) // 2] / 1000, durations[len(durations) * 99 // 100] / 1000
