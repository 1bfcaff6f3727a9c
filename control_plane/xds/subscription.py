"""What one stream wants and has of one type, and what it said of the responses that it got.

Plain state, moved by `control_plane.xds.session` and read by the status page. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

ABSENT = ""
"""In `Subscription.sent`: the client has been told that this name does not exist."""


@dataclass(frozen=True, slots=True)
class NackInfo:
    """A response that the client refused."""

    node: str
    type_url: str
    version: str
    names: tuple[str, ...]
    """Resources in the refused response."""
    text: str
    time: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The client's answer to an outstanding push."""

    type_url: str
    seconds: float
    """From push to answer."""
    nack: NackInfo | None


@dataclass(slots=True)
class Subscription:
    """What one stream wants and has of one type."""

    type_url: str
    names: set[str] = field(default_factory=set)
    wildcard: bool = False
    legacy_wildcard: bool = False
    """The wildcard came from an empty first request, so (state of the world) the first names end it."""
    sent: dict[str, str] = field(default_factory=dict)
    """Name to the version sent last, or ABSENT."""
    dirty: set[str] = field(default_factory=set)
    """Names to compare with the source at the next push."""
    forced: set[str] = field(default_factory=set)
    """Those of `dirty` that are sent even if their version was sent before."""
    dirty_all: bool = False
    must_answer: bool = False
    """The next response is sent even if it is empty: the client waits for it."""
    nonce: str = ""
    awaiting: bool = False
    sent_at: float = 0.0
    sent_version: str = ""
    sent_names: tuple[str, ...] = ()
    acked_version: str = ""
    nack: NackInfo | None = None

    @property
    def pending(self) -> bool:
        return self.dirty_all or self.must_answer or bool(self.dirty)

    @property
    def in_step(self) -> bool:
        """The client holds and accepted all that it should have."""
        return self.nack is None and not self.awaiting and not self.pending

    def force(self, names: Iterable[str]) -> None:
        names = set(names)
        self.dirty |= names
        self.forced |= names

    def forget(self, name: str) -> None:
        self.sent.pop(name, None)
        self.dirty.discard(name)
        self.forced.discard(name)

    def settle(self, held: Iterable[str] = ()) -> None:
        """Nothing is left to compare but `held`."""
        self.dirty = set(held)
        self.forced = set()
        self.dirty_all = self.must_answer = False
