"""DNS clusters: names become addresses, and a resolver that is away changes nothing."""

from __future__ import annotations

import asyncio
import socket
from random import Random
from typing import Any

import pytest

from sidecar.config.resources import (
    ClusterConfig,
    Discovery,
    EndpointConfig,
    EndpointsConfig,
    LocalityEndpoints,
    SocketAddress,
)
from sidecar.upstream.cluster import Cluster
from sidecar.upstream.dns import DnsRefresher, is_name, with_addresses
from tests.support.fake_upstream import FakeNetwork, Waiter, make_context, scenario, settle
from tests.support.virtual_clock import VirtualClock


class Resolver(VirtualClock):
    """A clock that also answers `getaddrinfo`, from `answers`; a name that is absent cannot be resolved."""

    def __init__(self, **answers: list[str]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[str] = []
        self.families: list[int] = []

    async def getaddrinfo(self, host: str, port: object, *, family: int, type: int) -> list[Any]:
        self.asked.append(host)
        self.families.append(family)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, type, 6, "", (address, 0)) for address in self.answers[host]]


def cluster(resolver: Resolver, discovery: Discovery, *hosts: str, family: str = "AUTO") -> Cluster:
    members = tuple(EndpointConfig(SocketAddress(host, 80)) for host in hosts)
    endpoints = EndpointsConfig("c", (LocalityEndpoints("", "", "", 0, 1, members),))
    config = ClusterConfig(
        "c", discovery=discovery, endpoints=endpoints, dns_refresh_rate=0.001, dns_lookup_family=family
    )
    return Cluster(make_context(resolver, FakeNetwork(resolver)), config)


def addresses(made: Cluster) -> list[str]:
    return [endpoint.address.host for endpoint in made.endpoints]


async def asked(resolver: Resolver, times: int) -> None:
    """Until the resolver was asked so many times more, and the answer to the last has had its effect."""
    wanted = len(resolver.asked) + times
    async with asyncio.timeout(5):
        while len(resolver.asked) < wanted:  # noqa: ASYNC110 (the resolver is asked, and tells nobody)
            await asyncio.sleep(0.001)
    await settle()


@scenario
async def test_strict_dns_has_an_endpoint_for_each_address() -> None:
    resolver = Resolver(users=["10.0.0.1", "10.0.0.2", "10.0.0.1"])
    made = cluster(resolver, Discovery.STRICT_DNS, "users", "10.9.9.9")
    assert addresses(made) == ["users", "10.9.9.9"]  # connecting would resolve it
    made.start()
    await asked(resolver, 1)
    assert addresses(made) == ["10.0.0.1", "10.0.0.2", "10.9.9.9"]
    assert set(resolver.asked) == {"users"}
    made.drain()


@pytest.mark.parametrize(
    ("configured", "asked_for"),
    [("AUTO", socket.AF_UNSPEC), ("V4_ONLY", socket.AF_INET), ("V6_ONLY", socket.AF_INET6)],
)
def test_the_resolver_is_asked_for_the_configured_family(configured: str, asked_for: int) -> None:
    @scenario
    async def run() -> None:
        resolver = Resolver(users=["10.0.0.1"])
        made = cluster(resolver, Discovery.STRICT_DNS, "users", family=configured)
        made.start()
        await asked(resolver, 1)
        assert set(resolver.families) == {asked_for}
        made.drain()

    run()


@scenario
async def test_strict_dns_follows_changes_and_keeps_endpoints_that_stay() -> None:
    resolver = Resolver(users=["10.0.0.1", "10.0.0.2"])
    made = cluster(resolver, Discovery.STRICT_DNS, "users")
    made.start()
    await asked(resolver, 1)
    kept = made.endpoints[1]
    resolver.answers["users"] = ["10.0.0.3", "10.0.0.2"]
    await asked(resolver, 2)
    assert addresses(made) == ["10.0.0.3", "10.0.0.2"]
    assert made.endpoints[1] is kept
    made.drain()


@scenario
async def test_a_failing_resolver_keeps_the_last_good_addresses() -> None:
    resolver = Resolver(users=["10.0.0.1"])
    made = cluster(resolver, Discovery.STRICT_DNS, "users")
    made.start()
    await asked(resolver, 1)
    del resolver.answers["users"]
    await asked(resolver, 2)
    assert addresses(made) == ["10.0.0.1"]
    assert "Name or service not known" in str(made.describe()["dns_errors"])
    resolver.answers["users"] = []
    await asked(resolver, 2)
    assert addresses(made) == ["10.0.0.1"]
    resolver.answers["users"] = ["10.0.0.2"]
    await asked(resolver, 2)
    assert addresses(made) == ["10.0.0.2"]
    assert made.describe()["dns_errors"] == {}
    made.drain()


@scenario
async def test_logical_dns_is_one_endpoint_whose_new_connections_follow_the_name() -> None:
    resolver = Resolver(api=["10.0.0.1", "10.0.0.2"])
    made = cluster(resolver, Discovery.LOGICAL_DNS, "api")
    made.start()
    await asked(resolver, 1)
    (endpoint,) = made.endpoints
    assert endpoint.address == SocketAddress("10.0.0.1", 80)
    waiter = Waiter()
    endpoint.acquire(waiter)
    await settle()
    resolver.answers["api"] = ["10.0.0.2", "10.0.0.1"]
    await asked(resolver, 2)
    assert endpoint.address.host == "10.0.0.1"  # still among them
    resolver.answers["api"] = ["10.0.0.7"]
    await asked(resolver, 2)
    assert made.endpoints == [endpoint]
    assert endpoint.address.host == "10.0.0.7"
    assert waiter.resets == []
    made.drain()


@scenario
async def test_a_drained_cluster_asks_no_more() -> None:
    resolver = Resolver(users=["10.0.0.1"])
    made = cluster(resolver, Discovery.STRICT_DNS, "users")
    made.start()
    await asked(resolver, 1)
    made.drain()
    await settle()
    before = len(resolver.asked)
    await asyncio.sleep(0.01)
    assert len(resolver.asked) == before


@scenario
async def test_an_unchanged_answer_in_another_order_is_no_change() -> None:
    resolver = Resolver(users=["10.0.0.1", "10.0.0.2"])
    changes: list[tuple[str, ...]] = []
    refresher = DnsRefresher(
        resolver,  # type: ignore[arg-type]
        "users",
        5.0,
        Random(1),
        lambda _, found: changes.append(found),
    )
    await refresher.refresh()
    resolver.answers["users"] = ["10.0.0.2", "10.0.0.1"]
    await refresher.refresh()
    assert changes == [("10.0.0.1", "10.0.0.2")]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("10.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("localhost", True),
        ("10.0.0.1.example", True),
    ],
)
def test_addresses_are_not_names(host: str, name: bool) -> None:
    assert is_name(host) is name


def test_names_that_are_not_resolved_yet_stay() -> None:
    members = tuple(EndpointConfig(SocketAddress(host, 443), weight=3) for host in ("a", "b"))
    config = EndpointsConfig("c", (LocalityEndpoints("r", "z", "", 1, 2, members),))
    expanded = with_addresses(config, {"b": ("10.0.0.1", "10.0.0.2")})
    (locality,) = expanded.localities
    assert [str(member.address) for member in locality.endpoints] == ["a:443", "10.0.0.1:443", "10.0.0.2:443"]
    assert {member.weight for member in locality.endpoints} == {3}
    assert (locality.priority, locality.weight) == (1, 2)
