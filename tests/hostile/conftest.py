"""One sidecar, attacked by every test of this folder in turn: it must outlive them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.hostile import Target, allow_descriptors


@pytest.fixture(scope="session")
def sidecar_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    allow_descriptors(32768)
    made = Target(tmp_path_factory.mktemp("hostile"))
    yield made
    made.stop()


@pytest.fixture
def target(sidecar_process: Target) -> Iterator[Target]:
    sidecar_process.sidecar.check()
    yield sidecar_process
    sidecar_process.hang_up()
