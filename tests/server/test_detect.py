"""What the stand-in codec keeps, and for how long, while it is not known what a connection speaks."""

from __future__ import annotations

from sidecar.protocol.sniff import Protocol
from sidecar.server.detect import MAX_KEPT, DetectCodec


class Rig:
    def __init__(self) -> None:
        self.detected: list[Protocol] = []
        self.pauses: list[bool] = []
        self.codec = DetectCodec(self.detected.append, lambda reason: None, lambda: None)
        self.codec.on_read_pause = self.pauses.append


def test_what_is_decided_and_not_handed_over_yet_outlives_the_clients_end() -> None:
    rig = Rig()
    assert rig.codec.active_streams == 0
    rig.codec.receive(b"GET / HTTP/1.1\r\n")
    rig.codec.receive_eof()
    assert (rig.detected, rig.codec.active_streams, rig.codec.should_close) == ([Protocol.HTTP1], 1, False)


def test_reading_stops_while_too_much_waits_for_the_next_codec() -> None:
    rig = Rig()
    rig.codec.receive(b"GET " + b"a" * (MAX_KEPT - 5))
    assert rig.pauses == []
    rig.codec.receive(b"b")
    assert rig.pauses == [True]
    assert len(rig.codec.take_leftover()) == MAX_KEPT


def test_another_sniffer_sees_all_bytes_so_far() -> None:
    seen: list[bytes] = []

    def sniff(data: bytes) -> Protocol:
        seen.append(data)
        return Protocol.TLS if len(data) > 1 else Protocol.NEED_MORE

    detected: list[Protocol] = []
    codec = DetectCodec(detected.append, lambda reason: None, sniff=sniff)
    codec.receive(b"a")
    codec.receive(b"b")
    codec.receive(b"c")
    assert (seen, detected) == ([b"a", b"ab"], [Protocol.TLS])
