"""What to ask the API server next to keep a copy of one kind of object: list, watch, go on, list again.

Sans-IO, in virtual time: `watch` carries it out. History that is gone (410) means a whole new list; every
other failure means to go on from where we were, later and later, or when the server says.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from control_plane.kube.client import KubeError

BACKOFF_FIRST, BACKOFF_MOST = 0.5, 30.0
"""Seconds before the first and between later attempts, halved or not at random."""
ABSENT_RETRY = 60.0
"""Seconds between looks for a kind that the cluster does not have."""
WATCH_SECONDS = 300.0
"""The least a watch lasts; up to twice that, at random, so that watches do not end all at once."""
TOO_SHORT = 1.0
"""A watch that ends sooner without an event counts as a failure, or one would follow the other."""

PROVEN = 30.0
"""A watch that lasted so long shows that the server is well, though nothing happened."""


@dataclass(frozen=True, slots=True)
class List:
    """Ask for a page; `token` empty: the first."""

    token: str


@dataclass(frozen=True, slots=True)
class Watch:
    version: str
    """The resourceVersion to go on from."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


Step = List | Watch | Wait


class Reflector:
    """What to do next to keep one copy true. Times are in seconds of one monotonic clock."""

    def __init__(self, random: Random) -> None:
        self.version = ""
        """resourceVersion that the copy is at; empty: a list is due."""
        self.resyncs = 0
        """Lists because history was gone."""
        self.denials = 0
        """How often in a row the server said that there is no such kind."""
        self._token = ""
        self._failures = 0
        self._wait = 0.0
        self._random = random
        self._watch_began = 0.0
        self._events = 0

    def __repr__(self) -> str:
        state = f"at {self.version}" if self.version else "listing"
        return f"<Reflector {state} failures={self._failures} resyncs={self.resyncs}>"

    def step(self, now: float) -> Step:
        """What to do now."""
        if self._wait:
            wait, self._wait = self._wait, 0.0
            return Wait(wait)
        if not self.version:
            return List(self._token)
        self._watch_began, self._events = now, 0
        return Watch(self.version, WATCH_SECONDS * (1.0 + self._random.random()))

    def on_page(self, version: str, token: str) -> bool:
        """A page came. True when it was the last: the copy is whole. `version` is the list's."""
        self._token = token
        self.denials = 0
        if token:
            return False
        self.version = version
        return True

    def on_event(self, version: str) -> None:
        """An object or a bookmark of `version` came on the watch."""
        self._events += 1
        self._failures = 0
        if version:
            self.version = version

    def on_watch_end(self, now: float) -> None:
        """The server ended the watch in good order."""
        if self._events or now - self._watch_began >= TOO_SHORT:
            self._failures = 0
        else:
            self._back_off(None)

    def on_error(self, error: KubeError, now: float) -> None:
        """A page or a watch failed, or an ERROR event came."""
        if self.version and now - self._watch_began >= PROVEN:
            self._failures = 0
        if error.status == 410:
            # What we go on from is forgotten: everything must be read anew. Once that is no failure.
            self.resyncs += 1
            self.version = self._token = ""
            self._failures += 1
            if self._failures > 1:
                self._set_wait(None)
            return
        if error.status == 404:
            self.version = self._token = ""
            self.denials += 1
            self._wait = ABSENT_RETRY * (0.75 + 0.5 * self._random.random())
            return
        self._back_off(error.retry_after)

    def _back_off(self, retry_after: float | None) -> None:
        self._failures += 1
        self._set_wait(retry_after)

    def _set_wait(self, retry_after: float | None) -> None:
        most = min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(self._failures - 1, 16))
        wait = most * (0.5 + 0.5 * self._random.random())
        self._wait = wait if retry_after is None else max(wait, min(retry_after, 600.0))
