"""Peers that vanish without a word: PING finds them (RFC 9113 section 6.7)."""

from __future__ import annotations

from tests.support import h2_frames as f
from tests.support.h2_frames import Connection, client, server


def looks(connection: Connection, count: int) -> list[bool]:
    return [connection.codec.check_alive() for _ in range(count)]


def test_a_silent_peer_with_streams_is_asked_once_and_then_given_up() -> None:
    connection = client()
    connection.request()
    connection.take()
    assert looks(connection, 2) == [True, True]
    (ping,) = connection.take()
    assert (ping.type, ping.flags, ping.stream_id, len(ping.payload)) == (f.PING, 0, 0, 8)
    assert looks(connection, 2) == [False, False]


def test_a_peer_that_answers_is_asked_again_and_kept() -> None:
    connection = server()
    connection.say(f.headers(1, f.GET))
    for _ in range(5):
        assert looks(connection, 2) == [True, True]
        (ping,) = connection.take()
        assert connection.say(f.frame(f.PING, f.ACK, 0, ping.payload)) == []


def test_whatever_comes_is_a_sign_of_life() -> None:
    connection = server()
    connection.say(f.headers(1, f.POST))
    for _ in range(5):
        assert looks(connection, 1) == [True]
        assert connection.say(f.data(1, b"x")) == []
    assert connection.take() == []


def test_a_peer_without_streams_is_left_alone() -> None:
    connection = server()
    assert looks(connection, 5) == [True] * 5
    assert connection.take() == []
