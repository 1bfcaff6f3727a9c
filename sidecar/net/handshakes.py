"""TLS handshakes, and the turns they take so that a storm of reconnecting peers stalls nobody else.

A handshake step costs up to a millisecond of public-key arithmetic. A few steps run in each turn of the
event loop, and between turns established connections are served. Nothing waits for a peer, so peers that
go silent in mid-handshake hold nobody up. Used by `connection.py` alone; it does all the writing.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable

from sidecar.net.tls import TlsError, TlsSession
from sidecar.runtime.timeouts import Timeouts

HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a handshake may take, waiting for its turn included."""

STEPS_PER_TURN = 4
"""About two milliseconds of arithmetic."""


class HandshakeQueue:
    """First come, first served; but what has begun is finished before anything new is begun, so that
    under overload some handshakes complete instead of all running out of time."""

    __slots__ = ("_call_soon", "_continuing", "_new", "_scheduled", "timeouts")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.timeouts = Timeouts(loop, loop.time, HANDSHAKE_TIMEOUT)
        """Of all that are under way."""
        self._call_soon = loop.call_soon
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


class Handshake:
    """The handshake of one session: bytes in through `feed`, until it is done, fails or is stopped."""

    __slots__ = ("_begun", "_on_failure", "_on_step", "_over", "_queue", "_session", "_submitted", "_unread")

    def __init__(
        self,
        queue: HandshakeQueue,
        now: float,
        session: TlsSession,
        on_step: Callable[[bytes | None], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """`now` on the loop's clock. `on_step` gets what `TlsSession.handshake` returned, `on_failure` the
        reason. After either the session may have output."""
        self._queue = queue
        self._session = session
        self._on_step = on_step
        self._on_failure = on_failure
        self._unread = b""
        self._begun = False
        self._submitted = False
        self._over = False
        queue.timeouts.begin(self, now)

    def feed(self, data: bytes) -> int:
        """More bytes from the peer, or b"" to begin as a client. Returns how many wait for their turn."""
        self._unread += data
        if not self._submitted:
            self._submitted = True
            self._queue.submit(self._step, begun=self._begun)
        return len(self._unread)

    def feed_eof(self) -> None:
        """The peer has closed: take what it sent before, which may be an alert, out of turn."""
        if self._unread:
            self._step()

    def stop(self) -> None:
        """It is done or of no more use. No callback follows."""
        self._over = True
        self._queue.timeouts.end(self)

    def _step(self) -> None:
        if self._over:
            return
        self._submitted = False
        self._begun = True
        data, self._unread = self._unread, b""
        try:
            rest = self._session.handshake(data)
        except TlsError as error:
            self._on_failure(str(error))
        else:
            self._on_step(rest)

    def on_timeout(self, seconds: float) -> None:
        self._over = True
        self._on_failure(f"timed out after {seconds:g} s")

    def __repr__(self) -> str:
        state = "over" if self._over else "begun" if self._begun else "waiting"
        return f"<Handshake {state} unread={len(self._unread)}>"
