"""The soak's load, and what became of each request: h2load at a constant rate, its log, the access log."""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import BenchError, Process
from benchmarks.soak_mesh import SoakMesh, outbound_address
from benchmarks.soak_objects import AUTHORITY

CONNECTIONS = 4
STREAMS = 256
"""At a time on one connection: enough for the rate to hold through a stall of half a second."""
_ATTEMPTS = re.compile(rb'"attempts":(\d+)')
_CLEAN = re.compile(rb'"status":200,.*"flags":"",')


class Load:
    """h2load: requests at a constant rate whatever the answers do, each with a line in its log."""

    def __init__(self, h2load: str, mesh: SoakMesh, rate: int, seconds: int) -> None:
        self._log = mesh.folder / "requests.tsv"
        self._log.write_bytes(b"")
        self._position = 0
        self._rest = b""
        self.done = 0
        self.failures: list[tuple[float, str]] = []
        """When each failed request began (Unix time), and its status; -1: its stream was reset."""
        self.durations: list[int] = []
        """Microseconds of each request since the last `take_durations`."""
        command = [h2load, "-t", "1", "-c", str(CONNECTIONS), "-m", str(STREAMS)]
        command += ["--rps", f"{rate / CONNECTIONS:g}", "-D", str(seconds), "--log-file", str(self._log)]
        command += ["--connect-to", outbound_address(mesh), f"http://{AUTHORITY}/128"]
        self._output = mesh.log("h2load")
        self.process = Process("h2load", command, self._output)

    def read(self) -> None:
        """Take in what h2load has logged since the last call."""
        with self._log.open("rb") as log:
            log.seek(self._position)
            data = log.read()
        self._position += len(data)
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            start, status, duration = line.split(b"\t")[:3]
            self.done += 1
            self.durations.append(int(duration))
            if status != b"200":
                self.failures.append((int(start) / 1e6, status.decode()))

    def take_durations(self) -> list[int]:
        taken, self.durations = self.durations, []
        return sorted(taken)

    def check(self) -> None:
        """Raises BenchError unless h2load's own count agrees with what was read from its log."""
        text = self._output.read_text(errors="replace")
        counts = re.search(
            r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", text
        )
        if counts is None:
            raise BenchError(f"h2load did not finish: {self.process.last_words()}")
        done, succeeded = int(counts[1]), int(counts[2])
        if done - succeeded > len(self.failures):
            raise BenchError(f"h2load counts {done - succeeded} failures, its log {len(self.failures)}")

    def __repr__(self) -> str:
        return f"<Load done={self.done} failed={len(self.failures)}>"


@dataclass
class AccessLogCounts:
    lines: int = 0
    retried: int = 0
    """Requests that needed more than one attempt."""


class AccessLogReader:
    """Reads the caller's access log from a pipe, in a thread; keeps the lines of requests that failed."""

    def __init__(self, kept: Path) -> None:
        self.counts = AccessLogCounts()
        self.attempts: Counter[int] = Counter()
        self._kept = kept
        self._reader, self.descriptor = os.pipe()
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def started(self) -> None:
        """The writer has the descriptor: the pipe ends with it."""
        os.close(self.descriptor)

    def join(self) -> None:
        self._thread.join(5.0)

    def _run(self) -> None:
        with os.fdopen(self._reader, "rb") as lines, self._kept.open("wb") as kept:
            for line in lines:
                self.counts.lines += 1
                attempts = _ATTEMPTS.search(line)
                number = int(attempts[1]) if attempts is not None else 0
                self.attempts[number] += 1
                if number > 1:
                    self.counts.retried += 1
                if _CLEAN.search(line) is None:
                    kept.write(line)
                    kept.flush()

    def __repr__(self) -> str:
        return f"<AccessLogReader {self.counts}>"
