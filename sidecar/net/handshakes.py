"""Takes turns between TLS handshakes, so that a storm of reconnecting peers stalls nobody else.

A handshake step costs up to a millisecond of public-key arithmetic. `connection.py` submits its steps
here; a few run in each turn of the event loop, and between turns established connections are served.
Nothing waits for a peer, so peers that go silent in mid-handshake hold nobody up.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

STEPS_PER_TURN = 4
"""About two milliseconds of arithmetic."""


class HandshakeQueue:
    """First come, first served; but what has begun is finished before anything new is begun, so that
    under overload some handshakes complete instead of all running out of time."""

    __slots__ = ("_call_soon", "_continuing", "_new", "_scheduled")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._new: deque[Callable[[], None]] = deque()
        self._continuing: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def submit(self, step: Callable[[], None], *, begun: bool) -> None:
        """Run `step` in its turn, once, never from within this call."""
        (self._continuing if begun else self._new).append(step)
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._run)

    def _run(self) -> None:
        try:
            for _ in range(STEPS_PER_TURN):
                queue = self._continuing or self._new
                if not queue:
                    break
                queue.popleft()()
        finally:
            self._scheduled = bool(self._continuing or self._new)
            if self._scheduled:
                self._call_soon(self._run)

    def __repr__(self) -> str:
        return f"<HandshakeQueue new={len(self._new)} continuing={len(self._continuing)}>"


_queues: WeakKeyDictionary[AbstractEventLoop, HandshakeQueue] = WeakKeyDictionary()


def handshake_queue(loop: AbstractEventLoop) -> HandshakeQueue:
    """The loop's one queue."""
    queue = _queues.get(loop)
    if queue is None:
        queue = _queues[loop] = HandshakeQueue(loop.call_soon)
    return queue
