"""One cluster for all tests of facts: each makes of it what it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.served_cluster import Served


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("cluster")) as served:
        yield served
