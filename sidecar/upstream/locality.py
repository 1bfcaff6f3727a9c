"""Which endpoints are in use now: priorities, localities and ranks. Inside a locality a balancer decides.

Made and called by `cluster.py`. Rebuilt whenever an endpoint joins, leaves, changes health, is ejected or
returns, so that picking costs nothing for all that. Sans-IO.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic

from sidecar.upstream.host import Rank
from sidecar.upstream.load_balancer import H, LoadBalancer

OVERPROVISIONING = 1.4
"""A locality keeps its full share until fewer than 1/1.4 of its endpoints are usable (Envoy's default)."""


@dataclass(frozen=True, slots=True)
class Locality(Generic[H]):
    """Endpoints of one locality and priority; 0 is the first priority to be used, and `weight` > 0."""

    priority: int
    weight: int
    hosts: tuple[H, ...]


class _Tier(Generic[H]):
    """Equally good endpoints: localities that share the load by weight."""

    def __init__(self, parts: Sequence[tuple[float, LoadBalancer[H]]], random: Callable[[], float]) -> None:
        self._balancers = [balancer for _, balancer in parts]
        self._cumulative = list(accumulate(weight for weight, _ in parts))
        self._random = random

    def pick(self, tried: Collection[H]) -> H | None:
        balancers = self._balancers
        if len(balancers) == 1:
            return balancers[0].pick(tried)
        # min(): the product may round up to the sum itself.
        i = bisect(self._cumulative, self._random() * self._cumulative[-1])
        first = min(i, len(balancers) - 1)
        host = balancers[first].pick(tried)
        if host is None:
            others = (balancer.pick(tried) for balancer in balancers[:first] + balancers[first + 1 :])
            host = next((host for host in others if host is not None), None)
        return host


class LocalityBalancer(Generic[H]):
    """Picks by rank first (usable, then draining, then ejected, then unhealthy), among usable endpoints by
    priority, then by locality weight.

    A worse rank serves only when the better ones are empty, so that with everything ejected requests
    still go somewhere. A tried endpoint comes after all others, whatever their priority or rank: one that
    was ejected a while ago may be well again, one that has just failed this request is not. Only those
    that discovery calls unhealthy come after it.
    """

    def __init__(self, make: Callable[[], LoadBalancer[H]], random: Callable[[], float]) -> None:
        self._make = make
        self._random = random
        self._localities: tuple[Locality[H], ...] = ()
        self._tiers: list[_Tier[H]] = []
        """By rank, then by priority."""
        self._pick: Callable[[Collection[H]], H | None] = _none
        self.usable = 0
        """Endpoints of the best rank, in all priorities."""
        self.priority = 0
        """The priority that serves now."""

    def update(self, localities: Sequence[Locality[H]]) -> None:
        self._localities = tuple(localities)
        self.rebuild()

    def rebuild(self) -> None:
        """An endpoint's rank or weight has changed."""
        ranked: dict[Rank, dict[int, list[tuple[float, list[H]]]]] = {}
        self.usable = 0
        for locality in self._localities:
            for rank, hosts in _by_rank(locality.hosts).items():
                # Without this a locality's last endpoint would get what all of them got together.
                share = min(1.0, OVERPROVISIONING * len(hosts) / len(locality.hosts))
                parts = ranked.setdefault(rank, {}).setdefault(locality.priority, [])
                parts.append((locality.weight * share, hosts))
                self.usable += len(hosts) if rank is Rank.USABLE else 0
        best = ranked[min(ranked)] if ranked else {}
        self._tiers = [
            self._tier(by_priority[priority])
            for rank, by_priority in sorted(ranked.items())
            if rank is not Rank.UNHEALTHY or by_priority is best
            for priority in sorted(by_priority)
        ]
        self._pick = self._tiers[0].pick if self._tiers else _none
        self.priority = min(best, default=0)

    def _tier(self, parts: list[tuple[float, list[H]]]) -> _Tier[H]:
        balanced: list[tuple[float, LoadBalancer[H]]] = []
        for weight, hosts in parts:
            balancer = self._make()
            balancer.update(hosts)
            balanced.append((weight, balancer))
        return _Tier(balanced, self._random)

    def pick(self, tried: Collection[H]) -> H | None:
        """None only when there are no endpoints at all."""
        if tried:
            for tier in self._tiers:
                host = tier.pick(tried)
                if host is not None:
                    return host
        return self._pick(())

    def __repr__(self) -> str:
        return (
            f"<LocalityBalancer localities={len(self._localities)} usable={self.usable} "
            f"priority={self.priority}>"
        )


def _by_rank(hosts: Sequence[H]) -> dict[Rank, list[H]]:
    ranks: dict[Rank, list[H]] = {}
    for host in hosts:
        ranks.setdefault(host.rank, []).append(host)
    return ranks


def _none(tried: Collection[H]) -> H | None:
    return None
