"""The buffer that a loop's sockets are read into. Used by `connection.py` alone."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from weakref import WeakKeyDictionary

READ_SIZE = 65536
"""The most that is read at once. Four times as much, uvloop's own size, falls out of the caches."""

_buffers: WeakKeyDictionary[AbstractEventLoop, memoryview] = WeakKeyDictionary()


def read_buffer(loop: AbstractEventLoop) -> memoryview:
    """The loop's one buffer: what is read into it is taken before anything else is read."""
    buffer = _buffers.get(loop)
    if buffer is None:
        buffer = _buffers[loop] = memoryview(bytearray(READ_SIZE))
    return buffer
