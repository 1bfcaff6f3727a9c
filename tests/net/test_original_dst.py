"""What the kernel's answer about a redirected connection means."""

from __future__ import annotations

import socket
from contextlib import closing

from sidecar.net.original_dst import original_destination


class Answer:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int, int]] = []

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        self.asked.append((level, option, size))
        return self.data


def test_ipv4() -> None:
    answer = Answer(bytes.fromhex("0200 1f90 0a600001") + bytes(8))
    assert original_destination(answer, ipv6=False) == ("10.96.0.1", 8080)
    assert answer.asked == [(socket.SOL_IP, 80, 16)]


def test_ipv6() -> None:
    address = bytes.fromhex("fd780000000000000000000000000002")
    answer = Answer(bytes.fromhex("0a00 0050 00000000") + address + bytes(4))
    assert original_destination(answer, ipv6=True) == ("fd78::2", 80)
    assert answer.asked == [(socket.IPPROTO_IPV6, 80, 28)]


def test_a_connection_that_was_not_redirected_has_none_or_its_own_address() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted = listener.accept()[0]
        with client, accepted:
            found = original_destination(accepted, ipv6=False)
            assert found in (None, accepted.getsockname())
