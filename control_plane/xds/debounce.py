"""Merges bursts of changes: saving one folder of files is one push, not fifty. Sans-IO, in virtual time.

Used by the server. A change waits until none has come for `quiet` seconds, at most `longest` in all.
"""

from __future__ import annotations

from control_plane.model.discovery import Change


class Debouncer:
    """Collects changes until they are due. Times are those of any monotonic clock, in seconds."""

    def __init__(self, quiet: float, longest: float) -> None:
        self._quiet = quiet
        self._longest = longest
        self._pending: Change | None = None
        self._first = self._last = 0.0

    def __repr__(self) -> str:
        return f"<Debouncer quiet={self._quiet} longest={self._longest} pending={self._pending}>"

    @property
    def deadline(self) -> float | None:
        """When the pending change is due; None if there is none."""
        if self._pending is None:
            return None
        return min(self._last + self._quiet, self._first + self._longest)

    def add(self, change: Change, now: float) -> None:
        if self._pending is None:
            self._pending, self._first = change, now
        else:
            self._pending = merge(self._pending, change)
        self._last = now

    def take(self, now: float) -> Change | None:
        """The merged change if it is due."""
        deadline = self.deadline
        if deadline is None or now < deadline:
            return None
        pending, self._pending = self._pending, None
        return pending


def merge(one: Change, other: Change) -> Change:
    """A change that names all that either names."""
    if one.everything or other.everything:
        return Change(everything=True)
    names = dict(one.names)
    for type_url, more in other.names.items():
        known = names.get(type_url, frozenset())
        names[type_url] = None if known is None or more is None else known | more
    return Change(names)
