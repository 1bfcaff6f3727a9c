"""What the control plane makes of the example, read by the sidecar: neither half may change alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from control_plane.model.discovery import Dialect, Identity, NodeInfo, Resource
from control_plane.model.mesh import MeshSettings, TracingSettings
from control_plane.pipeline import Pipeline
from control_plane.registry import Registry
from control_plane.sources.load import load
from control_plane.translate.names import CLUSTER, LISTENER, LOAD_ASSIGNMENT, ROUTE_CONFIGURATION
from mesh_api.names import inbound_port
from sidecar.config.decode import (
    decode_cluster,
    decode_endpoints,
    decode_listener,
    decode_route_configuration,
)
from sidecar.config.resources import (
    ClientCert,
    Discovery,
    Health,
    Http2Options,
    HttpConnectionManagerConfig,
    LbPolicy,
    SocketAddress,
    StringMatcher,
)
from tests.support.kubernetes import backend, endpoint_slice, mesh, route, service

SHOP = Path(__file__).parents[2] / "examples" / "shop"
USERS = "users.shop.svc.cluster.local:80"
ORDERS = "orders.shop.svc.cluster.local:80"
GREETER = "greeter.shop.svc.cluster.local:50051"
NODE = NodeInfo("users-1", "users", Dialect.PILOTFISH, Identity("shop", "users"), "127.0.1.1")
DECODERS: dict[str, Callable[[bytes, str], object]] = {
    LISTENER: decode_listener,
    ROUTE_CONFIGURATION: decode_route_configuration,
    CLUSTER: decode_cluster,
    LOAD_ASSIGNMENT: decode_endpoints,
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("shop")
    for file in SHOP.glob("*.yaml"):
        shutil.copy(file, folder)
    shutil.copytree(SHOP / "laptop", folder / "laptop")
    loaded = load(folder)
    assert loaded.problems == ()
    assert loaded.mesh is not None
    registry = Registry()
    made = Pipeline(registry, MeshSettings(tracing=TracingSettings(1.0, "otlp", "http://otlp/v1/traces")))
    registry.replace(loaded.mesh)
    yield made
    assert made.problems == ()


def get(pipeline: Pipeline, type_url: str, *names: str) -> dict[str, Resource]:
    return dict(pipeline.resources(NODE, type_url, frozenset(names)))


def test_every_resource_of_the_example_is_accepted_by_the_sidecar(pipeline: Pipeline) -> None:
    wanted = {
        LISTENER: ("users:80", "orders.shop:80", "greeter.shop.svc.cluster.local:50051"),
        ROUTE_CONFIGURATION: (USERS, ORDERS, GREETER),
        CLUSTER: (USERS, ORDERS, GREETER),
        LOAD_ASSIGNMENT: (USERS, ORDERS, GREETER),
    }
    for type_url, names in wanted.items():
        resources = get(pipeline, type_url, *names)
        assert set(resources) == set(names)
        for name, resource in resources.items():
            DECODERS[type_url](resource.body, name)


def test_every_replica_finds_its_own_inbound_listener_and_cluster(pipeline: Pipeline) -> None:
    replicas = {
        "users": ("127.0.1.1", "127.0.1.2"),
        "orders": ("127.0.1.11", "127.0.1.12"),
        "greeter": ("127.0.1.21", "127.0.1.22"),
    }
    for account, addresses in replicas.items():
        port = 50051 if account == "greeter" else 8080
        for address in addresses:
            node = NodeInfo("n", "c", Dialect.PILOTFISH, Identity("shop", account), address)
            [(listener_name, listener)] = pipeline.resources(node, LISTENER, None).items()
            [(cluster_name, cluster)] = pipeline.resources(node, CLUSTER, None).items()
            bound = decode_listener(listener.body, listener_name)
            assert bound.address == SocketAddress(address, inbound_port(port))
            assert cluster_name == f"inbound|{port}|{address}"
            local = decode_cluster(cluster.body, cluster_name)
            assert (local.http2 is None) == (account != "greeter")


def test_the_inbound_listener_asks_for_a_certificate_and_passes_the_identity_on(pipeline: Pipeline) -> None:
    [(name, resource)] = pipeline.resources(NODE, LISTENER, None).items()
    listener = decode_listener(resource.body, name)
    [chain] = listener.filter_chains
    assert listener.inbound
    assert chain.tls is not None
    assert chain.tls.require_client_certificate
    assert (chain.tls.provider, chain.tls.trusted_ca_provider) == ("mesh", "mesh")
    assert chain.tls.alpn == ("pilotfish-h2", "h2")
    manager = chain.network
    assert isinstance(manager, HttpConnectionManagerConfig)
    assert (manager.codec, manager.client_cert, manager.client_cert_uri) == (
        "HTTP2",
        ClientCert.SANITIZE_SET,
        True,
    )
    assert manager.stream_idle_timeout == 0.0
    assert manager.tracing is not None
    assert (manager.tracing.random_sampling, manager.tracing.collector_cluster) == (1.0, "otlp")
    assert manager.tracing.service_name == "users"
    assert manager.route_config is not None
    [host] = manager.route_config.virtual_hosts
    connect, everything = host.routes
    assert connect.match.connect
    assert everything.match.prefix == "/"
    assert everything.action is not None
    assert everything.action.timeout == 0.0
    assert everything.action.clusters[0].name == "inbound|8080|127.0.1.1"


def test_a_service_is_reached_over_mtls_with_peak_ewma_and_ejection(pipeline: Pipeline) -> None:
    cluster = decode_cluster(get(pipeline, CLUSTER, USERS)[USERS].body, USERS)
    assert cluster.discovery is Discovery.EDS
    assert cluster.lb_policy is LbPolicy.PEAK_EWMA
    assert cluster.connect_timeout == 1.0
    assert cluster.http2 == Http2Options(
        initial_stream_window_size=256 * 1024, initial_connection_window_size=1024 * 1024
    )
    assert cluster.tls is not None
    assert cluster.tls.uri_san_matchers == (
        StringMatcher("exact", "spiffe://cluster.local/ns/shop/sa/users"),
    )
    assert cluster.tls.alpn == ("pilotfish-h2", "h2")
    assert cluster.circuit_breakers.max_requests == 2**32 - 1
    assert cluster.circuit_breakers.retry_budget_percent == 20.0
    assert cluster.circuit_breakers.min_retries_per_second == 10.0
    ejection = cluster.outlier_detection
    assert ejection is not None
    assert (ejection.consecutive_5xx, ejection.base_ejection_time, ejection.max_ejection_time) == (
        5,
        1.0,
        60.0,
    )
    assert ejection.max_ejection_percent == 50


def test_endpoints_are_the_sidecars_and_keep_their_names_and_original_addresses(pipeline: Pipeline) -> None:
    endpoints = decode_endpoints(get(pipeline, LOAD_ASSIGNMENT, GREETER)[GREETER].body, GREETER)
    [locality] = endpoints.localities
    assert (locality.weight, locality.priority) == (2, 0)
    assert [
        (str(each.address), each.hostname, each.tunnel_authority, each.plaintext, each.health)
        for each in locality.endpoints
    ] == [
        ("127.0.1.21:60051", "greeter-1", "127.0.1.21:50051", False, Health.HEALTHY),
        ("127.0.1.22:60051", "greeter-2", "127.0.1.22:50051", False, Health.HEALTHY),
    ]


def modifier(kind: str) -> dict[str, Any]:
    body = {
        "set": [{"name": "x-a", "value": "50%"}],
        "add": [{"name": "x-b", "value": "b"}],
        "remove": ["x-c"],
    }
    return {"type": kind, kind[0].lower() + kind[1:]: body}


def rewrite(kind: str, value: str) -> dict[str, Any]:
    path = {"type": kind, kind[0].lower() + kind[1:]: value}
    return {"type": "URLRewrite", "urlRewrite": {"hostname": "other.example", "path": path}}


def redirect(**fields: Any) -> dict[str, Any]:
    return {"filters": [{"type": "RequestRedirect", "requestRedirect": fields}]}


def test_everything_that_a_route_can_say_is_accepted_by_the_sidecar() -> None:
    to_users = {"backendRefs": [backend("users")]}
    everywhere = {
        "path": {"type": "RegularExpression", "value": "/[a-z]+/(?:x|y)*"},
        "method": "PATCH",
        "headers": [{"name": "A", "type": "RegularExpression", "value": "a.*"}, {"name": "b", "value": "1"}],
        "queryParams": [
            {"name": "q", "type": "RegularExpression", "value": "1+"},
            {"name": "r", "value": "2"},
        ],
    }
    weighted = [backend("users", weight=3, filters=[modifier("ResponseHeaderModifier")]), backend("orders")]
    both = [modifier("RequestHeaderModifier"), modifier("ResponseHeaderModifier")]
    rules = [
        {"matches": [everywhere], **to_users, "timeouts": {"request": "2s", "backendRequest": "500ms"}},
        {
            "matches": [{"path": {"type": "Exact", "value": "/exact"}}],
            "filters": both,
            "backendRefs": weighted,
        },
        {"matches": [{"path": {"value": "/a"}}], "filters": [rewrite("ReplacePrefixMatch", "/")], **to_users},
        {
            "matches": [{"path": {"value": "/b"}}],
            "filters": [rewrite("ReplacePrefixMatch", "/z")],
            **to_users,
        },
        {
            "matches": [{"path": {"value": "/c"}}],
            "filters": [rewrite("ReplaceFullPath", "/z\\1")],
            **to_users,
        },
        {"matches": [{"path": {"value": "/d"}}], "retry": {"codes": [503], "backoff": "50ms"}, **to_users},
        {"matches": [{"path": {"value": "/e"}}], **redirect(scheme="https", hostname="a.example", port=8443)},
        {"matches": [{"path": {"value": "/f"}}], **redirect(statusCode=308)},
        {"matches": [{"path": {"value": "/g"}}]},
    ]
    calls = [
        {"matches": [{"method": {"method": "Hello"}}], **to_users},
        {"matches": [{"method": {"type": "RegularExpression", "service": "a|b"}}], **to_users},
    ]
    for kind, listed in (("HTTPRoute", rules), ("GRPCRoute", calls)):
        registry = Registry()
        pipeline = Pipeline(registry, MeshSettings())
        registry.replace(mesh(service("users"), service("orders"), route("r", *listed, kind=kind)))
        body = get(pipeline, ROUTE_CONFIGURATION, USERS)[USERS].body
        [host] = decode_route_configuration(body, kind).virtual_hosts
        assert {found.name for found in host.routes} == {f"shop/r/{i}" for i in range(len(listed))}


def test_a_port_of_opaque_tcp_and_replicas_outside_the_mesh_are_accepted_by_the_sidecar() -> None:
    registry = Registry()
    pipeline = Pipeline(registry, MeshSettings())
    redis = [{"name": "redis", "port": 6379}]
    inside = endpoint_slice("redis-a", "127.0.1.1", runs_as="users", ports=redis)
    registry.replace(
        mesh(service("redis", *redis), inside, endpoint_slice("redis-b", "127.0.1.2", ports=redis))
    )
    name = "redis.shop.svc.cluster.local:6379"
    [endpoints] = decode_endpoints(get(pipeline, LOAD_ASSIGNMENT, name)[name].body, name).localities
    assert [(str(each.address), each.plaintext) for each in endpoints.endpoints] == [
        ("127.0.1.1:16379", False),
        ("127.0.1.2:6379", True),
    ]
    [host] = decode_route_configuration(
        get(pipeline, ROUTE_CONFIGURATION, name)[name].body, name
    ).virtual_hosts
    assert [found.match.connect for found in host.routes] == [True]
    [(listener_name, listener)] = pipeline.resources(NODE, LISTENER, None).items()
    manager = decode_listener(listener.body, listener_name).filter_chains[0].network
    assert isinstance(manager, HttpConnectionManagerConfig)
    assert manager.tracing is None
    assert manager.route_config is not None
    assert [found.match.connect for found in manager.route_config.virtual_hosts[0].routes] == [True]
