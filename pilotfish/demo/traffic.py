"""The shopper's process and what it saw: one record for each call that it made.

The shopper is an application like any other: it only knows HTTP_PROXY. What it saw is what users see.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True, slots=True)
class Call:
    """A line of shopper.py."""

    call: str
    start: float
    """Unix time."""
    seconds: float
    ok: bool
    status: str
    served_by: str
    route: str
    """What the route says of itself in a response header; empty where it says nothing."""

    @property
    def is_get(self) -> bool:
        return self.call.startswith("GET ")


class Shopper:
    """Reads a running shopper.py on a thread of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the shopper must be started with pipes")
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._calls: list[Call] = []
        self._thread = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._thread.start()

    def calls(self, since: float = 0.0, until: float = float("inf")) -> list[Call]:
        """Calls that ended, of those that were in progress at some time in `since..until`."""
        return [
            call for call in list(self._calls) if call.start + call.seconds >= since and call.start < until
        ]

    def tell(self, word: str) -> None:
        """`calm` or `rough`."""
        self._stdin.write(f"{word}\n".encode())
        self._stdin.flush()

    def finish(self, timeout: float = 15.0) -> None:
        """Lets the calls in progress end and waits for their records."""
        self._stdin.close()
        self._process.wait(timeout)
        self._thread.join(timeout)
        self._stdout.close()

    def _read(self, lines: IO[bytes]) -> None:
        for line in lines:
            self._calls.append(Call(**json.loads(line)))

    def __repr__(self) -> str:
        return f"<Shopper calls={len(self._calls)} running={self._process.poll() is None}>"


def failures(calls: Iterable[Call]) -> list[Call]:
    return [call for call in calls if not call.ok]


def followed_after(calls: Iterable[Call], saved: float, marker: str) -> float | None:
    """Seconds from `saved` until every later call to a marked route showed `marker`; None: not yet.

    `calls` are those of one route. A call counts by its start: it keeps the routes that it started with.
    """
    later = sorted((call for call in calls if call.start >= saved and call.ok), key=lambda call: call.start)
    old = [call.start for call in later if call.route != marker]
    new = [call.start for call in later if call.route == marker]
    last_old = old[-1] if old else saved
    first_after = next((start for start in new if start > last_old), None)
    return None if first_after is None else first_after - saved
