"""What capture asks of the machine: tools that set rules, and IPv6 of the network namespace it runs in."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Sequence
from ipaddress import IPv6Address
from pathlib import Path

from mesh_api.names import INBOUND_SOURCE

_IPV6_ADDRESSES = Path("/proc/net/if_inet6")
_SIOCSIFADDR, _SIOCDIFADDR = 0x8916, 0x8936
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_TIMEOUT = 30.0
_NOT_PERMITTED = ("not permitted", "ermission denied", "must be root")


class CaptureError(Exception):
    """What could not be done, and what to do."""


class NotPermittedError(CaptureError):
    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text} (needs root with the capability NET_ADMIN, in the network namespace of the pod)"
        )


class ToolError(CaptureError):
    """A tool was run and refused, not for want of a capability: most often the kernel lacks a module."""


def is_installed(tool: str) -> bool:
    return shutil.which(tool, path=_PATH) is not None


def run(command: Sequence[str], text: str = "") -> str:
    """Standard output of a tool that gets `text`. Raises CaptureError with what the tool said."""
    try:
        result = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIMEOUT, env={"PATH": _PATH}
        )
    except FileNotFoundError as error:
        raise CaptureError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise CaptureError(f"{' '.join(command)} has not ended within {_TIMEOUT:g} s") from error
    if result.returncode:
        said = " ".join(result.stderr.split()) or f"exit status {result.returncode}"
        kind = NotPermittedError if any(words in said for words in _NOT_PERMITTED) else ToolError
        raise kind(f"{' '.join(command)}: {said[:300]}")
    return result.stdout


def has_ipv6() -> bool:
    """Whether any interface has an IPv6 address, be it link-local: other hosts could come in by it."""
    return bool(_ipv6_addresses())


def has_loopback_ipv6(addresses: Path = _IPV6_ADDRESSES) -> bool:
    """Whether `::1` is on lo: without it nothing in the pod reaches anything else in it over IPv6, so that a
    sidecar takes no connections over it. `pod_bootstrap` goes by this too."""
    return (IPv6Address("::1"), "lo") in _ipv6_addresses(addresses)


def has_routable_ipv6() -> bool:
    """Whether the pod can call others over IPv6 than those on its own link."""
    return any(not (found.is_link_local or found.is_loopback) for found, _ in _ipv6_addresses())


def has_source_address() -> bool:
    """Whether the IPv6 address from which the sidecar calls its application is on lo."""
    return (IPv6Address(INBOUND_SOURCE[1]), "lo") in _ipv6_addresses()


def _ipv6_addresses(file: Path = _IPV6_ADDRESSES) -> list[tuple[IPv6Address, str]]:
    """Each with its interface; none where the kernel has no IPv6."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [(IPv6Address(int(line.split()[0], 16)), line.split()[-1]) for line in lines]


def add_source_address() -> None:
    """IPv4 needs none of this: all of 127.0.0.0/8 is the host's own."""
    try:
        _change_source_address(_SIOCSIFADDR)
    except OSError as error:
        if error.errno != errno.EEXIST:
            text = f"{INBOUND_SOURCE[1]} cannot be added to lo: {error.strerror}"
            if error.errno == errno.EPERM:
                raise NotPermittedError(text) from error
            raise CaptureError(text) from error


def remove_source_address() -> bool:
    """Whether it was there."""
    if not has_source_address():
        return False
    try:
        _change_source_address(_SIOCDIFADDR)
    except OSError as error:
        kind = NotPermittedError if error.errno == errno.EPERM else CaptureError
        raise kind(f"{INBOUND_SOURCE[1]} cannot be removed from lo: {error.strerror}") from error
    return True


def _change_source_address(request: int) -> None:
    # struct in6_ifreq of netdevice(7); the image of the init container has no `ip`.
    argument = struct.pack("=16sIi", IPv6Address(INBOUND_SOURCE[1]).packed, 128, socket.if_nametoindex("lo"))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, request, argument)
