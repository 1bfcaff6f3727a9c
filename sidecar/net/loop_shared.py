"""What the connections of one event loop share. Used by `connection.py` alone."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Protocol

from sidecar.net.handshakes import HandshakeQueue
from sidecar.net.peer_watch import LOOK_INTERVAL
from sidecar.runtime.timeouts import Timeouts

READ_SIZE = 65536
BULK_READ_SIZE = 262144
"""The most that is read at once, into one buffer for all, so that it stays in the caches; the larger for
codecs that bound what they do in a turn of the loop."""
LINGER_INTERVAL = 1.0
"""How long a closed connection waits for the peer's FIN, so that closing over unread input does not
destroy the last answer by a reset (RFC 9112 section 9.6); and how often it looks for progress before."""


class Flushes(Protocol):
    def scheduled_flush(self) -> None:
        """The turn in which something was to be written has ended."""


class FlushQueue:
    """Connections that have something to write when this turn of the loop has ended: one call of the loop
    serves them all."""

    __slots__ = ("_call_soon", "_waiting")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._waiting: list[Flushes] = []

    def add(self, connection: Flushes) -> None:
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            self._call_soon(self._run)

    def _run(self) -> None:
        # What is added from now on has its turn after the others of the loop.
        connections, self._waiting = iter(self._waiting), []
        try:
            for connection in connections:
                connection.scheduled_flush()
        finally:
            for connection in connections:  # none, unless one has failed
                self.add(connection)

    def __repr__(self) -> str:
        return f"<FlushQueue waiting={len(self._waiting)}>"


class LoopShared:
    __slots__ = ("buffer", "bulk_buffer", "flushes", "handshakes", "lingers", "looks")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.bulk_buffer = memoryview(bytearray(BULK_READ_SIZE))
        """Where sockets are read into: what is read is taken before anything else is read."""
        self.buffer = self.bulk_buffer[:READ_SIZE]
        self.flushes = FlushQueue(loop.call_soon)
        self.handshakes = HandshakeQueue(loop)
        self.lingers = Timeouts(loop, loop.time, LINGER_INTERVAL)
        self.looks = Timeouts(loop, loop.time, LOOK_INTERVAL)

    def __repr__(self) -> str:
        return f"<LoopShared {self.flushes!r} {self.handshakes!r} {self.lingers!r} {self.looks!r}>"


_ATTRIBUTE = "_pilotfish_shared"


def shared_of(loop: AbstractEventLoop) -> LoopShared:
    """The loop's one, which it keeps itself: what is shared calls the loop, and would keep it alive."""
    shared: LoopShared | None = getattr(loop, _ATTRIBUTE, None)
    if shared is None:
        shared = LoopShared(loop)
        setattr(loop, _ATTRIBUTE, shared)
    return shared
