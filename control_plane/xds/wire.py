"""Encoding of discovery responses straight from resources that are serialised already.

A push to a thousand clients shares the bytes of every resource: only a few dozen bytes of framing are
made for each. Called by the sessions; the messages are `envoy.service.discovery.v3.DiscoveryResponse`
and `DeltaDiscoveryResponse`, whose field numbers appear below as tags.
"""

from __future__ import annotations

from collections.abc import Iterable

from control_plane.model.discovery import Resource


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: bytes) -> bytes:
    """One length-delimited field; nothing for an empty value, as proto3 has it."""
    return bytes((number << 3 | 2,)) + _varint(len(value)) + value if value else b""


def _any_head(type_url: bytes, body: bytes) -> bytes:
    """All of an `Any` but its value's bytes."""
    return _field(1, type_url) + (b"\x12" + _varint(len(body)) if body else b"")


def encode_sotw(type_url: str, version: str, nonce: str, resources: Iterable[Resource]) -> bytes:
    """A `DiscoveryResponse`: version_info=1, resources=2 (Any), type_url=4, nonce=5."""
    url = type_url.encode()
    parts = [_field(1, version.encode())]
    for resource in resources:
        head = _any_head(url, resource.body)
        parts += (b"\x12", _varint(len(head) + len(resource.body)), head, resource.body)
    parts += (_field(4, url), _field(5, nonce.encode()))
    return b"".join(parts)


def encode_delta(
    type_url: str, version: str, nonce: str, resources: Iterable[tuple[str, Resource]], removed: Iterable[str]
) -> bytes:
    """A `DeltaDiscoveryResponse`: system_version_info=1, resources=2 (Resource: version=1, resource=2,
    name=3), type_url=4, nonce=5, removed_resources=6."""
    url = type_url.encode()
    parts = [_field(1, version.encode())]
    for name, resource in resources:
        any_head = _any_head(url, resource.body)
        any_length = len(any_head) + len(resource.body)
        head = _field(1, resource.version.encode()) + b"\x12" + _varint(any_length) + any_head
        tail = _field(3, name.encode())
        parts += (b"\x12", _varint(len(head) + len(resource.body) + len(tail)), head, resource.body, tail)
    parts += (_field(4, url), _field(5, nonce.encode()))
    # A repeated string keeps its empty elements, so it is written by hand.
    parts += (b"\x32" + _varint(len(name.encode())) + name.encode() for name in removed)
    return b"".join(parts)
