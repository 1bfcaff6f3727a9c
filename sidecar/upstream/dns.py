"""DNS clusters: resolves a host name again and again, and puts the addresses where the names were.

Made and called by `cluster.py`. Nothing here knows connections.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from random import Random

from sidecar.config.resources import EndpointConfig, EndpointsConfig, LocalityEndpoints, SocketAddress
from sidecar.runtime.tasks import spawn

_log = logging.getLogger(__name__)

FAMILIES = {"AUTO": socket.AF_UNSPEC, "V4_ONLY": socket.AF_INET, "V6_ONLY": socket.AF_INET6}


class DnsRefresher:
    """Calls `on_addresses` whenever the set of addresses has changed. A failure or an empty answer keeps the
    last good one: a resolver that is away must not take down what works."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        refresh_rate: float,
        random: Random,
        on_addresses: Callable[[str, tuple[str, ...]], None],
        family: str = "AUTO",
    ) -> None:
        """`refresh_rate` in seconds; `family` as `ClusterConfig.dns_lookup_family`; `on_addresses` gets host
        and addresses, in the resolver's order."""
        self._loop = loop
        self.host = host
        self._refresh_rate = refresh_rate
        self._random = random
        self._on_addresses = on_addresses
        self._family = FAMILIES[family]
        self._task: asyncio.Task[None] | None = None
        self.addresses: tuple[str, ...] = ()
        self.error = ""
        """Why the last attempt failed, "" after a good one."""

    def start(self) -> None:
        self._task = spawn(self._run(), name=f"resolve {self.host}")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            await self.refresh()
            # Sidecars that were started together should not ask together.
            await asyncio.sleep(self._refresh_rate * (0.9 + 0.2 * self._random.random()))

    async def refresh(self) -> None:
        """Ask once."""
        try:
            infos = await self._loop.getaddrinfo(
                self.host, None, family=self._family, type=socket.SOCK_STREAM
            )
        except OSError as error:
            self._failed(str(error))
            return
        addresses = tuple(dict.fromkeys(str(info[4][0]) for info in infos))
        if not addresses:
            self._failed("no addresses")
            return
        self.error = ""
        if set(addresses) != set(self.addresses):
            self.addresses = addresses
            self._on_addresses(self.host, addresses)

    def _failed(self, error: str) -> None:
        if error != self.error:
            kept = f"keeping {len(self.addresses)} addresses" if self.addresses else "none known yet"
            _log.warning("cannot resolve %s: %s; %s", self.host, error, kept)
        self.error = error

    def __repr__(self) -> str:
        return f"<DnsRefresher {self.host} addresses={len(self.addresses)} error={self.error!r}>"


def is_name(host: str) -> bool:
    """True unless it is an IP address."""
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


def with_addresses(config: EndpointsConfig, resolved: Mapping[str, tuple[str, ...]]) -> EndpointsConfig:
    """STRICT_DNS: an endpoint for each address of each name. A name not resolved yet stays as it is, and is
    resolved when it is connected to."""

    def endpoints(locality: LocalityEndpoints) -> tuple[EndpointConfig, ...]:
        return tuple(
            replace(endpoint, address=SocketAddress(host, endpoint.address.port))
            for endpoint in locality.endpoints
            for host in resolved.get(endpoint.address.host, (endpoint.address.host,))
        )

    return replace(
        config,
        localities=tuple(replace(locality, endpoints=endpoints(locality)) for locality in config.localities),
    )
