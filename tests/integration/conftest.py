"""The mesh that tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.shop import Shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    made = Shop(tmp_path_factory.mktemp("shop"))
    try:
        made.start()
        yield made
    finally:
        made.stop()
