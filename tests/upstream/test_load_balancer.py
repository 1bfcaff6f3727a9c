"""Round robin, least request and what all balancers promise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.upstream.host import Host
from sidecar.upstream.load_balancer import LeastRequest, LoadBalancer, RoundRobin
from sidecar.upstream.peak_ewma import PeakEwma

MAKERS: dict[str, Callable[[Random], LoadBalancer[Host]]] = {
    "round robin": lambda rng: RoundRobin(rng.random),
    "least request": lambda rng: LeastRequest(rng.random),
    "peak ewma": lambda rng: PeakEwma(rng.random, lambda: 0.0),
}
all_balancers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@given(
    name=st.sampled_from(sorted(MAKERS)),
    weights=st.lists(st.integers(1, 100), min_size=1, max_size=12),
    tried=st.sets(st.integers(0, 11)),
    loads=st.lists(st.integers(0, 50), min_size=12, max_size=12),
    seed=st.integers(0, 1000),
)
def test_a_tried_host_is_never_picked_and_another_always_is(
    name: str, weights: list[int], tried: set[int], loads: list[int], seed: int
) -> None:
    hosts = [Host(weight) for weight in weights]
    for host, load in zip(hosts, loads, strict=False):
        host.active = load
    balancer = MAKERS[name](Random(seed))
    balancer.update(hosts)
    avoided = [host for i, host in enumerate(hosts) if i in tried]
    for _ in range(5):
        picked = balancer.pick(avoided)
        if len(avoided) == len(hosts):
            assert picked is None
        else:
            assert picked in hosts
            assert picked not in avoided


@all_balancers
def test_without_hosts_there_is_nothing_to_pick(make: Callable[[Random], LoadBalancer[Host]]) -> None:
    balancer = make(Random(1))
    assert balancer.pick(()) is None
    balancer.update([])
    assert balancer.pick(()) is None
    assert balancer.pick([Host()]) is None


@all_balancers
def test_idle_hosts_share_by_weight(make: Callable[[Random], LoadBalancer[Host]]) -> None:
    light, heavy = Host(weight=1), Host(weight=3)
    for host in (light, heavy):
        host.latency_ewma = 0.0
    balancer = make(Random(7))
    balancer.update([light, heavy])
    picks = Counter(id(balancer.pick(())) for _ in range(4000))
    assert picks[id(heavy)] / 4000 == pytest.approx(0.75, abs=0.03)


def test_round_robin_gives_each_host_its_turn() -> None:
    hosts = [Host() for _ in range(3)]
    balancer: RoundRobin[Host] = RoundRobin(lambda: 0.5)
    balancer.update(hosts)
    picked = [balancer.pick(()) for _ in range(6)]
    assert picked == [hosts[1], hosts[2], hosts[0]] * 2


def test_round_robin_starts_in_different_places() -> None:
    hosts = [Host() for _ in range(10)]
    firsts = set()
    for seed in range(20):
        balancer: RoundRobin[Host] = RoundRobin(Random(seed).random)
        balancer.update(hosts)
        firsts.add(id(balancer.pick(())))
    assert len(firsts) > 4


def test_weighted_round_robin_interleaves_rather_than_serving_in_blocks() -> None:
    heavy, light = Host(weight=4), Host(weight=2)
    balancer: RoundRobin[Host] = RoundRobin(Random(3).random)
    balancer.update([heavy, light])
    turns = [balancer.pick(()) for _ in range(60)]
    assert turns.count(heavy) == 40
    assert all(turns[i : i + 3].count(heavy) >= 1 for i in range(58))
    assert all(turns[i : i + 4].count(light) >= 1 for i in range(57))


def test_round_robin_passes_over_a_tried_host_of_great_weight() -> None:
    heavy, light = Host(weight=1000), Host(weight=1)
    balancer: RoundRobin[Host] = RoundRobin(Random(3).random)
    balancer.update([heavy, light])
    assert [balancer.pick([heavy]) for _ in range(5)] == [light] * 5


def test_least_request_takes_the_less_loaded_of_two() -> None:
    busy, idle = Host(), Host()
    busy.active = 3
    balancer: LeastRequest[Host] = LeastRequest(Random(1).random)
    balancer.update([busy, idle])
    assert {balancer.pick(()) for _ in range(50)} == {idle}


def test_least_request_weighs_load_by_weight() -> None:
    light, heavy = Host(weight=1), Host(weight=10)
    light.active, heavy.active = 1, 9
    balancer: LeastRequest[Host] = LeastRequest(Random(1).random)
    balancer.update([light, heavy])
    # 9 of weight 10 is less than 1 of weight 1, so whenever both are drawn the heavy one wins.
    picks = Counter(balancer.pick(()) for _ in range(1000))
    assert picks[light] < 30
    heavy.active = 11
    picks = Counter(balancer.pick(()) for _ in range(1000))
    assert picks[light] > 100


def test_least_request_keeps_loads_level() -> None:
    """The power of two choices: with n requests on n hosts the fullest has few, not log n."""
    hosts = [Host() for _ in range(100)]
    balancer: LeastRequest[Host] = LeastRequest(Random(5).random)
    balancer.update(hosts)
    for _ in range(1000):
        host = balancer.pick(())
        assert host is not None
        host.active += 1
    assert max(host.active for host in hosts) <= 13


@all_balancers
def test_an_update_forgets_hosts_that_left(make: Callable[[Random], LoadBalancer[Host]]) -> None:
    old, new = Host(), Host()
    balancer = make(Random(1))
    balancer.update([old])
    balancer.update([new])
    assert {balancer.pick(()) for _ in range(20)} == {new}
