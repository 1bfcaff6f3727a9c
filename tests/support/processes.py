"""Child processes of integration tests: started, watched, stopped; and waiting for what they bring about.

Everything is bounded: a process that does not come up or does not end fails the test with its last words.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[2]
PILOTFISH = Path(sys.executable).parent / "pilotfish"
PATIENCE = 30.0
"""Seconds after which what a test waits for is taken not to come; ten times what it should need."""

T = TypeVar("T")


def loopback() -> str:
    """An address of 127.0.0.0/8 that nothing else uses, so that every port on it is free."""
    picked = random.SystemRandom()
    return f"127.{picked.randint(16, 250)}.{picked.randint(0, 250)}.{picked.randint(2, 250)}"


def eventually(check: Callable[[], T], what: str = "", patience: float = PATIENCE) -> T:
    """Polls until `check` returns something true, and returns that. OSError and AssertionError mean "not
    yet"; what the last one said is in the failure."""
    deadline = time.monotonic() + patience
    while True:
        last: object = None
        try:
            last = check()
            if last:
                return last
        except (OSError, AssertionError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or check} did not come within {patience:g} s; last: {last!r}")
        time.sleep(0.02)


class Process:
    """One child; its output is in two files of `directory`. Stopped at the end of a `with` block."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        directory: Path,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.out = directory / f"{name}.out"
        self.err = directory / f"{name}.err"
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self.child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=env,
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def wait(self, patience: float = PATIENCE) -> int:
        """Exit status; negative for a signal."""
        try:
            return self.child.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} did not end within {patience:g} s: {self.last_words()}") from None

    def terminate(self) -> None:
        self.child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Gone at once, its sockets closed by the kernel."""
        self.child.kill()
        self.child.wait()

    def stop(self) -> None:
        """The quick end of a process that has done its work; its drain has tests of its own."""
        if self.child.poll() is None:
            self.kill()

    def check(self) -> None:
        if self.child.poll() is not None:
            raise ProcessEnded(f"{self} has ended with {self.child.returncode}: {self.last_words()}")

    def log(self) -> str:
        return self.err.read_text(errors="replace")

    def last_words(self) -> str:
        return self.log()[-3000:]

    def resident(self) -> float:
        """MiB of memory in use."""
        for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise ProcessEnded(f"{self} has no memory any more")

    def __repr__(self) -> str:
        return f"<Process {self.name} pid={self.child.pid}>"


class ProcessEnded(Exception):
    """Waiting for it makes no sense any more."""


@contextmanager
def stopping(*processes: Process) -> Iterator[None]:
    """Stops all of them at the end."""
    try:
        yield
    finally:
        for process in processes:
            process.stop()
