"""`pilotfish demo`: a whole mesh on this machine, shown to a person in half a minute.

Called by the command line. It starts everything, lets traffic flow, saves a route, kills parts, and says at
the end which of its claims held. Nothing that it started outlives it.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rich.console import Console

from pilotfish.demo import report
from pilotfish.demo.collector import Collector
from pilotfish.demo.facts import exit_status
from pilotfish.demo.mesh import Mesh
from pilotfish.demo.processes import DemoError, taken
from pilotfish.demo.show import Show
from pilotfish.demo.topology import SHOP, WORKLOADS, wanted_addresses

_INTERRUPTED = 130


def run_demo(keep: bool) -> int:
    """Runs the demo; with `keep` it stays until Ctrl-C. Exit status 0: everything it claims held."""
    console = Console(highlight=False)
    if not SHOP.is_dir():
        console.print(
            f"The demo needs the examples: {SHOP} is missing. Run it from a checkout of the source."
        )
        return 1
    wanted = wanted_addresses()
    if refused := taken(wanted):
        report.show_taken(console, refused, wanted)
        return 1
    _obey_signals()
    folder = Path(tempfile.mkdtemp(prefix="pilotfish-demo-"))
    collector = Collector(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""))
    mesh = Mesh(folder, collector.address)
    status = 1
    try:
        collector.start()
        status = _run(console, mesh, collector, keep)
    except DemoError as error:
        report.show_failure(console, str(error), error.log, mesh.logs)
    except KeyboardInterrupt:
        console.print("Interrupted.")
        status = _INTERRUPTED
    finally:
        _stop(console, mesh, collector)
        if status not in (0, _INTERRUPTED):
            console.print(f"Logs and configuration stay in {folder}")
        else:
            shutil.rmtree(folder)
    return status


def _run(console: Console, mesh: Mesh, collector: Collector, keep: bool) -> int:
    show = Show(console, mesh, collector)
    facts = show.run()
    if keep:
        show.revive()
        report.show_addresses(console, WORKLOADS, mesh.config, SHOP / "apps")
        _until_interrupted(mesh.processes.check)
    return exit_status(facts)


def _until_interrupted(check: Callable[[], None]) -> None:
    """Returns on Ctrl-C or SIGTERM: that is how `--keep` is meant to end."""
    try:
        while True:
            check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        return


def _stop(console: Console, mesh: Mesh, collector: Collector) -> None:
    """Everything ends, even if the user presses Ctrl-C again and again."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stubborn = mesh.processes.stop()
    collector.stop()
    if stubborn:
        console.print(f"[yellow]did not end on SIGTERM and were killed: {', '.join(stubborn)}[/]")
    if forwarded := collector.forwarded():
        console.print(forwarded)


def _obey_signals() -> None:
    """SIGINT too: a shell that starts a program in the background has it ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
