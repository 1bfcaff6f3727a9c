"""The filter chains of one listener together: which of them takes a connection, and all of them at once.

Made by `listener_manager.py`, a new one for each new configuration of a listener; a connection that has begun
with one ends with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sidecar.config.resources import FilterChainMatch
from sidecar.net.tls import TlsParameters
from sidecar.server.chain import Chain
from sidecar.server.filter_chain_match import Seen, match_filter_chain


@dataclass(frozen=True, slots=True)
class FilterChain:
    """`tls` gives the parameters for new connections; None: plain text."""

    chain: Chain
    tls: Callable[[], TlsParameters] | None = None
    match: FilterChainMatch = field(default_factory=FilterChainMatch)


class FilterChains:
    def __init__(self, chains: Sequence[FilterChain], default: FilterChain | None = None) -> None:
        self._candidates = [(chain.match, chain) for chain in chains]
        self._default = default
        self._all = [each.chain for each in (*chains, *((default,) if default is not None else ()))]
        only = chains[0] if len(chains) == 1 and chains[0].match == FilterChainMatch() else None
        self.only = default if not chains else only
        """The chain that takes every connection, if there is one."""

    def select(self, seen: Seen) -> FilterChain | None:
        """The chain for a connection, None when none takes it."""
        return match_filter_chain(self._candidates, seen) or self._default

    @property
    def active(self) -> int:
        """Requests and TCP sessions that have not ended."""
        return sum(chain.active for chain in self._all)

    @property
    def connections(self) -> int:
        return sum(chain.connections for chain in self._all)

    def drain(self, final: bool) -> None:
        for chain in self._all:
            chain.drain(final)

    def abort(self) -> None:
        for chain in self._all:
            chain.abort()

    def __repr__(self) -> str:
        return f"<FilterChains {self._all!r}>"
