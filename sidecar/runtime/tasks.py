"""The one place where tasks are made. Everything that must wait without a caller starts here.

A task that nobody keeps may be garbage collected in mid-flight, and one that nobody awaits fails in
silence: `spawn` keeps the first and reports the second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)
_tasks: set[asyncio.Task[Any]] = set()


def spawn(coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Run `coro` on the current loop until it ends. A failure is logged under `name`, awaited or not."""
    task = asyncio.get_running_loop().create_task(coro, name=name)
    _tasks.add(task)
    task.add_done_callback(_finished)
    return task


def running() -> int:
    """How many tasks have been spawned and have not ended."""
    return len(_tasks)


async def cancel_all() -> None:
    """Cancel what `spawn` started on this loop and has not ended, and wait until it has. For shutdown."""
    loop = asyncio.get_running_loop()
    tasks = [task for task in _tasks if task.get_loop() is loop and task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _finished(task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        _log.error("task %s failed: %s", task.get_name(), error, exc_info=error)
