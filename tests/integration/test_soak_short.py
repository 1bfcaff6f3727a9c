"""The soak in a quarter of a minute: each kind of end once, and no GET fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.run import find_tools
from benchmarks.soak import Settings, run
from benchmarks.soak_disturbances import KINDS
from benchmarks.soak_load import CONNECTIONS

SECONDS = 20


@pytest.mark.debian
def test_no_get_fails_while_replicas_crash_roll_and_lose_their_application(tmp_path: Path) -> None:
    # The mesh's ports are fixed, so that its addresses must be this run's own.
    network = f"127.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
    settings = Settings(
        SECONDS,
        rate=300,
        replicas=3,
        interval=0.5,
        route_interval=3.0,
        network=network,
        folder=tmp_path / "soak",
    )
    result = run(settings, find_tools())
    assert result.failures == []
    assert result.requests > 0.9 * SECONDS * settings.rate
    begun = {what.partition(":")[0] for _, what in result.disturbances}
    assert begun == {*KINDS, "save routes"}
    # When its time is over h2load begins one more on each connection, which leaves with it or does not.
    assert 0 <= sum(result.attempts.values()) - result.requests <= CONNECTIONS
