"""When the time of a request begins whose route comes late and whose body takes its time."""

from __future__ import annotations

import pytest

from tests.support.exchange_rig import Rig, get, route


@pytest.mark.parametrize("late", [False, True])
def test_the_time_of_a_route_begins_when_the_body_has_come(late: bool) -> None:
    rig = Rig(route(timeout=5.0))
    rig.routes.late = late
    stream, exchange = rig.send(get(method=b"PUT"), end_stream=False)
    rig.clock.advance(4.9)
    exchange.on_data(b"x", True)
    if late:
        rig.routes.arrive()
    rig.clock.advance(4.9)
    assert stream.heads == []
    rig.clock.advance(0.2)
    assert [head.status for head in stream.heads] == [504]
