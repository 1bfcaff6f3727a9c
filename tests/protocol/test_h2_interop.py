"""Whole exchanges with the `h2` package at the other end, in random pieces, in both roles.

`h2` keeps its own account of every window and raises when ours sends a byte too many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.protocol.events import RequestHead, ResponseHead
from tests.support.h2_frames import Connection, Recorder

Field = tuple[bytes, bytes]
SIZES = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 40000)), max_size=5)
FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"x-a", b"accept", b"via", b"etag"]), st.sampled_from([b"", b"1", b"zz" * 40])
    ),
    max_size=5,
)
TRAILERS = st.one_of(st.none(), st.just(((b"grpc-status", b"0"), (b"x-t", b"v"))))
MESSAGE = st.tuples(FIELDS, SIZES, TRAILERS)
WINDOW = st.sampled_from([1000, 16384, 65535, 200000])


class Reference:
    """The package at one end: what came, by stream; gives credit back as it comes."""

    def __init__(self, client: bool, window: int, table: int) -> None:
        config = h2.config.H2Configuration(client_side=client, header_encoding=None)
        self.connection = h2.connection.H2Connection(config)
        codes = h2.settings.SettingCodes
        values = {codes.INITIAL_WINDOW_SIZE: window, codes.HEADER_TABLE_SIZE: table}
        self.connection.local_settings = h2.settings.Settings(client=client, initial_values=values)
        self.connection.initiate_connection()
        self.heads: dict[int, list[Field]] = {}
        self.bodies: dict[int, bytearray] = {}
        self.trailers: dict[int, list[Field]] = {}
        self.ended: set[int] = set()
        self.pending: dict[int, bytearray] = {}
        self.endings: dict[int, tuple[Field, ...] | None] = {}

    def receive(self, octets: bytes) -> None:
        for event in self.connection.receive_data(octets):
            if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
                self.heads[event.stream_id] = [tuple(x) for x in event.headers]
                self.bodies[event.stream_id] = bytearray()
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers[event.stream_id] = [tuple(x) for x in event.headers]
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated), event

    def send(
        self, stream_id: int, head: list[Field], sizes: list[int], trailers: tuple[Field, ...] | None
    ) -> None:
        self.connection.send_headers(stream_id, head)
        self.pending[stream_id] = bytearray(body(sizes))
        self.endings[stream_id] = trailers
        self.flush()

    def flush(self) -> None:
        for stream_id, rest in list(self.pending.items()):
            while rest:
                room = self.connection.local_flow_control_window(stream_id)
                room = min(room, self.connection.max_outbound_frame_size, len(rest))
                if room <= 0:
                    break
                if room > 100:
                    room -= 51
                    self.connection.send_data(stream_id, bytes(rest[:room]), pad_length=50)
                else:
                    self.connection.send_data(stream_id, bytes(rest[:room]))
                del rest[:room]
            if not rest:
                del self.pending[stream_id]
                trailers = self.endings.pop(stream_id)
                if trailers is None:
                    self.connection.end_stream(stream_id)
                else:
                    self.connection.send_headers(stream_id, trailers, end_stream=True)


def body(sizes: list[int]) -> bytes:
    return b"".join(bytes((i + 65,)) * size for i, size in enumerate(sizes))


def pieces(octets: bytes, cuts: Iterator[int]) -> Iterator[bytes]:
    least = len(octets) // 50  # a large body in single octets takes too long
    while octets:
        cut = max(next(cuts), least)
        yield octets[:cut]
        octets = octets[cut:]


def cycle(cuts: list[int]) -> Iterator[int]:
    while True:
        yield from cuts


def send_ours(recorder: Recorder, sizes: list[int], trailers: tuple[Field, ...] | None) -> int:
    """Send a body and its end; returns how much was kept."""
    kept = 0
    for i, size in enumerate(sizes):
        kept += size - recorder.stream.send_data(bytes((i + 65,)) * size, False)
    if trailers is None:
        recorder.stream.send_data(b"", True)
    else:
        recorder.stream.send_trailers(trailers)
    return kept


def exchange(ours: Connection, reference: Reference, cuts: Iterator[int]) -> None:
    """Pass octets until neither end has more."""
    quiet = 0
    while quiet < 2:
        octets = ours.codec.take_output()
        for piece in pieces(octets, cuts):
            reference.receive(piece)
            reference.flush()
        answer = reference.connection.data_to_send()
        for piece in pieces(answer, cuts):
            ours.codec.receive(piece)
        quiet = 0 if octets or answer else quiet + 1
    assert not ours.codec.should_close


CUTS = st.lists(st.one_of(st.integers(1, 30), st.integers(1, 70000)), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(MESSAGE, MESSAGE), max_size=4), CUTS, WINDOW, WINDOW, st.sampled_from([4096, 0, 100])
)
def test_our_client_with_the_package(
    exchanges: list[Any], cuts: list[int], our_window: int, their_window: int, table: int
) -> None:
    ours, reference = (
        Connection(True, initial_stream_window_size=our_window),
        Reference(False, their_window, table),
    )
    ours.codec.start()
    turn = cycle(cuts)
    exchange(ours, reference, turn)
    started = []
    for (fields, sizes, trailers), _ in exchanges:
        recorder = ours.request(RequestHead(b"POST", b"http", b"a", b"/p", tuple(fields)), False)
        started.append((recorder, send_ours(recorder, sizes, trailers)))
    exchange(ours, reference, turn)
    for (recorder, kept), ((fields, sizes, trailers), response) in zip(started, exchanges, strict=True):
        stream_id = recorder.stream.id
        assert reference.heads[stream_id][4:] == fields
        assert reference.bodies[stream_id] == body(sizes)
        assert reference.trailers.get(stream_id, []) == list(trailers or ())
        assert recorder.sent == kept
        reference.send(stream_id, [(b":status", b"200"), *response[0]], response[1], response[2])
    exchange(ours, reference, turn)
    check_received([recorder for recorder, _ in started], [response for _, response in exchanges])
    assert ours.codec.active_streams == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(MESSAGE, MESSAGE), max_size=4), CUTS, WINDOW, WINDOW, st.sampled_from([4096, 0, 100])
)
def test_our_server_with_the_package(
    exchanges: list[Any], cuts: list[int], our_window: int, their_window: int, table: int
) -> None:
    ours, reference = (
        Connection(False, initial_stream_window_size=our_window),
        Reference(True, their_window, table),
    )
    ours.codec.start()
    turn = cycle(cuts)
    pseudo = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/p")]
    exchange(ours, reference, turn)
    for number, ((fields, sizes, trailers), _) in enumerate(exchanges):
        reference.send(2 * number + 1, pseudo + fields, sizes, trailers)
    exchange(ours, reference, turn)
    check_received(ours.requests, [request for request, _ in exchanges])
    kept = []
    for recorder, (_, (fields, sizes, trailers)) in zip(ours.requests, exchanges, strict=True):
        recorder.stream.send_response(ResponseHead(200, tuple(fields)), False)
        kept.append(send_ours(recorder, sizes, trailers))
    exchange(ours, reference, turn)
    for number, (_, (fields, sizes, trailers)) in enumerate(exchanges):
        stream_id = 2 * number + 1
        assert reference.heads[stream_id] == [(b":status", b"200"), *fields]
        assert reference.bodies[stream_id] == body(sizes)
        assert reference.trailers.get(stream_id, []) == list(trailers or ())
    assert [x.sent for x in ours.requests] == kept
    assert reference.ended == set(reference.heads)
    assert ours.codec.active_streams == 0


def check_received(recorders: list[Recorder], messages: list[Any]) -> None:
    for recorder, (fields, sizes, trailers) in zip(recorders, messages, strict=True):
        assert recorder.head is not None
        assert list(recorder.head.fields + recorder.head.fresh) == fields
        assert recorder.body == body(sizes)
        assert recorder.ended
        if trailers is not None:
            assert recorder.events[-1] == ("trailers", trailers)
