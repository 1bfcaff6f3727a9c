"""Finds out what a connection speaks from its first bytes, and hands it to the codec for that.

A stand-in codec: `Connection` drives it until it has decided, then its bytes go to the chosen one. Used for
listeners that do not know their protocol from configuration or ALPN, and inside CONNECT tunnels, where a
silent client means a protocol whose server speaks first.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.http.context import Clock, TimerHandle
from sidecar.protocol.events import Stream, StreamHandler
from sidecar.protocol.sniff import Protocol, sniff


def _nothing(*_: object) -> None:
    """Until the driver sets its own callbacks."""


class DetectCodec:
    """`on_detected(protocol)` must set another codec on the connection. With `silence` seconds set,
    a peer that sends nothing for so long counts as `Protocol.OTHER` and `on_silence` is told."""

    def __init__(
        self,
        clock: Clock,
        on_detected: Callable[[Protocol], None],
        on_closed: Callable[[str], None],
        silence: float = 0.0,
        on_silence: Callable[[], None] = _nothing,
    ) -> None:
        self.on_output: Callable[[], None] = _nothing
        self.on_read_pause: Callable[[bool], None] = _nothing
        self.should_close = False
        self.active_streams = 0
        self._on_detected = on_detected
        self._on_closed = on_closed
        self._on_silence = on_silence
        self._data = b""
        self._decided = False
        self._timer: TimerHandle | None = clock.call_later(silence, self._silent) if silence else None

    @property
    def available(self) -> int:
        return 0

    def start(self) -> None:
        """Nothing to say before the peer has spoken."""

    def receive(self, data: bytes) -> None:
        self._data += data
        if not self._decided:
            protocol = sniff(self._data)
            if protocol is not Protocol.NEED_MORE:
                self._decide(protocol)

    def receive_eof(self) -> None:
        if not self._decided:
            self._stop_timer()
            self.should_close = True
            self.on_output()

    def take_leftover(self) -> bytes:
        """What was read while deciding, for the codec that follows."""
        data, self._data = self._data, b""
        return data

    def _silent(self) -> None:
        self._timer = None
        self._on_silence()
        self._decide(Protocol.OTHER)

    def _decide(self, protocol: Protocol) -> None:
        self._decided = True
        self._stop_timer()
        self._on_detected(protocol)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, reason: str) -> None:
        self._stop_timer()
        if not self._decided:
            self._decided = True
            self._on_closed(reason)

    def drain(self, final: bool) -> None:
        """A connection that has asked for nothing can simply be closed."""
        if final and not self._decided:
            self.should_close = True
            self.on_output()

    def take_output(self) -> bytes:
        return b""

    def pause_output(self) -> None:
        """There is no output to keep back."""

    def resume_output(self) -> None:
        """There is no output to keep back."""

    def open_stream(self, handler: StreamHandler) -> Stream:
        raise AssertionError("nothing is opened on a connection whose protocol is not known")

    def __repr__(self) -> str:
        return f"<DetectCodec {len(self._data)} bytes{' decided' if self._decided else ''}>"
