"""What one turn of the event loop takes of what was read: other connections must not wait for all of it."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.protocol.events import ResponseHead
from tests.support import h2_frames as f
from tests.support.codec_events import Driver, turn
from tests.support.h2_frames import Connection, Recorder, client, server

GET = f.block(f.GET)
A_TURN = 512
"""Frames; a header section counts for nine."""


def answer(recorder: Recorder) -> None:
    recorder.stream.send_response(ResponseHead(204, ()), True)


def turns(connection: Connection) -> list[int]:
    """Requests begun in each turn that follows, until nothing waits."""
    begun = []
    while connection.codec.behind:
        before = len(connection.requests)
        turn(connection.codec)
        begun.append(len(connection.requests) - before)
    return begun


def test_a_read_full_of_requests_is_taken_over_several_turns() -> None:
    connection = server()
    connection.on_new_request = answer
    driver = Driver(connection.codec)
    ids = range(1, 1001, 2)
    connection.codec.receive(b"".join(f.frame(f.HEADERS, 5, i, GET) for i in ids))
    assert len(connection.requests) == A_TURN // 9 + 1
    assert driver.paused
    assert max(turns(connection)) == A_TURN // 9 + 1
    assert not driver.paused
    assert [recorder.stream.id for recorder in connection.requests] == list(ids)


def test_small_data_frames_are_taken_over_several_turns() -> None:
    connection = server()
    connection.say(f.headers(1, f.POST))
    (recorder,) = connection.requests
    connection.codec.receive(f.data(1, b"x") * 2000)
    assert len(recorder.body) == A_TURN
    connection.take()
    assert recorder.body == b"x" * 2000


def test_large_frames_are_taken_at_once() -> None:
    connection = server()
    connection.say(f.headers(1, f.POST))
    connection.codec.receive(f.data(1, bytes(1000)) * 64)
    assert not connection.codec.behind
    assert len(connection.requests[0].body) == 64_000


@pytest.mark.parametrize("continued", [False, True])
def test_large_header_sections_count_by_their_size(continued: bool) -> None:
    connection = server()
    connection.on_new_request = answer
    block = GET + f.block([(b"x-%d" % i, b"v" * 1000) for i in range(12)])
    if continued:
        one = f.frame(f.HEADERS, 1, 1, block[:100]) + f.frame(f.CONTINUATION, 4, 1, block[100:])
    else:
        one = f.frame(f.HEADERS, 5, 1, block)
    octets = b"".join(one.replace(b"\0\0\0\1", b"\0\0\0%c" % i) for i in range(1, 41, 2))
    connection.codec.receive(octets)
    assert len(connection.requests) == A_TURN // (9 + continued + len(block) // 256) + 1
    turns(connection)
    assert len(connection.requests) == 20


def test_what_comes_meanwhile_waits_its_turn_and_frames_may_be_cut_anywhere() -> None:
    connection = server()
    octets = b"".join(f.frame(f.HEADERS, 5, i, GET) for i in range(1, 401, 2))
    for start in range(0, len(octets), 1999):
        connection.codec.receive(octets[start : start + 1999])
    connection.take()
    assert [recorder.stream.id for recorder in connection.requests] == list(range(1, 401, 2))


def test_an_end_of_the_input_waits_too() -> None:
    connection = server()
    connection.on_new_request = answer
    connection.codec.receive(b"".join(f.frame(f.HEADERS, 5, i, GET) for i in range(1, 401, 2)))
    connection.codec.receive_eof()
    assert not connection.codec.should_close
    answers = [frame.stream_id for frame in connection.take() if frame.type == f.HEADERS]
    assert answers == list(range(1, 401, 2))
    assert connection.codec.should_close


def test_responses_are_taken_over_several_turns_on_the_client_side() -> None:
    connection = client()
    recorders = [connection.request() for _ in range(300)]
    connection.take()
    connection.codec.receive(b"".join(f.headers(2 * i + 1, f.OK, True) for i in range(300)))
    answered = sum(recorder.ended for recorder in recorders)
    assert answered == A_TURN // 9 + 1
    assert connection.codec.available > 0
    connection.codec.receive_eof()
    assert connection.codec.available == 0
    connection.take()
    assert all(recorder.ended for recorder in recorders)


def test_nothing_more_is_taken_after_a_connection_error() -> None:
    connection = server()
    octets: list[Any] = [f.frame(f.HEADERS, 5, i, GET) for i in range(1, 201, 2)]
    octets.insert(70, f.data(0, b"x"))
    connection.codec.receive(b"".join(octets))
    frames = connection.take()
    assert [frame.code for frame in frames if frame.type == f.GOAWAY] == [1]
    assert len(connection.requests) == 70
    assert not connection.codec.behind
