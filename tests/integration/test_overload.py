"""An application of fixed concurrency behind a sidecar with overload protection, at thrice its capacity."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.overload import CAPACITY, SLEEP, measure


@pytest.mark.scale  # by the clock; what is decided is simulated in tests/filters/
def test_at_three_times_capacity_goodput_holds_and_accepted_requests_keep_their_latency() -> None:
    calm, flooded = asyncio.run(measure((0.5, 3.0), 4.0, protected=True, warm_up=10.0))
    assert calm.failed == flooded.failed == 0
    assert calm.refused <= 0.02 * 4 * CAPACITY  # a machine that stalls for seconds makes a queue too
    # On a machine of its own above 0.8 (`python -m benchmarks.overload`); without protection it is 0.
    assert flooded.goodput >= 0.5 * CAPACITY
    assert flooded.refused > CAPACITY
    # Without protection it would be seconds: the queue grows by two seconds every second.
    assert flooded.p50 < 2 * SLEEP * 1000
