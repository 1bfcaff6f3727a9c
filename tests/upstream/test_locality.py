"""Priorities, localities, ranks."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config.resources import Health
from sidecar.upstream.host import Ejection, Host, Rank
from sidecar.upstream.load_balancer import RoundRobin
from sidecar.upstream.locality import Locality, LocalityBalancer


class Peer(Host):
    __slots__ = ("state",)

    def __init__(self, health: Health = Health.HEALTHY, ejection: Ejection = Ejection.IN) -> None:
        super().__init__()
        self.state = health
        self.ejection = ejection

    @property
    def health(self) -> Health:
        return self.state


def balancer(*localities: Locality[Peer], seed: int = 1) -> LocalityBalancer[Peer]:
    random = Random(seed).random
    made: LocalityBalancer[Peer] = LocalityBalancer(lambda: RoundRobin(random), random)
    made.update(localities)
    return made


def picks(made: LocalityBalancer[Peer], tried: list[Peer] | None = None, n: int = 40) -> set[Peer | None]:
    return {made.pick(tried or []) for _ in range(n)}


def test_the_first_priority_serves_alone() -> None:
    near, far = Peer(), Peer()
    made = balancer(Locality(1, 1, (far,)), Locality(0, 1, (near,)))
    assert picks(made) == {near}
    assert made.priority == 0


def test_the_next_priority_serves_when_the_first_has_nobody_usable() -> None:
    near, far = Peer(), Peer()
    made = balancer(Locality(0, 1, (near,)), Locality(1, 1, (far,)))
    near.ejection = Ejection.EJECTED
    made.rebuild()
    assert picks(made) == {far}
    assert made.priority == 1
    near.ejection = Ejection.IN
    made.rebuild()
    assert picks(made) == {near}


def test_a_retry_goes_to_the_next_priority_before_it_repeats() -> None:
    near, far = Peer(), Peer()
    made = balancer(Locality(0, 1, (near,)), Locality(1, 1, (far,)))
    assert picks(made, [near]) == {far}
    assert picks(made, [near, far]) == {near}


def test_localities_share_by_weight() -> None:
    a, b = Peer(), Peer()
    made = balancer(Locality(0, 3, (a,)), Locality(0, 1, (b,)))
    counts = Counter(made.pick(()) for _ in range(4000))
    assert counts[a] / 4000 == pytest.approx(0.75, abs=0.03)


def test_a_locality_that_lost_most_endpoints_gets_a_smaller_share() -> None:
    whole = tuple(Peer() for _ in range(10))
    broken = tuple(Peer(ejection=Ejection.EJECTED) for _ in range(9))
    last = Peer()
    made = balancer(Locality(0, 1, whole), Locality(0, 1, (*broken, last)))
    counts = Counter(made.pick(()) for _ in range(5000))
    assert counts[last] / 5000 == pytest.approx(0.14 / 1.14, abs=0.02)


def test_a_locality_whose_endpoints_were_all_tried_leaves_it_to_the_others() -> None:
    a, b = Peer(), Peer()
    made = balancer(Locality(0, 1000, (a,)), Locality(0, 1, (b,)))
    assert picks(made, [a]) == {b}


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ("usable draining ejected unhealthy", "usable"),
        ("draining ejected unhealthy", "draining"),
        ("ejected unhealthy", "ejected"),
        ("unhealthy", "unhealthy"),
    ],
)
def test_a_worse_endpoint_serves_only_when_no_better_one_is_left(left: str, expected: str) -> None:
    peers = {
        "usable": Peer(),
        "draining": Peer(Health.DRAINING),
        "ejected": Peer(ejection=Ejection.EJECTED),
        "unhealthy": Peer(Health.UNHEALTHY),
    }
    made = balancer(Locality(0, 1, tuple(peers[name] for name in left.split())))
    assert picks(made) == {peers[expected]}


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ("tried usable draining ejected unhealthy", "usable"),
        ("tried draining ejected unhealthy", "draining"),
        ("tried ejected unhealthy", "ejected"),
        ("tried unhealthy", "tried"),
    ],
)
def test_a_retry_goes_to_a_worse_endpoint_before_it_repeats_but_not_to_one_without_hope(
    left: str, expected: str
) -> None:
    peers = {
        "tried": Peer(),
        "usable": Peer(),
        "draining": Peer(Health.DRAINING),
        "ejected": Peer(ejection=Ejection.EJECTED),
        "unhealthy": Peer(Health.UNHEALTHY),
    }
    made = balancer(Locality(0, 1, tuple(peers[name] for name in left.split())))
    assert picks(made, [peers["tried"]]) == {peers[expected]}


def test_there_is_no_pick_without_endpoints() -> None:
    assert balancer().pick(()) is None
    assert balancer().pick([Peer()]) is None


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(1, 5),
            st.lists(st.tuples(st.sampled_from(Health), st.sampled_from(Ejection)), min_size=1, max_size=4),
        ),
        max_size=5,
    ),
    st.sets(st.integers(0, 19)),
    st.integers(0, 100),
)
def test_the_best_rank_serves_and_tried_ones_come_last(
    spec: list[tuple[int, int, list[tuple[Health, Ejection]]]], tried_numbers: set[int], seed: int
) -> None:
    localities = [
        Locality(priority, weight, tuple(Peer(health, ejection) for health, ejection in members))
        for priority, weight, members in spec
    ]
    everyone = [peer for locality in localities for peer in locality.hosts]
    tried = [peer for i, peer in enumerate(everyone) if i in tried_numbers]
    picked = balancer(*localities, seed=seed).pick(tried)
    if not everyone:
        assert picked is None
        return
    assert picked is not None
    best = min(peer.rank for peer in everyone)
    hopeful = [peer for peer in everyone if peer not in tried and peer.rank is not Rank.UNHEALTHY]
    if tried and hopeful:
        assert picked not in tried
        assert picked.rank is min(peer.rank for peer in hopeful)
        return
    assert picked.rank is best
    if any(peer.rank is best and peer not in tried for peer in everyone):
        assert picked not in tried


def test_ranks_are_ordered_from_best_to_worst() -> None:
    assert sorted(Rank) == [Rank.USABLE, Rank.DRAINING, Rank.EJECTED, Rank.UNHEALTHY]
