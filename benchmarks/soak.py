"""`python -m benchmarks.soak`: 2,000 GETs a second through the mesh for ten minutes while replicas come and go.

Must hold: no GET fails, and neither memory nor descriptors nor tasks grow after the warm-up. Prints a line
every ten seconds and a table at the end, writes build/soak/result.json; exit status 1 when a fact did not
hold, 2 when it could not be run. Ends by itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.processes import BenchError, get
from benchmarks.run import find_tools
from benchmarks.soak_disturbances import Disturber
from benchmarks.soak_load import AccessLogReader, Load
from benchmarks.soak_mesh import SoakMesh
from benchmarks.soak_watch import ALLOWED_GROWTH, ALLOWED_SLOPE, Series
from mesh_api.names import ADMIN_PORT, STATUS_PORT

FOLDER = Path("build/soak")
JUDGED_FROM = 300
"""Seconds of a run from which its memory is judged: in shorter ones the second half is warm-up too."""
QUIET_END = 0.5
"""Nothing new is begun in the last seconds that this share of an interval makes."""
MIN_LOAD = 0.95
"""Share of the asked load that must have been made, or the run proves nothing."""
TICK = 0.1


@dataclass(frozen=True)
class Settings:
    seconds: int = 600
    rate: int = 2000
    """GETs a second."""
    replicas: int = 4
    interval: float = 5.0
    """Seconds between the beginnings of two disturbances."""
    route_interval: float = 7.0
    network: str = "127.0.4"
    folder: Path = FOLDER


@dataclass(frozen=True)
class Fact:
    text: str
    holds: bool


def main() -> int:
    settings = parse_arguments()
    try:
        result = run(settings, find_tools())
    except BenchError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    print(table(result))
    path = settings.folder / "result.json"
    path.write_text(json.dumps(result, indent=1, default=str) + "\n")
    print(f"\n{path}")
    return 0 if all(fact["holds"] for fact in result["facts"]) else 1


def parse_arguments() -> Settings:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n")[0])
    defaults = Settings()
    add = parser.add_argument
    add("--seconds", type=int, default=defaults.seconds, help="default %(default)s")
    add("--rate", type=int, default=defaults.rate, help="GETs a second (default %(default)s)")
    add("--replicas", type=int, default=defaults.replicas, help="at least 2 (default %(default)s)")
    add("--interval", type=float, default=defaults.interval, help="between kills (default %(default)g s)")
    add("--network", default=defaults.network, help="first three octets (default %(default)s)")
    given = parser.parse_args()
    if given.replicas < 2:
        parser.error("--replicas: at least 2, or nobody is left when one is killed")
    return Settings(given.seconds, given.rate, given.replicas, given.interval, network=given.network)


def run(settings: Settings, tools: dict[str, str]) -> dict[str, object]:
    """The whole soak; returns what result.json gets. Raises BenchError when it cannot be run."""
    shutil.rmtree(settings.folder, ignore_errors=True)
    settings.folder.mkdir(parents=True)
    with ExitStack() as stack:
        mesh = SoakMesh(settings.folder, settings.network, settings.replicas, tools["nghttpd"])
        stack.enter_context(mesh)
        access_log = AccessLogReader(settings.folder / "failed-requests.jsonl")
        try:
            mesh.start(access_log.descriptor)
        finally:
            access_log.started()
        load = Load(tools["h2load"], mesh, settings.rate, settings.seconds)
        stack.enter_context(load.process)
        disturber = Disturber(mesh, settings.interval, settings.route_interval)
        series = watched(mesh)
        drive(settings, load, access_log, disturber, series)
        stats = json.loads(get(f"http://{mesh.caller}:{ADMIN_PORT}/stats")[1])
    access_log.join()
    return evaluate(settings, load, access_log, disturber, series, stats)


def watched(mesh: SoakMesh) -> list[Series]:
    """Those that live from the beginning to the end."""
    first = mesh.replicas[0]
    metrics = f"http://{{}}:{ADMIN_PORT}/metrics"
    return [
        Series("outbound sidecar", mesh.outbound, metrics.format(mesh.caller)),
        Series("inbound sidecar", first.sidecar, metrics.format(first.address)),
        Series("control plane", mesh.control_plane, f"http://{mesh.network}.1:{STATUS_PORT}/metrics"),
    ]


def drive(
    settings: Settings,
    load: Load,
    access_log: AccessLogReader,
    disturber: Disturber,
    series: list[Series],
) -> None:
    """Until h2load has ended and every replica is back."""
    start = time.monotonic()
    disturber.start()
    next_sample, next_line = start, start + 10.0
    last_done = 0
    quiet_from = start + settings.seconds - settings.interval * QUIET_END
    while load.process.alive or disturber.busy:
        now = time.monotonic()
        if now > start + settings.seconds + 60:
            raise BenchError(f"the load has not ended: {load.process.last_words()}")
        disturber.tick(begin=now < quiet_from and load.process.alive)
        if now >= next_sample and load.process.alive:
            next_sample += 1.0
            for one in series:
                one.sample(now - start)
            load.read()
        if now >= next_line:
            next_line += 10.0
            print(
                progress(now - start, load, load.done - last_done, access_log, disturber, series), flush=True
            )
            last_done = load.done
        time.sleep(TICK)
    load.read()
    load.check()


def progress(
    elapsed: float,
    load: Load,
    done: int,
    access_log: AccessLogReader,
    disturber: Disturber,
    series: list[Series],
) -> str:
    durations = load.take_durations()
    p99 = durations[len(durations) * 99 // 100] / 1000 if durations else 0.0
    longest = durations[-1] / 1000 if durations else 0.0
    memory = " ".join(f"{one.memory[-1]:.1f}" for one in series)
    return (
        f"{elapsed:5.0f} s  {done / 10:6.0f}/s  failed {len(load.failures)}  "
        f"retried {access_log.counts.retried}  p99 {p99:.1f} ms  max {longest:.0f} ms  "
        f"disturbances {len(disturber.log)}  RSS {memory} MB"
    )


def evaluate(
    settings: Settings,
    load: Load,
    access_log: AccessLogReader,
    disturber: Disturber,
    series: list[Series],
    stats: object,
) -> dict[str, object]:
    facts = [
        Fact(f"no failed GET: {len(load.failures)} of {load.done}", not load.failures),
        Fact(
            f"the load was made: {load.done} of {settings.rate * settings.seconds} GETs",
            load.done >= MIN_LOAD * settings.rate * settings.seconds,
        ),
        Fact(
            f"replicas were disturbed: {dict(disturber.counts)}",
            len(disturber.counts) > 1,
        ),
    ]
    judged = settings.seconds >= JUDGED_FROM
    for one in series:
        summary = one.summary()
        facts.append(
            Fact(
                f"{one.name}: memory grows by {one.slope:.2f} MB a minute over the second half "
                f"(allowed {ALLOWED_SLOPE:g}{'' if judged else ', not judged: too short a run'})",
                one.slope <= ALLOWED_SLOPE or not judged,
            )
        )
        for what in ("descriptor", "task"):
            grown = float(summary[f"{what}_growth"])
            facts.append(
                Fact(
                    f"{one.name}: {grown:+.1f} {what}s in the last quarter (allowed {ALLOWED_GROWTH:g})",
                    grown <= ALLOWED_GROWTH or not judged,
                )
            )
    return {
        "settings": asdict(settings),
        "requests": load.done,
        "failures": load.failures[:1000],
        "attempts": {str(number): count for number, count in sorted(access_log.attempts.items())},
        "disturbances": disturber.log,
        "facts": [asdict(fact) for fact in facts],
        "processes": [one.summary() for one in series],
        "series": {one.name: {"seconds": one.times, "rss_mb": one.memory} for one in series},
        "stats": stats,
    }


def table(result: dict[str, object]) -> str:
    lines = [""]
    lines.append(
        f"{'process':18}{'RSS MB first':>14}{'half':>8}{'last':>8}{'MB/min':>9}{'fds':>6}{'tasks':>7}{'CPU s':>8}"
    )
    for one in result["processes"]:
        lines.append(
            f"{one['name']:18}{one['rss_first_mb']:14.1f}{one['rss_half_mb']:8.1f}{one['rss_last_mb']:8.1f}"
            f"{one['slope_mb_per_minute']:9.2f}{one['descriptors']:6.0f}{one['tasks']:7.0f}{one['cpu_seconds']:8.1f}"
        )
    lines.append("")
    attempts = ", ".join(
        f"{number}: {count}" for number, count in result["attempts"].items() if number != "0"
    )
    lines.append(f"requests by attempts needed: {attempts}")
    lines += [f"{'holds' if fact['holds'] else 'FAILS'}  {fact['text']}" for fact in result["facts"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
