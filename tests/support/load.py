"""A steady stream of requests from a thread, through a sidecar, each with its outcome."""

from __future__ import annotations

import http.client
import threading
import time
from typing import NamedTuple

from tests.support.processes import eventually


class Outcome(NamedTuple):
    status: int
    """0: the connection to the sidecar failed."""
    replica: str
    text: str


class Load:
    """About `rate` requests a second for `url` while the `with` block lasts; with a `body` they are POSTs."""

    def __init__(
        self, proxy: tuple[str, int], url: str, rate: float = 50.0, body: bytes | None = None
    ) -> None:
        self._body = body
        self._proxy = proxy
        self._url = url
        self._pause = 1.0 / rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> Load:
        self._thread.start()
        eventually(lambda: self.outcomes, "the first answer")
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(*self._proxy, timeout=30)
        while not self._over.wait(self._pause):
            try:
                connection.request("POST" if self._body else "GET", self._url, self._body)
                answer = connection.getresponse()
                text = answer.read().decode()
                replica = answer.headers.get("x-replica", "")
                self.outcomes.append(Outcome(answer.status, replica, text))
            except (OSError, http.client.HTTPException) as error:
                self.outcomes.append(Outcome(0, "", repr(error)))
                connection.close()
        connection.close()

    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def wait_for(self, replica: str) -> float:
        """Seconds until it answers, from now."""
        begun, seen = time.monotonic(), len(self.outcomes)
        eventually(lambda: any(o.replica == replica for o in self.outcomes[seen:]), f"{replica} to answer")
        return time.monotonic() - begun

    def more(self, count: int = 20) -> None:
        """So many more requests are done."""
        wanted = len(self.outcomes) + count
        eventually(lambda: len(self.outcomes) >= wanted, f"{count} more requests")

    def __repr__(self) -> str:
        return f"<Load {self._url} {len(self.outcomes)} done, {len(self.failures())} failed>"
