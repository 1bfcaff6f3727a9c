"""Load balancers: which of several equally good endpoints takes the next request.

`locality.py` gives each balancer the endpoints of one locality, all of one rank, and calls `update` anew
whenever one joins, leaves, is ejected or returns; so `pick` need not look at health. Peak EWMA is in
`peak_ewma.py`. Sans-IO: randomness is an argument.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from heapq import heapify, heapreplace
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

from sidecar.upstream.host import Host

H = TypeVar("H", bound=Host)


class LoadBalancer(Protocol[H]):
    def update(self, hosts: Sequence[H]) -> None:
        """The endpoints to choose from, all of them."""

    def pick(self, tried: Collection[H]) -> H | None:
        """One that is not in `tried`; None when there is none."""


class RoundRobin(Generic[H]):
    """Each endpoint in turn, in proportion to its weight; starts anywhere, so that many sidecars that get
    the same list at once do not all begin with its first entry.

    Weights are served earliest deadline first: an endpoint of weight w is due every 1/w, which interleaves
    endpoints instead of serving one w times in a row.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._hosts: list[H] = []
        self._next = 0
        self._schedule: list[tuple[float, int, H]] | None = None

    def update(self, hosts: Sequence[H]) -> None:
        self._hosts = list(hosts)
        self._next = int(self._random() * len(hosts))
        if len({host.weight for host in hosts}) > 1:
            self._schedule = [(self._random() / host.weight, i, host) for i, host in enumerate(hosts)]
            heapify(self._schedule)
        else:
            self._schedule = None

    def pick(self, tried: Collection[H]) -> H | None:
        if not self._hosts:
            return None
        if not tried:
            return self._turn()
        for _ in self._hosts:
            host = self._turn()
            if host not in tried:
                return host
        # With unequal weights the others' turns may all come first.
        return next((host for host in self._hosts if host not in tried), None)

    def _turn(self) -> H:
        schedule = self._schedule
        if schedule is not None:
            due, i, host = schedule[0]
            heapreplace(schedule, (due + 1 / host.weight, i, host))
            return host
        i = self._next
        hosts = self._hosts
        self._next = i + 1 if i + 1 < len(hosts) else 0
        return hosts[i]

    def __repr__(self) -> str:
        return f"<RoundRobin hosts={len(self._hosts)} weighted={self._schedule is not None}>"


class PowerOfTwo(Generic[H]):
    """Two endpoints at random, the better of them. Subclasses say what is better.

    With unequal weights the two are drawn in proportion to weight (and may be the same one), and load
    counts relative to weight: without load the shares are those of the weights, under load the loads are.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._hosts: list[H] = []
        self._cumulative: list[int] | None = None

    def better(self, first: H, second: H) -> H:
        """The one to use; `first` when they are equal."""
        raise NotImplementedError

    def update(self, hosts: Sequence[H]) -> None:
        self._hosts = list(hosts)
        self._cumulative = None
        for host in hosts:
            host.share = 1.0
        if len({host.weight for host in hosts}) > 1:
            self._cumulative = list(accumulate(host.weight for host in hosts))
            mean = self._cumulative[-1] / len(hosts)
            for host in hosts:
                host.share = mean / host.weight

    def pick(self, tried: Collection[H]) -> H | None:
        hosts = self._hosts
        if tried:
            return self._pick_untried([host for host in hosts if host not in tried])
        n = len(hosts)
        if n < 2:
            return hosts[0] if n else None
        random = self._random
        if self._cumulative is not None:
            cumulative = self._cumulative
            total = cumulative[-1]
            return self.better(
                hosts[bisect(cumulative, random() * total)], hosts[bisect(cumulative, random() * total)]
            )
        i = int(random() * n)
        j = int(random() * (n - 1))
        if j >= i:
            j += 1
        return self.better(hosts[i], hosts[j])

    def _pick_untried(self, hosts: list[H]) -> H | None:
        n = len(hosts)
        if n < 2:
            return hosts[0] if n else None
        cumulative = list(accumulate(host.weight for host in hosts))
        total = cumulative[-1]
        i = bisect(cumulative, self._random() * total)
        j = bisect(cumulative, self._random() * total)
        return self.better(hosts[i], hosts[j])

    def __repr__(self) -> str:
        weighted = self._cumulative is not None
        return f"<{type(self).__name__} hosts={len(self._hosts)} weighted={weighted}>"


class LeastRequest(PowerOfTwo[H]):
    """Of two random endpoints the one with fewer requests in flight for its weight."""

    def better(self, first: H, second: H) -> H:
        return first if first.active * first.share <= second.active * second.share else second
