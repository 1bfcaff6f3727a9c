"""One JSON line for each request, written in batches off the request's path.

The connection manager and the TCP proxy call `AccessLog.write` at the end of each request. A reader that
does not keep up costs lines, which are counted, and never time: the descriptor is non-blocking and what
waits is bounded.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from typing import NamedTuple

FLUSH_RECORDS = 256
FLUSH_SECONDS = 0.5
RESUME_SECONDS = 0.01
"""After a descriptor took only a part: a pipe holds 64 KiB, which 2,000 lines a second fill 15 times."""
MAX_PENDING = 1024 * 1024
"""Bytes that may wait for the descriptor."""
_CHUNK = 4096
"""POSIX PIPE_BUF on Linux: a pipe that polls writable takes this much without blocking."""

CallLater = Callable[[float, Callable[[], None]], object]


class AccessRecord(NamedTuple):
    """What one request was, or one TCP connection. Bytes come from the wire and are escaped."""

    start: float
    """Unix time in seconds."""
    direction: str
    """inbound or outbound."""
    method: bytes
    path: bytes
    authority: bytes
    protocol: str
    """HTTP/1.0, HTTP/1.1, HTTP/2 or TCP."""
    status: int
    """0: the caller left before there was an answer."""
    grpc_status: int | None = None
    flags: str = ""
    """Envoy's response flags, comma-separated: UH no healthy endpoint, UF connect failure, UC upstream
    closed, UR upstream reset, UO circuit breaker, URX retries used up, UT timeout, DC caller left, NR no
    route, LR local reset, UMSDR maximum duration. Empty: nothing went wrong here."""
    details: str = ""
    """The same in words."""
    duration: float = 0.0
    """Seconds."""
    bytes_in: int = 0
    """Body bytes from the caller."""
    bytes_out: int = 0
    """Body bytes to the caller."""
    upstream: str = ""
    """The last endpoint tried; empty: none was."""
    attempts: int = 0
    route: str = ""
    cluster: str = ""
    peer: str = ""
    """The other sidecar's SPIFFE id; empty outside the mesh."""
    trace_id: bytes = b""


class AccessLog:
    """Formats records and hands the lines to `sink(data) -> bytes taken`, which must not block.

    `sink` may raise OSError (the reader is gone): the lines are dropped and counted, and it is tried
    again with later ones. `call_later` is the loop's.
    """

    def __init__(self, sink: Callable[[bytes], int], call_later: CallLater) -> None:
        self._sink = sink
        self._call_later = call_later
        self._records: list[AccessRecord] = []
        self._pending = b""
        self._armed = False
        self._resuming = False
        self._second = -1
        self._second_text = ""
        self.written = 0
        """Lines handed to the buffer."""
        self.dropped = 0
        """Lines lost because the reader was too slow or gone."""

    def write(self, record: AccessRecord) -> None:
        """Take one record; it is written within `FLUSH_SECONDS`."""
        records = self._records
        records.append(record)
        if len(records) >= FLUSH_RECORDS:
            self.flush()
        elif not self._armed:
            self._arm()

    def flush(self) -> None:
        """Write what is there as far as the descriptor takes it; called at size, by the timer and at exit."""
        records, self._records = self._records, []
        if records:
            if len(self._pending) >= MAX_PENDING:
                self.dropped += len(records)
            else:
                self.written += len(records)
                self._pending += "".join(map(self._line, records)).encode("ascii")
        if self._pending:
            self._drain()

    def _drain(self) -> None:
        try:
            taken = self._sink(self._pending)
        except OSError:
            self.dropped += self._pending.count(b"\n")
            self._pending = b""
        else:
            self._pending = self._pending[taken:]
        if self._pending and not self._resuming:
            self._resuming = True
            self._call_later(RESUME_SECONDS, self._resume)

    def _resume(self) -> None:
        self._resuming = False
        if self._pending:
            self._drain()

    def _arm(self) -> None:
        self._armed = True
        self._call_later(FLUSH_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._armed = False
        self.flush()

    def _line(self, r: AccessRecord) -> str:
        grpc_status = "null" if r.grpc_status is None else r.grpc_status
        return (
            f'{{"time":"{self._time(r.start)}","direction":"{r.direction}","method":{_text(r.method)},'
            f'"path":{_text(r.path)},"authority":{_text(r.authority)},"protocol":"{r.protocol}",'
            f'"status":{r.status},"grpc_status":{grpc_status},"flags":"{r.flags}",'
            f'"details":{encode_basestring_ascii(r.details)},"duration_ms":{r.duration * 1000:.3f},'
            f'"bytes_in":{r.bytes_in},"bytes_out":{r.bytes_out},'
            f'"upstream":{encode_basestring_ascii(r.upstream)},"attempts":{r.attempts},'
            f'"route":{encode_basestring_ascii(r.route)},"cluster":{encode_basestring_ascii(r.cluster)},'
            f'"peer":{encode_basestring_ascii(r.peer)},"trace_id":"{r.trace_id.decode("ascii")}"}}\n'
        )

    def _time(self, start: float) -> str:
        milliseconds = int(start * 1000)
        second = milliseconds // 1000
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{milliseconds % 1000:03d}Z"

    def __repr__(self) -> str:
        waiting = f"{len(self._records)} records, {len(self._pending)} bytes waiting"
        return f"<AccessLog {waiting} written={self.written} dropped={self.dropped}>"


def _text(value: bytes) -> str:
    """A JSON string in ASCII; bytes that are not UTF-8 appear as `\\xNN`."""
    return encode_basestring_ascii(value.decode("utf-8", "backslashreplace"))


def open_sink(path: str) -> Callable[[bytes], int]:
    """A sink for `AccessLog` that appends to a file, pipe or terminal. Raises OSError when it cannot.

    /dev/stdout and /dev/stderr are opened anew: O_NONBLOCK belongs to the open file description, and
    setting it on an inherited one would change it for every process that shares it. Where that is not
    possible (a socket, another user's terminal) each piece is written only once it cannot block.
    """
    inherited = {"/dev/stdout": 1, "/dev/stderr": 2}.get(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o640)
    except OSError:
        if inherited is None:
            raise
        return _polling_sink(os.dup(inherited))
    return _nonblocking_sink(descriptor)


def _nonblocking_sink(descriptor: int) -> Callable[[bytes], int]:
    def write(data: bytes) -> int:
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            return 0

    return write


def _polling_sink(descriptor: int) -> Callable[[bytes], int]:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)

    def write(data: bytes) -> int:
        taken = 0
        while taken < len(data) and poll.poll(0):
            taken += os.write(descriptor, data[taken : taken + _CHUNK])
        return taken

    return write
