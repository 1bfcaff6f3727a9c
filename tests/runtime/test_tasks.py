"""Tasks: kept, named, and never failing in silence."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from sidecar.runtime.tasks import cancel_all, spawn


def test_task_is_kept_alive_without_a_reference() -> None:
    done: list[bool] = []

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.append(True)

    async def main() -> None:
        spawn(work(), "work")
        gc.collect()
        await asyncio.sleep(0.05)

    asyncio.run(main())
    assert done == [True]


def test_failure_is_logged_under_the_tasks_name(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    async def main() -> None:
        spawn(fail(), "renewal")
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == ["task renewal failed: broken"]


def test_cancel_all_waits_for_clean_up_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    cleaned: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append(name)

    async def main() -> None:
        spawn(work("a"), "a")
        spawn(work("b"), "b")
        await asyncio.sleep(0)
        await cancel_all()
        assert sorted(cleaned) == ["a", "b"]

    asyncio.run(main())
    assert caplog.records == []
