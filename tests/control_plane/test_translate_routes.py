"""Routes of a service to RouteConfiguration, compared whole with the expected message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from envoy.config.route.v3.route_components_pb2 import Route
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf.json_format import MessageToDict, ParseDict

from control_plane.model.discovery import Dialect
from control_plane.model.service import AppProtocol, ServicePort
from control_plane.translate.routes import route_configuration
from tests.support.kubernetes import backend, mesh, route

USERS = "users.shop.svc.cluster.local:80"
ORDERS = "orders.shop.svc.cluster.local:80"
HTTP = ServicePort("http", 80, 8080, AppProtocol.HTTP)
RETRY_ON = "connect-failure,refused-stream,reset-before-request,reset"
CONNECT = {
    "name": "tcp",
    "match": {"connectMatcher": {}},
    "route": {
        "cluster": USERS,
        "timeout": "0s",
        "upgradeConfigs": [{"upgradeType": "CONNECT", "connectConfig": {}}],
    },
}


def configuration(
    *routes: dict[str, Any], port: ServicePort = HTTP, dialect: Dialect = Dialect.PILOTFISH
) -> RouteConfiguration:
    return route_configuration(USERS, port, mesh(*routes).routes, dialect, "cluster.local")


def made(
    *rules: dict[str, Any], dialect: Dialect = Dialect.PILOTFISH, kind: str = "HTTPRoute"
) -> list[dict[str, Any]]:
    """The xDS routes that one route with these rules becomes, without the one for opaque TCP."""
    [host] = configuration(route("r", *rules, kind=kind), dialect=dialect).virtual_hosts
    routes = [MessageToDict(found) for found in host.routes]
    return [found for found in routes if found["name"] != "tcp"]


def forward(cluster: str = USERS, **more: Any) -> dict[str, Any]:
    return {"cluster": cluster, "timeout": "0s", "maxStreamDuration": {"grpcTimeoutHeaderMax": "0s"}, **more}


def rewritten(path: str, **rewrite: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Matches and what they do with the path, for a rule that rewrites it."""
    rule = {
        "matches": [{"path": {"value": path}}],
        "filters": [{"type": "URLRewrite", "urlRewrite": {"path": rewrite}}],
        "backendRefs": [backend("users")],
    }
    return [
        (found["match"], {key: value for key, value in found["route"].items() if "ewrite" in key})
        for found in made(rule)
    ]


def test_a_service_without_routes_gets_one_to_itself_with_safe_retries_and_no_timeout() -> None:
    expected = {
        "name": USERS,
        "virtualHosts": [
            {
                "name": USERS,
                "domains": ["*"],
                "retryPolicy": {"retryOn": RETRY_ON, "numRetries": 2},
                "routes": [CONNECT, {"name": "default", "match": {"prefix": "/"}, "route": forward()}],
            }
        ],
    }
    assert configuration() == ParseDict(expected, RouteConfiguration())


def test_a_port_of_opaque_tcp_has_the_route_for_connect_alone() -> None:
    [host] = configuration(
        route("r", {"backendRefs": [backend("orders")]}),
        port=ServicePort("db", 5432, 5432, AppProtocol.TCP),
    ).virtual_hosts
    assert list(host.routes) == [ParseDict(CONNECT, Route())]


def test_a_port_that_is_declared_to_be_http_has_no_route_for_connect() -> None:
    [host] = configuration(port=ServicePort("http", 80, 8080, AppProtocol.HTTP, declared=True)).virtual_hosts
    assert [found.name for found in host.routes] == ["default"]


def test_grpc_clients_get_neither_connect_nor_retries() -> None:
    expected = {
        "name": USERS,
        "virtualHosts": [
            {
                "name": USERS,
                "domains": ["*"],
                "routes": [{"name": "default", "match": {"prefix": "/"}, "route": forward()}],
            }
        ],
    }
    assert configuration(dialect=Dialect.GRPC) == ParseDict(expected, RouteConfiguration())


def test_attached_routes_replace_the_default_and_are_named_for_metrics() -> None:
    rules = [
        {"matches": [{"path": {"type": "Exact", "value": "/a"}}], "backendRefs": [backend("users")]},
        {"matches": [{"path": {"value": "/b"}}], "backendRefs": [backend("orders")]},
    ]
    assert made(*rules) == [
        {"name": "shop/r/0", "match": {"path": "/a"}, "route": forward()},
        {"name": "shop/r/1", "match": {"pathSeparatedPrefix": "/b"}, "route": forward(ORDERS)},
    ]


def test_every_kind_of_match_is_carried_over() -> None:
    match = {
        "path": {"type": "RegularExpression", "value": "/u[0-9]+"},
        "method": "GET",
        "headers": [
            {"name": "X-One", "value": "1"},
            {"name": "x-two", "type": "RegularExpression", "value": "a|b"},
        ],
        "queryParams": [{"name": "q", "value": "1"}],
    }
    [found] = made({"matches": [match], "backendRefs": [backend("users")]})
    assert found["match"] == {
        "safeRegex": {"regex": "/u[0-9]+"},
        "headers": [
            {"name": ":method", "stringMatch": {"exact": "GET"}},
            {"name": "x-one", "stringMatch": {"exact": "1"}},
            {"name": "x-two", "stringMatch": {"safeRegex": {"regex": "a|b"}}},
        ],
        "queryParameters": [{"name": "q", "stringMatch": {"exact": "1"}}],
    }


def test_grpc_clients_get_prefixes_as_two_matches_and_nothing_that_cannot_match() -> None:
    rules = [
        {"matches": [{"path": {"value": "/a"}}], "backendRefs": [backend("users")]},
        {"matches": [{"path": {"value": "/b"}, "method": "POST"}], "backendRefs": [backend("users")]},
        {"matches": [{"path": {"value": "/c"}, "method": "GET"}], "backendRefs": [backend("users")]},
        {"matches": [{"queryParams": [{"name": "q", "value": "1"}]}], "backendRefs": [backend("users")]},
    ]
    assert [found["match"] for found in made(*rules, dialect=Dialect.GRPC)] == [
        {"path": "/b"},
        {"prefix": "/b/"},
        {"path": "/a"},
        {"prefix": "/a/"},
    ]


def test_a_grpc_route_matches_paths_of_calls() -> None:
    rules = [
        {"backendRefs": [backend("users")]},
        {"matches": [{"method": {"service": "a.B"}}], "backendRefs": [backend("users")]},
        {"matches": [{"method": {"service": "a.B", "method": "C"}}], "backendRefs": [backend("users")]},
    ]
    for dialect in (Dialect.PILOTFISH, Dialect.GRPC):
        found = made(*rules, dialect=dialect, kind="GRPCRoute")
        assert [each["match"] for each in found] == [{"path": "/a.B/C"}, {"prefix": "/a.B/"}, {"prefix": "/"}]


def test_a_grpc_route_beside_an_http_route_counts_alone() -> None:
    http = route("http", {"backendRefs": [backend("users")]})
    grpc = route("grpc", {"backendRefs": [backend("users")]}, kind="GRPCRoute")
    [host] = configuration(http, grpc).virtual_hosts
    assert [found.name for found in host.routes] == ["tcp", "shop/grpc/0"]


def test_traffic_is_split_by_weight_and_backends_change_headers_of_their_own() -> None:
    modifier = {
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {"set": [{"name": "x-to", "value": "orders"}]},
    }
    refs = [backend("users", weight=9), backend("gone", weight=0), backend("orders", filters=[modifier])]
    [found] = made({"backendRefs": refs})
    header = {"header": {"key": "x-to", "value": "orders"}, "appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"}
    expected = forward()
    del expected["cluster"]
    expected["weightedClusters"] = {
        "clusters": [
            {"name": USERS, "weight": 9},
            {"name": ORDERS, "weight": 1, "requestHeadersToAdd": [header]},
        ]
    }
    assert found["route"] == expected


def test_one_backend_that_changes_headers_keeps_them_to_itself() -> None:
    modifier = {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["X-Secret"]}}
    [found] = made({"backendRefs": [backend("users", filters=[modifier])]})
    assert found["route"]["weightedClusters"] == {
        "clusters": [{"name": USERS, "weight": 1, "responseHeadersToRemove": ["x-secret"]}]
    }


@pytest.mark.parametrize("refs", [[], [backend("users", weight=0)]])
def test_a_rule_that_nobody_may_answer_is_500(refs: list[dict[str, Any]]) -> None:
    assert made({"backendRefs": refs}) == [
        {"name": "shop/r/0", "match": {"prefix": "/"}, "directResponse": {"status": 500}}
    ]


def test_a_rule_changes_headers_and_a_percent_sign_stays_one() -> None:
    request = {
        "set": [{"name": "X-Set", "value": "100%"}],
        "add": [{"name": "X-Add", "value": "a"}],
        "remove": ["X-Gone"],
    }
    filters = [
        {"type": "RequestHeaderModifier", "requestHeaderModifier": request},
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "x", "value": "y"}]}},
    ]
    [found] = made({"filters": filters, "backendRefs": [backend("users")]})
    del found["name"], found["match"], found["route"]
    assert found == {
        "requestHeadersToAdd": [
            {"header": {"key": "x-set", "value": "100%%"}, "appendAction": "OVERWRITE_IF_EXISTS_OR_ADD"},
            {"header": {"key": "x-add", "value": "a"}},
        ],
        "requestHeadersToRemove": ["x-gone"],
        "responseHeadersToAdd": [{"header": {"key": "x", "value": "y"}}],
    }


def test_timeouts_bound_the_request_one_attempt_and_what_a_grpc_caller_asks_for() -> None:
    [found] = made({"timeouts": {"request": "3s", "backendRequest": "1s"}, "backendRefs": [backend("users")]})
    assert found["route"] == {
        "cluster": USERS,
        "timeout": "3s",
        "maxStreamDuration": {"grpcTimeoutHeaderMax": "3s"},
        "retryPolicy": {"retryOn": RETRY_ON, "numRetries": 2, "perTryTimeout": "1s"},
    }


def test_retries_are_added_to_what_is_always_safe() -> None:
    retry = {"codes": [503, 500], "attempts": 5, "backoff": "100ms"}
    [found] = made({"retry": retry, "backendRefs": [backend("users")]})
    assert found["route"]["retryPolicy"] == {
        "retryOn": RETRY_ON + ",retriable-status-codes",
        "numRetries": 5,
        "retriableStatusCodes": [500, 503],
        "retryBackOff": {"baseInterval": "0.100s"},
    }


FULL = {"pattern": {"regex": "^/.*$"}}


def test_the_whole_path_is_replaced_whatever_it_was() -> None:
    assert rewritten("/a", type="ReplaceFullPath", replaceFullPath="/new") == [
        ({"pathSeparatedPrefix": "/a"}, {"regexRewrite": {**FULL, "substitution": "/new"}})
    ]
    assert rewritten("/a", type="ReplaceFullPath", replaceFullPath="/a\\1") == [
        ({"pathSeparatedPrefix": "/a"}, {"regexRewrite": {**FULL, "substitution": "/a\\\\1"}})
    ]


@pytest.mark.parametrize(
    ("prefix", "replacement", "expected"),
    [
        ("/foo", "/xyz", [({"pathSeparatedPrefix": "/foo"}, {"prefixRewrite": "/xyz"})]),
        ("/foo/", "/xyz/", [({"pathSeparatedPrefix": "/foo"}, {"prefixRewrite": "/xyz"})]),
        (
            "/foo",
            "/",
            [
                ({"path": "/foo"}, {"regexRewrite": {**FULL, "substitution": "/"}}),
                ({"prefix": "/foo/"}, {"prefixRewrite": "/"}),
            ],
        ),
        (
            "/foo/",
            "",
            [
                ({"path": "/foo"}, {"regexRewrite": {**FULL, "substitution": "/"}}),
                ({"prefix": "/foo/"}, {"prefixRewrite": "/"}),
            ],
        ),
        ("/", "/xyz", [({"prefix": "/"}, {"prefixRewrite": "/xyz/"})]),
        ("/", "/", [({"prefix": "/"}, {"prefixRewrite": "/"})]),
    ],
)
def test_a_prefix_is_replaced_by_whole_path_elements(
    prefix: str, replacement: str, expected: list[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    assert rewritten(prefix, type="ReplacePrefixMatch", replacePrefixMatch=replacement) == expected


def test_the_host_is_rewritten() -> None:
    rewrite = {"type": "URLRewrite", "urlRewrite": {"hostname": "other.example"}}
    [found] = made({"filters": [rewrite], "backendRefs": [backend("users")]})
    assert found["route"] == forward(hostRewriteLiteral="other.example")


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        ({"hostname": "a.example"}, {"hostRedirect": "a.example", "responseCode": "FOUND"}),
        (
            {"scheme": "https"},
            {"schemeRedirect": "https", "portRedirect": 443, "responseCode": "FOUND"},
        ),
        (
            {"scheme": "https", "hostname": "a.example", "statusCode": 308},
            {"schemeRedirect": "https", "hostRedirect": "a.example", "responseCode": "PERMANENT_REDIRECT"},
        ),
        (
            {"hostname": "a.example", "port": 8080, "statusCode": 301},
            {"hostRedirect": "a.example", "portRedirect": 8080},
        ),
        (
            {"hostname": "a.example", "path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"}},
            {"hostRedirect": "a.example", "pathRedirect": "/new", "responseCode": "FOUND"},
        ),
    ],
)
def test_a_redirect_follows_gateway_apis_rules_for_ports(
    redirect: dict[str, Any], expected: dict[str, Any]
) -> None:
    [found] = made({"filters": [{"type": "RequestRedirect", "requestRedirect": redirect}]})
    assert found["redirect"] == expected


def test_a_redirect_of_a_prefix_to_the_root_leaves_one_slash() -> None:
    redirect = {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}, "hostname": "a.example"}
    rule = {
        "matches": [{"path": {"value": "/old"}}],
        "filters": [{"type": "RequestRedirect", "requestRedirect": redirect}],
    }
    both = {"hostRedirect": "a.example", "responseCode": "FOUND"}
    assert [(found["match"], found["redirect"]) for found in made(rule)] == [
        ({"path": "/old"}, {**both, "pathRedirect": "/"}),
        ({"prefix": "/old/"}, {**both, "prefixRewrite": "/"}),
    ]


# --- backends that do not exist ---


def with_unresolved(*weights: int, unresolved: set[int], dialect: Dialect = Dialect.PILOTFISH) -> list[Any]:
    """The routes of one rule whose backends have these weights."""
    listed = [backend(f"s{number}", weight=weight) for number, weight in enumerate(weights)]
    [parsed] = mesh(route("r", {"backendRefs": listed})).routes
    [rule] = parsed.rules
    backends = tuple(
        replace(item, resolved=index not in unresolved) for index, item in enumerate(rule.backends)
    )
    marked = replace(parsed, rules=(replace(rule, backends=backends),))
    table = route_configuration(USERS, HTTP, (marked,), dialect, "cluster.local")
    return [MessageToDict(found) for found in table.virtual_hosts[0].routes if found.name != "tcp"]


@pytest.mark.parametrize("dialect", [Dialect.PILOTFISH, Dialect.GRPC])
def test_the_share_of_a_backend_that_does_not_exist_is_answered_500(dialect: Dialect) -> None:
    refused, rest = with_unresolved(60, 30, 10, unresolved={1}, dialect=dialect)
    fraction = {"defaultValue": {"numerator": 300_000, "denominator": "MILLION"}}
    assert refused == {
        "name": "shop/r/0/unresolved",
        "match": {"prefix": "/", "runtimeFraction": fraction},
        "directResponse": {"status": 500},
    }
    assert rest["match"] == {"prefix": "/"}
    assert rest["route"]["weightedClusters"]["clusters"] == [
        {"name": "s0.shop.svc.cluster.local:80", "weight": 60},
        {"name": "s2.shop.svc.cluster.local:80", "weight": 10},
    ]


def test_with_no_backend_left_everything_is_answered_500() -> None:
    [refused] = with_unresolved(1, 1, unresolved={0, 1})
    assert refused == {"name": "shop/r/0", "match": {"prefix": "/"}, "directResponse": {"status": 500}}


def test_a_backend_without_weight_may_be_missing() -> None:
    [rest] = with_unresolved(1, 0, unresolved={1})
    assert rest["route"]["cluster"] == "s0.shop.svc.cluster.local:80"
