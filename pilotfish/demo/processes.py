"""The demo's child processes: started with a log file each, killed on purpose, stopped all together.

Used by mesh.py. Children live in sessions of their own, so that Ctrl-C reaches the demo alone and it stops
them in order; none may be left behind, whatever happens.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 6.0
"""How long SIGTERM may take before SIGKILL."""
TAIL_LINES = 15


class DemoError(Exception):
    """The demo cannot go on. `log`: the file that may say why."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True, slots=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """All children of one demo, by name."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: dict[str, Child] = {}
        self._killed: set[str] = set()

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts `command`; its output is appended to a log file, standard output to `stdout` where given."""
        path = self._logs / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=log if stdout is None else stdout,
                stderr=log,
                env=dict(environment),
                start_new_session=True,
            )
        self._children[name] = Child(name, process, path)
        self._killed.discard(name)
        return process

    def kill(self, *names: str) -> None:
        """SIGKILL, all at once: none of them gets to say goodbye."""
        self._killed.update(names)
        for name in names:
            self._children[name].process.kill()
        for name in names:
            self._children[name].process.wait()

    def forget(self, name: str) -> None:
        """It has ended as it should."""
        del self._children[name]

    def check(self) -> None:
        """Raises DemoError if one has ended that was not killed."""
        for child in self._children.values():
            status = child.process.poll()
            if status is not None and child.name not in self._killed:
                raise DemoError(f"{child.name} ended by itself, {_ended(status)}", child.log)

    def log_of(self, name: str) -> Path:
        return self._children[name].log

    def stop(self) -> list[str]:
        """Ends them all; returns the names of those that did not end on SIGTERM and were killed."""
        running = [child for child in self._children.values() if child.process.poll() is None]
        for child in running:
            child.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        stubborn = []
        for child in running:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
                stubborn.append(child.name)
        return stubborn

    def __repr__(self) -> str:
        running = sum(child.process.poll() is None for child in self._children.values())
        return f"<Processes running={running} killed={sorted(self._killed)}>"


def _ended(status: int) -> str:
    return f"on {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log file."""
    return "\n".join(log.read_text(errors="backslashreplace").splitlines()[-lines:])


def clean_environment() -> dict[str, str]:
    """This process's environment without proxies: the mesh's are set where they belong, and the user's
    own must not come between the parts of the demo."""
    return {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}


def taken(addresses: Iterable[tuple[str, int]]) -> list[tuple[str, int, str]]:
    """Which of these cannot be bound, and why."""
    refused = []
    for address, port in addresses:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
                probe.listen(1)
            except OSError as error:
                reason = (
                    "is taken" if error.errno == errno.EADDRINUSE else f"cannot be bound: {error.strerror}"
                )
                refused.append((address, port, reason))
    return refused
