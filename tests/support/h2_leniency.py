"""Where the codec and the `h2` package differ about a frame, and which rule is why. One of them is laxer: the
package, or the codec where RFC 9113 allows it. Called by `h2_differential.py`."""

from __future__ import annotations

import re

import hpack

from sidecar.protocol.events import Field
from tests.support import h2_frames as f

TOKEN = re.compile(rb"[a-z0-9!#$%&'*+\-.^_`|~]+").fullmatch
METHOD = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~]+").fullmatch
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
PATH = re.compile(rb"/[!\"$-~]*").fullmatch
AUTHORITY = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=%:\[\]]+").fullmatch
SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*").fullmatch
STATUS = re.compile(rb"[1-9][0-9]{2}").fullmatch
RESERVED_BIT = 0x80
NO_CONTENT = (b"204", b"304")
OFFERED = b"\0\x08\0\0\0\1"
WITHDRAWN = b"\0\x08\0\0\0\0"


class History:
    """What the accepted frames before have told."""

    def __init__(self, before: list[bytes], client: bool) -> None:
        self.decoder = hpack.Decoder()
        self.highest = 5 if client else 0
        self.sections: dict[int, list[Field]] = {}
        """Stream -> its last header section."""
        self.content: dict[int, int] = {}
        self.offers_connect = any(OFFERED in unit for unit in before)
        for unit in before:
            first = f.parse(unit)[0]
            if first.type == f.HEADERS:
                self.highest = max(self.highest, first.stream_id)
                self.sections[first.stream_id] = self.section(unit)
            elif first.type == f.DATA:
                size = len(first.payload) - (1 + first.payload[0] if first.flags & f.PADDED else 0)
                self.content[first.stream_id] = self.content.get(first.stream_id, 0) + size

    def section(self, unit: bytes) -> list[Field]:
        """Decoded; [] when the package cannot."""
        first, *rest = f.parse(unit)
        block = first.payload
        if first.flags & f.PADDED:
            block = block[1 : len(block) - block[0]]
        block = block[5:] if first.flags & f.PRIORITY_FLAG else block
        try:
            fields = self.decoder.decode(block + b"".join(x.payload for x in rest), raw=True)
        except hpack.HPACKError:
            return []
        return [(bytes(name), bytes(value)) for name, value in fields]

    def status(self, stream: int) -> bytes | None:
        return dict(self.sections.get(stream, ())).get(b":status")

    def announced(self, stream: int) -> int:
        """The content-length of the stream's message."""
        values = [value for name, value in self.sections.get(stream, ()) if name == b"content-length"]
        return int(values[0]) if values else 0


def excuse(unit: bytes, before: list[bytes], client: bool, ours: bool) -> str:
    """The rule by which the codec accepts (`ours`) or refuses the frame, unlike the package; "" for none."""
    history = History(before, client)
    frame = f.parse(unit)[0]
    if frame.type == f.HEADERS:
        return (
            _section_taken(frame, history, unit) if ours else _section_refused(frame, history, unit, client)
        )
    return _taken(frame, history) if ours else _refused(frame, history)


def _taken(frame: f.Frame, history: History) -> str:
    if frame.type == f.WINDOW_UPDATE and frame.payload[0] & RESERVED_BIT:
        return "6.9: the reserved bit of an increment is ignored"
    if frame.type == f.WINDOW_UPDATE and not any(frame.payload) and frame.stream_id:
        return "5.1: an increment of 0 on a stream that has ended resets nothing"
    if frame.type == f.DATA and frame.flags & f.END_STREAM and history.status(frame.stream_id) in NO_CONTENT:
        return "8.1.1: a response that never has content may have a length"
    return ""


def _refused(frame: f.Frame, history: History) -> str:
    idle = frame.stream_id > history.highest or not frame.stream_id & 1
    if frame.type == f.RST_STREAM and idle:
        return "6.4: RST_STREAM on an idle stream"
    if frame.type == f.SETTINGS and history.offers_connect and WITHDRAWN in frame.payload:
        return "RFC 8441 3: extended CONNECT that was offered is withdrawn"
    if frame.type == f.PUSH_PROMISE:
        return "8.4: nobody may push here, whatever follows"
    if frame.type == f.DATA and history.status(frame.stream_id) in NO_CONTENT:
        return "RFC 9110 6.4.1: these responses have no content"
    return ""


def _section_taken(frame: f.Frame, history: History, unit: bytes) -> str:
    if frame.flags & f.PADDED and frame.payload[0] + 1 == len(frame.payload):
        return "6.2: padding may leave nothing to the fragment, which goes on elsewhere"
    fields = history.section(unit)
    if frame.stream_id in history.sections and b"content-length" in dict(fields):
        return "RFC 9110 6.5.1: a length in trailers means nothing and is dropped"
    known = dict(fields)
    if known.get(b"host", b"").lower() == known.get(b":authority", b"").lower() != b"":
        return "8.3.1: host and :authority name the same, whatever their case"
    return ""


def _section_refused(frame: f.Frame, history: History, unit: bytes, client: bool) -> str:
    if not f.parse(unit)[-1].flags & f.END_HEADERS:
        return "4.3: what cannot become a header block is refused before it is whole"
    fields = history.section(unit)
    for name, value in fields:
        wrong = _wrong(name, value, client)
        if wrong:
            return wrong
    if b"te" in dict(fields) and (client or frame.stream_id in history.sections):
        return "8.2.2: te anywhere but in a request's head"
    history.sections.setdefault(frame.stream_id, fields)
    missing = history.announced(frame.stream_id) > history.content.get(frame.stream_id, 0)
    if frame.flags & f.END_STREAM and missing:
        return "8.1.1: less content than content-length"
    if len([name for name, _ in fields if name == b"content-length"]) > 1:
        return "8.1.1: content-length comes once"
    return ""


def _wrong(name: bytes, value: bytes, client: bool) -> str:
    """What RFC 9113 forbids in one field, or lets a recipient refuse, and the package does not look at."""
    if CONTROL(value):
        return "8.2.1: control characters"
    if not name.startswith(b":") and not TOKEN(name):
        return "8.2.1: a name that is no token"
    if name == b"content-length" and not value.isdigit():
        return "8.1.1: content-length that is no number"
    if name == b":status" and (value == b"101" or not STATUS(value)):
        return "8.6: a status that HTTP/2 does not have"
    allowed = {
        b":path": PATH,
        b":authority": AUTHORITY,
        b"host": AUTHORITY,
        b":scheme": SCHEME,
        b":method": METHOD,
    }
    if not client and name in allowed and not allowed[name](value):
        return "8.3.1: a target that HTTP/1 could misread"
    return ""
