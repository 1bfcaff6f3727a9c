"""The same octets to the codec and to the `h2` package, as server or as client: what each makes of them.

They are given a frame at a time, a header block with all its pieces counting as one. The package answers
every malformed message by ending the connection, where RFC 9113 asks for a stream error, so verdicts are
compared as accepted or not, and nothing is compared behind the first refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from sidecar.protocol.events import Field, RequestHead, Reset, ResponseHead
from tests.support import h2_frames as f
from tests.support.h2_leniency import excuse

REQUESTS = {1: (b"GET", True), 3: (b"POST", False), 5: (b"HEAD", True)}
"""What a client has asked for before the octets come: stream -> method and whether the request has ended."""
HELLO = f.settings() + f.frame(f.SETTINGS, f.ACK)
ALTSVC = 10
DROPPED = (
    b"content-length host trailer authorization proxy-authorization cookie set-cookie x-forwarded-client-cert"
).split()
"""Fields that the codec takes out of trailers (RFC 9110 section 6.5.1)."""


@dataclass
class Outcome:
    """What became of one frame: events of streams, answers to PING and SETTINGS."""

    accepted: bool = True
    events: list[tuple[Any, ...]] = field(default_factory=list)
    answers: list[f.Frame] = field(default_factory=list)

    def answered(self, frames: list[f.Frame]) -> Outcome:
        self.accepted &= all(x.type not in (f.RST_STREAM, f.GOAWAY) for x in frames)
        self.answers = [x for x in frames if x.type in (f.PING, f.SETTINGS)]
        return self


class Package:
    """A connection of the `h2` package."""

    def __init__(self, client: bool) -> None:
        config = h2.config.H2Configuration(client, header_encoding=None, normalize_inbound_headers=False)
        self.connection = h2.connection.H2Connection(config)
        if client:
            self.connection.local_settings = h2.settings.Settings(client=True, initial_values={2: 0})
        self.connection.initiate_connection()
        self.connection.receive_data(HELLO if client else f.PREFACE + HELLO)
        for stream, (method, ended) in REQUESTS.items() if client else ():
            self.connection.send_headers(stream, [(b":method", method), *f.GET[1:]], end_stream=ended)
        self.connection.data_to_send()

    def take(self, octets: bytes) -> Outcome:
        outcome = Outcome()
        try:
            for event in self.connection.receive_data(octets):
                self._note(outcome, event)
        except h2.exceptions.ProtocolError:
            return Outcome(False)
        return outcome.answered(f.parse(self.connection.data_to_send()))

    def _note(self, outcome: Outcome, event: h2.events.Event) -> None:
        add = outcome.events.append
        if isinstance(event, h2.events.RequestReceived):
            add((event.stream_id, "head", *_request(_plain(event.headers))))
        elif isinstance(event, h2.events.ResponseReceived | h2.events.InformationalResponseReceived):
            (_, status), *fields = _plain(event.headers)
            if status.startswith(b"1") or status == b"204":  # RFC 9110 section 8.6: no length is passed on
                fields = [x for x in fields if x[0] != b"content-length"]
            add((event.stream_id, "head", status, fields))
        elif isinstance(event, h2.events.TrailersReceived):
            add((event.stream_id, "trailers", [x for x in _plain(event.headers) if x[0] not in DROPPED]))
        elif isinstance(event, h2.events.DataReceived) and event.data:
            add((event.stream_id, "data", bytes(event.data)))
        elif isinstance(event, h2.events.StreamEnded):
            add((event.stream_id, "end"))
        elif isinstance(event, h2.events.StreamReset):
            outcome.accepted &= event.remote_reset
            add((event.stream_id, "reset", int(event.error_code)))


def _plain(fields: Any) -> list[Field]:
    return [(bytes(name), bytes(value)) for name, value in fields]


def _request(fields: list[Field]) -> tuple[Any, ...]:
    """Method, scheme, authority, path and the rest, `host` being an authority (section 8.3.1)."""
    known = dict(x for x in fields if x[0].startswith(b":") or x[0] == b"host")
    authority = known.get(b":authority", known.get(b"host"))
    rest = [x for x in fields if x[0] not in known]
    return known.get(b":method"), known.get(b":scheme", b""), authority, known.get(b":path", b""), rest


class Codec:
    """A connection of the sidecar's codec."""

    def __init__(self, client: bool) -> None:
        self.outcome = Outcome()
        self.connection = f.Connection(client).start()
        self.connection.on_new_request = self._begin
        for stream, (method, ended) in REQUESTS.items() if client else ():
            recorder = self.connection.request(RequestHead(method, b"http", b"a.example", b"/"), ended)
            recorder.stream.handler = _Handler(self, stream)
        self.connection.take()

    def _begin(self, recorder: f.Recorder) -> None:
        head, stream = recorder.head, recorder.stream
        assert isinstance(head, RequestHead)
        stream.handler = _Handler(self, stream.id)
        fields = list(head.fields + head.fresh)
        self.note(
            stream.id, recorder.ended, "head", head.method, head.scheme, head.authority, head.path, fields
        )

    def note(self, stream: int, ended: bool, *event: Any) -> None:
        if event:
            self.outcome.events.append((stream, *event))
        if ended:
            self.outcome.events.append((stream, "end"))

    def take(self, octets: bytes) -> Outcome:
        self.outcome = Outcome()
        return self.outcome.answered(self.connection.say(octets))


class _Handler:
    """Of one stream of the codec's."""

    def __init__(self, owner: Codec, stream: int) -> None:
        self.owner = owner
        self.stream = stream

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        self.owner.note(self.stream, end_stream, "head", b"%d" % head.status, list(head.fields + head.fresh))

    def on_informational(self, head: ResponseHead) -> None:
        self.on_response(head, False)

    def on_data(self, data: bytes, end_stream: bool) -> None:
        self.owner.note(self.stream, end_stream, *(("data", bytes(data)) if data else ()))

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        self.owner.note(self.stream, True, "trailers", list(fields))

    def on_sent(self, n: int) -> None:
        raise AssertionError("nothing was kept")

    def on_reset(self, reset: Reset) -> None:
        self.owner.note(self.stream, False, "reset", int(reset.code))


def units(octets: bytes) -> list[bytes]:
    """Whole frames, those of a header block together. Without GOAWAY, behind which the package takes nothing,
    and without ALTSVC, an extension that it knows."""
    made: list[bytes] = []
    whole = True
    for x in f.parse_prefix(octets):
        if whole and x.type in (f.GOAWAY, ALTSVC):
            continue
        one = f.frame(x.type, x.flags, x.stream_id, x.payload)
        if whole:
            made.append(one)
        else:
            made[-1] += one
        begins = whole and x.type in (f.HEADERS, f.PUSH_PROMISE)
        continues = not whole and x.type == f.CONTINUATION
        whole = not (begins or continues) or bool(x.flags & f.END_HEADERS)
    return made


def compare(octets: bytes, client: bool) -> bool:
    """Whether the codec accepts all. Raises AssertionError where the two differ and no rule is known why."""
    package, codec = Package(client), Codec(client)
    before: list[bytes] = []
    for unit in units(octets):
        theirs, ours = package.take(unit), codec.take(unit)
        what = f"{f.parse(unit)} behind {before}: the package {theirs}, the codec {ours}"
        if theirs.accepted != ours.accepted:
            assert excuse(unit, before, client, ours.accepted), what
            return ours.accepted
        if not ours.accepted:
            return False
        assert theirs == ours, what
        before.append(unit)
    return True
