"""The folder as it changes: what is published, what is kept, and how soon. Real files, real time."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml

from control_plane.model.mesh import Mesh
from control_plane.model.problem import Problem, Severity
from control_plane.sources import file
from control_plane.sources.file import FileSource
from tests.support.kubernetes import service

PROMPT = 10.0
"""Seconds within which a save must be published; in practice it takes about a tenth of one."""


class Folder:
    """A folder, its source, and what was published so far."""

    def __init__(self, path: Path, poll: float | None) -> None:
        self.path = path
        self.published: list[Mesh] = []
        self.problem_lists: list[tuple[Problem, ...]] = []
        self.source = FileSource(path, self.published.append, self.problem_lists.append, poll=poll)

    def write(self, name: str, *services: str) -> None:
        (self.path / name).write_text(yaml.safe_dump_all([service(each) for each in services]))

    def names(self) -> set[str]:
        return {key.name for key in self.published[-1].services} if self.published else set()

    async def until(self, condition: Callable[[], bool]) -> float:
        """Seconds that it took."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < PROMPT, f"{self.source!r} published {self.names()}"
            await asyncio.sleep(0.005)
        return time.monotonic() - start


def follow(path: Path, scenario: Callable[[Folder], Awaitable[None]], poll: float | None = None) -> Folder:
    """Runs `scenario` while the folder is followed; the source must end by itself afterwards."""
    folder = Folder(path, poll)

    async def run() -> None:
        stop = asyncio.Event()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            following = group.create_task(folder.source.run(stop))
            await folder.until(lambda: folder.source.loads == 1)
            await asyncio.sleep(0.1)  # the watch itself starts after the first look
            await scenario(folder)
            stop.set()
            await following

    asyncio.run(run())
    return folder


@pytest.fixture(params=[None, 0.02], ids=["watching", "polling"])
def poll(request: pytest.FixtureRequest) -> float | None:
    value: float | None = request.param
    return value


def test_a_save_is_published_promptly(tmp_path: Path, poll: float | None) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(service("users")))

    async def scenario(folder: Folder) -> None:
        assert folder.names() == {"users"}
        folder.write("a.yaml", "users", "orders")
        await folder.until(lambda: folder.names() == {"users", "orders"})
        (tmp_path / "new").mkdir()
        folder.write("new/b.yaml", "greeter")
        await folder.until(lambda: folder.names() == {"users", "orders", "greeter"})
        (tmp_path / "a.yaml").unlink()
        await folder.until(lambda: folder.names() == {"greeter"})

    follow(tmp_path, scenario, poll)


def test_an_editor_that_saves_by_rename_is_one_change(tmp_path: Path, poll: float | None) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(service("users")))

    async def scenario(folder: Folder) -> None:
        os.rename(tmp_path / "a.yaml", tmp_path / "a.yaml~")
        (tmp_path / ".a.yaml.swp").write_text("not: [yaml")
        folder.write("a.yaml.tmp", "orders")
        os.rename(tmp_path / "a.yaml.tmp", tmp_path / "a.yaml")
        await folder.until(lambda: folder.names() == {"orders"})

    folder = follow(tmp_path, scenario, poll)
    assert [{key.name for key in mesh.services} for mesh in folder.published] == [{"users"}, {"orders"}]
    assert folder.problem_lists == []


def test_a_file_that_is_written_slowly_is_read_when_it_has_come_to_rest(
    tmp_path: Path, poll: float | None
) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(service("users")))
    text = yaml.safe_dump_all([service("users"), service("orders")])

    async def scenario(folder: Folder) -> None:
        with (tmp_path / "a.yaml").open("w") as half:
            for start in range(0, len(text), len(text) // 8):
                half.write(text[start : start + len(text) // 8])
                half.flush()
                await asyncio.sleep(0.02)
        await folder.until(lambda: folder.names() == {"users", "orders"})

    folder = follow(tmp_path, scenario, poll)
    assert len(folder.published) == 2
    assert folder.problem_lists == []


def test_an_error_keeps_the_last_good_configuration_and_its_repair_ends_it(
    tmp_path: Path, poll: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(service("users")))

    async def scenario(folder: Folder) -> None:
        (tmp_path / "b.yaml").write_text("kind: [Service\n")
        await folder.until(lambda: len(folder.source.problems) == 1)
        [problem] = folder.source.problems
        assert (problem.severity, problem.file, problem.document) == (Severity.ERROR, "b.yaml", 1)
        assert len(folder.published) == 1
        folder.write("b.yaml", "orders")
        await folder.until(lambda: folder.names() == {"users", "orders"})
        assert folder.source.problems == ()

    follow(tmp_path, scenario, poll)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == [
        "b.yaml:2 (document 1): not YAML: while parsing a flow sequence, did not find expected ',' or ']'",
        f"the configuration in {tmp_path} has errors; the last good one keeps serving",
    ]


def test_a_folder_that_goes_away_keeps_the_last_good_configuration_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "mesh"
    path.mkdir()
    (path / "a.yaml").write_text(yaml.safe_dump(service("users")))

    async def scenario(folder: Folder) -> None:
        os.rename(path, tmp_path / "elsewhere")
        await folder.until(lambda: len(folder.source.problems) == 1)
        assert str(folder.source.problems[0]) == (
            f"{path}: the folder cannot be read (No such file or directory); the last good"
            f" configuration keeps"
            " serving"
        )
        path.mkdir()
        folder.write("a.yaml", "orders")
        await folder.until(lambda: folder.names() == {"orders"})

    folder = follow(path, scenario, 0.02)
    assert [{key.name for key in mesh.services} for mesh in folder.published] == [{"users"}, {"orders"}]


def test_a_touch_without_a_change_publishes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(service("users")))

    async def scenario(folder: Folder) -> None:
        folder.write("a.yaml", "users")
        await folder.until(lambda: folder.source.loads == 2)

    assert len(follow(tmp_path, scenario).published) == 1


def test_where_nothing_can_be_watched_the_folder_is_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr(file.watchfiles, "awatch", refuse)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(service("users")))

    async def scenario(folder: Folder) -> None:
        folder.write("a.yaml", "orders")
        await folder.until(lambda: folder.names() == {"orders"})

    follow(tmp_path, scenario)
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot watch {tmp_path} (OS file watch limit reached); looking every 0.1 s instead"
    ]


def test_the_first_look_blocks_and_publishes(tmp_path: Path) -> None:
    folder = Folder(tmp_path, None)
    folder.write("a.yaml", "users")
    folder.source.load_now()
    assert folder.names() == {"users"}
    assert repr(folder.source) == f"FileSource({tmp_path}, serving, loads=1, problems=0)"
