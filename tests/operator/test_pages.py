"""The tables of `pilotfish proxy-config`, from what a sidecar's admin pages make of its configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pilotfish.operator.pages import cluster_rows, endpoint_rows, listener_rows, route_rows
from pilotfish.operator.table import span, table
from sidecar.admin_pages import to_json
from sidecar.config.resources import (
    DirectResponse,
    FilterChainConfig,
    HeaderMatcher,
    HttpConnectionManagerConfig,
    ListenerConfig,
    Redirect,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    SocketAddress,
    TcpProxyConfig,
    TlsConfig,
    VirtualHost,
    WeightedCluster,
)

MESH = TlsConfig(provider="mesh", require_client_certificate=True)
DATABASE = TcpProxyConfig("db", (WeightedCluster("db", 1),))


def page(value: object) -> Any:
    """As it comes from the admin port."""
    return json.loads(to_json(value))


def http(**fields: Any) -> HttpConnectionManagerConfig:
    return HttpConnectionManagerConfig(stat_prefix="http", **fields)


@pytest.mark.parametrize(
    ("listener", "row"),
    [
        (
            ListenerConfig(
                "outbound",
                SocketAddress("127.0.0.1", 15001),
                (FilterChainConfig(http(on_demand=True)),),
                additional_addresses=(SocketAddress("::1", 15001),),
                original_dst=True,
            ),
            (
                "outbound",
                "127.0.0.1:15001, [::1]:15001",
                "outbound",
                "plain HTTP by authority, captured by destination",
            ),
        ),
        (
            ListenerConfig(
                "inbound|10.0.0.1|80",
                SocketAddress("10.0.0.1", 80),
                (FilterChainConfig(http(route_config=RouteConfiguration("own")), MESH),),
                inbound=True,
                default_filter_chain=FilterChainConfig(DATABASE),
                bind_to_port=False,
            ),
            ("inbound|10.0.0.1|80", "10.0.0.1:80 (captured)", "inbound", "mTLS HTTP by own, plain TCP to db"),
        ),
    ],
)
def test_a_listener_says_what_it_expects(listener: ListenerConfig, row: tuple[str, ...]) -> None:
    assert listener_rows(page([listener])) == [row]


@pytest.mark.parametrize(
    ("route", "match", "to"),
    [
        (
            Route(
                "r", RouteMatch(prefix="/"), RouteAction((WeightedCluster("a", 9), WeightedCluster("b", 1)))
            ),
            "/*",
            "a 90%, b 10%",
        ),
        (Route("r", RouteMatch(path="/x"), redirect=Redirect(302)), "/x", "redirect"),
        (
            Route("r", RouteMatch(regex="/v[0-9]"), direct_response=DirectResponse(403)),
            "~/v[0-9]",
            "answer 403",
        ),
        (
            Route(
                "r",
                RouteMatch(path_separated_prefix="/a", headers=(HeaderMatcher("x-test"),), grpc=True),
                RouteAction((WeightedCluster("a", 1),)),
            ),
            "/a/* gRPC header x-test",
            "a",
        ),
    ],
)
def test_a_route_says_what_it_takes_and_where_it_leads(route: Route, match: str, to: str) -> None:
    tables = [RouteConfiguration("t", (VirtualHost("v", ("a.b", "c"), (route,)),))]
    dump = {"bootstrap": {"listeners": []}, "listeners": [], "routes": tables, "missing": {"late": "awaited"}}
    assert route_rows(page(dump)) == [("t", "a.b,c", match, to, "r"), ("late", "", "", "awaited", "")]


def test_ejected_endpoints_are_not_usable() -> None:
    endpoint = {
        "name": "users-1",
        "address": "10.0.0.1:80",
        "health": "HEALTHY",
        "locality": "",
        "weight": 1,
        "ejection": "EJECTED",
        "ejected_for": 12.4,
        "latency_ms": None,
        "requests": 9,
        "failures": 5,
    }
    cluster = {
        "name": "users",
        "discovery": "EDS",
        "lb_policy": "PEAK_EWMA",
        "protocol": "HTTP/2",
        "tls": True,
        "requests_active": 2,
        "dns_errors": {"users": "no such name"},
        "endpoints": [endpoint, {**endpoint, "ejection": "IN", "name": "users-2", "health": "DRAINING"}],
    }
    assert cluster_rows([cluster]) == [
        ("users", "EDS", "PEAK_EWMA", "HTTP/2", "TLS", "0/2", "2", "users: no such name")
    ]
    assert [row[3] for row in endpoint_rows([cluster])] == ["ejected for 12s", "draining"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (3599, "59m"), (86400, "24h"), (172800, "2d"), (-7200, "-2h")],
)
def test_lengths_of_time_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_columns_are_as_wide_as_they_must_be() -> None:
    assert table(("A", "LONG"), [("aaa", "b"), ("", "")]) == "A    LONG\naaa  b\n"
