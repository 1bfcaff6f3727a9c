"""The codec as server against the `h2` package: the same frames, the same verdict, the same messages.

The package answers every malformed message by ending the connection, where RFC 9113 asks for a stream
error, so verdicts are compared as accepted or not. Where ours is stricter on purpose the test says so.
"""

from __future__ import annotations

import string
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.protocol.events import RequestHead, ResponseHead
from tests.support import h2_frames as f
from tests.support.h2_frames import Connection

Field = tuple[bytes, bytes]


def reference() -> h2.connection.H2Connection:
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, header_encoding=None)
    )
    connection.initiate_connection()
    connection.receive_data(f.PREFACE + f.settings() + f.frame(f.SETTINGS, f.ACK))
    connection.data_to_send()
    return connection


def reference_run(octets: bytes) -> tuple[bool, dict[int, list[Any]]]:
    """Whether all was accepted, and what each stream carried."""
    connection = reference()
    streams: dict[int, list[Any]] = {}
    try:
        for event in connection.receive_data(octets):
            if isinstance(event, h2.events.RequestReceived | h2.events.TrailersReceived):
                kind = "head" if isinstance(event, h2.events.RequestReceived) else "trailers"
                streams.setdefault(event.stream_id, []).append((kind, [tuple(x) for x in event.headers]))
            elif isinstance(event, h2.events.DataReceived) and event.data:
                streams[event.stream_id].append(("data", event.data))
            elif isinstance(event, h2.events.StreamEnded):
                streams[event.stream_id].append(("end",))
            elif isinstance(event, h2.events.StreamReset):
                if not event.remote_reset:
                    return False, streams
                streams[event.stream_id].append(("reset", int(event.error_code)))
    except h2.exceptions.ProtocolError:
        return False, streams
    # frames on closed streams are answered without an event
    answers = f.parse(connection.data_to_send())
    return all(x.type != f.RST_STREAM for x in answers), streams


def our_run(octets: bytes) -> tuple[bool, dict[int, list[Any]]]:
    connection = Connection(False, hold=True).start()
    answers = connection.say(octets)
    streams: dict[int, list[Any]] = {}
    for recorder in connection.requests:
        head = recorder.head
        assert isinstance(head, RequestHead)
        found: list[Any] = [("head", list(head.fields + head.fresh))]
        for event in recorder.events:
            if event[0] == "request" and event[3]:
                found.append(("end",))
            elif event[0] == "data":
                found += [("data", event[1])] if event[1] else []
                found += [("end",)] if event[2] else []
            elif event[0] == "trailers":
                found += [("trailers", list(event[1])), ("end",)]
            elif event[0] == "reset":
                found.append(("reset", event[1]))
        streams[recorder.stream.id] = found
    return all(x.type not in (f.RST_STREAM, f.GOAWAY) for x in answers), streams


LENGTH = f.block([(b"content-length", b"1")])[:2]
IDS = st.sampled_from([1, 3, 5, 7])
PSEUDO = [*f.GET]
FRAMES = st.one_of(
    st.builds(lambda i, e: f.headers(i, f.POST, e), IDS, st.booleans()),
    st.builds(lambda i, e: f.headers(i, f.POST, e), IDS, st.just(False)),
    st.builds(lambda i, n: f.headers(i, [*f.POST, (b"content-length", b"%d" % n)]), IDS, st.integers(0, 6)),
    st.builds(lambda i: f.headers(i, [(b"x-t", b"1")], True), IDS),
    st.builds(lambda i, n, e: f.data(i, b"x" * n, e), IDS, st.integers(0, 6), st.booleans()),
    st.builds(lambda i, n, p: f.padded(i, b"x" * n, p), IDS, st.integers(0, 6), st.integers(0, 6)),
    st.builds(f.rst_stream, IDS, st.integers(0, 20)),
    st.builds(f.window_update, st.sampled_from([0, 1, 3, 5]), st.sampled_from([0, 1, 9999, 2**31 - 1])),
    st.builds(f.ping),
    st.builds(f.priority, IDS),
    st.builds(
        lambda k, v: f.settings({k: v}),
        st.integers(1, 9),
        st.sampled_from([0, 1, 2, 16384, 2**31 - 1, 2**31]),
    ),
    st.builds(lambda k: f.frame(k, 0, 0, b"abc"), st.integers(20, 60)),
    st.builds(
        lambda i, cut: (
            f.frame(f.HEADERS, 0, i, f.block(f.POST)[:cut])
            + f.frame(f.CONTINUATION, 4, i, f.block(f.POST)[cut:])
        ),
        IDS,
        st.integers(0, 20),
    ),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(FRAMES, max_size=10))
@example([b"\0\0\2\1\x08\0\0\0\1\1\0"])
def test_same_verdict_on_frame_sequences(sequence: list[bytes]) -> None:
    compare(b"".join(sequence))


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAMES, min_size=1, max_size=6), st.integers(0, 8), st.integers(0, 255), st.randoms())
def test_same_verdict_on_mutated_frame_headers(
    sequence: list[bytes], place: int, octet: int, random: Any
) -> None:
    which = random.randrange(len(sequence))
    changed = bytearray(sequence[which])
    changed[place] = octet
    sequence[which] = bytes(changed)
    compare(b"".join(sequence))


def compare(octets: bytes) -> None:
    expected, messages = reference_run(octets)
    accepted, found = our_run(octets)
    if accepted != expected:
        assert known_difference(octets, accepted), (
            f"ours {accepted}, package {expected}: {f.parse_prefix(octets)}"
        )
        return
    if accepted:
        for stream in messages.values():
            stream[0] = ("head", [x for x in stream[0][1] if not x[0].startswith(b":")])
        assert found == messages


def known_difference(octets: bytes, accepted: bool) -> bool:
    """Where one of the two is laxer: the package, or ours (`accepted`) where RFC 9113 allows it."""
    frames, highest = f.parse_prefix(octets), 0
    for frame in frames:
        if frame.type == f.HEADERS:
            highest = max(highest, frame.stream_id)
        if frame.type == f.RST_STREAM and frame.stream_id > highest and not accepted:
            return True  # section 6.4: RST_STREAM on an idle stream is a connection error
        if frame.type == f.PUSH_PROMISE and not accepted:
            return True  # section 8.4: a client cannot push
        if frame.type == f.HEADERS and LENGTH in frame.payload and not accepted:
            return (
                True  # section 8.1.1: the package does not compare the length when trailers end the message
            )
        if frame.type == f.HEADERS and frame.flags & f.PADDED and frame.payload[0] + 1 == len(frame.payload):
            return accepted  # section 6.2: padding may leave nothing to the fragment, which goes on elsewhere
        if frame.type == 10 and accepted:
            return True  # ALTSVC: an extension that the package knows
        if frame.type == f.WINDOW_UPDATE and accepted and frame.payload == bytes(4):
            return True  # of 0 on a stream that has ended: nothing to reset
    rest = octets[sum(9 + len(x.payload) for x in frames) :]
    if accepted and len(rest) >= 9:
        return True  # the package judges a frame by its first nine octets, ours when all of it has come
    # a frame that is too large is refused before all of it has come
    return not accepted and len(rest) >= 9 and int.from_bytes(rest[:3], "big") > 16384


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6), st.booleans(), st.lists(FRAMES, max_size=4))
def test_nothing_that_a_peer_sends_raises(
    chunks: list[bytes], is_client: bool, sequence: list[bytes]
) -> None:
    connection = Connection(is_client).start()
    if is_client and connection.codec.available:
        for _ in range(3):
            connection.request()
    for chunk in [*sequence, *chunks]:
        connection.say(chunk)
    connection.codec.connection_lost("gone")
    assert connection.codec.active_streams == 0
    assert all(x.reset is not None or x.ended or not x.stream.id for x in connection.requests)


TOKEN = (string.ascii_lowercase + string.digits + "!#$%&'*+-.^_`|~").encode()
NAMES = st.one_of(
    st.sampled_from(
        [b"te", b"host", b"connection", b"content-length", b"a", b":path", b":x", b"A", b"", b":scheme"]
    ),
    st.binary(max_size=3),
)
VALUES = st.one_of(
    st.sampled_from([b"trailers", b"0", b"a.example", b"b.example", b" a", b"/"]), st.binary(max_size=4)
)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.tuples(NAMES, VALUES), max_size=3),
    st.integers(0, 4),
    st.lists(st.integers(0, 3), max_size=1),
)
@example([(b"te", b"trailers")], 4, [])
@example([(b"host", b"a.example")], 4, [2])
def test_same_verdict_on_header_sections(extra: list[Field], place: int, removed: list[int]) -> None:
    fields = [x for i, x in enumerate(f.GET) if i not in removed]
    fields[place:place] = extra
    octets = f.headers(1, fields, True)
    expected, _ = reference_run(octets)
    accepted, _ = our_run(octets)
    if accepted:
        assert expected
    elif expected:
        assert stricter_on_purpose(fields)


def stricter_on_purpose(fields: list[Field]) -> bool:
    """Names that are no tokens, control characters, lengths and targets that HTTP/1 could misread."""
    for name, value in fields:
        if name.strip(TOKEN) and not name.startswith(b":"):
            return True
        if any((x < 32 and x != 9) or x == 127 for x in value):
            return True
        if name in (b"content-length", b":path", b":scheme", b":authority", b"host"):
            return True
    return False


def test_response_heads_of_the_package_are_taken() -> None:
    ours, theirs = Connection(True), reference()
    ours.codec.start()
    ours.codec.receive(f.settings())
    recorder = ours.request()
    theirs.receive_data(ours.codec.take_output().removeprefix(f.PREFACE))
    theirs.send_headers(1, [(b":status", b"103"), (b"link", b"x")])
    theirs.send_headers(1, [(b":status", b"200")], end_stream=True)
    ours.codec.receive(theirs.data_to_send())
    assert recorder.events == [("informational", 103), ("response", 200, True)]
    assert isinstance(recorder.head, ResponseHead)
