"""Services and workloads to Cluster: how a destination is reached, balanced and protected.

Pure functions of the model, called by the pipeline. Between sidecars everything travels as HTTP/2 over
mTLS, whatever the application speaks; a service without sidecars is reached as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.cluster.v3.circuit_breaker_pb2 import CircuitBreakers
from envoy.config.cluster.v3.cluster_pb2 import Cluster, LoadBalancingPolicy
from envoy.config.cluster.v3.outlier_detection_pb2 import OutlierDetection
from envoy.config.core.v3.address_pb2 import Address, BindConfig, SocketAddress
from envoy.config.core.v3.config_source_pb2 import AggregatedConfigSource, ApiVersion, ConfigSource
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions, Http2ProtocolOptions
from envoy.config.core.v3.protocol_pb2 import HttpProtocolOptions as CommonHttpOptions
from envoy.config.endpoint.v3.endpoint_components_pb2 import Endpoint, LbEndpoint, LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.extensions.load_balancing_policies.least_request.v3.least_request_pb2 import LeastRequest
from envoy.extensions.load_balancing_policies.round_robin.v3.round_robin_pb2 import RoundRobin
from envoy.extensions.load_balancing_policies.wrr_locality.v3.wrr_locality_pb2 import WrrLocality
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from envoy.type.v3.percent_pb2 import Percent
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt32Value

from control_plane.model.discovery import Dialect
from control_plane.model.policy import (
    DEFAULT_SETTINGS,
    Connections,
    LoadBalancer,
    RetryBudget,
    TrafficSettings,
)
from control_plane.model.policy import OutlierDetection as Ejection
from control_plane.model.service import AppProtocol, EndpointSlice, Service, ServicePort, WorkloadPort
from control_plane.translate import tls
from control_plane.translate.names import inbound_cluster_name
from control_plane.translate.protobuf import duration, pack
from mesh_api.names import INBOUND_SOURCE
from mesh_api.spiffe import SpiffeId

PEAK_EWMA = "type.googleapis.com/envoy.extensions.load_balancing_policies.peak_ewma.v3alpha.PeakEwma"
"""Contributed to Envoy, so its schema is not in the common bindings; its fields all have defaults."""

STREAM_WINDOW = 256 * 1024
CONNECTION_WINDOW = 1024 * 1024
APPLICATION_CONNECT_TIMEOUT = 5.0
"""Seconds. An application whose accept queue is full for a moment answers the kernel's next SYN, which comes
after 1 s, or the one after that, after 3 s."""
_UNLIMITED = 2**32 - 1
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def service_cluster(
    name: str,
    service: Service,
    port: ServicePort,
    slices: Iterable[EndpointSlice],
    dialect: Dialect,
    trust_domain: str,
    settings: TrafficSettings = DEFAULT_SETTINGS,
) -> Cluster:
    """The cluster of one port of a Service; its endpoints come over EDS under the same name. `settings` are
    those of the port's policy."""
    accounts = {
        item.service_account
        for item in slices
        if (found := item.port(port.name)) is not None and item.takes_mtls(found.port)
    }
    identities = [SpiffeId(trust_domain, service.namespace, account) for account in accounts]
    cluster = Cluster(
        name=name,
        type=Cluster.EDS,
        eds_cluster_config=Cluster.EdsClusterConfig(
            eds_config=ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)
        ),
        connect_timeout=duration(settings.connections.connect_timeout),
        load_balancing_policy=_balancing(settings.load_balancer),
        circuit_breakers=_circuit_breakers(settings.connections, settings.retry_budget),
    )
    if identities:
        cluster.transport_socket.CopyFrom(tls.upstream(identities, dialect))
    if dialect is Dialect.GRPC:
        # C-core would switch on the success-rate ejection that the message has by default (gRFC A50).
        return cluster
    if settings.outlier_detection is not None:
        cluster.outlier_detection.CopyFrom(_outlier_detection(settings.outlier_detection))
    if identities or port.protocol is AppProtocol.HTTP2:
        cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(_http2()))
    return cluster


def inbound_cluster(workload: WorkloadPort) -> Cluster:
    """The application beside a sidecar: one address, plaintext, nothing to choose or to eject."""
    name = inbound_cluster_name(workload.address, workload.port)
    ipv6 = ":" in workload.address
    address = SocketAddress(address=workload.address, port_value=workload.port)
    endpoint = LbEndpoint(endpoint=Endpoint(address=Address(socket_address=address)))
    options = _http2() if workload.protocol is AppProtocol.HTTP2 else _local_http1()
    cluster = Cluster(
        name=name,
        type=Cluster.STATIC,
        connect_timeout=duration(APPLICATION_CONNECT_TIMEOUT),
        load_assignment=ClusterLoadAssignment(
            cluster_name=name, endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])]
        ),
        circuit_breakers=_circuit_breakers(DEFAULT_SETTINGS.connections, DEFAULT_SETTINGS.retry_budget),
    )
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(options))
    if workload.settings.captured:
        source = SocketAddress(address=INBOUND_SOURCE[ipv6], port_value=0)
        cluster.upstream_bind_config.CopyFrom(BindConfig(source_address=source))
    return cluster


_PREFERRED = (LoadBalancer.PEAK_EWMA, LoadBalancer.LEAST_REQUEST, LoadBalancer.ROUND_ROBIN)


def _balancing(wanted: LoadBalancer) -> LoadBalancingPolicy:
    """The first known policy wins, so the list begins with the one that is wanted: our sidecar knows all
    three, Envoy not the first, gRPC the last alone."""
    least_request = LeastRequest()
    least_request.locality_lb_config.locality_weighted_lb_config.SetInParent()
    round_robin = WrrLocality(
        endpoint_picking_policy=LoadBalancingPolicy(policies=[_policy("round_robin", pack(RoundRobin()))])
    )
    policies = [
        _policy("peak_ewma", Any(type_url=PEAK_EWMA)),
        _policy("least_request", pack(least_request)),
        _policy("wrr_locality", pack(round_robin)),
    ]
    return LoadBalancingPolicy(policies=policies[_PREFERRED.index(wanted) :])


def _policy(name: str, config: Message) -> LoadBalancingPolicy.Policy:
    return LoadBalancingPolicy.Policy(
        typed_extension_config=TypedExtensionConfig(
            name=f"envoy.load_balancing_policies.{name}", typed_config=config
        )
    )


def _circuit_breakers(limits: Connections, budget: RetryBudget) -> CircuitBreakers:
    """What is not limited has to say so: Envoy's own defaults are low."""
    return CircuitBreakers(
        thresholds=[
            CircuitBreakers.Thresholds(
                max_connections=UInt32Value(value=limits.max_connections or _UNLIMITED),
                max_pending_requests=UInt32Value(value=limits.max_pending_requests or _UNLIMITED),
                max_requests=UInt32Value(value=limits.max_requests or _UNLIMITED),
                retry_budget=CircuitBreakers.Thresholds.RetryBudget(
                    budget_percent=Percent(value=budget.percent),
                    # Our sidecar takes it for retries a second.
                    min_retry_concurrency=UInt32Value(value=budget.min_retries_per_second),
                ),
            )
        ]
    )


def _outlier_detection(wanted: Ejection) -> OutlierDetection:
    return OutlierDetection(
        consecutive_5xx=UInt32Value(value=wanted.consecutive_failures),
        base_ejection_time=duration(wanted.base_ejection_time),
        max_ejection_time=duration(wanted.max_ejection_time),
        max_ejection_percent=UInt32Value(value=wanted.max_ejection_percent),
    )


def http2_options(accept_connect: bool = False) -> Http2ProtocolOptions:
    """Windows between sidecars, in both directions. `accept_connect`: for a server, CONNECT streams."""
    return Http2ProtocolOptions(
        initial_stream_window_size=UInt32Value(value=STREAM_WINDOW),
        initial_connection_window_size=UInt32Value(value=CONNECTION_WINDOW),
        allow_connect=accept_connect,
    )


def _http2() -> HttpProtocolOptions:
    return HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptions.ExplicitHttpConfig(http2_protocol_options=http2_options())
    )


def _local_http1() -> HttpProtocolOptions:
    """Idle connections are given up after a second, before applications close them under a request."""
    return HttpProtocolOptions(
        common_http_protocol_options=CommonHttpOptions(idle_timeout=duration(1.0)),
        explicit_http_config=HttpProtocolOptions.ExplicitHttpConfig(
            http_protocol_options=Http1ProtocolOptions()
        ),
    )
