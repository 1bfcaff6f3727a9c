"""Finds out what a connection speaks from its first bytes, and hands it to the codec for that.

A stand-in codec: `Connection` drives it until it has decided, then its bytes go to the chosen one. Used for
listeners that do not know their protocol from configuration or ALPN, and inside CONNECT tunnels, where a
silent client means a protocol whose server speaks first.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.protocol.events import Stream, StreamHandler
from sidecar.protocol.sniff import Protocol, sniff
from sidecar.runtime.timeouts import Timeouts

MAX_KEPT = 65536
"""Bytes kept for the codec that follows, past which the socket is not read."""


def _nothing(*_: object) -> None:
    """Until the driver sets its own callbacks."""


class DetectCodec:
    """`on_detected(protocol)` must set another codec on the connection. With `on_silence`, a peer may leave
    the first word to the other side: `limit` says for how long, and its end without a word is no reason to
    close."""

    def __init__(
        self,
        on_detected: Callable[[Protocol], None],
        on_closed: Callable[[str], None],
        on_silence: Callable[[], None] | None = None,
        sniff: Callable[[bytes], Protocol] = sniff,
    ) -> None:
        """`sniff` gets all bytes so far."""
        self.on_output: Callable[[], None] = _nothing
        self.on_read_pause: Callable[[bool], None] = _nothing
        self.should_close = False
        self.error = ""
        self._on_detected = on_detected
        self._on_closed = on_closed
        self._on_silence = on_silence
        self._sniff = sniff
        self._data = b""
        self.decided = False
        self._timeouts: Timeouts | None = None

    @property
    def active_streams(self) -> int:
        """What is known already and not yet handed over must not end with the peer's last byte."""
        return int(self.decided)

    @property
    def available(self) -> int:
        return 0

    def start(self) -> None:
        """Nothing to say before the peer has spoken."""

    def receive(self, data: bytes) -> None:
        self._data += data
        if len(self._data) >= MAX_KEPT:
            self.on_read_pause(True)  # until there is another codec
        if not self.decided:
            protocol = self._sniff(self._data)
            if protocol is not Protocol.NEED_MORE:
                self.decide(protocol)

    def receive_eof(self) -> None:
        if self.decided:
            return
        if self._on_silence is not None:
            self.decide(Protocol.OTHER)
        else:
            self.should_close = True
            self.on_output()

    def take_leftover(self) -> bytes:
        """What was read while deciding, for the codec that follows."""
        data, self._data = self._data, b""
        return data

    def limit(self, timeouts: Timeouts, now: float) -> None:
        """A peer that says nothing for as long as these last counts as `Protocol.OTHER`; `on_silence` is
        told."""
        if not self.decided:
            self._stop_waiting()
            self._timeouts = timeouts
            timeouts.begin(self, now)

    def on_timeout(self, _: float) -> None:
        """It has been silent."""
        if self._on_silence is not None:
            self._on_silence()
        self.decide(Protocol.OTHER)

    def decide(self, protocol: Protocol) -> None:
        """The answer is known, from here or from elsewhere. The first one counts."""
        if not self.decided:
            self.decided = True
            self._stop_waiting()
            self._on_detected(protocol)

    def _stop_waiting(self) -> None:
        if self._timeouts is not None:
            self._timeouts.end(self)
            self._timeouts = None

    def connection_lost(self, reason: str) -> None:
        self._stop_waiting()
        if not self.decided:
            self.decided = True
            self._on_closed(reason)

    def drain(self, final: bool) -> None:
        """A connection that has asked for nothing can simply be closed."""
        if final and not self.decided:
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
        return f"<DetectCodec {len(self._data)} bytes{' decided' if self.decided else ''}>"
