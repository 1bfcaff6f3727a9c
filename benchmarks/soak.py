"""`python -m benchmarks.soak`: 2,000 GETs a second for ten minutes while replicas come and go.

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
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import BenchError, get, leave_on_sigterm
from benchmarks.run import find_tools
from benchmarks.soak_disturbances import Disturber
from benchmarks.soak_load import AccessLogReader, Load
from benchmarks.soak_mesh import SoakMesh
from benchmarks.soak_report import JUDGED_FROM, Result, growth_facts, load_facts, table, write_json
from benchmarks.soak_watch import Series
from mesh_api.names import ADMIN_PORT, STATUS_PORT

FOLDER = Path("build/soak")
QUIET_END = 0.5
"""Nothing new is begun in the last seconds that this share of an interval makes."""
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


def main() -> int:
    settings = parse_arguments()
    leave_on_sigterm()
    try:
        result = run(settings, find_tools())
    except BenchError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    print(table(result))
    path = settings.folder / "result.json"
    write_json(path, settings, result)
    print(f"\n{path}")
    return 0 if all(fact.holds for fact in result.facts) else 1


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


def run(settings: Settings, tools: dict[str, str]) -> Result:
    """The whole soak. Raises BenchError when it cannot be run."""
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
    expected = settings.rate * settings.seconds
    return Result(
        requests=load.done,
        failures=load.failures,
        attempts=dict(sorted(access_log.attempts.items())),
        disturbances=disturber.log,
        series=series,
        facts=[
            *load_facts(load.done, len(load.failures), expected, disturber.counts),
            *growth_facts(series, judged=settings.seconds >= JUDGED_FROM),
        ],
        stats=stats,
    )


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


if __name__ == "__main__":
    sys.exit(main())
