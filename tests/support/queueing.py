"""An application of fixed concurrency behind a concurrency limit, simulated event by event in virtual time.

Requests come whether or not they are answered (an open loop). The application serves `workers` at a time;
what the limit lets through beyond that waits in one queue inside it, also when its caller has given up.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from random import Random

from sidecar.filters.concurrency_limit import ConcurrencyLimit

Service = Callable[[Random], float]
"""Seconds that one request takes a worker."""


def fixed(seconds: float) -> Service:
    return lambda random: seconds


def exponential(mean: float) -> Service:
    return lambda random: random.expovariate(1 / mean)


def uniform(mean: float, jitter: float) -> Service:
    """`jitter` is the largest deviation, as a share of the mean."""
    return lambda random: mean * (1 + jitter * (2 * random.random() - 1))


def mixed(fast: float, slow: float, fast_share: float = 0.5) -> Service:
    """Two kinds of requests: of endpoints, or hits and misses of a cache."""
    return lambda random: fast if random.random() < fast_share else slow


@dataclass
class Application:
    """May be changed between runs: what is already being served is not."""

    workers: int
    service: Service
    bypass: float = 0.0
    """The share of requests that needs no worker and is answered after 1 ms, however many others wait."""
    delay: float = 0.0
    """Seconds by which every answer is late for another reason, without holding a worker."""


@dataclass(slots=True, order=True)
class Request:
    arrived: float
    abandoned: bool = False
    """Its caller gave up."""
    answered: bool = False


@dataclass
class Outcome:
    """Of one run. `latencies` in seconds, sorted, of what was answered in it to those who still waited."""

    seconds: float
    refused: int = 0
    abandoned: int = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        return self.latencies[int(len(self.latencies) * share)]


class Simulation:
    """Runs follow each other: the queue that one leaves is there in the next."""

    def __init__(
        self, limit: ConcurrencyLimit, application: Application, seed: int = 1, patience: float = inf
    ) -> None:
        """`patience`: seconds after which callers give up."""
        self.limit = limit
        self.application = application
        self.now = 0.0
        self._patience = patience
        self._random = Random(seed)
        self._served: list[tuple[float, Request, bool]] = []
        """A heap: when it ends, what, whether it holds a worker."""
        self._queue: deque[Request] = deque()
        self._patient: deque[Request] = deque()
        """In order of arrival."""
        self._busy = 0

    def run(self, rate: float, seconds: float) -> Outcome:
        """Poisson arrivals at `rate` a second."""
        outcome = Outcome(seconds)
        end = self.now + seconds
        while (arrival := self.now + self._random.expovariate(rate)) < end:
            self._serve_until(arrival, outcome)
            self._arrive(outcome)
        self._serve_until(end, outcome)
        outcome.latencies.sort()
        return outcome

    def burst(self, count: int, seconds: float) -> Outcome:
        """`count` requests at one moment, then nothing for `seconds`."""
        outcome = Outcome(seconds)
        for _ in range(count):
            self._arrive(outcome)
        self._serve_until(self.now + seconds, outcome)
        outcome.latencies.sort()
        return outcome

    def _arrive(self, outcome: Outcome) -> None:
        if not self.limit.acquire():
            outcome.refused += 1
            return
        request = Request(self.now)
        if self._patience < inf:
            self._patient.append(request)
        if self.application.bypass and self._random.random() < self.application.bypass:
            heapq.heappush(self._served, (self.now + 0.001, request, False))
        else:
            self._queue.append(request)
            self._fill()

    def _fill(self) -> None:
        while self._queue and self._busy < self.application.workers:
            self._busy += 1
            ends = self.now + self.application.service(self._random)
            heapq.heappush(self._served, (ends, self._queue.popleft(), True))

    def _serve_until(self, end: float, outcome: Outcome) -> None:
        while self._served and self._served[0][0] <= end:
            self._give_up_until(self._served[0][0], outcome)
            self.now, request, worker = heapq.heappop(self._served)
            if worker:
                self._busy -= 1
                self._fill()
                if self.application.delay:
                    heapq.heappush(self._served, (self.now + self.application.delay, request, False))
                    continue
            if request.abandoned:
                continue
            request.answered = True
            latency = self.now - request.arrived
            self.limit.release(self.now, latency)
            outcome.latencies.append(latency)
        self._give_up_until(end, outcome)
        self.now = end

    def _give_up_until(self, end: float, outcome: Outcome) -> None:
        patient = self._patient
        while patient and patient[0].arrived + self._patience < end:
            request = patient.popleft()
            if not request.answered:
                request.abandoned = True
                outcome.abandoned += 1
                self.limit.release(request.arrived + self._patience, self._patience, answered=False)
