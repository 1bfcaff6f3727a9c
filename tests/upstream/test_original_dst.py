"""A cluster of type ORIGINAL_DST: an endpoint for each address that is dialled, none that stays in vain."""

from __future__ import annotations

from sidecar.config.resources import ClusterConfig, Discovery, SocketAddress
from sidecar.upstream.cluster import Cluster
from sidecar.upstream.original_dst import MAX_IDLE
from tests.support.fake_upstream import FakeNetwork, Waiter, make_context, scenario, settle
from tests.support.virtual_clock import VirtualClock

WEB = SocketAddress("10.0.0.1", 80)


class Rig:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.network = FakeNetwork(self.clock)
        self.context = make_context(self.clock, self.network)
        self.cluster = Cluster(self.context, ClusterConfig("in", Discovery.ORIGINAL_DST))

    async def connect(self, address: SocketAddress) -> Waiter:
        endpoint = self.cluster.pick_for(address, [])
        assert endpoint is not None
        assert endpoint.address == address
        assert self.cluster.begin(endpoint)
        waiter = Waiter()
        endpoint.acquire_tcp(waiter)
        await settle()
        self.cluster.finish(endpoint, 0.1, False)
        return waiter


@scenario
async def test_each_connection_goes_where_it_was_going() -> None:
    rig = Rig()
    other = SocketAddress("10.0.0.1", 81)
    for address in (WEB, other, WEB):
        await rig.connect(address)
    assert rig.network.attempts == [WEB, other, WEB]
    assert rig.cluster.connections == 3
    rows = rig.cluster.describe()["endpoints"]
    assert isinstance(rows, list)
    assert [row["address"] for row in rows] == ["10.0.0.1:80", "10.0.0.1:81"]


def test_without_an_original_destination_there_is_nobody() -> None:
    cluster = Rig().cluster
    assert cluster.pick([]) is None
    assert cluster.why_none() == (
        "it is of type ORIGINAL_DST, and the connection was not redirected by a TCP listener"
    )


@scenario
async def test_addresses_that_nobody_uses_any_more_are_forgotten() -> None:
    rig = Rig()
    kept = await rig.connect(WEB)
    for port in range(1000, 1000 + 3 * MAX_IDLE):
        await rig.connect(SocketAddress("10.0.0.1", port))
        rig.network.connections[-1].lose("the client is gone")
        rig.clock.advance(0)
    rows = rig.cluster.describe()["endpoints"]
    assert isinstance(rows, list)
    assert len(rows) <= MAX_IDLE
    assert rows[0]["address"] == "10.0.0.1:80"
    assert kept.resets == []


@scenario
async def test_addresses_are_no_labels() -> None:
    rig = Rig()
    await rig.connect(WEB)
    await rig.connect(SocketAddress("10.0.0.1", 81))
    endpoints = rig.context.metrics.snapshot()["endpoints"]
    assert [row["endpoint"] for row in endpoints] == ["original_dst"]


@scenario
async def test_aborting_drops_all_connections() -> None:
    rig = Rig()
    waiter = await rig.connect(WEB)
    rig.cluster.abort()
    await settle()
    assert rig.network.connections[0].ended != ""
    assert waiter.stream is not None


def test_the_other_clusters_pick_as_ever() -> None:
    rig = Rig()
    cluster = Cluster(rig.context, ClusterConfig("app"))
    assert cluster.pick_for(WEB, []) is None
