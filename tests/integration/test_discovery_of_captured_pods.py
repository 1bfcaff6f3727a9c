"""What the control plane makes of captured pods, read by the sidecar's own decoders and found by address."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from random import Random

from control_plane.model.discovery import Dialect, Identity, NodeInfo
from control_plane.model.mesh import MeshSettings
from control_plane.model.service import Workload, WorkloadSettings
from control_plane.pipeline import Pipeline
from control_plane.registry import Registry
from control_plane.translate.names import CLUSTER, LISTENER, LOAD_ASSIGNMENT, ROUTE_CONFIGURATION
from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import (
    ClusterConfig,
    EndpointsConfig,
    HttpConnectionManagerConfig,
    ListenerConfig,
    RouteConfiguration,
    TcpProxyConfig,
)
from sidecar.protocol.sniff import Protocol
from sidecar.server.tunnel import declared_protocol, pick_cluster, tunnel_route
from sidecar.xds.resource_types import RESOURCE_TYPES
from tests.support.kubernetes import endpoint_slice, mesh, service

PORTS = [
    {"name": "http", "port": 80},
    {"name": "api", "port": 81, "appProtocol": "kubernetes.io/h2c"},
    {"name": "plain", "port": 82},
    {"name": "redis", "port": 83},
    {"name": "https", "port": 84},
    {"name": "metrics", "port": 85},
]
OBJECTS = [
    service("app", *PORTS, clusterIP="10.0.0.1"),
    endpoint_slice(
        "app-a",
        "10.1.0.1",
        runs_as="app",
        ports=[{"name": port["name"], "port": port["port"]} for port in PORTS],
        capture="enabled",
        skip_inbound_ports="85",
    ),
]
POD = Workload(
    "shop",
    "app-1",
    "app",
    ("10.1.0.1", "fd00::1"),
    settings=WorkloadSettings(captured=True, skip_inbound_ports=(85,)),
)


def decoded(type_url: str, names: Iterable[str] | None) -> Mapping[str, object]:
    registry = Registry()
    pipeline = Pipeline(registry, MeshSettings())
    registry.replace(replace(mesh(*OBJECTS), workloads=(POD,)))
    client = NodeInfo("n", "c", Dialect.PILOTFISH, Identity("shop", "app"), "10.1.0.1")
    wanted = None if names is None else frozenset(names)
    kind = RESOURCE_TYPES[type_url]
    found = pipeline.resources(client, type_url, wanted)
    return {name: kind.decode(each.body, name) for name, each in found.items()}


def test_a_captured_pod_gets_a_listener_for_each_port_at_each_of_its_addresses() -> None:
    found = decoded(LISTENER, None)
    clusters = decoded(CLUSTER, None)
    assert set(found) == {f"inbound|{address}|{port}" for address in POD.addresses for port in range(80, 85)}
    for name, listener in found.items():
        assert isinstance(listener, ListenerConfig)
        _, address, port = name.split("|")
        assert (listener.inbound, listener.bind_to_port, str(listener.address).strip("[]")) == (
            True,
            False,
            f"{address}]:{port}" if ":" in address else f"{address}:{port}",
        )
        [chain] = listener.filter_chains
        assert chain.tls is not None
        assert chain.tls.require_client_certificate
        assert chain.match.transport_protocol == "tls"
        assert chain.match.application_protocols == (
            ("pilotfish-h2", "h2") if port in ("80", "81") else ("pilotfish-h2",)
        )
        plain = listener.default_filter_chain
        assert plain is not None
        assert plain.tls is None
        declared_http = port in ("80", "81")
        assert isinstance(plain.network, HttpConnectionManagerConfig if declared_http else TcpProxyConfig)
        assert listener.continue_on_timeout != declared_http
        cluster = clusters[f"inbound|{port}|{address}"]
        assert isinstance(cluster, ClusterConfig)
        assert cluster.source_addresses == (("::6",) if ":" in address else ("127.0.0.6",))


def test_a_captured_call_to_the_pods_address_finds_it_and_knows_what_it_speaks() -> None:
    expected = {
        80: Protocol.HTTP1,
        81: Protocol.HTTP1,
        82: Protocol.NEED_MORE,
        83: Protocol.OTHER,
        84: Protocol.OTHER,
        85: Protocol.NEED_MORE,
    }
    for host, address in (("10.1.0.1", "10.1.0.1"), ("[fd00::1]", "fd00::1")):
        for port, protocol in expected.items():
            name = f"{host}:{port}"
            listener = decoded(LISTENER, [name])[name]
            assert isinstance(listener, ListenerConfig)
            assert listener.api_listener is not None
            routes = decoded(ROUTE_CONFIGURATION, [name])[name]
            assert isinstance(routes, RouteConfiguration)
            compiled = CompiledRoutes(routes)
            assert declared_protocol(compiled, name.encode()) is protocol
            route = tunnel_route(compiled, Random(1))
            assert route is not None
            assert route.action is not None
            assert pick_cluster(route.action, Random(1)) == name
            cluster = decoded(CLUSTER, [name])[name]
            assert isinstance(cluster, ClusterConfig)
            assert (cluster.tls is None) == (port == 85)
            assignment = decoded(LOAD_ASSIGNMENT, [name])[name]
            assert isinstance(assignment, EndpointsConfig)
            [locality] = assignment.localities
            [endpoint] = locality.endpoints
            assert endpoint.address.host == address
            assert endpoint.address.port == port
            assert endpoint.plaintext == (port == 85)
            assert endpoint.tunnel_authority == ("" if port == 85 else name)
