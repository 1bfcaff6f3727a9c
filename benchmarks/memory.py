"""What a connection costs in resident memory, beside what the process has to begin with.

`measure.py` calls it with a pair of its own. Connections stay open while memory is read, each after one
answered request; on each mTLS connection a body of 200 KB is then asked for, on all of them at once, and
memory is read again a second after the last has come.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import h2_wire
from benchmarks.processes import INBOUND, OUTBOUND, BenchError, Process

CONNECTIONS = 500
WARM_UP = 100
"""Connections made and closed before, so that what is allocated once is in no connection's figure."""
BURST = 204_800
SETTLE = 1.0
TIMEOUT = 20.0


@dataclass(frozen=True)
class MemorySample:
    """One contender, once. Kilobytes (1024 bytes) are for each of `CONNECTIONS`."""

    contender: str
    idle_mb: float
    """The larger of the pair, before anything."""
    plain_kb: float
    """An idle plain HTTP/1.1 connection, outbound proxy."""
    mtls_kb: float
    """An idle mTLS HTTP/2 connection, inbound proxy."""
    burst_kb: float
    """The same, one second after the bursts: what is resident more than before the connections."""


def measure_memory(contender: str, outbound: Process, inbound: Process, idle_mb: float) -> MemorySample:
    with ExitStack() as stack:
        plain = _grown(outbound, _open_plain, stack)
    with ExitStack() as stack:
        before = _settled(inbound, _open_mtls)
        connections = [_open_mtls(stack) for _ in range(CONNECTIONS)]
        idle = _each(inbound, before)
        block = h2_wire.plain_block("/200k")
        for connection in connections:
            connection.sendall(h2_wire.headers(3, block, end_stream=True))
        for connection in connections:
            _read_answer(connection, 3, BURST)
        burst = _each(inbound, before)
    return MemorySample(contender, idle_mb, plain, idle, burst)


def _grown(process: Process, open_one: Callable[[ExitStack], socket.socket], stack: ExitStack) -> float:
    before = _settled(process, open_one)
    for _ in range(CONNECTIONS):
        open_one(stack)
    return _each(process, before)


def _settled(process: Process, open_one: Callable[[ExitStack], socket.socket]) -> float:
    """Resident megabytes after some connections have come and gone."""
    with ExitStack() as stack:
        for _ in range(WARM_UP):
            open_one(stack)
    time.sleep(SETTLE)
    return process.resident_megabytes()


def _each(process: Process, before: float) -> float:
    time.sleep(SETTLE)
    return (process.resident_megabytes() - before) * 1024 / CONNECTIONS


def _open_plain(stack: ExitStack) -> socket.socket:
    connection = stack.enter_context(socket.create_connection(OUTBOUND, TIMEOUT))
    connection.sendall(b"GET /1k HTTP/1.1\r\nhost: 127.0.0.1:20001\r\n\r\n")
    data = b""
    while len(data.partition(b"\r\n\r\n")[2]) < 1024:
        data += _receive(connection)
    if not data.startswith(b"HTTP/1.1 200"):
        raise BenchError(f"the outbound proxy answered {data[:80]!r}")
    return connection


def _open_mtls(stack: ExitStack) -> socket.socket:
    raw = socket.create_connection(INBOUND, TIMEOUT)
    context = h2_wire.client_context()
    connection = stack.enter_context(context.wrap_socket(raw, server_hostname="inbound.bench"))
    connection.sendall(h2_wire.OPENING + h2_wire.headers(1, h2_wire.plain_block("/1k"), end_stream=True))
    _read_answer(connection, 1, 1024)
    connection.sendall(h2_wire.SETTINGS_ACK)
    return connection


def _read_answer(connection: socket.socket, wanted: int, size: int) -> None:
    """Read until the stream has ended. Raises BenchError when it has not brought `size` bytes."""
    buffer = b""
    got = 0
    while True:
        frames, buffer = h2_wire.split(buffer + _receive(connection))
        for kind, flags, stream, payload in frames:
            if stream != wanted:
                continue
            got += len(payload) if kind == h2_wire.DATA else 0
            if flags & h2_wire.END_STREAM or kind == h2_wire.RST_STREAM:
                if got != size:
                    raise BenchError(f"the inbound proxy sent {got} of {size} bytes on a stream")
                return


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise BenchError(
            f"the proxy at {connection.getpeername()} closed a connection of the memory measurement"
        )
    return data
