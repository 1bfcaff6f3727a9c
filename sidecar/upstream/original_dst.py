"""The endpoints of a cluster of type ORIGINAL_DST: made when first dialled, forgotten when idle.

Owned by `cluster.py`. Clients choose the addresses, so that only those in use may cost anything.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.config.resources import SocketAddress
from sidecar.upstream.endpoint import Endpoint

MAX_IDLE = 64
"""Endpoints at which those without connections are let go."""


class OriginalDestinations:
    """`make` makes the endpoint of an address."""

    def __init__(self, make: Callable[[SocketAddress], Endpoint]) -> None:
        self._make = make
        self._by_address: dict[SocketAddress, Endpoint] = {}
        self._limit = MAX_IDLE

    def endpoint(self, address: SocketAddress) -> Endpoint:
        endpoint = self._by_address.get(address)
        if endpoint is None:
            if len(self._by_address) >= self._limit:
                self._forget_idle()
            endpoint = self._by_address[address] = self._make(address)
        return endpoint

    def _forget_idle(self) -> None:
        """The limit then leaves as much room again, so that this is not done for every new address."""
        busy = {a: e for a, e in self._by_address.items() if e.active or e.connections}
        self._by_address = busy
        self._limit = max(MAX_IDLE, 2 * len(busy))

    def endpoints(self) -> list[Endpoint]:
        return list(self._by_address.values())

    def __repr__(self) -> str:
        return f"<OriginalDestinations {len(self._by_address)}>"
