"""The whole set of clusters: what is kept, what is replaced, destinations outside the mesh."""

from __future__ import annotations

from dataclasses import replace

from sidecar.config.resources import (
    ClusterConfig,
    Discovery,
    EndpointConfig,
    EndpointsConfig,
    Http2Options,
    LocalityEndpoints,
    SocketAddress,
)
from sidecar.upstream.cluster import Cluster
from tests.support.fake_upstream import FakeNetwork, Waiter, make_manager, scenario, settle
from tests.support.virtual_clock import VirtualClock


def assignment(name: str, *hosts: str) -> EndpointsConfig:
    members = tuple(EndpointConfig(SocketAddress(host, 80)) for host in hosts)
    return EndpointsConfig(name, (LocalityEndpoints("", "", "", 0, 1, members),))


def static(name: str, *hosts: str) -> ClusterConfig:
    return ClusterConfig(name, http2=Http2Options(), endpoints=assignment(name, *hosts))


EDS = ClusterConfig("orders", discovery=Discovery.EDS, http2=Http2Options())


class Rig:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.network = FakeNetwork(self.clock)
        self.manager = make_manager(self.clock, self.network)

    def apply(self, *configs: ClusterConfig) -> None:
        self.manager.apply({config.name: config for config in configs})

    def get(self, name: str) -> Cluster:
        cluster = self.manager.get(name)
        assert cluster is not None
        return cluster

    async def connect(self, name: str) -> Waiter:
        waiter = Waiter()
        self.get(name).endpoints[0].acquire(waiter)
        await settle()
        assert waiter.stream is not None
        return waiter

    def addresses(self, name: str) -> list[str]:
        return [endpoint.address.host for endpoint in self.get(name).endpoints]

    def series(self, kind: str, label: str) -> list[object]:
        return [row[label] for row in self.manager._context.metrics.snapshot()[kind]]


def test_an_unknown_cluster_is_none() -> None:
    rig = Rig()
    assert rig.manager.get("nowhere") is None


@scenario
async def test_an_equal_configuration_keeps_cluster_and_connections() -> None:
    rig = Rig()
    rig.apply(static("users", "10.0.0.1"))
    cluster = rig.get("users")
    waiter = await rig.connect("users")
    waiter.end()
    rig.apply(static("users", "10.0.0.1"), static("new", "10.0.0.2"))
    assert rig.get("users") is cluster
    assert rig.network.connections[0].ended == ""
    assert cluster.endpoints[0].connections == 1


@scenario
async def test_a_changed_configuration_replaces_the_cluster_and_streams_finish() -> None:
    rig = Rig()
    rig.apply(static("users", "10.0.0.1"))
    old = rig.get("users")
    waiter = await rig.connect("users")
    rig.apply(replace(static("users", "10.0.0.1"), connect_timeout=1.0))
    assert rig.get("users") is not old
    assert waiter.resets == []
    assert rig.network.connections[0].ended == ""
    waiter.end()
    assert rig.network.connections[0].ended == "closed"


@scenario
async def test_a_removed_cluster_closes_idle_connections_and_finishes_streams() -> None:
    rig = Rig()
    rig.apply(static("users", "10.0.0.1"), static("orders", "10.0.0.2"))
    busy = await rig.connect("users")
    (await rig.connect("orders")).end()
    rig.apply()
    assert rig.manager.get("users") is None
    assert [connection.ended for connection in rig.network.connections] == ["", "closed"]
    assert rig.series("clusters", "cluster") == []
    assert busy.resets == []
    busy.end()
    assert rig.network.connections[0].ended == "closed"


def test_endpoints_come_from_discovery() -> None:
    rig = Rig()
    rig.apply(EDS)
    assert rig.addresses("orders") == []
    rig.manager.set_endpoints("orders", assignment("orders", "10.0.0.1", "10.0.0.2"))
    assert rig.addresses("orders") == ["10.0.0.1", "10.0.0.2"]


def test_endpoints_that_come_before_their_cluster_are_used() -> None:
    rig = Rig()
    rig.manager.set_endpoints("orders", assignment("orders", "10.0.0.1"))
    rig.apply(EDS)
    assert rig.addresses("orders") == ["10.0.0.1"]


def test_a_replaced_cluster_keeps_the_endpoints_that_discovery_gave() -> None:
    rig = Rig()
    rig.apply(EDS)
    rig.manager.set_endpoints("orders", assignment("orders", "10.0.0.1"))
    rig.apply(replace(EDS, connect_timeout=1.0))
    assert rig.addresses("orders") == ["10.0.0.1"]


def test_a_removed_cluster_forgets_its_endpoints() -> None:
    rig = Rig()
    rig.apply(EDS)
    rig.manager.set_endpoints("orders", assignment("orders", "10.0.0.1"))
    rig.apply()
    rig.apply(EDS)
    assert rig.addresses("orders") == []


def test_a_replaced_cluster_forgets_the_series_of_endpoints_that_left() -> None:
    rig = Rig()
    rig.apply(static("users", "10.0.0.1", "10.0.0.2"))
    rig.apply(static("users", "10.0.0.2", "10.0.0.3"))
    assert sorted(map(str, rig.series("endpoints", "endpoint"))) == ["10.0.0.2:80", "10.0.0.3:80"]


# --- destinations outside the mesh ---------------------------------------------------------------


@scenario
async def test_a_destination_outside_the_mesh_is_made_once_and_found_by_name() -> None:
    rig = Rig()
    cluster = rig.manager.passthrough("example.com", 80, False)
    assert rig.manager.passthrough("example.com", 80, False) is cluster
    assert rig.manager.passthrough("example.com", 80, True) is not cluster
    assert rig.get(cluster.name) is cluster
    await rig.connect(cluster.name)
    assert rig.network.attempts == [SocketAddress("example.com", 80)]


def test_destinations_outside_the_mesh_share_one_name_in_metrics() -> None:
    rig = Rig()
    for host in ("a.example", "b.example"):
        cluster = rig.manager.passthrough(host, 80, False)
        assert cluster.begin(cluster.endpoints[0])
    assert rig.series("clusters", "cluster") == ["passthrough"]
    assert rig.series("endpoints", "endpoint") == ["passthrough"]
    assert rig.series("endpoints", "requests") == [2]


def test_configuration_leaves_destinations_outside_the_mesh_alone() -> None:
    rig = Rig()
    cluster = rig.manager.passthrough("example.com", 80, False)
    rig.apply(static("users", "10.0.0.1"))
    rig.apply()
    assert rig.get(cluster.name) is cluster


@scenario
async def test_a_destination_outside_the_mesh_is_forgotten_when_it_was_not_used() -> None:
    rig = Rig()
    used = rig.manager.passthrough("used.example", 80, False)
    busy = rig.manager.passthrough("busy.example", 80, False)
    idle = rig.manager.passthrough("idle.example", 80, False)
    busy.begin(busy.endpoints[0])
    for _ in range(4):
        used.begin(used.endpoints[0])
        used.finish(used.endpoints[0], 0.01, False)
        rig.clock.advance(60.0)
    assert rig.get(used.name) is used
    assert rig.get(busy.name) is busy
    assert rig.get(idle.name) is not idle


def test_a_forgotten_destination_is_made_again_when_a_route_still_names_it() -> None:
    rig = Rig()
    name = rig.manager.passthrough("2001:db8::1", 8080, True).name
    rig.clock.advance(300.0)
    assert rig.clock.pending == 0
    again = rig.get(name)
    assert again.name == name
    assert again.endpoints[0].address == SocketAddress("2001:db8::1", 8080)
    assert again.config.http2 is not None


# --- the rest ------------------------------------------------------------------------------------


@scenario
async def test_close_drops_everything_draining_ones_included() -> None:
    rig = Rig()
    rig.apply(static("users", "10.0.0.1"), static("orders", "10.0.0.2"))
    removed = await rig.connect("users")
    rig.apply(static("orders", "10.0.0.2"))
    active = await rig.connect("orders")
    rig.manager.passthrough("example.com", 80, False)
    await rig.manager.close()
    rig.clock.advance(0)
    assert len(removed.resets) == len(active.resets) == 1
    assert rig.clock.pending == 0


def test_description_lists_all_clusters() -> None:
    rig = Rig()
    rig.apply(static("users", "10.0.0.1"), EDS)
    assert [row["name"] for row in rig.manager.describe()] == ["users", "orders"]
