"""Sockets that say whatever a test wants and remember what came.

Nothing here uses the sidecar's own codecs. Frames come from `h2_frames`, which builds them by hand.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import hpack

from tests.support import h2_frames as f

CLOSED = -1
"""The connection ended without GOAWAY."""


class Raw:
    """A socket and everything that came from it so far."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.ended = False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.sock.close()

    def send(self, octets: bytes) -> bool:
        """False once the sidecar has closed."""
        try:
            self.sock.sendall(octets)
        except (OSError, ssl.SSLError):
            return False
        return True

    def read(self, seconds: float = 0.0) -> bool:
        """Take what comes within `seconds`; False at the end of the connection."""
        if self.ended:
            return False
        self.sock.settimeout(seconds or 0.001)
        try:
            data = self.sock.recv(1 << 18)
        except (TimeoutError, ssl.SSLWantReadError):
            return True
        except (OSError, ssl.SSLError):
            data = b""
        finally:
            self.sock.settimeout(10.0)
        self.received += data
        self.ended = not data
        return bool(data)

    def read_until(self, done: Callable[[], object], patience: float = 10.0) -> None:
        deadline = time.monotonic() + patience
        while not done():
            assert time.monotonic() < deadline, f"nothing came within {patience:g} s: {self!r}"
            if not self.read(0.05) and not done():
                raise AssertionError(f"the connection ended first: {self!r}")

    def read_end(self, patience: float = 10.0) -> bytes:
        """Everything until the sidecar closes."""
        deadline = time.monotonic() + patience
        while self.read(0.05):
            assert time.monotonic() < deadline, f"not closed within {patience:g} s: {self!r}"
        return bytes(self.received)

    def vanish(self) -> None:
        """End with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {bytes(self.received[-200:])!r}{' ended' if self.ended else ''}>"


class RawH1(Raw):
    """`status` of the first answer."""

    @property
    def status(self) -> int:
        return int(self.received[9:12] or b"0")

    def refused(self, patience: float = 10.0) -> int:
        """The status of the one answer, after which the connection closed."""
        whole = self.read_end(patience)
        assert whole.count(b"HTTP/1.1 ") == 1, whole[:300]
        assert b"connection: close\r\n" in whole
        return self.status


class RawH2(Raw):
    """An HTTP/2 client that has said hello and does nothing by itself but remember."""

    def __init__(self, sock: socket.socket, settings: dict[int, int] | None = None) -> None:
        super().__init__(sock)
        self.next_id = 1
        self.send(f.PREFACE + f.settings(settings) + f.frame(f.SETTINGS, f.ACK))

    def frames(self) -> list[f.Frame]:
        return f.parse_prefix(bytes(self.received))

    def of(self, kind: int) -> list[f.Frame]:
        return [frame for frame in self.frames() if frame.type == kind]

    def heads(self) -> list[tuple[int, list[tuple[bytes, bytes]]]]:
        """Stream and fields of each header section, in their order."""
        decoder = hpack.Decoder()
        return [(x.stream_id, list(decoder.decode(x.payload, raw=True))) for x in self.of(f.HEADERS)]

    def statuses(self) -> dict[int, int]:
        """The last status that each stream was sent."""
        return {
            stream: int(value)
            for stream, fields in self.heads()
            for name, value in fields
            if name == b":status"
        }

    def content(self, stream: int = 1) -> bytes:
        """Of the stream's DATA frames."""
        return b"".join(x.payload for x in self.of(f.DATA) if x.stream_id == stream)

    def whole(self, stream: int = 1) -> bool:
        """Whether the stream's message is whole."""
        found = [x for x in self.frames() if x.type in (f.DATA, f.HEADERS) and x.stream_id == stream]
        return any(x.flags & f.END_STREAM for x in found)

    def new_id(self) -> int:
        self.next_id += 2
        return self.next_id - 2

    def goaway(self, patience: float = 10.0) -> int:
        """Code of the GOAWAY after which the sidecar closed; CLOSED without one."""
        self.read_end(patience)
        found = self.of(f.GOAWAY)
        return found[-1].code if found else CLOSED

    def flood(self, piece: bytes | Callable[[], bytes], most: int = 1 << 24) -> int:
        """Say it over and over until the sidecar has had enough; returns GOAWAY's code. Reads on the way."""
        sent = 0
        while sent < most:
            octets = piece if isinstance(piece, bytes) else piece()
            sent += len(octets)
            if not self.send(octets):
                break
            self.read()
            if self.ended:
                break
        else:
            raise AssertionError(f"{sent} bytes were taken without complaint")
        return self.goaway()
