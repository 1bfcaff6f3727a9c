"""Kubernetes objects to the model: what is read, and what each mistake is answered."""

from __future__ import annotations

from typing import Any

import pytest

from control_plane.model.route import (
    BackendRef,
    Filters,
    GrpcMethod,
    HeaderModifier,
    ParentRef,
    PathKind,
    PathMatch,
    PathRewrite,
    Redirect,
    Retry,
    Rewrite,
    Route,
    RouteMatch,
    RouteRule,
    ValueMatch,
)
from control_plane.model.service import (
    AppProtocol,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Service,
    ServicePort,
    WorkloadSettings,
    app_protocol,
)
from control_plane.sources.fields import FieldError
from control_plane.sources.objects import describe, is_known, parse
from tests.support.kubernetes import backend, endpoint_slice, grant, mesh_annotations, parent, route, service


def parse_route(*rules: dict[str, Any], kind: str = "HTTPRoute", **more: Any) -> Route:
    [found] = parse(route("r", *rules, kind=kind, **more))
    assert isinstance(found, Route)
    return found


def error_of(value: dict[str, Any]) -> str:
    with pytest.raises(FieldError) as caught:
        parse(value)
    return str(caught.value)


def match_of(match: dict[str, Any], kind: str = "HTTPRoute") -> RouteMatch:
    return parse_route({"matches": [match]}, kind=kind).rules[0].matches[0]


@pytest.mark.parametrize(
    ("declared", "name", "expected"),
    [
        ("", "", AppProtocol.HTTP),
        ("", "http", AppProtocol.HTTP),
        ("", "web", AppProtocol.HTTP),
        ("", "grpc", AppProtocol.HTTP2),
        ("", "grpc-admin", AppProtocol.HTTP2),
        ("", "http2-x", AppProtocol.HTTP2),
        ("", "h2c", AppProtocol.HTTP2),
        ("", "redis", AppProtocol.TCP),
        ("", "tcp-anything", AppProtocol.TCP),
        ("", "grpcish", AppProtocol.HTTP),
        ("kubernetes.io/h2c", "http", AppProtocol.HTTP2),
        ("grpc", "http", AppProtocol.HTTP2),
        ("tcp", "http", AppProtocol.TCP),
        ("https", "http", AppProtocol.TCP),
        ("kubernetes.io/ws", "http", AppProtocol.HTTP),
        ("http", "redis", AppProtocol.HTTP),
    ],
)
def test_app_protocol_decides_before_the_ports_name(declared: str, name: str, expected: AppProtocol) -> None:
    assert app_protocol(declared, name) is expected


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ({"name": "", "port": 80}, (AppProtocol.HTTP, False)),
        ({"name": "web", "port": 80}, (AppProtocol.HTTP, False)),
        ({"name": "http-web", "port": 80}, (AppProtocol.HTTP, True)),
        ({"name": "web", "port": 80, "appProtocol": "example.com/own"}, (AppProtocol.HTTP, True)),
        ({"name": "web", "port": 3306}, (AppProtocol.TCP, False)),
        ({"name": "http", "port": 3306}, (AppProtocol.HTTP, True)),
        ({"name": "grpc", "port": 9300}, (AppProtocol.HTTP2, True)),
    ],
)
def test_only_a_port_that_says_nothing_is_judged_by_its_number(
    port: dict[str, object], expected: tuple[AppProtocol, bool]
) -> None:
    [made] = parse(service("users", port))
    assert isinstance(made, Service)
    assert (made.ports[0].protocol, made.ports[0].declared) == expected


def test_a_service_keeps_its_tcp_ports_and_cluster_ips() -> None:
    ports = (
        {"name": "http", "port": 80, "targetPort": "web"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "db", "port": 5432, "appProtocol": "postgresql"},
    )
    assert parse(service("users", *ports, clusterIP="10.0.0.7", clusterIPs=["10.0.0.7", "fd00:0::7"])) == (
        Service(
            "shop",
            "users",
            (
                ServicePort("http", 80, "web", AppProtocol.HTTP, True),
                ServicePort("db", 5432, 5432, AppProtocol.TCP, True),
            ),
            ("10.0.0.7", "fd00::7"),
        ),
    )


def test_a_headless_service_has_no_cluster_ip() -> None:
    [found] = parse(service("users", clusterIP="None"))
    assert isinstance(found, Service)
    assert (found.cluster_ips, found.headless) == ((), True)


def test_an_external_name_is_another_name_and_its_ports_mean_nothing() -> None:
    found = parse(service("users", type="ExternalName", externalName="Users.blog.svc.cluster.local."))
    assert found == (Service("shop", "users", (), external_name="users.blog.svc.cluster.local"),)


def test_annotations_of_a_slice_say_how_its_workloads_are_reached() -> None:
    [found] = parse(
        endpoint_slice(
            "users-x",
            "10.1.0.1",
            runs_as="users",
            capture="enabled",
            inbound="strict",
            opaque_ports="6379, 3306",
            skip_inbound_ports="9090",
        )
    )
    assert isinstance(found, EndpointSlice)
    assert found.settings == WorkloadSettings(True, True, (3306, 6379), (9090,))
    assert not found.takes_mtls(9090)
    assert found.takes_mtls(8080)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("capture", "yes"),
        ("inbound", "open"),
        ("opaque_ports", "0"),
        ("opaque_ports", "65536"),
        ("opaque_ports", "3306,"),
        ("skip_inbound_ports", "http"),
    ],
)
def test_an_annotation_that_cannot_be_is_an_error_at_its_place(name: str, value: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse(endpoint_slice("users-x", "10.1.0.1", **{name: value}))
    assert caught.value.path[:2] == ("metadata", "annotations")


def test_opaque_ports_of_a_service_may_name_the_port_or_the_one_behind_it() -> None:
    ports = [
        {"name": name, "port": port, "targetPort": port + 8000} for name, port in (("http", 80), ("b", 81))
    ]
    for listed in ("81", "8081"):
        item = service("users", *ports)
        item["metadata"]["annotations"] = mesh_annotations({"opaque_ports": listed})
        [found] = parse(item)
        assert isinstance(found, Service)
        assert [(port.protocol, port.declared) for port in found.ports] == [
            (AppProtocol.HTTP, True),
            (AppProtocol.TCP, True),
        ]


def test_an_endpoint_slice_keeps_what_kubernetes_says_of_its_endpoints() -> None:
    entries: tuple[str | dict[str, Any], ...] = (
        "10.1.0.1",
        {"addresses": ["10.1.0.2"], "targetRef": {"kind": "Pod", "name": "users-b"}, "zone": "eu-1"},
        {"addresses": ["10.1.0.3"], "hostname": "c", "conditions": {"ready": False}},
        {"addresses": ["10.1.0.4"], "conditions": {"ready": False, "serving": True, "terminating": True}},
        {"addresses": ["10.1.0.5"], "conditions": {"ready": None}},
    )
    assert parse(endpoint_slice("users-x", *entries, runs_as="users")) == (
        EndpointSlice(
            "shop",
            "users-x",
            "users",
            "users",
            (EndpointPort("http", 8080, AppProtocol.HTTP, True),),
            (
                Endpoint("10.1.0.1", "endpoint-10-1-0-1"),
                Endpoint("10.1.0.2", "users-b", zone="eu-1"),
                Endpoint("10.1.0.3", "c", ready=False, serving=False, dns_label="c"),
                Endpoint("10.1.0.4", "endpoint-10-1-0-4", ready=False, serving=True, terminating=True),
                Endpoint("10.1.0.5", "endpoint-10-1-0-5"),
            ),
        ),
    )


def test_a_route_is_read_whole() -> None:
    rule = {
        "name": "first",
        "matches": [
            {
                "path": {"type": "PathPrefix", "value": "/v1/"},
                "method": "GET",
                "headers": [
                    {"name": "X-B", "value": "2"},
                    {"name": "x-a", "type": "RegularExpression", "value": "a+"},
                    {"name": "X-A", "value": "second of the same name does not count"},
                ],
                "queryParams": [{"name": "Q", "value": "1"}],
            }
        ],
        "filters": [
            {
                "type": "RequestHeaderModifier",
                "requestHeaderModifier": {
                    "set": [{"name": "X-Set", "value": "s"}],
                    "add": [{"name": "X-Add", "value": "a"}],
                    "remove": ["X-Gone"],
                },
            },
            {
                "type": "URLRewrite",
                "urlRewrite": {
                    "hostname": "h.example",
                    "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/v2/"},
                },
            },
        ],
        "timeouts": {"request": "1m30s", "backendRequest": "1s500ms"},
        "retry": {"codes": [503, 500, 503], "attempts": 4, "backoff": "100ms"},
        "backendRefs": [backend("users", weight=9), backend("orders", 81)],
    }
    found = parse_route(rule, to=[parent("users", port=80), parent("users", sectionName="http")])
    assert found.parents == (ParentRef("shop", "users", 80), ParentRef("shop", "users", None, "http"))
    assert found.parents[1].path == ("spec", "parentRefs", 1)
    assert found.rules == (
        RouteRule(
            matches=(
                RouteMatch(
                    PathMatch(PathKind.PREFIX, "/v1"),
                    "GET",
                    (ValueMatch("x-a", "a+", regex=True), ValueMatch("x-b", "2")),
                    (ValueMatch("Q", "1"),),
                ),
            ),
            filters=Filters(
                request_headers=HeaderModifier((("x-set", "s"),), (("x-add", "a"),), ("x-gone",)),
                rewrite=Rewrite("h.example", PathRewrite("/v2", prefix=True)),
            ),
            backends=(BackendRef("shop", "users", 80, 9), BackendRef("shop", "orders", 81, 1)),
            request_timeout=90.0,
            backend_timeout=1.5,
            retry=Retry((500, 503), 4, 0.1),
        ),
    )


def test_a_redirect_is_read_with_gateway_apis_defaults() -> None:
    body = {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"}, "scheme": "https"}
    found = parse_route({"filters": [{"type": "RequestRedirect", "requestRedirect": body}]})
    assert found.rules[0].filters.redirect == Redirect(302, "https", "", 0, PathRewrite("/new", prefix=False))


def test_a_rule_without_matches_matches_everything_and_a_route_without_rules_has_one() -> None:
    assert parse_route({"backendRefs": [backend("users")]}).rules[0].matches == (RouteMatch(),)
    assert parse_route().rules == (RouteRule(),)


@pytest.mark.parametrize(
    ("method", "path", "ranks"),
    [
        ({"service": "a.B", "method": "C"}, PathMatch(PathKind.EXACT, "/a.B/C"), (3, 1)),
        ({"service": "a.B"}, PathMatch(PathKind.RAW_PREFIX, "/a.B/"), (3, 0)),
        ({"method": "C"}, PathMatch(PathKind.REGEX, "/[^/]+/C"), (0, 1)),
        (
            {"type": "RegularExpression", "service": "a[.]B", "method": "C.*"},
            PathMatch(PathKind.REGEX, "/(?:a[.]B)/(?:C.*)"),
            (5, 3),
        ),
        (
            {"type": "RegularExpression", "service": "a|b"},
            PathMatch(PathKind.REGEX, "/(?:a|b)/[^/]+"),
            (3, 0),
        ),
    ],
)
def test_a_grpc_match_becomes_a_path(method: dict[str, str], path: PathMatch, ranks: tuple[int, int]) -> None:
    assert match_of({"method": method}, "GRPCRoute") == RouteMatch(path, grpc=GrpcMethod(*ranks))


def test_a_grpc_match_of_nothing_matches_every_call() -> None:
    everything = RouteMatch(PathMatch(PathKind.RAW_PREFIX, "/"), grpc=GrpcMethod(0, 0))
    assert parse_route({"backendRefs": [backend("users")]}, kind="GRPCRoute").rules[0].matches == (
        everything,
    )


def test_parents_that_are_no_services_are_left_to_others() -> None:
    parents = [{"name": "gateway"}, parent("users")]
    found = parse_route(to=parents)
    assert found.parents == (ParentRef("shop", "users"),)
    assert found.parents[0].path == ("spec", "parentRefs", 1)


def test_a_grant_is_read_for_services_and_routes_alone() -> None:
    value = grant("backend", "shop", service_name="users")
    value["spec"]["to"].append({"group": "", "kind": "Secret"})
    value["spec"]["from"].append({"group": "other.example", "kind": "HTTPRoute", "namespace": "shop"})
    [found] = parse(value)
    assert repr(found) == (
        "ReferenceGrant(namespace='backend', from_kind='HTTPRoute', from_namespace='shop', service='users')"
    )


def filter_rule(name: str, **body: Any) -> dict[str, Any]:
    field = name[0].lower() + name[1:] if name != "URLRewrite" else "urlRewrite"
    return {"filters": [{"type": name, field: body}]}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            {"matches": [{"pth": {"value": "/a"}}]},
            "spec.rules[0].matches[0].pth: unknown field; did you mean 'path'?",
        ),
        (
            {"matches": [{"path": {"value": "users"}}]},
            "spec.rules[0].matches[0].path.value: is 'users'; a path starts with '/'",
        ),
        (
            {"matches": [{"path": {"type": "Prefix", "value": "/"}}]},
            "spec.rules[0].matches[0].path.type: is 'Prefix'; expected one of Exact,"
            " PathPrefix, RegularExpression",
        ),
        (
            {"matches": [{"path": {"type": "RegularExpression", "value": "/("}}]},
            "spec.rules[0].matches[0].path.value: '/(' is not a regular expression: missing ), unterminated"
            " subpattern at position 1",
        ),
        (
            {"matches": [{"path": {"type": "RegularExpression", "value": "/(?=a)"}}]},
            "spec.rules[0].matches[0].path.value: '/(?=a)' looks around or back, which RE2, the syntax of"
            " xDS, does not have; write it without",
        ),
        (
            {"matches": [{"method": "get"}]},
            "spec.rules[0].matches[0].method: is 'get'; expected one of GET, HEAD, POST,"
            " PUT, DELETE, CONNECT,"
            " OPTIONS, TRACE, PATCH",
        ),
        (
            {"matches": [{"headers": [{"name": "x y", "value": "1"}]}]},
            "spec.rules[0].matches[0].headers[0].name: is 'x y'; expected a header name (RFC"
            " 9110, section 5.1)",
        ),
        (
            {"matches": [{"headers": [{"name": "x", "value": 1}]}]},
            "spec.rules[0].matches[0].headers[0].value: expected a text, found a number; quote it",
        ),
        (
            {"backendRefs": [{"name": "users"}]},
            "spec.rules[0].backendRefs[0].port: is required: a number from 1 to 65535",
        ),
        (
            {"backendRefs": [backend("users", 70000)]},
            "spec.rules[0].backendRefs[0].port: is 70000; expected a number from 1 to 65535",
        ),
        (
            {"timeouts": {"request": "10"}},
            "spec.rules[0].timeouts.request: is '10'; expected a duration such as 500ms, 10s or 1h30m",
        ),
        (
            {"timeouts": {"request": "1s", "backendRequest": "2s"}},
            "spec.rules[0].timeouts.backendRequest: is longer than request; one attempt"
            " cannot outlast the whole",
        ),
        (
            {"sessionPersistence": {"sessionName": "x"}},
            "spec.rules[0].sessionPersistence: session persistence is not supported; remove it",
        ),
        ({"retry": {"codes": [200]}}, "spec.rules[0].retry.codes: 200 is not a status from 400 to 599"),
        (
            filter_rule("RequestMirror", backendRef=backend("users")),
            "spec.rules[0].filters[0].type: the filter RequestMirror is not supported; remove it",
        ),
        (filter_rule("CORS"), "spec.rules[0].filters[0].type: the filter CORS is not supported; remove it"),
        (
            filter_rule("ExtensionRef"),
            "spec.rules[0].filters[0].type: the filter ExtensionRef is not supported; remove it",
        ),
        (
            {"filters": [{"type": "URLRewrite"}]},
            "spec.rules[0].filters[0].urlRewrite: is required: type is URLRewrite",
        ),
        (
            filter_rule("RequestHeaderModifier", set=[{"name": "Host", "value": "x"}]),
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].name: 'host' belongs to"
            " the proxies and cannot be"
            " changed; use URLRewrite's hostname",
        ),
        (
            filter_rule("RequestHeaderModifier", set=[{"name": "x", "value": "a\r\nb: c"}]),
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].value: is 'a\\r\\nb: c';"
            " expected a header value on"
            " one line",
        ),
        (
            {
                "matches": [{"path": {"type": "Exact", "value": "/a"}}],
                **filter_rule("URLRewrite", path={"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}),
            },
            "spec.rules[0].filters: ReplacePrefixMatch needs matches of type PathPrefix alone",
        ),
        (
            {**filter_rule("RequestRedirect", scheme="https"), "backendRefs": [backend("users")]},
            "spec.rules[0].backendRefs: a rule that redirects cannot have backends; remove one of the two",
        ),
        (
            filter_rule("URLRewrite", path={"type": "ReplaceFullPath", "replacePrefixMatch": "/b"}),
            "spec.rules[0].filters[0].urlRewrite.path.replaceFullPath: is required, alone:"
            " type is ReplaceFullPath",
        ),
    ],
)
def test_a_mistake_in_a_rule_names_the_field_and_what_belongs_there(
    rule: dict[str, Any], expected: str
) -> None:
    assert error_of(route("r", rule)) == expected


def test_mistakes_around_rules_are_named_too() -> None:
    assert error_of(route("r", to=[{"kind": "Service", "name": "users"}])) == (
        'spec.parentRefs[0].group: a Service is in the core group: write group: ""'
    )
    assert error_of({**service("s"), "apiVersion": "v2"}) == "apiVersion: is 'v2'; write 'v1' for a Service"
    assert error_of(service("s", {"port": 80}, {"port": 81})) == (
        "spec.ports[1].name: '' is used by ports[0] already; ports need their own"
    )
    assert error_of(service("Users")).startswith("metadata.name: is 'Users'; expected lower-case letters")
    assert error_of(endpoint_slice("users-x", "localhost")) == (
        "endpoints[0].addresses: 'localhost' is not an IP address"
    )
    assert error_of(endpoint_slice("users-x", {"addresses": []})) == (
        "endpoints[0].addresses: is required: one IP address"
    )
    unlabelled = endpoint_slice("users-x")
    unlabelled["metadata"]["labels"] = {}
    assert error_of(unlabelled) == (
        "metadata.labels: the label kubernetes.io/service-name, which names the Service of these endpoints,"
        " is missing"
    )


def test_what_is_no_object_is_refused_before_anything_is_read() -> None:
    for value, expected in (
        (["a"], "expected a mapping, found a list"),
        ({"apiVersion": "v1"}, "kind: is required: a text"),
        ({"kind": "Service", "metadata": {"name": "x"}}, "apiVersion: is required: a text"),
        ({"apiVersion": "v1", "kind": "Service"}, "metadata.name: is required: a text"),
    ):
        with pytest.raises(FieldError) as caught:
            describe(value)
        assert str(caught.value) == expected


def test_kinds_are_known_by_their_group() -> None:
    assert is_known(service("users"))
    assert is_known({**route("r"), "apiVersion": "gateway.networking.k8s.io/v1alpha2"})
    assert not is_known({**service("users"), "apiVersion": "serving.knative.dev/v1"})
    assert not is_known({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "users"}})
