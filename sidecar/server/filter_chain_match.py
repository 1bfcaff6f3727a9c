"""Which filter chain of a listener takes a connection: Envoy's rules, for the criteria that are supported.

The criteria are looked at in Envoy's order. At each, the chains that name the connection's value win over
those that do not name any, and what has been ruled out stays ruled out: with one chain for port 443 and TLS
and one for everything, plain text on port 443 matches neither, and goes to the default chain. Called by
`filter_chains.py` once for a connection; pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sidecar.config.resources import FilterChainMatch

T = TypeVar("T")
Candidates = Sequence[tuple[FilterChainMatch, T]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a connection before it has a filter chain."""

    destination_port: int
    transport_protocol: str = "raw_buffer"
    server_name: str = ""
    application_protocols: tuple[str, ...] = ()


def match_filter_chain(chains: Candidates[T], seen: Seen) -> T | None:
    """The chain of the best match, None when there is none."""
    chains = _narrow(chains, lambda match: match.destination_port, seen.destination_port)
    chains = _by_server_name(chains, seen.server_name)
    chains = _narrow(chains, lambda match: match.transport_protocol, seen.transport_protocol)
    chains = _by_application_protocol(chains, seen.application_protocols)
    return chains[0][1] if chains else None


def _narrow(
    chains: Candidates[T], criterion: Callable[[FilterChainMatch], object], value: object
) -> Candidates[T]:
    named = [each for each in chains if criterion(each[0]) == value]
    return named or [each for each in chains if not criterion(each[0])]


def _by_server_name(chains: Candidates[T], name: str) -> Candidates[T]:
    """The exact name, else the longest `*.suffix` of it."""
    wanted = [name]
    while "." in name:
        name = name.partition(".")[2]
        wanted.append(f"*.{name}")
    for each in wanted:
        named = [chain for chain in chains if each and each in chain[0].server_names]
        if named:
            return named
    return [chain for chain in chains if not chain[0].server_names]


def _by_application_protocol(chains: Candidates[T], offered: tuple[str, ...]) -> Candidates[T]:
    """The client's first choice that a chain names."""
    for protocol in offered:
        named = [chain for chain in chains if protocol in chain[0].application_protocols]
        if named:
            return named
    return [chain for chain in chains if not chain[0].application_protocols]
