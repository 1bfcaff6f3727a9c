"""Envoy is the oracle: the same route table and the same requests must find the same routes."""

from __future__ import annotations

import http.client
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sidecar.config.matcher import CompiledRoutes
from sidecar.protocol.events import RequestHead
from tests.support.bootstraps import MANAGER, load, put, small
from tests.support.envoy import running

pytestmark = pytest.mark.envoy

MATCHES: list[dict[str, Any]] = [
    {"path": "/exact"},
    {"path": "/Case", "case_sensitive": False},
    {"path_separated_prefix": "/sep"},
    {"safe_regex": {"regex": "/re/[0-9]+(/x)?"}},
    {
        "prefix": "/missing-inverted",
        "headers": [{"name": "x", "string_match": {"exact": "1"}, "invert_match": True}],
    },
    {
        "prefix": "/empty",
        "headers": [{"name": "x", "string_match": {"exact": ""}, "treat_missing_header_as_empty": True}],
    },
    {"prefix": "/absent", "headers": [{"name": "x", "present_match": False}]},
    {"prefix": "/present-inverted", "headers": [{"name": "x", "present_match": True, "invert_match": True}]},
    {"prefix": "/range", "headers": [{"name": "x", "range_match": {"start": -2, "end": 10}}]},
    {"prefix": "/joined", "headers": [{"name": "x", "string_match": {"exact": "1,2"}}]},
    {
        "prefix": "/contains",
        "headers": [{"name": "x", "string_match": {"contains": "B", "ignore_case": True}}],
    },
    {"prefix": "/method", "headers": [{"name": ":method", "string_match": {"exact": "POST"}}]},
    {"prefix": "/query", "query_parameters": [{"name": "q", "string_match": {"exact": "1"}}]},
    {"prefix": "/flag", "query_parameters": [{"name": "q", "present_match": True}]},
    {"prefix": "/grpc", "grpc": {}},
    {"prefix": "/a/b"},
    {"prefix": "/A", "case_sensitive": False},
]
DOMAINS = [["one.example"], ["*.one.example", "*-x.example"], ["one.*"], ["two.example:8080"], ["*"]]

Fields = tuple[tuple[str, str], ...]


def requests() -> list[tuple[str, str, str, Fields]]:
    """Method, authority, path and fields."""
    paths = [
        *(
            "/exact",
            "/exact?q",
            "/exact/",
            "/case",
            "/CASE",
            "/sep",
            "/sep/a",
            "/sep?a",
            "/separate",
            "/re/1",
        ),
        *("/re/12/x", "/re/1/", "/re/1?x", "/a/b/c", "/a/x", "/A/b", "/query?q=1", "/query?q=2&q=1"),
        *("/query?q=%31", "/query?a&q=1", "/query", "/flag?q", "/flag?q=", "/flag?qq", "/flag", "/other"),
    ]
    found: list[tuple[str, str, str, Fields]] = [("GET", "any.example", path, ()) for path in paths]
    values: list[Fields] = [
        *((), (("x", ""),), (("x", "1"),), (("x", "-2"),), (("x", "10"),), (("x", "+5"),), (("x", "5.0"),)),
        *((("x", " 7 "),), (("x", "1"), ("x", "2")), (("x", "abc"),)),
    ]
    names = ("missing-inverted", "empty", "absent", "present-inverted", "range", "joined", "contains")
    found += [("GET", "any.example", f"/{name}", fields) for name in names for fields in values]
    found += [(method, "any.example", "/method", ()) for method in ("GET", "POST")]
    kinds = ("application/grpc", "application/grpc+proto", "application/grpc-web", "application/grpcx")
    found += [("POST", "any.example", "/grpc", (("content-type", kind),)) for kind in kinds]
    authorities = [
        *("one.example", "ONE.example", "a.one.example", ".one.example", "b.a.one.example", "one.example:80"),
        *("a-x.example", "-x.example", "one.org", "one.", "two.example", "two.example:8080", "two.example:1"),
    ]
    return found + [("GET", authority, "/exact", ()) for authority in authorities]


def tree() -> dict[str, Any]:
    """Every route answers with its own name and that of its virtual host."""

    def route(host: int, index: int, match: dict[str, Any]) -> dict[str, Any]:
        answer = {"status": 200, "body": {"inline_string": f"{host}/{index}"}}
        return {"name": f"{host}/{index}", "match": match, "direct_response": answer}

    hosts = [
        {
            "name": str(host),
            "domains": domains,
            "routes": [route(host, index, match) for index, match in enumerate(MATCHES)],
        }
        for host, domains in enumerate(DOMAINS)
    ]
    config = put(small(), f"{MANAGER}.route_config.virtual_hosts", hosts)
    return put(config, "static_resources.listeners[0].address.socket_address.port_value", 0)


def ours(routes: CompiledRoutes, method: str, authority: str, path: str, fields: Fields) -> str:
    encoded = tuple((name.encode(), value.strip().encode()) for name, value in fields)
    head = RequestHead(method.encode(), b"http", authority.encode(), path.encode(), encoded)
    route = routes.match(head, Random(1))
    return "" if route is None else route.name


def envoys(address: tuple[str, int], method: str, authority: str, path: str, fields: Fields) -> str:
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in (("host", authority), ("content-length", "0"), *fields):
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        body = response.read().decode()
        # A direct response to a gRPC request is carried by its trailers-only head.
        return response.getheader("grpc-message") or (body if response.status == 200 else "")
    finally:
        connection.close()


def test_envoy_finds_the_same_routes(tmp_path: Path) -> None:
    chain = load(tree()).listeners[0].filter_chains[0]
    config = getattr(chain.network, "route_config", None)
    assert config is not None
    routes = CompiledRoutes(config)
    with running(tree(), tmp_path) as address:
        pairs = [(each, ours(routes, *each), envoys(address, *each)) for each in requests()]
    assert [pair for pair in pairs if pair[1] != pair[2]] == []
    assert len({found for _, found, _ in pairs}) > len(MATCHES)
