"""Listeners: one by name for each destination that a client asks for, and a sidecar's own inbound ones.

Pure functions of the model, called by the pipeline.
"""

from __future__ import annotations

from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.core.v3.base_pb2 import Metadata, TrafficDirection
from envoy.config.core.v3.config_source_pb2 import AggregatedConfigSource, ApiVersion, ConfigSource
from envoy.config.core.v3.http_service_pb2 import HttpService
from envoy.config.core.v3.http_uri_pb2 import HttpUri
from envoy.config.listener.v3.api_listener_pb2 import ApiListener
from envoy.config.listener.v3.listener_components_pb2 import (
    Filter,
    FilterChain,
    FilterChainMatch,
    ListenerFilter,
)
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import Route, RouteAction, RouteMatch, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.config.trace.v3.http_tracer_pb2 import Tracing
from envoy.config.trace.v3.opentelemetry_pb2 import OpenTelemetryConfig
from envoy.extensions.access_loggers.stream.v3.stream_pb2 import StdoutAccessLog
from envoy.extensions.filters.http.adaptive_concurrency.v3.adaptive_concurrency_pb2 import (
    AdaptiveConcurrency,
    GradientControllerConfig,
)
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2 import TlsInspector
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.type.v3.percent_pb2 import Percent
from google.protobuf.wrappers_pb2 import BoolValue

from control_plane.model.discovery import Dialect
from control_plane.model.mesh import MeshSettings, TracingSettings
from control_plane.model.service import AppProtocol, WorkloadPort
from control_plane.translate import tls
from control_plane.translate.clusters import http2_options
from control_plane.translate.names import inbound_cluster_name
from control_plane.translate.protobuf import duration, pack
from control_plane.translate.routes import connect_route
from mesh_api.names import GROUP, MESH_ALPN, inbound_listener_name

SILENCE = 0.1
"""Seconds for which a port of unknown protocol waits for a client's first bytes: some servers speak first."""


def api_listener(
    name: str, routes: str, dialect: Dialect, settings: MeshSettings, service_account: str
) -> Listener:
    """The Listener that a client which asked for the destination `name` gets: where its routes are."""
    manager = HttpConnectionManager(
        stat_prefix=routes,
        rds=Rds(
            route_config_name=routes,
            config_source=ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3),
        ),
        http_filters=[_router()],
    )
    if dialect is not Dialect.GRPC:
        manager.upgrade_configs.add(upgrade_type="websocket")
        _observe(manager, settings, service_account)
    return Listener(name=name, api_listener=ApiListener(api_listener=pack(manager)))


def inbound_listener(workload: WorkloadPort, settings: MeshSettings) -> Listener:
    """Where the sidecar of a workload takes what others send to one of its application's ports: beside the
    application, or in its place where connections are captured."""
    reached_at = workload.settings.peers_port(workload.port)
    listener = Listener(
        name=inbound_listener_name(workload.address, workload.port),
        address=Address(socket_address=SocketAddress(address=workload.address, port_value=reached_at)),
        traffic_direction=TrafficDirection.INBOUND,
        filter_chains=[
            FilterChain(
                transport_socket=tls.downstream(),
                filters=[_manager_filter(_mesh_manager(workload, settings))],
            )
        ],
    )
    if workload.settings.captured:
        _share_port(listener, workload, settings)
    if workload.terminating:
        draining = Metadata()
        draining.filter_metadata[GROUP]["draining"] = True
        listener.metadata.CopyFrom(draining)
    return listener


def _share_port(listener: Listener, workload: WorkloadPort, settings: MeshSettings) -> None:
    """Mesh peers and, unless strict, clients without a sidecar come to the application's own port. They are
    told apart by their first bytes: a client of the application's own TLS does not offer our ALPN, but
    perhaps `h2`, which is all that gRPC clients of the mesh without a sidecar offer."""
    listener.bind_to_port.value = False
    listener.listener_filters.append(
        ListenerFilter(name="envoy.filters.listener.tls_inspector", typed_config=pack(TlsInspector()))
    )
    plain_http = workload.declared and workload.protocol is not AppProtocol.TCP
    own_tls = workload.tls or not (plain_http or workload.settings.strict)
    protocols = (MESH_ALPN,) if own_tls else (MESH_ALPN, "h2")
    listener.filter_chains[0].filter_chain_match.CopyFrom(
        FilterChainMatch(transport_protocol="tls", application_protocols=protocols)
    )
    if workload.settings.strict:
        return
    if plain_http:
        plain = _manager_filter(_plain_manager(workload, settings))
    else:
        plain = _plain_tcp(workload)
        listener.listener_filters_timeout.CopyFrom(duration(SILENCE))
        listener.continue_on_listener_filters_timeout = True
    listener.default_filter_chain.CopyFrom(FilterChain(filters=[plain]))


def _mesh_manager(workload: WorkloadPort, settings: MeshSettings) -> HttpConnectionManager:
    """For peers that have proved who they are."""
    name = inbound_listener_name(workload.address, workload.port)
    manager = HttpConnectionManager(
        stat_prefix=name,
        codec_type=HttpConnectionManager.HTTP2,
        route_config=_inbound_routes(name, workload, tunnels=True),
        http_filters=_inbound_filters(settings),
        http2_protocol_options=http2_options(accept_connect=True),
        forward_client_cert_details=HttpConnectionManager.SANITIZE_SET,
        set_current_client_cert_details=HttpConnectionManager.SetCurrentClientCertDetails(uri=True),
        upgrade_configs=[
            HttpConnectionManager.UpgradeConfig(upgrade_type=name) for name in ("CONNECT", "websocket")
        ],
        stream_idle_timeout=duration(0.0),
    )
    _observe(manager, settings, workload.service_account)
    return manager


def _plain_manager(workload: WorkloadPort, settings: MeshSettings) -> HttpConnectionManager:
    """For clients without a sidecar, of whom nothing is known: no identity, no tunnels."""
    name = f"{inbound_listener_name(workload.address, workload.port)}|plain"
    manager = HttpConnectionManager(
        stat_prefix=name,
        route_config=_inbound_routes(name, workload, tunnels=False),
        http_filters=_inbound_filters(settings),
        http2_protocol_options=http2_options(),
        forward_client_cert_details=HttpConnectionManager.SANITIZE,
        upgrade_configs=[HttpConnectionManager.UpgradeConfig(upgrade_type="websocket")],
        stream_idle_timeout=duration(0.0),
    )
    _observe(manager, settings, workload.service_account)
    return manager


def _plain_tcp(workload: WorkloadPort) -> Filter:
    """Bytes as they come, for as long as they come."""
    proxy = TcpProxy(
        stat_prefix=f"{inbound_listener_name(workload.address, workload.port)}|plain",
        cluster=inbound_cluster_name(workload.address, workload.port),
        idle_timeout=duration(0.0),
    )
    return Filter(name="envoy.filters.network.tcp_proxy", typed_config=pack(proxy))


def _manager_filter(manager: HttpConnectionManager) -> Filter:
    return Filter(name="envoy.filters.network.http_connection_manager", typed_config=pack(manager))


def _inbound_routes(name: str, workload: WorkloadPort, tunnels: bool) -> RouteConfiguration:
    """No timeouts and no retries here: the caller's sidecar has them. `tunnels`: opaque TCP comes too."""
    cluster = inbound_cluster_name(workload.address, workload.port)
    routes = [connect_route(cluster)] if tunnels else []
    if workload.protocol is not AppProtocol.TCP:
        action = RouteAction(cluster=cluster, timeout=duration(0.0))
        routes.append(Route(name="default", match=RouteMatch(prefix="/"), route=action))
    return RouteConfiguration(
        name=name, virtual_hosts=[VirtualHost(name="inbound", domains=["*"], routes=routes)]
    )


def _inbound_filters(settings: MeshSettings) -> list[HttpFilter]:
    """Overload protection of the application, with the sidecar's own defaults, unless it is off."""
    if not settings.overload_protection:
        return [_router()]
    protection = HttpFilter(
        name="envoy.filters.http.adaptive_concurrency",
        typed_config=pack(AdaptiveConcurrency(gradient_controller_config=GradientControllerConfig())),
    )
    return [protection, _router()]


def _router() -> HttpFilter:
    return HttpFilter(name="envoy.filters.http.router", typed_config=pack(Router()))


def _observe(manager: HttpConnectionManager, settings: MeshSettings, service_account: str) -> None:
    if settings.tracing is not None:
        manager.tracing.CopyFrom(_tracing(settings.tracing, service_account))
    if settings.access_log:
        manager.access_log.add(name="envoy.access_loggers.stdout", typed_config=pack(StdoutAccessLog()))


def _tracing(settings: TracingSettings, service_account: str) -> HttpConnectionManager.Tracing:
    provider = OpenTelemetryConfig(service_name=service_account)
    if settings.cluster:
        uri = HttpUri(uri=settings.uri, cluster=settings.cluster, timeout=duration(settings.timeout))
        provider.http_service.CopyFrom(HttpService(http_uri=uri))
    return HttpConnectionManager.Tracing(
        random_sampling=Percent(value=settings.sampling),
        spawn_upstream_span=BoolValue(value=True),
        provider=Tracing.Http(name="envoy.tracers.opentelemetry", typed_config=pack(provider)),
    )
