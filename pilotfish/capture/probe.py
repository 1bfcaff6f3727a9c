"""Proves by a connection that redirection works; called by `check.py`. Needs no privilege.

An ordinary user calls an address for documentation, where nobody answers, and must arrive at the outbound
port. The sidecar's own user, whose calls are left alone, calls its own pod and must arrive at the inbound
port.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import closing, suppress
from dataclasses import dataclass

from pilotfish.capture.settings import CaptureSettings, contains

TARGETS = {
    4: ("192.0.2.1", "198.51.100.1", "203.0.113.1"),  # RFC 5737
    6: ("2001:db8::1", "2001:db8:ffff::1", "3fff::1"),  # RFC 3849, RFC 9637
}
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_SO_ORIGINAL_DST = 80
_TIMEOUT = 2.0
_NO_ROUTE = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
Address = tuple[str, int]


@dataclass(frozen=True)
class Fact:
    """`ok`: None where something could not be looked at."""

    ok: bool | None
    text: str


def probe(settings: CaptureSettings, version: int) -> Fact:
    """Whether a connection over IPv4 or IPv6 is redirected."""
    if os.geteuid() == settings.proxy_user:
        target, port = _own_port(settings, version), settings.inbound_port
    else:
        target, port = _foreign_port(settings, version), settings.outbound_port
    if target is None:
        return Fact(None, f"IPv{version} connection not tried: no address and port that would be captured")
    call = f"IPv{version} connection to {_text(target)}"
    if _source_address(target) is None:
        return Fact(None, f"{call} not tried: the pod has no route for it")
    try:
        arrived = arrival(target, (_LOOPBACK[version], port))
    except OSError as error:
        reason = error.strerror or "no answer"
        return Fact(False, f"{call} was not redirected to port {port}: {reason}")
    if arrived is None:
        return Fact(True, f"{call} was accepted by who listens on port {port}")
    if arrived != target:
        return Fact(False, f"{call} arrived at port {port} with original destination {_text(arrived)}")
    return Fact(True, f"{call} arrived at port {port} with its original destination")


def _foreign_port(settings: CaptureSettings, version: int) -> Address | None:
    port = next((port for port in range(20000, 65536) if not contains(settings.left_outbound, port)), 0)
    return next(
        (
            (address, port)
            for address in TARGETS[version]
            if port and settings.captures_call_to(address, port)
        ),
        None,
    )


def _own_port(settings: CaptureSettings, version: int) -> Address | None:
    """A port of the pod's own address where nobody listens."""
    address = _source_address((TARGETS[version][0], 9))
    if address is None:
        return None
    with closing(socket.socket(_FAMILY[version])) as unused:
        unused.bind((address, 0))
        port: int = unused.getsockname()[1]
    return None if contains(settings.left_inbound, port) else (address, port)


def _source_address(target: Address) -> str | None:
    """The pod's own address for calls of `target`; None where it has no route. Sends nothing."""
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as route:
        try:
            route.connect(target)
        except OSError as error:
            if error.errno in _NO_ROUTE:
                return None
            raise
        address: str = route.getsockname()[0]
        return address


def arrival(target: Address, at: Address) -> Address | None:
    """The original destination as it is seen at `at`; None where another process listens there."""
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with closing(socket.socket(family)) as server, closing(socket.socket(family)) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.settimeout(_TIMEOUT)
        client.settimeout(_TIMEOUT)
        try:
            server.bind(at)
            server.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Who listens may have found out already that nobody is there to pass it on to. A connection that
            # was not accepted ends otherwise: with ECONNREFUSED.
            with suppress(ConnectionResetError):
                client.connect(target)
            return None
        client.connect(target)
        accepted, _ = server.accept()
        with closing(accepted):
            return _original_destination(accepted)


def _original_destination(accepted: socket.socket) -> Address:
    # linux/netfilter_ipv4.h and netfilter_ipv6/ip6_tables.h: a struct sockaddr_in or sockaddr_in6.
    if accepted.family == socket.AF_INET6:
        raw = accepted.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
        port, packed = struct.unpack_from("!2xH4x16s", raw)
    else:
        raw = accepted.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
        port, packed = struct.unpack_from("!2xH4s", raw)
    return socket.inet_ntop(accepted.family, packed), port


def _text(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
