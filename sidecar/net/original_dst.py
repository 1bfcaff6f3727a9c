"""Where a redirected connection was going: asks the kernel's connection tracking.

Called by listeners with `original_dst`, once for each connection. The rules that redirect are made by
`pilotfish capture`; nothing here changes them.
"""

from __future__ import annotations

import socket
import struct
from typing import Protocol

_SO_ORIGINAL_DST = 80
"""linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number."""
_SOL_IP = socket.SOL_IP
_SOL_IPV6 = 41
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


class SocketOptions(Protocol):
    """The part of a socket that is needed; uvloop's transports have one that can do no more."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


def original_destination(sock: SocketOptions, ipv6: bool) -> tuple[str, int] | None:
    """Address and port that the client of an accepted connection asked for, before NAT; the socket's own for
    one that was not redirected. None where the kernel does not track the connection, which then cannot
    have been redirected either."""
    try:
        if ipv6:
            port, host = _SOCKADDR_IN6.unpack(
                sock.getsockopt(_SOL_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
            )
            return socket.inet_ntop(socket.AF_INET6, host), port
        port, host = _SOCKADDR_IN.unpack(sock.getsockopt(_SOL_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size))
        return socket.inet_ntop(socket.AF_INET, host), port
    except OSError:
        return None
