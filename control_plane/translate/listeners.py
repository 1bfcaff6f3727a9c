"""Listeners: one by name for each destination that a client asks for, and a sidecar's own inbound ones.

Pure functions of the model, called by the pipeline.
"""

from __future__ import annotations

from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.core.v3.base_pb2 import TrafficDirection
from envoy.config.core.v3.config_source_pb2 import AggregatedConfigSource, ApiVersion, ConfigSource
from envoy.config.core.v3.http_service_pb2 import HttpService
from envoy.config.core.v3.http_uri_pb2 import HttpUri
from envoy.config.listener.v3.api_listener_pb2 import ApiListener
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain
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
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)
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
from mesh_api.names import inbound_listener_name, inbound_port


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
    """Where the sidecar of a workload takes what other sidecars send to one of its application's ports."""
    name = inbound_listener_name(workload.address, workload.port)
    manager = HttpConnectionManager(
        stat_prefix=name,
        codec_type=HttpConnectionManager.HTTP2,
        route_config=_inbound_routes(name, workload),
        http_filters=[_adaptive_concurrency(), _router()] if settings.overload_protection else [_router()],
        http2_protocol_options=http2_options(accept_connect=True),
        forward_client_cert_details=HttpConnectionManager.SANITIZE_SET,
        set_current_client_cert_details=HttpConnectionManager.SetCurrentClientCertDetails(uri=True),
        upgrade_configs=[
            HttpConnectionManager.UpgradeConfig(upgrade_type=name) for name in ("CONNECT", "websocket")
        ],
        stream_idle_timeout=duration(0.0),
    )
    _observe(manager, settings, workload.service_account)
    address = SocketAddress(address=workload.address, port_value=inbound_port(workload.port))
    return Listener(
        name=name,
        address=Address(socket_address=address),
        traffic_direction=TrafficDirection.INBOUND,
        filter_chains=[
            FilterChain(
                transport_socket=tls.downstream(),
                filters=[
                    Filter(name="envoy.filters.network.http_connection_manager", typed_config=pack(manager))
                ],
            )
        ],
    )


def _inbound_routes(name: str, workload: WorkloadPort) -> RouteConfiguration:
    """No timeouts and no retries here: the caller's sidecar has them."""
    cluster = inbound_cluster_name(workload.address, workload.port)
    routes = [connect_route(cluster)]
    if workload.protocol is not AppProtocol.TCP:
        action = RouteAction(cluster=cluster, timeout=duration(0.0))
        routes.append(Route(name="default", match=RouteMatch(prefix="/"), route=action))
    return RouteConfiguration(
        name=name, virtual_hosts=[VirtualHost(name="inbound", domains=["*"], routes=routes)]
    )


def _adaptive_concurrency() -> HttpFilter:
    """Overload protection of the application, with the sidecar's own defaults."""
    return HttpFilter(
        name="envoy.filters.http.adaptive_concurrency",
        typed_config=pack(AdaptiveConcurrency(gradient_controller_config=GradientControllerConfig())),
    )


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
