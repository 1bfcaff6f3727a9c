"""Handlers that write down what a codec reports, for tests of codecs without a socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sidecar.protocol.events import Codec, Field, RequestHead, Reset, ResponseHead, Stream


class StreamLog:
    """Records one stream's events as tuples; adjacent body pieces are joined, as their cut means nothing."""

    def __init__(self, events: list[tuple[Any, ...]] | None = None) -> None:
        self.events: list[tuple[Any, ...]] = [] if events is None else events
        self.resets: list[Reset] = []
        self.head: ResponseHead | None = None

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        self.head = head
        self.events.append(("response", head.status, head.fields + head.fresh, end_stream))

    def on_informational(self, head: ResponseHead) -> None:
        self.events.append(("informational", head.status, head.fields + head.fresh))

    def on_data(self, data: bytes, end_stream: bool) -> None:
        last = self.events[-1] if self.events else ("",)
        if last[0] == "data" and not last[2]:
            self.events[-1] = ("data", last[1] + data, end_stream)
        else:
            self.events.append(("data", data, end_stream))

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        self.events.append(("trailers", fields))

    def on_sent(self, n: int) -> None:
        self.events.append(("sent", n))

    def on_reset(self, reset: Reset) -> None:
        self.resets.append(reset)
        self.events.append(("reset", reset.reason, reset.processed, reset.remote))


class ConnectionLog:
    """Records a connection's events, and on the server side its streams' among them.

    `answer`, if given, is called from `on_request` with stream and head.
    """

    def __init__(self, answer: Callable[[Stream, RequestHead], None] | None = None) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.heads: list[RequestHead] = []
        self.streams: list[Stream] = []
        self.logs: list[StreamLog] = []
        self._answer = answer

    def on_request(self, stream: Stream, head: RequestHead, end_stream: bool) -> None:
        log = StreamLog(self.events)
        stream.handler = log
        self.heads.append(head)
        self.streams.append(stream)
        self.logs.append(log)
        protocol = (head.protocol,) if head.protocol else ()
        fields = head.fields + head.fresh
        self.events.append(("request", head.method, head.authority, head.path, *protocol, fields, end_stream))
        if self._answer is not None:
            self._answer(stream, head)

    def on_ready(self) -> None:
        self.events.append(("ready",))

    def on_capacity(self) -> None:
        self.events.append(("capacity",))

    def on_goaway(self) -> None:
        self.events.append(("goaway",))

    def on_closed(self, reason: str) -> None:
        self.events.append(("closed", reason))

    def take(self) -> list[tuple[Any, ...]]:
        """The events since the last call."""
        events = self.events[:]
        self.events.clear()
        return events


def turn(codec: Any) -> bytes:
    """What the connection does in a turn of the loop in which nothing comes."""
    if codec.behind:
        codec.catch_up()
    output: bytes = codec.take_output()
    return output


class Driver:
    """Stands in for the connection: counts wake-ups and remembers whether reading is paused."""

    def __init__(self, codec: Codec) -> None:
        self.wakes = 0
        self.paused = False
        self.pauses: list[bool] = []
        codec.on_output = self._wake
        codec.on_read_pause = self._pause

    def _wake(self) -> None:
        self.wakes += 1

    def _pause(self, paused: bool) -> None:
        self.paused = paused
        self.pauses.append(paused)
