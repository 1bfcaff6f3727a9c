"""Where opaque connections go by their route table."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import (
    DirectResponse,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
)
from sidecar.protocol.sniff import Protocol
from sidecar.server.tunnel import declared_protocol, pick_cluster, tunnel_route

CONNECT = RouteMatch(connect=True)
HTTP = RouteMatch(prefix="/")


def to(**weights: int) -> RouteAction:
    return RouteAction(tuple(WeightedCluster(name, weight) for name, weight in weights.items()))


def table(*routes: Route) -> CompiledRoutes:
    return CompiledRoutes(RouteConfiguration("t", (VirtualHost("h", ("*",), routes),)))


def refusing(share: float) -> Route:
    match = RouteMatch(connect=True, runtime_fraction=share)
    return Route("refusing", match, direct_response=DirectResponse(503))


def chosen(routes: CompiledRoutes, seed: int = 1) -> str:
    route = tunnel_route(routes, Random(seed))
    return route.name if route is not None else ""


def test_clusters_are_chosen_by_weight() -> None:
    random = Random(1)
    counts = Counter(pick_cluster(to(a=8, b=2), random) for _ in range(10_000))
    assert 7_800 < counts["a"] < 8_200
    assert counts["a"] + counts["b"] == 10_000


def test_one_cluster_is_always_chosen() -> None:
    assert {pick_cluster(to(only=1), Random(seed)) for seed in range(20)} == {"only"}


def test_the_first_route_for_connect_decides_before_all_others() -> None:
    one, two = Route("one", CONNECT, to(a=1)), Route("two", CONNECT, to(b=1))
    routes = table(Route("http", HTTP, to(h=1)), one, two)
    assert chosen(routes) == "one"


def test_a_route_with_a_share_takes_that_share() -> None:
    routes = table(refusing(0.25), Route("rest", CONNECT, to(a=1)))
    random = Random(1)
    found = [tunnel_route(routes, random) for _ in range(10_000)]
    counts = Counter(route.name for route in found if route is not None)
    assert 2_300 < counts["refusing"] < 2_700
    assert counts["refusing"] + counts["rest"] == 10_000


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ((Route("api", HTTP, to(a=1)), Route("rest", HTTP, to(b=1))), "rest"),
        ((Route("rest", HTTP, to(b=1)), Route("no", HTTP, direct_response=DirectResponse(404))), "rest"),
        ((Route("no", HTTP, direct_response=DirectResponse(404)),), ""),
        ((), ""),
    ],
)
def test_without_one_the_least_specific_that_forwards_decides(
    routes: tuple[Route, ...], expected: str
) -> None:
    assert chosen(table(*routes)) == expected


def test_a_table_whose_connections_are_partly_refused_is_still_opaque() -> None:
    routes = table(refusing(0.5), Route("rest", CONNECT, to(a=1)))
    assert declared_protocol(routes, b"db:5432") is Protocol.OTHER
