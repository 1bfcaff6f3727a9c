"""Reading `traceparent` and `tracestate` (W3C Trace Context level 1; keys and the random flag as in level 2).

Pure functions on header fields, for `tracing.py`. What is malformed is treated as absent, never an error.
"""

from __future__ import annotations

import re

Field = tuple[bytes, bytes]

_HEX = b"0123456789abcdef"
_NO_TRACE = b"0" * 32
_NO_SPAN = b"0" * 16

_KEY = rb"[a-z0-9][a-z0-9_\-*/@]{0,255}"
_VALUE = rb"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(rb"[ \t]*(?:" + _KEY + rb"=" + _VALUE + rb")?[ \t]*")
_MAX_MEMBERS = 32


def is_trace_field(field: Field) -> bool:
    """Whether the field is one of the two that carry trace context."""
    return field[0] == b"traceparent" or field[0] == b"tracestate"


def traceparent_of(fields: tuple[Field, ...]) -> bytes | None:
    """The one valid traceparent among the fields, or None (level 1 section 3.2.2).

    A second one makes both invalid. A version above 00 is read as if it were 00, and may be longer.
    """
    parent = None
    for name, value in fields:
        if name == b"traceparent":
            if parent is not None:
                return None
            parent = value
    if parent is None:
        return None
    if len(parent) != 55:
        if len(parent) < 55 or parent[55] != 45 or parent[:2] == b"00":
            return None
        first = parent[:55]
    else:
        first = parent
    # Three dashes remain and stand where they belong: then everything else is lower-case hex.
    if first.translate(None, _HEX) != b"---" or first[2] != 45 or first[35] != 45 or first[52] != 45:
        return None
    if first[3:35] == _NO_TRACE or first[36:52] == _NO_SPAN or first[:2] == b"ff":
        return None
    return parent


def tracestate_of(fields: tuple[Field, ...]) -> bytes:
    """All tracestate fields as one value, or nothing when they are malformed (level 1 section 3.3.1).

    Length is not limited here: at least 512 characters must pass, and headers have their own limit.
    """
    joined = b",".join([value for name, value in fields if name == b"tracestate"])
    members = joined.split(b",")
    filled = sum(1 for member in members if member.strip(b" \t"))
    if not 0 < filled <= _MAX_MEMBERS:
        return b""
    return joined if all(_MEMBER.fullmatch(member) for member in members) else b""
