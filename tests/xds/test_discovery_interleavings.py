"""A sidecar and a control plane over a line that delivers when it likes: both real, but for the sockets.

Routes move, services come and go, streams break, ticks fall anywhere. A table in use never lacks a cluster
that the control plane has, and in the end the sidecar has what the control plane says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.model.discovery import Change, Dialect, Identity, NodeInfo, Resource
from control_plane.xds.session import DeltaSession, Session, SotwSession
from control_plane.xds.snapshot_cache import WatchIndex
from sidecar.config.dependency_manager import DependencyManager
from sidecar.config.references import route_clusters
from sidecar.config.resources import (
    AdsConfig,
    Bootstrap,
    ClusterConfig,
    EndpointsConfig,
    Node,
    RouteConfiguration,
)
from sidecar.config.type_urls import CLUSTER, ENDPOINTS, LISTENER, ROUTE
from sidecar.xds.ads import AdsClient
from sidecar.xds.delta import DeltaVariant
from sidecar.xds.sotw import SotwVariant
from tests.support.xds_source import MemorySource, cluster, endpoints, listener, route

SERVICES = ("blue", "green")
ASKED = "shop:80"
IDLE = 4.0
STEPS = 40
TABLES = {name: route("table", name).SerializeToString(deterministic=True) for name in SERVICES}
CLUSTERS = {name: cluster(name).SerializeToString(deterministic=True) for name in SERVICES}
ENDPOINTS_OF = {name: endpoints(name, 80).SerializeToString(deterministic=True) for name in SERVICES}


class OnDemand(MemorySource):
    """All for those who ask by name, nothing for a wildcard: this node has no listeners of its own."""

    def resources(
        self, node: NodeInfo, type_url: str, names: frozenset[str] | None
    ) -> Mapping[str, Resource]:
        return super().resources(node, type_url, names or frozenset())


class Line:
    """`up` and `down` hold what was sent and has not arrived."""

    def __init__(self, delta: bool) -> None:
        self.delta = delta
        self.now = 0.0
        self.generation = 0
        self.source = OnDemand()
        self.watches: WatchIndex[Session] = WatchIndex()
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.applied: dict[str, ClusterConfig] = {}
        self.endpoints: dict[str, EndpointsConfig] = {}
        self.lost: set[str] = set()
        """Clusters that were taken away, and of whose return the sidecar need not have heard."""
        self.ads = AdsClient(Node("n", "c", "", "", "", "{}"), DeltaVariant() if delta else SotwVariant())
        bootstrap = Bootstrap(ads=AdsConfig("cp"), lds_over_ads=True, cds_over_ads=True)
        self.manager = DependencyManager(
            bootstrap, self.ads, self, lambda listeners: None, lambda: self.now, idle=IDLE
        )
        self.ads.on_update = self.manager.on_update
        for name in SERVICES:
            self.serve(name)
        self.source.put(LISTENER, ASKED, listener(ASKED, "table"))
        self.route_to(SERVICES[0])
        self.manager.start()
        self.connect()
        self.ask()

    # --- Clusters

    def apply(self, configs: Mapping[str, ClusterConfig]) -> None:
        self.applied = dict(configs)

    def set_endpoints(self, cluster: str, endpoints: EndpointsConfig) -> None:
        self.endpoints[cluster] = endpoints

    # --- what may happen

    def connect(self) -> None:
        self.up.clear()
        self.down.clear()
        kind = DeltaSession if self.delta else SotwSession
        node = NodeInfo(id="n", cluster="", dialect=Dialect.PILOTFISH, identity=Identity("shop", "a"))
        self.session: Session = kind(node, self.source, self.watches, "s")
        self.ads.connect()

    def reconnect(self) -> None:
        self.session.close()
        self.ads.disconnect()
        self.connect()

    def ask(self) -> None:
        self.manager.watch_authority(ASKED, lambda answer: None)

    def use(self) -> None:
        self.manager.current(ASKED)

    def tick(self) -> None:
        self.now += 1.0
        self.manager.tick()

    def sleep(self) -> None:
        """Nobody calls for so long that the authority is dropped."""
        for _ in range(int(IDLE) + 1):
            self.tick()

    def change_listener(self) -> None:
        self.generation += 1
        changed = listener(ASKED, "table")
        changed.traffic_direction = 2 * (self.generation % 2)
        self.tell(self.source.put(LISTENER, ASKED, changed))

    def route_to(self, name: str) -> None:
        self.tell(self.source.put(ROUTE, "table", TABLES[name]))

    def serve(self, name: str) -> None:
        self.tell(self.source.put(ENDPOINTS, name, ENDPOINTS_OF[name]))
        self.tell(self.source.put(CLUSTER, name, CLUSTERS[name]))

    def take_away(self, name: str) -> None:
        if name in self.source.by_type[CLUSTER]:
            self.lost.add(name)
            self.tell(self.source.remove(CLUSTER, name))
            self.tell(self.source.remove(ENDPOINTS, name))

    def tell(self, change: Change) -> None:
        for session, type_url, names in list(self.watches.touched(change)):
            session.mark(type_url, names)

    def push(self) -> None:
        self.down += self.session.responses(self.now)

    def flush(self) -> None:
        self.up += self.ads.take_requests()

    def arrive_up(self) -> None:
        if self.up:
            self.session.on_request(self.session.parse(self.up.pop(0)), self.now)

    def arrive_down(self) -> None:
        if self.down:
            self.ads.receive(self.down.pop(0))

    def settle(self) -> None:
        """All that was sent arrives, until nothing more is said."""
        for _ in range(200):
            self.flush()
            self.push()
            if not self.up and not self.down:
                self.lost -= self.source.by_type[CLUSTER].keys()
                return
            self.arrive_up()
            self.arrive_down()
        raise AssertionError("the two never come to an end")

    # --- what must hold

    def table(self) -> RouteConfiguration | str | None:
        """What is used for the authority, or why there is none; None while it is not known. Not by asking
        for it: that would keep it."""
        found = self.manager.describe()
        if isinstance(found["routes"], list) and found["routes"]:
            (table,) = found["routes"]
            assert isinstance(table, RouteConfiguration)
            return table
        missing = found["missing"]
        assert isinstance(missing, dict)
        answer = missing.get(ASKED, "awaited")
        return None if answer == "awaited" else str(answer)

    def used(self) -> list[str]:
        """Clusters of the table in use."""
        table = self.table()
        return [name for _, name in route_clusters(table)] if isinstance(table, RouteConfiguration) else []

    def check(self) -> None:
        assert not isinstance(self.table(), str), "a destination that there is all the time was given up"
        for name in self.used():
            if name not in self.lost:
                assert name in self.applied, f"{name} is routed to and not configured"
                assert self.endpoints[name].localities, f"{name} is routed to without its endpoints"

    def moves(self, calm: bool) -> list[Callable[[], None]]:
        """What may happen next, each as often as it is likely."""
        moves: list[Callable[[], None]] = [
            self.tick,
            self.settle,
            self.use,
            self.use,
            self.ask,
            self.reconnect,
        ]
        moves += [self.arrive_up] * 3 * bool(self.up) + [self.arrive_down] * 3 * bool(self.down)
        for name in SERVICES:
            moves.append(partial(self.route_to, name))
            if not calm:
                moves += [partial(self.take_away, name), partial(self.serve, name)]
        return moves if calm else [*moves, self.change_listener, self.sleep]


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.timeout(600)  # to shrink what it finds
@settings(max_examples=150)
@given(st.data())
def test_a_table_in_use_has_its_clusters_whenever_messages_arrive(delta: bool, data: st.DataObject) -> None:
    line = Line(delta)
    calm = data.draw(st.booleans())
    for _ in range(STEPS):
        data.draw(st.sampled_from(line.moves(calm)))()
        line.flush()
        line.push()
        line.check()
    line.ask()
    line.settle()
    (wanted,) = [n for n, body in TABLES.items() if line.source.by_type[ROUTE]["table"].body == body]
    there = wanted in line.source.by_type[CLUSTER]
    if there or delta:  # the state of the world cannot say that what was never there does not exist
        assert line.used() == [wanted]
        assert (wanted in line.applied) is there
