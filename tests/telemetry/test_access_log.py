"""The access log: what a line holds, when lines are written, and that a slow reader never holds us up."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sidecar.telemetry.access_log import (
    FLUSH_RECORDS,
    FLUSH_SECONDS,
    MAX_PENDING,
    AccessLog,
    AccessRecord,
    open_sink,
)
from tests.support.virtual_clock import VirtualClock

RECORD = AccessRecord(
    start=1_700_000_000.0125,
    direction="inbound",
    method=b"GET",
    path=b"/orders/7?x=1",
    authority=b"orders:8080",
    protocol="HTTP/2",
    status=503,
    grpc_status=14,
    flags="UF,URX",
    details='connect to 10.0.0.1:80: "refused"',
    duration=0.0123456,
    bytes_in=10,
    bytes_out=20,
    upstream="10.0.0.1:80",
    attempts=3,
    route="orders",
    cluster="app",
    peer="spiffe://cluster.local/ns/shop/sa/users",
    trace_id=b"0af7651916cd43dd8448eb211c80319c",
)


class Sink:
    """Takes up to `room` bytes, or fails."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.data = b""
        self.error: OSError | None = None

    def __call__(self, data: bytes) -> int:
        if self.error is not None:
            raise self.error
        taken = data[: self.room]
        self.room -= len(taken)
        self.data += taken
        return len(taken)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.data.splitlines()]


def make(room: int = 1 << 30) -> tuple[AccessLog, Sink, VirtualClock]:
    sink, clock = Sink(room), VirtualClock()
    return AccessLog(sink, clock.call_later), sink, clock


def test_a_line_holds_the_whole_request() -> None:
    log, sink, _ = make()
    log.write(RECORD)
    log.flush()
    assert sink.lines == [
        {
            "time": "2023-11-14T22:13:20.012Z",
            "direction": "inbound",
            "method": "GET",
            "path": "/orders/7?x=1",
            "authority": "orders:8080",
            "protocol": "HTTP/2",
            "status": 503,
            "grpc_status": 14,
            "flags": "UF,URX",
            "details": 'connect to 10.0.0.1:80: "refused"',
            "duration_ms": 12.346,
            "bytes_in": 10,
            "bytes_out": 20,
            "upstream": "10.0.0.1:80",
            "attempts": 3,
            "route": "orders",
            "cluster": "app",
            "peer": "spiffe://cluster.local/ns/shop/sa/users",
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
        }
    ]


def test_no_grpc_status_is_null() -> None:
    log, sink, _ = make()
    log.write(RECORD._replace(grpc_status=None))
    log.flush()
    assert sink.lines[0]["grpc_status"] is None


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b'/"},{"status":200', '/"},{"status":200'),
        (b"/a\nb\r\n", "/a\nb\r\n"),
        (b"/\x00\x1b[31m", "/\x00\x1b[31m"),
        (b"/\xff\xfe", "/\\xff\\xfe"),
        ("/ü😀".encode(), "/ü😀"),
        (b"/\\", "/\\"),
    ],
)
def test_bytes_from_the_wire_stay_inside_their_field_and_their_line(raw: bytes, shown: str) -> None:
    log, sink, _ = make()
    log.write(RECORD._replace(path=raw, authority=raw, method=raw))
    log.flush()
    assert sink.data.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in sink.data[:-1])
    [line] = sink.lines
    assert (line["path"], line["authority"], line["method"]) == (shown, shown, shown)


def test_lines_wait_for_the_timer_and_one_timer_serves_many() -> None:
    log, sink, clock = make()
    for _ in range(10):
        log.write(RECORD)
    assert sink.data == b""
    assert clock.pending == 1
    clock.advance(FLUSH_SECONDS)
    assert len(sink.lines) == 10
    assert clock.pending == 0


def test_many_records_are_written_without_waiting() -> None:
    log, sink, _ = make()
    for _ in range(FLUSH_RECORDS):
        log.write(RECORD)
    assert len(sink.lines) == FLUSH_RECORDS


def test_the_time_is_right_across_seconds() -> None:
    log, sink, _ = make()
    for start in (1_700_000_000.999, 1_700_000_001.0, 1_700_000_000.5):
        log.write(RECORD._replace(start=start))
    log.flush()
    times = [line["time"][-10:] for line in sink.lines]
    assert times == ["13:20.999Z", "13:21.000Z", "13:20.500Z"]


def test_what_a_full_pipe_did_not_take_follows_later_unharmed() -> None:
    log, sink, clock = make(room=100)
    for _ in range(3):
        log.write(RECORD)
    clock.advance(FLUSH_SECONDS)
    assert len(sink.data) == 100
    sink.room = 1 << 30
    clock.advance(FLUSH_SECONDS)
    assert len(sink.lines) == 3
    assert log.dropped == 0
    assert clock.pending == 0


def test_a_reader_that_stopped_costs_lines_that_are_counted_and_bounded_memory() -> None:
    log, sink, clock = make(room=0)
    total = 0
    while not log.dropped:
        log.write(RECORD)
        total += 1
        assert total < 10_000
    waiting = log.written
    sink.room = 1 << 30
    clock.advance(FLUSH_SECONDS)
    assert MAX_PENDING <= len(sink.data) < MAX_PENDING + 600 * FLUSH_RECORDS
    assert len(sink.lines) == waiting
    assert waiting + log.dropped == total


def test_a_reader_that_keeps_up_loses_no_line_though_its_pipe_holds_little() -> None:
    log, sink, clock = make(room=65536)
    for i in range(20_000):
        if i % 10 == 0:
            clock.advance(0.005)
            sink.room = 65536
        log.write(RECORD)
    for _ in range(20):
        clock.advance(FLUSH_SECONDS)
        sink.room = 65536
    assert log.dropped == 0
    assert len(sink.lines) == 20_000


def test_a_reader_that_is_gone_drops_and_counts_and_recovers() -> None:
    log, sink, _ = make()
    sink.error = BrokenPipeError(errno.EPIPE, "gone")
    log.write(RECORD)
    log.flush()
    assert log.dropped == 1
    sink.error = None
    log.write(RECORD)
    log.flush()
    assert len(sink.lines) == 1


def test_a_file_is_created_for_its_owner_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("before\n")
    assert open_sink(str(path))(b"after\n") == 6
    assert path.read_text() == "before\nafter\n"
    new = tmp_path / "new.log"
    open_sink(str(new))(b"x")
    assert new.stat().st_mode & 0o007 == 0


def test_a_path_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_sink(str(tmp_path / "no" / "such" / "folder"))


_CHILD = """
import os
from sidecar.telemetry.access_log import open_sink
sink = open_sink("/dev/stdout")
assert os.get_blocking(1), "stdout's own mode is another process's too"
taken = 0
while True:
    n = sink(b"x" * 4095 + b"\\n")
    taken += n
    if n < 4096:
        break
os.write(2, str(taken).encode())
"""


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_stdout_that_nobody_reads_never_blocks_and_keeps_its_mode(kind: str) -> None:
    import socket

    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        ends = socket.socketpair()
        reader, writer = (end.detach() for end in ends)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD], stdout=writer, stderr=subprocess.PIPE, timeout=20, check=False
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stderr) >= 4096
    finally:
        os.close(reader)
        os.close(writer)
