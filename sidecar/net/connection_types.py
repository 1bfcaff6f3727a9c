"""What a connection expects of those around it: its owner, and what some codecs can do besides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sidecar.net.connection import Connection


class ConnectError(Exception):
    """`connect` failed. `stage`: dns, tcp, tls or timeout; `reason` names the address."""

    def __init__(self, reason: str, stage: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.stage = stage


class ConnectionOwner(Protocol):
    """Told what happens before a codec is set."""

    def on_secured(self, conn: Connection) -> None:
        """TCP, and TLS if any, is up and `conn.peer` is filled. After `start_tls` it comes a second time."""

    def on_unread(self, conn: Connection, data: bytes) -> None:
        """Bytes have come and no codec is set; `data` is all of them so far."""

    def on_lost(self, conn: Connection, reason: str) -> None:
        """The connection ended without a codec. Not called when `connect` raises instead."""


class Keepalive(Protocol):
    """A codec that can ask the peer for a sign of life (HTTP/2: PING)."""

    @property
    def keepalive_interval(self) -> float:
        """Seconds between two calls of `check_alive`."""

    def check_alive(self) -> bool:
        """False: the peer has not answered the last call's question."""


class HalfClosing(Protocol):
    """A codec that can half-close: with `want_eof` set, FIN follows its output, and reading goes on."""

    want_eof: bool


class LeavesBytes(Protocol):
    """A codec that hands over to another (CONNECT, Upgrade): what it received beyond its own messages."""

    def take_leftover(self) -> bytes: ...


class CatchesUp(Protocol):
    """A codec that takes what it is given over several turns of the loop: `catch_up` is called, a turn at a
    time, while it is `behind`."""

    behind: bool

    def catch_up(self) -> None: ...


class TakesViews(Protocol):
    """A codec whose `receive` keeps nothing of its argument that it has not copied."""

    takes_views: bool

    def receive(self, data: bytes | memoryview) -> None: ...
