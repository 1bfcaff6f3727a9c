"""What capture is to do in one pod, and how its parts are written on the command line. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from mesh_api.names import ADMIN_PORT, INBOUND_PORT, OUTBOUND_PORT, SIDECAR_USER, STATUS_PORT, XDS_PORT

Network = IPv4Network | IPv6Network
PortRanges = tuple[tuple[int, int], ...]
"""First and last port of each, sorted, neither overlapping nor adjacent."""

NEVER_OUTBOUND: PortRanges = ((53, 53), (XDS_PORT, XDS_PORT), (STATUS_PORT, STATUS_PORT))
"""Destinations that are never captured: DNS over TCP, and the control plane."""
_MAX_USER = 2**32 - 2


@dataclass(frozen=True)
class CaptureSettings:
    """`ipv6`: whether there are rules for IPv6 too. Raises ValueError for what cannot be."""

    outbound_port: int = OUTBOUND_PORT
    inbound_port: int = INBOUND_PORT
    admin_port: int = ADMIN_PORT
    proxy_user: int = SIDECAR_USER
    skip_inbound_ports: PortRanges = ()
    skip_outbound_ports: PortRanges = ()
    excluded: tuple[Network, ...] = ()
    ipv6: bool = True

    def __post_init__(self) -> None:
        own = (self.outbound_port, self.inbound_port, self.admin_port)
        for port in own:
            if not 1 <= port <= 65535:
                raise ValueError(f"port {port}: expected 1 to 65535")
        if len(set(own)) < len(own):
            raise ValueError(f"ports {own}: outbound, inbound and admin port must differ")
        if not 0 <= self.proxy_user <= _MAX_USER:
            raise ValueError(f"user {self.proxy_user}: expected a user id from 0 to {_MAX_USER}")

    @property
    def left_inbound(self) -> PortRanges:
        """Ports of the pod that are reached directly."""
        own = ((self.inbound_port, self.inbound_port), (self.admin_port, self.admin_port))
        return merge_ports((*own, *self.skip_inbound_ports))

    @property
    def left_outbound(self) -> PortRanges:
        """Ports of other hosts that are called directly."""
        return merge_ports((*NEVER_OUTBOUND, *self.skip_outbound_ports))

    @property
    def versions(self) -> tuple[int, ...]:
        return (4, 6) if self.ipv6 else (4,)

    def captures_call_to(self, address: str, port: int) -> bool:
        """Whether a call of the application is redirected."""
        network = ip_network(address)
        excluded = any(
            network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
            for other in self.excluded
        )
        return not excluded and not contains(self.left_outbound, port)


def parse_ports(text: str) -> PortRanges:
    """From `9090,22,8000-8100`; empty text gives none. Raises ValueError that names the part."""
    return merge_ports(_parse_range(part.strip()) for part in text.split(",") if part.strip())


def _parse_range(text: str) -> tuple[int, int]:
    first, dash, last = (part.strip() for part in text.partition("-"))
    ends = (first, last if dash else first)
    if not all(end.isascii() and end.isdigit() and len(end) <= 5 for end in ends):
        raise ValueError(f"port {text!r}: expected a number such as 9090, or a range such as 8000-8100")
    low, high = map(int, ends)
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"port {text!r}: expected 1 to 65535, the lower first")
    return low, high


def parse_networks(text: str) -> tuple[Network, ...]:
    """From `10.0.0.0/8,fd00::/8`; an address alone is one host. Raises ValueError that names the part."""
    networks = []
    for part in filter(None, map(str.strip, text.split(","))):
        try:
            networks.append(ip_network(part))
        except ValueError as error:
            raise ValueError(f"CIDR {part!r}: {error}") from error
    return merge_networks(networks)


def merge_ports(ranges: Iterable[tuple[int, int]]) -> PortRanges:
    """The same ports in the fewest ranges: nftables refuses a set whose intervals overlap."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def merge_networks(networks: Iterable[Network]) -> tuple[Network, ...]:
    """The same addresses in the fewest networks, IPv4 first."""
    given = list(networks)
    ipv4 = collapse_addresses(network for network in given if isinstance(network, IPv4Network))
    ipv6 = collapse_addresses(network for network in given if isinstance(network, IPv6Network))
    return (*ipv4, *ipv6)


def contains(ranges: PortRanges, port: int) -> bool:
    return any(low <= port <= high for low, high in ranges)
