"""Starting, watching and stopping the processes of the bench; CPU and memory from /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
START_TIMEOUT = 20.0
STOP_TIMEOUT = 15.0

BASELINE = "envoy"
"""The contender that the others are compared with."""
ADMIN_PORTS = (20011, 20012)
OUTBOUND = ("127.0.0.1", 20001)
INBOUND = ("127.0.0.1", 20002)
"""The listeners, as benchmarks/outbound.yaml and inbound.yaml have them."""
APPLICATION_PORT = 20003
SINK_PORT = 20004


def machine_seconds() -> tuple[float, float]:
    """CPU seconds that this machine has spent busy and in all; stolen time is busy (proc(5), stat)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    total = sum(fields) / _TICKS
    return total - (fields[3] + fields[4]) / _TICKS, total


CERTIFICATES = Path("build/bench/certs")


def leave_on_sigterm() -> None:
    """Ended from outside, a bench still stops what it has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))


class BenchError(Exception):
    """The bench cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Contender:
    """A proxy that runs an Envoy bootstrap. `command` takes the file's name and a number for each side."""

    name: str
    command: tuple[str, ...]

    def arguments(self, config: str, index: int) -> list[str]:
        return [part.format(config=config, index=index) for part in self.command]


class Process:
    """A child process with its output in a file. A context manager: leaving it stops the process."""

    def __init__(self, name: str, command: list[str], log: Path, stdout: int | None = None) -> None:
        """`stdout`: a descriptor that gets the standard output instead of the log."""
        self.name = name
        self._log = log
        with log.open("wb") as output:
            out = output if stdout is None else stdout
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=output)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def send(self, number: signal.Signals) -> None:
        """A signal; nothing when it has ended already."""
        self._child.send_signal(number)

    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far (proc(5), fields 14 and 15 of stat)."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_megabytes(self) -> float:
        for line in Path(f"/proc/{self._child.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise BenchError(f"{self.name} is gone: {self.last_words()}")

    def check(self) -> None:
        """Raises BenchError when the process has ended."""
        if self._child.poll() is not None:
            raise BenchError(f"{self.name} ended with status {self._child.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        return f"{self._log}: " + self._log.read_text(errors="replace")[-1500:]

    def __repr__(self) -> str:
        return f"<Process {self.name} pid={self._child.pid}>"


def get(url: str) -> tuple[int, str]:
    """Status and body; status 0 when nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def wait_until(process: Process, ready: Callable[[], bool]) -> None:
    """Poll until the process is ready. Raises BenchError when it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        process.check()
        if ready():
            return
        time.sleep(0.05)
    raise BenchError(f"{process.name} was not ready after {START_TIMEOUT:g} s: {process.last_words()}")


def is_ready(admin_port: int) -> bool:
    return get(f"http://127.0.0.1:{admin_port}/ready")[0] == 200


def sink_spans() -> int:
    """How many spans the trace sink has counted."""
    status, text = get(f"http://127.0.0.1:{SINK_PORT}/spans")
    if status != 200:
        raise BenchError("the trace sink does not answer")
    return int(text)


def settled_spans(expected: int, patience: float) -> int:
    """The sink's count once it has reached `expected`, or after `patience` seconds without news."""
    last, changed = sink_spans(), time.monotonic()
    while last < expected and time.monotonic() - changed < patience:
        time.sleep(0.25)
        count = sink_spans()
        if count != last:
            last, changed = count, time.monotonic()
    return last
