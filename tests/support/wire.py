"""What goes over the wires of a network namespace, as a packet socket sees it. Needs root."""

from __future__ import annotations

import socket
import time
from ipaddress import ip_address

from tests.support.cluster_network import Host
from tests.support.netns import Namespace

_ALL = 3
"""ETH_P_ALL."""


class Wire:
    """Use as a context: keeps the packets of all interfaces meanwhile."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 2**20)
        self._socket.setblocking(False)
        self._packets: list[bytes] = []

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.01)
        while True:
            try:
                self._packets.append(self._socket.recv(65536))
            except BlockingIOError:
                break
        self._socket.close()

    def saw(self, data: bytes, one: Host, other: Host) -> bool:
        """Within one packet from one to the other."""
        return any(data in packet for packet in self.between(one, other))

    def between(self, one: Host, other: Host) -> list[bytes]:
        """Packets from each to the other."""
        pairs = [
            ip_address(a.addresses[version]).packed + ip_address(b.addresses[version]).packed
            for version in (4, 6)
            for a, b in ((one, other), (other, one))
        ]
        return [packet for packet in self._packets if any(pair in packet[:40] for pair in pairs)]
