"""Small protobuf helpers that several translators need."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message


def pack(message: Message) -> Any:
    """As an Any whose bytes depend on the message's content alone."""
    packed = Any()
    packed.Pack(message, deterministic=True)
    return packed


def duration(seconds: float) -> Duration:
    nanoseconds = round(seconds * 1_000_000_000)
    return Duration(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)
