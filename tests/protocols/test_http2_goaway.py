"""How an application may end connections and streams (RFC 9113 sections 6.4, 6.8, 8.1 and 8.7), and which of
its requests are then sent again."""

from __future__ import annotations

from tests.support import h2_frames as f
from tests.support.h2_hop import Hop

ALL = 2**31 - 1
"""The last stream of a GOAWAY that only announces."""
REFUSED, INTERNAL, NO_ERROR = 7, 2, 0
OK = b"HTTP/1.1 200 "


def test_a_request_above_the_last_stream_of_goaway_is_sent_again_whatever_its_method(hop: Hop) -> None:
    with hop.call(b"POST", b"once") as caller, hop.serving() as leaving:
        leaving.read_until(leaving.whole)
        leaving.send(f.goaway(0))
        with hop.serving() as staying:
            staying.read_until(staying.whole)
            assert staying.content() == b"once"
            staying.send(f.headers(1, f.OK, True))
            assert caller.answer()[0].startswith(OK)
        leaving.read_end()
        assert len(leaving.of(f.HEADERS)) == 1


def test_a_request_up_to_the_last_stream_of_goaway_is_answered_and_the_next_goes_elsewhere(hop: Hop) -> None:
    """In two phases, as servers do that do not want to lose what is under way."""
    with hop.call(b"POST", b"first") as first, hop.serving() as leaving:
        leaving.read_until(leaving.whole)
        leaving.send(f.goaway(ALL) + f.ping())
        leaving.read_until(lambda: leaving.of(f.PING))
        with hop.call() as second, hop.serving() as staying:
            staying.send(f.headers(staying.request(), f.OK, True))
            assert second.answer()[0].startswith(OK)
            leaving.send(f.goaway(1) + f.headers(1, f.OK, True))
            assert first.answer()[0].startswith(OK)
            leaving.read_end()  # closed by the sidecar: nothing is left to wait for
            assert len(leaving.of(f.HEADERS)) == 1


def test_a_refused_stream_is_sent_again_whatever_its_method(hop: Hop) -> None:
    with hop.call(b"POST", b"again") as caller, hop.serving() as app:
        app.read_until(app.whole)
        app.send(f.rst_stream(1, REFUSED))
        app.read_until(lambda: app.whole(3))
        assert app.content(3) == b"again"
        app.send(f.headers(3, f.OK, True))
        assert caller.answer()[0].startswith(OK)


def test_a_stream_that_was_reset_otherwise_may_have_been_processed(hop: Hop) -> None:
    with hop.call(b"POST", b"once") as caller, hop.serving() as app:
        app.read_until(app.whole)
        app.send(f.rst_stream(1, INTERNAL))
        head, body = caller.answer()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"peer reset the stream: INTERNAL_ERROR" in body
        app.send(f.ping())
        app.read_until(lambda: app.of(f.PING))
        assert len(app.of(f.HEADERS)) == 1


def test_a_whole_response_ahead_of_the_request_s_end_is_passed_on_and_the_upload_given_up(hop: Hop) -> None:
    """Section 8.1: RST_STREAM with NO_ERROR behind it asks for no more, and takes nothing back."""
    with hop.call(b"POST", bytes(1 << 20)) as caller, hop.serving({4: 1000}) as app:
        app.read_until(lambda: len(app.content()) == 1000)
        status = [(b":status", b"413"), (b"content-length", b"3")]
        app.send(f.headers(1, status) + f.data(1, b"big", True) + f.rst_stream(1, NO_ERROR))
        head, body = caller.answer()
        assert head.startswith(b"HTTP/1.1 413 ")
        assert body == b"big"
        app.send(f.window_update(1, 1 << 20) + f.ping())
        app.read_until(lambda: app.of(f.PING))
        assert len(app.content()) == 1000
        assert app.of(f.GOAWAY) == []
