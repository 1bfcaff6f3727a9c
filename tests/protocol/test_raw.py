"""Opaque TCP as one stream."""

from __future__ import annotations

from sidecar.protocol.events import ErrorCode, RequestHead, ResponseHead
from sidecar.protocol.raw import WINDOW, RawCodec
from tests.support.codec_events import ConnectionLog, Driver, StreamLog


def make() -> tuple[RawCodec, StreamLog, Driver, ConnectionLog]:
    connection_log, log = ConnectionLog(), StreamLog()
    codec = RawCodec(connection_log)
    driver = Driver(codec)
    codec.stream.handler = log
    codec.start()
    return codec, log, driver, connection_log


def test_bytes_pass_both_ways() -> None:
    codec, log, driver, connection_log = make()
    codec.receive(b"in")
    assert log.events == [("data", b"in", False)]
    assert codec.stream.send_data(b"out", False) == 3
    assert driver.wakes == 1
    assert codec.take_output() == b"out"
    assert connection_log.events == [("ready",)]
    assert codec.active_streams == 1


def test_the_one_stream_can_be_opened_once() -> None:
    codec, log, _, _ = make()
    assert codec.available == 1
    assert codec.open_stream(log) is codec.stream
    assert codec.available == 0


def test_each_direction_ends_on_its_own() -> None:
    codec, log, _, _ = make()
    codec.receive_eof()
    assert log.events == [("data", b"", True)]
    assert not codec.should_close
    codec.stream.send_data(b"last", True)
    assert codec.take_output() == b"last"
    assert codec.should_close
    assert not codec.abort
    assert codec.active_streams == 0


def test_after_the_last_byte_sent_the_peer_may_go_on() -> None:
    codec, log, driver, _ = make()
    codec.stream.send_data(b"bye", True)
    assert codec.want_eof
    assert not codec.should_close
    assert driver.wakes == 1
    codec.receive(b"more")
    codec.receive_eof()
    assert log.events == [("data", b"more", True)]
    assert codec.should_close


def test_a_full_transport_holds_bytes_and_the_end() -> None:
    codec, log, _, _ = make()
    codec.pause_output()
    assert codec.stream.send_data(b"ab", False) == 0
    assert codec.stream.send_data(b"c", True) == 0
    assert codec.take_output() == b""
    assert not codec.want_eof
    codec.resume_output()
    assert log.events == [("sent", 3)]
    assert codec.take_output() == b"abc"
    assert codec.want_eof


def test_reading_pauses_at_a_full_window_and_goes_on_at_half() -> None:
    codec, _, driver, _ = make()
    codec.receive(b"x" * WINDOW)
    assert driver.pauses == [True]
    codec.stream.consume(WINDOW // 2 - 1)
    assert driver.pauses == [True]
    codec.stream.consume(1)
    assert driver.pauses == [True, False]


def test_a_reset_aborts_and_drops_what_is_queued() -> None:
    codec, log, driver, _ = make()
    codec.stream.send_data(b"lost", False)
    codec.stream.reset(ErrorCode.CANCEL)
    codec.stream.reset(ErrorCode.CANCEL)
    assert codec.should_close
    assert codec.abort
    assert codec.take_output() == b""
    assert driver.wakes == 2
    codec.receive(b"late")
    assert log.events == []


def test_a_lost_connection_resets_the_stream() -> None:
    codec, log, _, connection_log = make()
    codec.connection_lost("reset by peer")
    assert log.events == [("reset", "reset by peer", True, True)]
    assert connection_log.events == [("ready",), ("closed", "reset by peer")]


def test_a_stream_that_has_ended_is_not_reset_by_the_lost_connection() -> None:
    codec, log, _, connection_log = make()
    codec.stream.send_data(b"", True)
    codec.receive_eof()
    codec.connection_lost("closed")
    assert log.events == [("data", b"", True)]
    assert connection_log.events[-1] == ("closed", "closed")


def test_heads_have_no_bytes() -> None:
    codec, _, _, _ = make()
    codec.stream.send_request(RequestHead(b"CONNECT", b"", b"a:1", b""), False)
    codec.stream.send_informational(ResponseHead(103))
    codec.stream.send_response(ResponseHead(200), False)
    assert codec.take_output() == b""
    assert not codec.want_eof
    codec.stream.send_trailers(())
    assert codec.want_eof


def test_a_refusal_ends_the_connection() -> None:
    codec, _, _, _ = make()
    codec.stream.send_response(ResponseHead(503), False)
    assert codec.should_close
    assert codec.abort


def test_without_an_owner_only_the_stream_is_told() -> None:
    codec, log = RawCodec(None), StreamLog()
    codec.stream.handler = log
    codec.start()
    codec.connection_lost("gone")
    assert log.events == [("reset", "gone", True, True)]
