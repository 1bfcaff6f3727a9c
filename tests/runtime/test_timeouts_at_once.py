"""Many waits that end at once, as after a burst of connections that then say nothing."""

from __future__ import annotations

import time

from sidecar.runtime.timeouts import Timeouts
from tests.support.virtual_clock import VirtualClock


class Silent:
    def on_timeout(self, seconds: float) -> None:
        """It has waited in vain."""


def seconds_for(count: int) -> float:
    """Of this process, to end so many."""
    clock = VirtualClock()
    timeouts = Timeouts(clock, clock.time, 10.0)
    for _ in range(count):
        timeouts.begin(Silent(), clock.time())
    start = time.process_time()
    clock.advance(10.0)
    assert timeouts.waiting == 0
    return time.process_time() - start


def test_many_that_end_at_once_cost_no_more_each_than_a_few() -> None:
    few = min(seconds_for(4_000) for _ in range(3))
    many = min(seconds_for(64_000) for _ in range(2))
    assert many / few < 80  # 16 times as many; looking past all that went before would take 200 times as long
