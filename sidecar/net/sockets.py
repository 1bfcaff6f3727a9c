"""Listening sockets, with errors that say what to do. Used by listeners, the admin server and tests."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Protocol

DEFAULT_BACKLOG = 1024
"""Connections that the kernel completes while the loop is busy; it caps this at net.core.somaxconn."""

KEEPALIVE_IDLE = 30
KEEPALIVE_INTERVAL = 10
KEEPALIVE_PROBES = 3
_IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; the socket module has no name for it


class Address(Protocol):
    """Where to listen or connect to: `sidecar.config.resources.SocketAddress`, which this layer may not
    import. Written in messages with `str`."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


class ListenError(OSError):
    """A listening socket could not be made; the text says where, why and what to do."""


def bind_listener(address: Address, name: str = "", backlog: int = DEFAULT_BACKLOG) -> socket.socket:
    """A bound, listening, non-blocking TCP socket. `host` is an IPv4 or IPv6 address; port 0 takes any.

    `name` is the listener's, for errors. An IPv6 socket takes IPv6 alone. Raises ListenError.
    """
    what = f"listener {name} cannot bind {address}" if name else f"cannot bind {address}"
    try:
        family = socket.getaddrinfo(address.host, address.port, flags=socket.AI_NUMERICHOST)[0][0]
    except socket.gaierror as error:
        raise ListenError(f"{what}: {address.host!r} is not an IP address") from error
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        keep_alive(sock)  # inherited by what it accepts
        sock.bind((address.host, address.port))
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenError(f"{what}: {_advice(error, address)}") from error
    return sock


async def connect_from(
    loop: asyncio.AbstractEventLoop, address: Address, sources: tuple[str, ...]
) -> socket.socket:
    """A socket connected to `address` from the one of `sources` (IP addresses) that is of its family. Raises
    OSError, also when there is none: another source would mean another thing to the other side."""
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    pairs = [
        (family, source, target)
        for family, _, _, _, target in found
        for source in sources
        if (":" in source) is (family == socket.AF_INET6)
    ]
    if not pairs:
        raise OSError(f"upstream_bind_config has no source address of the family of {address}")
    family, source, target = pairs[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # A port for each pair of addresses, not one for all: chosen when connecting.
        sock.setsockopt(socket.SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
        await loop.sock_connect(sock, target)
    except BaseException:
        sock.close()
        raise
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel find out about a peer that vanished without a FIN while nothing is sent: it is asked
    after KEEPALIVE_IDLE seconds and given up after KEEPALIVE_PROBES questions. Costs this process nothing."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def _advice(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            "the address is in use. Stop the program that has it "
            f"(`ss -ltnp 'sport = :{address.port}'` names it) or configure another port"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "no interface of this machine has that address (`ip addr` lists them)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "not permitted. Ports below 1024 need CAP_NET_BIND_SERVICE; configure a higher port"
    return os.strerror(error.errno).lower() if error.errno else str(error)


def describe(error: Exception) -> str:
    """What the kernel says, in lower case; of another error its text, or its name."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
