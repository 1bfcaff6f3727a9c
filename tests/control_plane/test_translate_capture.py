"""Captured workloads and single workloads in xDS, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext, UpstreamTlsContext
from google.protobuf.json_format import MessageToDict

from control_plane.model.discovery import Dialect
from control_plane.model.mesh import MeshSettings
from control_plane.model.service import AppProtocol, Service, ServicePort, WorkloadPort, WorkloadSettings
from control_plane.translate.clusters import inbound_cluster, service_cluster
from control_plane.translate.endpoints import load_assignment
from control_plane.translate.listeners import inbound_listener
from control_plane.translate.workloads import workload_assignment, workload_cluster, workload_routes
from tests.support.kubernetes import endpoint_slice, mesh

CAPTURED = WorkloadSettings(captured=True)
PORT = WorkloadPort(
    "10.1.0.1", 8080, AppProtocol.HTTP, "shop", "users", declared=True, hostname="users-1", settings=CAPTURED
)
UNDECLARED = PORT._replace(declared=False)
OPAQUE = PORT._replace(protocol=AppProtocol.TCP)
OWN_TLS = OPAQUE._replace(tls=True)
STRICT = PORT._replace(settings=WorkloadSettings(captured=True, strict=True))
STRICT_OPAQUE = OPAQUE._replace(settings=STRICT.settings)
NAME = "10.1.0.1:8080"


def listener(port: WorkloadPort, settings: MeshSettings | None = None) -> Listener:
    return inbound_listener(port, settings or MeshSettings())


def manager_of(chain: FilterChain) -> HttpConnectionManager:
    [only] = chain.filters
    manager = HttpConnectionManager()
    assert only.typed_config.Unpack(manager)
    return manager


# --- inbound ---


def test_a_captured_port_has_a_listener_in_the_applications_place_that_binds_nothing() -> None:
    found = listener(PORT)
    assert found.name == "inbound|10.1.0.1|8080"
    address = found.address.socket_address
    assert (address.address, address.port_value) == ("10.1.0.1", 8080)
    assert found.HasField("bind_to_port")
    assert not found.bind_to_port.value
    assert [each.name for each in found.listener_filters] == ["envoy.filters.listener.tls_inspector"]
    assert found.traffic_direction == found.traffic_direction.__class__(1)
    assert not found.HasField("metadata")


def test_a_port_that_is_not_captured_is_as_it_was() -> None:
    found = listener(PORT._replace(settings=WorkloadSettings()))
    assert found.address.socket_address.port_value == 18080
    for name in ("bind_to_port", "default_filter_chain", "listener_filters_timeout", "metadata"):
        assert not found.HasField(name)
    assert not found.listener_filters
    assert not found.filter_chains[0].HasField("filter_chain_match")


@pytest.mark.parametrize("port", [PORT, UNDECLARED, OPAQUE, OWN_TLS, STRICT, STRICT_OPAQUE])
def test_mesh_peers_are_told_by_tls_with_our_alpn_and_prove_who_they_are(port: WorkloadPort) -> None:
    [chain] = listener(port).filter_chains
    match = chain.filter_chain_match
    assert match.transport_protocol == "tls"
    # Where the application may terminate TLS itself, `h2` may be meant for it: browsers and curl offer it.
    assert list(match.application_protocols) == (
        ["pilotfish-h2"] if port in (UNDECLARED, OPAQUE, OWN_TLS) else ["pilotfish-h2", "h2"]
    )
    context = DownstreamTlsContext()
    assert chain.transport_socket.typed_config.Unpack(context)
    assert context.require_client_certificate.value
    uncaptured = listener(port._replace(settings=WorkloadSettings())).filter_chains[0]
    assert chain.filters == uncaptured.filters
    assert chain.transport_socket == uncaptured.transport_socket


def test_http_in_plain_text_is_detected_and_carries_no_identity_and_no_tunnels() -> None:
    for protocol in (AppProtocol.HTTP, AppProtocol.HTTP2):
        found = listener(PORT._replace(protocol=protocol))
        assert not found.default_filter_chain.HasField("transport_socket")
        manager = manager_of(found.default_filter_chain)
        assert manager.codec_type == HttpConnectionManager.AUTO
        assert manager.forward_client_cert_details == HttpConnectionManager.SANITIZE
        assert manager.stat_prefix == "inbound|10.1.0.1|8080|plain"
        assert not manager.http2_protocol_options.allow_connect
        assert [each.upgrade_type for each in manager.upgrade_configs] == ["websocket"]
        [route] = manager.route_config.virtual_hosts[0].routes
        assert (route.match.prefix, route.route.cluster) == ("/", "inbound|8080|10.1.0.1")
        # HTTP clients speak first: there is nothing to conclude from silence.
        assert not found.HasField("listener_filters_timeout")
        assert not found.continue_on_listener_filters_timeout


@pytest.mark.parametrize("port", [UNDECLARED, OPAQUE, OWN_TLS])
def test_other_plain_text_goes_to_the_application_byte_by_byte_after_a_short_silence(
    port: WorkloadPort,
) -> None:
    found = listener(port)
    [only] = found.default_filter_chain.filters
    assert only.name == "envoy.filters.network.tcp_proxy"
    proxy = TcpProxy()
    assert only.typed_config.Unpack(proxy)
    assert MessageToDict(proxy) == {
        "statPrefix": "inbound|10.1.0.1|8080|plain",
        "cluster": "inbound|8080|10.1.0.1",
        "idleTimeout": "0s",
    }
    assert found.listener_filters_timeout.ToMilliseconds() == 100
    assert found.continue_on_listener_filters_timeout


@pytest.mark.parametrize("port", [PORT, UNDECLARED, OPAQUE])
def test_a_strict_workload_has_no_chain_for_plain_text(port: WorkloadPort) -> None:
    found = listener(port._replace(settings=STRICT.settings))
    assert not found.HasField("default_filter_chain")
    assert not found.continue_on_listener_filters_timeout


def test_overload_protection_is_for_plain_text_too() -> None:
    for wanted, settings in ((2, MeshSettings()), (1, MeshSettings(overload_protection=False))):
        assert len(manager_of(listener(PORT, settings).default_filter_chain).http_filters) == wanted


@pytest.mark.parametrize("settings", [CAPTURED, WorkloadSettings()], ids=["captured", "not captured"])
def test_the_listeners_of_a_workload_that_leaves_say_so(settings: WorkloadSettings) -> None:
    staying = PORT._replace(settings=settings)
    found = listener(staying._replace(terminating=True))
    assert MessageToDict(found.metadata) == {"filterMetadata": {"mesh.pilotfish.dev": {"draining": True}}}
    found.ClearField("metadata")
    assert found == listener(staying)


@pytest.mark.parametrize(("address", "source"), [("10.1.0.1", "127.0.0.6"), ("fd00::1", "::6")])
def test_a_captured_application_is_called_from_an_address_that_is_not_captured(
    address: str, source: str
) -> None:
    cluster = inbound_cluster(PORT._replace(address=address))
    bind = cluster.upstream_bind_config.source_address
    assert (bind.address, bind.port_value) == (source, 0)
    assert bind.WhichOneof("port_specifier") == "port_value"
    plain = inbound_cluster(PORT._replace(address=address, settings=WorkloadSettings()))
    cluster.ClearField("upstream_bind_config")
    assert cluster == plain


# --- endpoints of a Service ---

HTTP = ServicePort("http", 80, 8080, AppProtocol.HTTP)
USERS = "users.shop.svc.cluster.local:80"


def endpoints(dialect: Dialect, *slices: dict[str, Any]) -> dict[str, tuple[int, dict[str, Any]]]:
    """By address: port and metadata."""
    found = load_assignment(USERS, HTTP, mesh(*slices).slices, dialect)
    return {
        item.endpoint.address.socket_address.address: (
            item.endpoint.address.socket_address.port_value,
            MessageToDict(item.metadata).get("filterMetadata", {}),
        )
        for locality in found.endpoints
        for item in locality.lb_endpoints
    }


def accounts(*slices: dict[str, Any]) -> list[str]:
    """Whom a client of the Service trusts."""
    service = Service("shop", "users", (HTTP,))
    cluster = service_cluster(USERS, service, HTTP, mesh(*slices).slices, Dialect.PILOTFISH, "cluster.local")
    return identities(cluster)


def identities(cluster: Cluster) -> list[str]:
    if not cluster.HasField("transport_socket"):
        return []
    context = UpstreamTlsContext()
    assert cluster.transport_socket.typed_config.Unpack(context)
    validation = context.common_tls_context.combined_validation_context.default_validation_context
    return [each.matcher.exact for each in validation.match_typed_subject_alt_names]


BESIDE = endpoint_slice("users-a", "10.1.0.1", runs_as="users")
INSTEAD = endpoint_slice("users-b", "10.1.0.2", runs_as="users", capture="enabled")
PLAIN = {
    "envoy.transport_socket_match": {"tlsMode": "disabled"},
    "mesh.pilotfish.dev": {"protocol": "http1"},
}
SKIPPED = endpoint_slice("users-c", "10.1.0.3", runs_as="other", capture="enabled", skip_inbound_ports="8080")


def test_peers_reach_a_captured_replica_at_the_applications_port() -> None:
    assert endpoints(Dialect.PILOTFISH, BESIDE, INSTEAD, SKIPPED) == {
        "10.1.0.1": (18080, {"mesh.pilotfish.dev": {"tunnel": "10.1.0.1:8080"}}),
        "10.1.0.2": (8080, {"mesh.pilotfish.dev": {"tunnel": "10.1.0.2:8080"}}),
        "10.1.0.3": (8080, PLAIN),
    }


def test_the_account_behind_a_skipped_port_is_not_trusted() -> None:
    assert accounts(INSTEAD, SKIPPED) == ["spiffe://cluster.local/ns/shop/sa/users"]
    assert accounts(SKIPPED) == []


def test_a_grpc_client_gets_replicas_of_one_kind() -> None:
    assert set(endpoints(Dialect.GRPC, INSTEAD, SKIPPED)) == {"10.1.0.2"}
    assert set(endpoints(Dialect.GRPC, SKIPPED)) == {"10.1.0.3"}


# --- one workload as a destination ---


def test_a_workload_is_one_endpoint_under_its_address_whatever_its_health() -> None:
    for port in (PORT, PORT._replace(terminating=True)):
        [locality] = workload_assignment(NAME, port, Dialect.PILOTFISH).endpoints
        [only] = locality.lb_endpoints
        assert only.endpoint.hostname == "users-1"
        assert only.endpoint.address.socket_address.port_value == 8080
        assert only.health_status == 1
        assert only.metadata.filter_metadata["mesh.pilotfish.dev"]["tunnel"] == NAME


def test_a_workload_with_a_sidecar_is_trusted_by_its_account_and_never_ejected() -> None:
    cluster = workload_cluster(NAME, PORT, Dialect.PILOTFISH, "cluster.local")
    assert (cluster.name, cluster.type) == (NAME, Cluster.EDS)
    assert identities(cluster) == ["spiffe://cluster.local/ns/shop/sa/users"]
    assert not cluster.HasField("outlier_detection")


@pytest.mark.parametrize(
    "port",
    [
        PORT._replace(service_account=""),
        PORT._replace(settings=WorkloadSettings(True, skip_inbound_ports=(8080,))),
    ],
    ids=["no sidecar", "skipped port"],
)
def test_other_workloads_are_reached_in_plain_text(port: WorkloadPort) -> None:
    assert identities(workload_cluster(NAME, port, Dialect.PILOTFISH, "cluster.local")) == []
    [locality] = workload_assignment(NAME, port, Dialect.PILOTFISH).endpoints
    assert MessageToDict(locality.lb_endpoints[0].metadata)["filterMetadata"] == PLAIN


@pytest.mark.parametrize(
    ("port", "names"),
    [(PORT, ["default"]), (UNDECLARED, ["tcp", "default"]), (OPAQUE, ["tcp"])],
    ids=["declared HTTP", "undeclared", "opaque"],
)
def test_routes_to_a_workload_say_what_it_speaks(port: WorkloadPort, names: list[str]) -> None:
    found = workload_routes(NAME, port, Dialect.PILOTFISH, "cluster.local")
    assert found.name == NAME
    [host] = found.virtual_hosts
    assert [route.name for route in host.routes] == names
    assert {route.route.cluster for route in host.routes} == {NAME}
