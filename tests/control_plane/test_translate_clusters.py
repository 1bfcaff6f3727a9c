"""Clusters, endpoints and listeners, compared whole with the expected messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401  for ParseDict
from google.protobuf.json_format import MessageToDict, ParseDict

from control_plane.model.discovery import Dialect
from control_plane.model.mesh import MeshSettings, TracingSettings
from control_plane.model.service import AppProtocol, Service, ServicePort, WorkloadPort
from control_plane.translate.clusters import inbound_cluster, service_cluster
from control_plane.translate.endpoints import load_assignment
from control_plane.translate.listeners import api_listener, inbound_listener
from tests.support.kubernetes import endpoint_slice, mesh, service

USERS = "users.shop.svc.cluster.local:80"
HTTP = ServicePort("http", 80, 8080, AppProtocol.HTTP)
TYPES = "type.googleapis.com/envoy.extensions"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
MESHED = endpoint_slice("users-a", "127.0.1.1", "127.0.1.2", runs_as="users")
OUTSIDE = endpoint_slice("users-b", "127.0.1.3")


def cluster(
    *slices: dict[str, Any], port: ServicePort = HTTP, dialect: Dialect = Dialect.PILOTFISH
) -> Cluster:
    service = Service("shop", "users", (port,))
    return service_cluster(USERS, service, port, mesh(*slices).slices, dialect, "mesh.example")


def assignment(
    *slices: dict[str, Any], port: ServicePort = HTTP, dialect: Dialect = Dialect.PILOTFISH
) -> ClusterLoadAssignment:
    return load_assignment(USERS, port, mesh(*slices).slices, dialect)


def http2(**more: Any) -> dict[str, Any]:
    windows = {"initialStreamWindowSize": 262144, "initialConnectionWindowSize": 1048576, **more}
    return {
        "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions",
        "explicitHttpConfig": {"http2ProtocolOptions": windows},
    }


def base() -> dict[str, Any]:
    """What every dialect gets of a cluster without TLS."""
    policies = f"{TYPES}.load_balancing_policies"
    round_robin = {
        "name": "envoy.load_balancing_policies.round_robin",
        "typedConfig": {"@type": f"{policies}.round_robin.v3.RoundRobin"},
    }
    least_request = {
        "@type": f"{policies}.least_request.v3.LeastRequest",
        "localityLbConfig": {"localityWeightedLbConfig": {}},
    }
    wrr_locality = {
        "@type": f"{policies}.wrr_locality.v3.WrrLocality",
        "endpointPickingPolicy": {"policies": [{"typedExtensionConfig": round_robin}]},
    }
    listed = (("least_request", least_request), ("wrr_locality", wrr_locality))
    return {
        "name": USERS,
        "type": "EDS",
        "edsClusterConfig": {"edsConfig": {"ads": {}, "resourceApiVersion": "V3"}},
        "connectTimeout": "1s",
        "loadBalancingPolicy": {
            "policies": [
                {
                    "typedExtensionConfig": {
                        "name": f"envoy.load_balancing_policies.{name}",
                        "typedConfig": config,
                    }
                }
                for name, config in listed
            ]
        },
        "circuitBreakers": breakers(),
    }


def breakers() -> dict[str, Any]:
    most = 2**32 - 1
    budget = {"budgetPercent": {"value": 20.0}, "minRetryConcurrency": 10}
    limits = {"maxConnections": most, "maxPendingRequests": most, "maxRequests": most}
    return {"thresholds": [{**limits, "retryBudget": budget}]}


def upstream_tls(sans: Mapping[str, Any], alpn: list[str]) -> dict[str, Any]:
    provider = {"instanceName": "mesh"}
    common: dict[str, Any] = {
        "tlsCertificateProviderInstance": provider,
        "combinedValidationContext": {
            "defaultValidationContext": {"caCertificateProviderInstance": provider, **sans}
        },
    }
    if alpn:
        common["alpnProtocols"] = alpn
    context = {"@type": f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext", "commonTlsContext": common}
    return {"name": "envoy.transport_sockets.tls", "typedConfig": context}


EJECTION = {
    "consecutive5xx": 5,
    "baseEjectionTime": "1s",
    "maxEjectionTime": "60s",
    "maxEjectionPercent": 50,
}


def without_peak_ewma(message: Cluster) -> Cluster:
    """Takes the policy out whose schema is in no binding, so that the rest can be compared; checks it."""
    first = message.load_balancing_policy.policies[0].typed_extension_config
    assert (first.name, first.typed_config.type_url, first.typed_config.value) == (
        "envoy.load_balancing_policies.peak_ewma",
        "type.googleapis.com/envoy.extensions.load_balancing_policies.peak_ewma.v3alpha.PeakEwma",
        b"",
    )
    del message.load_balancing_policy.policies[0]
    return message


def test_a_service_with_sidecars_is_http2_over_mtls_with_its_accounts() -> None:
    other = endpoint_slice("users-c", "127.0.1.4", runs_as="users-canary")
    sans = {
        "matchTypedSubjectAltNames": [
            {"sanType": "URI", "matcher": {"exact": f"spiffe://mesh.example/ns/shop/sa/{account}"}}
            for account in ("users", "users-canary")
        ]
    }
    expected = {
        **base(),
        "outlierDetection": EJECTION,
        "transportSocket": upstream_tls(sans, ["pilotfish-h2", "h2"]),
        "typedExtensionProtocolOptions": {HTTP_OPTIONS: http2()},
    }
    assert without_peak_ewma(cluster(other, MESHED)) == ParseDict(expected, Cluster())


def test_a_grpc_client_gets_the_older_field_for_identities_and_no_ejection() -> None:
    sans = {"matchSubjectAltNames": [{"exact": "spiffe://mesh.example/ns/shop/sa/users"}]}
    expected = {**base(), "transportSocket": upstream_tls(sans, [])}
    assert without_peak_ewma(cluster(MESHED, OUTSIDE, dialect=Dialect.GRPC)) == ParseDict(expected, Cluster())


def test_a_service_outside_the_mesh_is_reached_as_it_is() -> None:
    expected = {**base(), "outlierDetection": EJECTION}
    assert without_peak_ewma(cluster(OUTSIDE)) == ParseDict(expected, Cluster())
    grpc = ServicePort("http", 80, 8080, AppProtocol.HTTP2)
    assert without_peak_ewma(cluster(OUTSIDE, port=grpc)) == ParseDict(
        {**expected, "typedExtensionProtocolOptions": {HTTP_OPTIONS: http2()}}, Cluster()
    )


def test_a_slice_without_replicas_still_says_whom_to_trust() -> None:
    empty = endpoint_slice("users-a", runs_as="users")
    assert cluster(empty) == cluster(MESHED)


def test_a_slice_without_the_port_says_nothing_of_it() -> None:
    elsewhere = endpoint_slice(
        "users-a", "127.0.1.1", runs_as="users", ports=[{"name": "admin", "port": 9090}]
    )
    assert not cluster(elsewhere).HasField("transport_socket")
    assert list(assignment(elsewhere).endpoints) == []


def test_the_inbound_cluster_speaks_what_the_application_speaks() -> None:
    address = {"socketAddress": {"address": "127.0.1.1", "portValue": 8080}}
    local = {
        "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions",
        "commonHttpProtocolOptions": {"idleTimeout": "1s"},
        "explicitHttpConfig": {"httpProtocolOptions": {}},
    }
    expected = {
        "name": "inbound|8080|127.0.1.1",
        "type": "STATIC",
        "connectTimeout": "5s",
        "loadAssignment": {
            "clusterName": "inbound|8080|127.0.1.1",
            "endpoints": [{"lbEndpoints": [{"endpoint": {"address": address}}]}],
        },
        "circuitBreakers": breakers(),
    }
    for protocol, options in (
        (AppProtocol.HTTP, local),
        (AppProtocol.TCP, local),
        (AppProtocol.HTTP2, http2()),
    ):
        workload = WorkloadPort("127.0.1.1", 8080, protocol, "shop", "users")
        wanted = ParseDict({**expected, "typedExtensionProtocolOptions": {HTTP_OPTIONS: options}}, Cluster())
        assert inbound_cluster(workload) == wanted


def endpoint(
    address: str, port: int, hostname: str, health: str = "HEALTHY", **metadata: Any
) -> dict[str, Any]:
    socket = {"socketAddress": {"address": address, "portValue": port}}
    return {
        "endpoint": {"address": socket, "hostname": hostname},
        "healthStatus": health,
        "metadata": {"filterMetadata": metadata},
    }


def test_endpoints_are_grouped_by_zone_with_their_number_as_weight() -> None:
    entries = [
        {"addresses": ["127.0.1.9"], "zone": "b"},
        {"addresses": ["127.0.1.2"], "zone": "a", "hostname": "two"},
        {"addresses": ["127.0.1.1"], "zone": "a"},
    ]
    again = endpoint_slice("users-z", "127.0.1.9", runs_as="users")
    again["endpoints"][0]["zone"] = "b"
    expected = {
        "clusterName": USERS,
        "endpoints": [
            {
                "locality": {"zone": "a"},
                "loadBalancingWeight": 2,
                "lbEndpoints": [
                    endpoint(
                        "127.0.1.1",
                        18080,
                        "endpoint-127-0-1-1",
                        **{"mesh.pilotfish.dev": {"tunnel": "127.0.1.1:8080"}},
                    ),
                    endpoint(
                        "127.0.1.2", 18080, "two", **{"mesh.pilotfish.dev": {"tunnel": "127.0.1.2:8080"}}
                    ),
                ],
            },
            {
                "locality": {"zone": "b"},
                "loadBalancingWeight": 1,
                "lbEndpoints": [
                    endpoint(
                        "127.0.1.9",
                        18080,
                        "endpoint-127-0-1-9",
                        **{"mesh.pilotfish.dev": {"tunnel": "127.0.1.9:8080"}},
                    ),
                ],
            },
        ],
    }
    found = assignment(endpoint_slice("users-a", *entries, runs_as="users"), again)
    assert found == ParseDict(expected, ClusterLoadAssignment())


def test_a_locality_without_a_zone_is_still_there_for_grpc() -> None:
    [locality] = assignment(MESHED).endpoints
    assert locality.HasField("locality")


def test_replicas_that_leave_are_draining_and_those_not_ready_are_left_out() -> None:
    entries = [
        {"addresses": ["127.0.1.1"], "conditions": {"ready": True}},
        {"addresses": ["127.0.1.2"], "conditions": {"ready": False, "serving": True, "terminating": True}},
        {"addresses": ["127.0.1.3"], "conditions": {"ready": False, "serving": False, "terminating": True}},
        {"addresses": ["127.0.1.4"], "conditions": {"ready": False}},
        # publishNotReadyAddresses
        {"addresses": ["127.0.1.5"], "conditions": {"ready": True, "terminating": True}},
    ]
    [locality] = MessageToDict(assignment(endpoint_slice("users-a", *entries, runs_as="users")))["endpoints"]
    assert [
        (found["endpoint"]["address"]["socketAddress"]["address"], found["healthStatus"])
        for found in locality["lbEndpoints"]
    ] == [("127.0.1.1", "HEALTHY"), ("127.0.1.2", "DRAINING"), ("127.0.1.5", "DRAINING")]


def test_a_replica_outside_the_mesh_is_reached_at_its_own_port_in_plaintext() -> None:
    plain = endpoint(
        "127.0.1.3",
        8080,
        "endpoint-127-0-1-3",
        **{
            "envoy.transport_socket_match": {"tlsMode": "disabled"},
            "mesh.pilotfish.dev": {"protocol": "http1"},
        },
    )
    [locality] = MessageToDict(assignment(OUTSIDE))["endpoints"]
    assert locality["lbEndpoints"] == [plain]
    [mixed] = MessageToDict(assignment(MESHED, OUTSIDE))["endpoints"]
    assert len(mixed["lbEndpoints"]) == 3
    assert mixed["lbEndpoints"][2] == plain


@pytest.mark.parametrize(
    ("declared", "spoken"), [("", "http1"), ("http", "http1"), ("grpc", None), ("redis", None)]
)
def test_a_replica_outside_the_mesh_is_spoken_to_as_its_application_speaks(
    declared: str, spoken: str | None
) -> None:
    """Beside replicas with sidecars, whose cluster is HTTP/2."""
    port = {"name": "main", "port": 80, "targetPort": 8080, **({"appProtocol": declared} if declared else {})}
    ports = [{"name": "main", "port": 8080}]
    found = mesh(
        service("users", port),
        endpoint_slice("users-a", "127.0.1.1", runs_as="users", ports=ports),
        endpoint_slice("users-b", "127.0.1.2", ports=ports),
    )
    [users] = found.services.values()
    [locality] = load_assignment(USERS, users.ports[0], found.slices, Dialect.PILOTFISH).endpoints
    meshed, plain = (
        MessageToDict(each.metadata)["filterMetadata"].get("mesh.pilotfish.dev", {})
        for each in locality.lb_endpoints
    )
    assert (meshed.get("protocol"), plain.get("protocol")) == (None, spoken)


def test_a_grpc_client_gets_no_plaintext_replicas_beside_those_with_sidecars() -> None:
    [mixed] = assignment(MESHED, OUTSIDE, dialect=Dialect.GRPC).endpoints
    assert len(mixed.lb_endpoints) == mixed.load_balancing_weight.value == 2
    [alone] = assignment(OUTSIDE, dialect=Dialect.GRPC).endpoints
    assert len(alone.lb_endpoints) == 1


MANAGER = f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {
    "name": "envoy.filters.http.router",
    "typedConfig": {"@type": f"{TYPES}.filters.http.router.v3.Router"},
}
OVERLOAD = {
    "name": "envoy.filters.http.adaptive_concurrency",
    "typedConfig": {
        "@type": f"{TYPES}.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency",
        "gradientControllerConfig": {},
    },
}
STDOUT = {
    "name": "envoy.access_loggers.stdout",
    "typedConfig": {"@type": f"{TYPES}.access_loggers.stream.v3.StdoutAccessLog"},
}


def tracing(service_name: str) -> dict[str, Any]:
    provider = {
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "serviceName": service_name,
        "httpService": {"httpUri": {"uri": "http://otlp/v1/traces", "cluster": "otlp", "timeout": "10s"}},
    }
    return {
        "randomSampling": {"value": 1.0},
        "spawnUpstreamSpan": True,
        "provider": {"name": "envoy.tracers.opentelemetry", "typedConfig": provider},
    }


SETTINGS = MeshSettings(tracing=TracingSettings(1.0, "otlp"), access_log=True)


def test_a_listener_by_name_says_where_its_routes_are() -> None:
    manager = {
        "@type": MANAGER,
        "statPrefix": USERS,
        "rds": {"routeConfigName": USERS, "configSource": {"ads": {}, "resourceApiVersion": "V3"}},
        "httpFilters": [ROUTER],
    }
    sidecar = {**manager, "upgradeConfigs": [{"upgradeType": "websocket"}]}
    observed = {**sidecar, "tracing": tracing("orders"), "accessLog": [STDOUT]}
    for dialect, settings, expected in (
        (Dialect.PILOTFISH, SETTINGS, observed),
        (Dialect.PILOTFISH, MeshSettings(access_log=False), sidecar),
        (Dialect.GRPC, SETTINGS, manager),
    ):
        found = api_listener("users:80", USERS, dialect, settings, "orders")
        wanted = {"name": "users:80", "apiListener": {"apiListener": expected}}
        assert found == ParseDict(wanted, Listener())


def inbound_action(**more: Any) -> dict[str, Any]:
    return {"cluster": "inbound|8080|127.0.1.1", "timeout": "0s", **more}


def expected_inbound(*routes: dict[str, Any]) -> Listener:
    connect = {
        "name": "tcp",
        "match": {"connectMatcher": {}},
        "route": inbound_action(upgradeConfigs=[{"upgradeType": "CONNECT", "connectConfig": {}}]),
    }
    name = "inbound|127.0.1.1|8080"
    manager = {
        "@type": MANAGER,
        "statPrefix": name,
        "codecType": "HTTP2",
        "routeConfig": {
            "name": name,
            "virtualHosts": [{"name": "inbound", "domains": ["*"], "routes": [connect, *routes]}],
        },
        "httpFilters": [OVERLOAD, ROUTER],
        "http2ProtocolOptions": {
            "initialStreamWindowSize": 262144,
            "initialConnectionWindowSize": 1048576,
            "allowConnect": True,
        },
        "forwardClientCertDetails": "SANITIZE_SET",
        "setCurrentClientCertDetails": {"uri": True},
        "upgradeConfigs": [{"upgradeType": "CONNECT"}, {"upgradeType": "websocket"}],
        "streamIdleTimeout": "0s",
        "tracing": tracing("users"),
        "accessLog": [STDOUT],
    }
    provider = {"instanceName": "mesh"}
    context = {
        "@type": f"{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
        "requireClientCertificate": True,
        "commonTlsContext": {
            "tlsCertificateProviderInstance": provider,
            "combinedValidationContext": {
                "defaultValidationContext": {"caCertificateProviderInstance": provider}
            },
            "alpnProtocols": ["pilotfish-h2", "h2"],
        },
    }
    chain = {
        "transportSocket": {"name": "envoy.transport_sockets.tls", "typedConfig": context},
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typedConfig": manager}],
    }
    listener = {
        "name": name,
        "address": {"socketAddress": {"address": "127.0.1.1", "portValue": 18080}},
        "trafficDirection": "INBOUND",
        "filterChains": [chain],
    }
    return ParseDict(listener, Listener())


def test_the_inbound_listener_wants_mtls_and_hands_all_to_the_application() -> None:
    everything = {"name": "default", "match": {"prefix": "/"}, "route": inbound_action()}
    for protocol in (AppProtocol.HTTP, AppProtocol.HTTP2):
        workload = WorkloadPort("127.0.1.1", 8080, protocol, "shop", "users")
        assert inbound_listener(workload, SETTINGS) == expected_inbound(everything)


def test_the_inbound_listener_of_an_opaque_port_takes_connect_alone() -> None:
    workload = WorkloadPort("127.0.1.1", 8080, AppProtocol.TCP, "shop", "users")
    assert inbound_listener(workload, SETTINGS) == expected_inbound()


# --- zones and hints ---


def hinted(address: str, zone: str, *hints: str, **conditions: bool) -> dict[str, Any]:
    return {
        "addresses": [address],
        "zone": zone,
        "hints": {"forZones": [{"name": hint} for hint in hints]},
        "conditions": {"ready": True, **conditions},
    }


def priorities(client_zone: str, *entries: dict[str, Any]) -> list[tuple[int, str, list[str]]]:
    """Priority, zone and addresses of each locality."""
    slices = mesh(endpoint_slice("users-a", *entries, runs_as="users")).slices
    found = load_assignment(USERS, HTTP, slices, Dialect.PILOTFISH, client_zone)
    return [
        (
            locality.priority,
            locality.locality.zone,
            [item.endpoint.address.socket_address.address for item in locality.lb_endpoints],
        )
        for locality in found.endpoints
    ]


A, B, C = hinted("10.0.0.1", "a", "a"), hinted("10.0.0.2", "b", "b"), hinted("10.0.0.3", "b", "a")


def test_replicas_meant_for_the_clients_zone_come_first_and_the_others_are_their_reserve() -> None:
    assert priorities("a", A, B, C) == [
        (0, "a", ["10.0.0.1"]),
        (0, "b", ["10.0.0.3"]),
        (1, "b", ["10.0.0.2"]),
    ]
    assert priorities("b", A, B, C) == [
        (0, "b", ["10.0.0.2"]),
        (1, "a", ["10.0.0.1"]),
        (1, "b", ["10.0.0.3"]),
    ]


@pytest.mark.parametrize(
    ("client_zone", "more"),
    [
        ("", []),
        ("elsewhere", []),
        ("a", [{"addresses": ["10.0.0.9"], "zone": "c"}]),
    ],
    ids=["unknown zone", "zone without replicas", "a replica without a hint"],
)
def test_otherwise_hints_do_not_count(client_zone: str, more: list[dict[str, Any]]) -> None:
    assert {priority for priority, _, _ in priorities(client_zone, A, B, *more)} == {0}


def test_a_replica_that_leaves_does_not_keep_its_zone_from_the_others() -> None:
    leaving = hinted("10.0.0.1", "a", "a", ready=False, serving=True, terminating=True)
    assert {priority for priority, _, _ in priorities("a", leaving, B)} == {0}


def test_overload_protection_can_be_switched_off() -> None:
    port = WorkloadPort("127.0.1.1", 8080, AppProtocol.HTTP, "shop", "users")
    [chain] = inbound_listener(port, MeshSettings(overload_protection=False)).filter_chains
    manager = HttpConnectionManager()
    chain.filters[0].typed_config.Unpack(manager)
    assert [each.name for each in manager.http_filters] == ["envoy.filters.http.router"]
