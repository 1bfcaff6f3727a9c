"""Finds out that the peer of an opaque connection is gone while bytes are on their way to it.

The kernel's keepalive asks idle connections alone, and bytes that nobody acknowledges are sent again for a
quarter of an hour. HTTP has time limits for that, and PING; opaque bytes have neither. TCP_USER_TIMEOUT is no
help: by it Linux also ends connections whose reader has merely stopped. Used by `connection.py` alone, for
codecs that are `opaque`; it must never end a connection whose peer answers.
"""

from __future__ import annotations

import socket
import struct
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

from sidecar.net.sockets import KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES
from sidecar.runtime.timeouts import Timeouts

LOOK_INTERVAL = 30.0
GIVE_UP = float(KEEPALIVE_IDLE + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL)
"""Seconds without a sign of life, as for an idle connection."""
_TCP_INFO = struct.Struct("24x I 24x II")
"""linux/tcp.h, struct tcp_info: segments without an ACK; milliseconds since data and since an ACK came."""


class PeerWatch:
    """Looks at one connection every LOOK_INTERVAL until it is stopped, or calls `abort` with the reason."""

    __slots__ = ("_abort", "_looks", "_loop", "_sock")

    def __init__(
        self, loop: AbstractEventLoop, looks: Timeouts, sock: Any, abort: Callable[[str], None]
    ) -> None:
        """`looks`: waits of LOOK_INTERVAL. `sock`: a transport's socket."""
        self._loop = loop
        self._looks = looks
        self._sock = sock
        self._abort = abort
        looks.begin(self, loop.time())

    def stop(self) -> None:
        self._looks.end(self)

    def on_timeout(self, _: float) -> None:
        silent = unacknowledged_for(self._sock)
        if silent >= GIVE_UP:
            self._abort(f"the peer has vanished: it has acknowledged nothing for {silent:.0f} s")
        else:
            self._looks.begin(self, self._loop.time())

    def __repr__(self) -> str:
        return f"<PeerWatch {self._sock!r}>"


def unacknowledged_for(sock: Any) -> float:
    """Seconds since anything came from a peer that has not acknowledged all it was sent; 0.0 when it has. One
    that does not read has: what does not fit into its window is not sent."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    unacknowledged, since_data, since_ack = _TCP_INFO.unpack(info)
    return min(since_data, since_ack) / 1000 if unacknowledged else 0.0
