"""Where opaque connections go by their route table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import (
    DirectResponse,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    TcpProxyConfig,
    VirtualHost,
    WeightedCluster,
)
from sidecar.http.buffer_budget import BufferBudget
from sidecar.protocol.events import RequestHead
from sidecar.protocol.sniff import Protocol
from sidecar.server.tcp_proxy import TcpProxy
from sidecar.server.tunnel import Tunnel, declared_protocol, pick_cluster, tunnel_route
from sidecar.telemetry.metrics import ListenerStats
from tests.support.virtual_clock import VirtualClock

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


# --- discovery that does not answer -----------------------------------------------------------------

DB = RequestHead(b"CONNECT", b"", b"db:80", b"")


class Discovery:
    """A source of routes that is asked, and answers when the test does."""

    def __init__(self) -> None:
        self.found: CompiledRoutes | None = None
        self.waiting: list[Callable[[CompiledRoutes | str], None]] = []

    def current(self, head: RequestHead) -> CompiledRoutes | None:
        return self.found

    def wait(self, head: RequestHead, callback: Callable[[CompiledRoutes | str], None]) -> Callable[[], None]:
        self.waiting.append(callback)
        return lambda: None


@dataclass
class Context:
    routes: Any
    clock: VirtualClock = field(default_factory=VirtualClock)
    random: Random = field(default_factory=Random)


def http_that_was_not_answered(discovery: Discovery) -> Context:
    """The context with which requests of a connection are served that waited in vain."""
    clusters: Any = {}
    context: Any = Context(discovery)
    config = TcpProxyConfig("outbound", ())
    budget = BufferBudget(1000)
    proxy = TcpProxy(config, clusters, Random(1), context.clock, lambda: 0.0, None, budget, ListenerStats())
    served: list[Context] = []
    chain: Any = SimpleNamespace(serve=lambda conn, protocol, context: served.append(context))
    codecs: list[Any] = []
    conn: Any = SimpleNamespace(peer=SimpleNamespace(remote=("10.0.0.1", 1)), set_codec=codecs.append)
    Tunnel(proxy, chain, conn, context, DB, captured=True).start()
    codecs[0].receive(b"GET / HTTP/1.1\r\n")
    discovery.waiting.pop()("no answer")
    [context] = served
    return context  # type: ignore[no-any-return]


def test_a_request_on_a_connection_that_has_waited_does_not_wait_again() -> None:
    discovery = Discovery()
    routes = http_that_was_not_answered(discovery).routes
    assert routes.current(DB) is None
    answers: list[object] = []
    routes.wait(DB, answers.append)
    assert answers == ["no answer"]
    assert discovery.waiting == []
    # The next one on the same connection asks anew.
    routes.wait(DB, answers.append)
    assert len(discovery.waiting) == 1


def test_a_request_on_a_connection_that_has_waited_takes_what_came_meanwhile() -> None:
    discovery = Discovery()
    routes = http_that_was_not_answered(discovery).routes
    discovery.found = table(Route("all", HTTP, to(a=1)))
    assert routes.current(DB) is discovery.found
