"""Configuration as the data plane sees it: plain frozen dataclasses, already validated.

`decode/` makes them from Envoy v3 protobuf; nothing behind it knows protobuf. Times are seconds as
float; 0.0 for a timeout means none. Names of fields follow Envoy's where there is one.
Two equal objects mean the same behaviour: unchanged clusters are found by comparing them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SocketAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# --- TLS -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StringMatcher:
    """Envoy `type.matcher.v3.StringMatcher`. `kind`: exact, prefix, suffix, contains or regex.

    A regex is kept in Python's syntax and must match the whole value."""

    kind: str
    value: str
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Envoy `CommonTlsContext` with what is around it in Downstream- and UpstreamTlsContext.

    Certificates come from files or, when `provider` names one, from that certificate provider.
    """

    certificate_file: str = ""
    private_key_file: str = ""
    provider: str = ""
    trusted_ca_file: str = ""
    trusted_ca_inline: str = ""
    trusted_ca_provider: str = ""
    uri_san_matchers: tuple[StringMatcher, ...] = ()
    """The peer's URI SAN must match one; empty: any certificate that the trusted CA signed."""
    alpn: tuple[str, ...] = ()
    sni: str = ""
    require_client_certificate: bool = False


# --- clusters ------------------------------------------------------------------------------------


class Discovery(enum.Enum):
    STATIC = "STATIC"
    STRICT_DNS = "STRICT_DNS"
    LOGICAL_DNS = "LOGICAL_DNS"
    EDS = "EDS"
    ORIGINAL_DST = "ORIGINAL_DST"
    """To where the connection was going before it was redirected; for TCP proxies."""


class LbPolicy(enum.Enum):
    PEAK_EWMA = "PEAK_EWMA"
    ROUND_ROBIN = "ROUND_ROBIN"
    LEAST_REQUEST = "LEAST_REQUEST"


class Health(enum.Enum):
    HEALTHY = "HEALTHY"
    DRAINING = "DRAINING"
    UNHEALTHY = "UNHEALTHY"


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Envoy `LbEndpoint`. `hostname` is what the endpoint calls itself (Pod name), for logs and metrics."""

    address: SocketAddress
    weight: int = 1
    health: Health = Health.HEALTHY
    hostname: str = ""
    tunnel_authority: str = ""
    """Original destination `host:port` for CONNECT tunnels to this endpoint (metadata
    `mesh.pilotfish.dev` / `tunnel`); empty: its address."""
    plaintext: bool = False
    """Outside the mesh: no TLS even when the cluster has it (metadata `envoy.transport_socket_match`
    / `tlsMode: disabled`)."""
    http1: bool = False
    """In plain text, spoken to in HTTP/1.1 even when the cluster is HTTP/2 (metadata `mesh.pilotfish.dev` /
    `protocol: http1`)."""


@dataclass(frozen=True, slots=True)
class LocalityEndpoints:
    """Envoy `LocalityLbEndpoints`; weight 0 keeps the locality out of use."""

    region: str
    zone: str
    sub_zone: str
    priority: int
    weight: int
    endpoints: tuple[EndpointConfig, ...]


@dataclass(frozen=True, slots=True)
class EndpointsConfig:
    """Envoy `ClusterLoadAssignment`."""

    cluster_name: str
    localities: tuple[LocalityEndpoints, ...] = ()


@dataclass(frozen=True, slots=True)
class CircuitBreakers:
    """Envoy `CircuitBreakers.Thresholds` for DEFAULT priority, with Envoy's defaults."""

    max_connections: int = 1024
    max_pending_requests: int = 1024
    max_requests: int = 1024
    max_retries: int | None = None
    """Concurrent retries; None: the retry budget decides instead."""
    retry_budget_percent: float = 20.0
    min_retries_per_second: float = 10.0
    """The budget: retries may be this share of requests over the last 10 s, and at least so many a second."""


@dataclass(frozen=True, slots=True)
class OutlierDetection:
    """Envoy `OutlierDetection`: the consecutive-failure part, ejection time doubling with each ejection."""

    consecutive_5xx: int = 5
    base_ejection_time: float = 30.0
    max_ejection_time: float = 300.0
    max_ejection_percent: int = 10
    """At least one endpoint may be ejected whatever the percentage, never the last one."""


@dataclass(frozen=True, slots=True)
class Http2Options:
    """Envoy `Http2ProtocolOptions`, sizes in bytes."""

    max_concurrent_streams: int = 1024
    initial_stream_window_size: int = 65536
    initial_connection_window_size: int = 1048576
    max_frame_size: int = 16384
    allow_connect: bool = False
    """Servers offer extended CONNECT (RFC 8441), for WebSocket over HTTP/2."""
    keepalive_interval: float = 30.0
    """Seconds of silence, with streams open, after which a peer is sent PING; as long again, and it is given
    up."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Envoy `Cluster`."""

    name: str
    discovery: Discovery = Discovery.STATIC
    eds_service_name: str = ""
    endpoints: EndpointsConfig | None = None
    """For STATIC and DNS clusters."""
    lb_policy: LbPolicy = LbPolicy.ROUND_ROBIN
    connect_timeout: float = 5.0
    http2: Http2Options | None = None
    """None: HTTP/1.1 upstream."""
    tls: TlsConfig | None = None
    circuit_breakers: CircuitBreakers = CircuitBreakers()
    outlier_detection: OutlierDetection | None = None
    idle_timeout: float = 3600.0
    """Idle upstream connections are closed after this; HTTP/1.1 to a local application uses 1 s."""
    max_requests_per_connection: int = 0
    dns_refresh_rate: float = 5.0
    dns_lookup_family: str = "AUTO"
    """Addresses that a STRICT_DNS or LOGICAL_DNS cluster uses: AUTO (both families), V4_ONLY or V6_ONLY."""
    source_addresses: tuple[str, ...] = ()
    """`upstream_bind_config`: connections are made from the one of the endpoint's family; empty: from any."""


# --- routes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeaderMatcher:
    """Envoy `HeaderMatcher`. `string` None with `range` None: presence decides (`present`)."""

    name: str
    string: StringMatcher | None = None
    range: tuple[int, int] | None = None
    """Half-open interval of a decimal integer value."""
    present: bool = True
    invert: bool = False
    treat_missing_as_empty: bool = False


@dataclass(frozen=True, slots=True)
class QueryMatcher:
    """Envoy `QueryParameterMatcher`; `string` None: presence."""

    name: str
    string: StringMatcher | None = None


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """Envoy `RouteMatch`. Exactly one of prefix, path, regex, path_separated_prefix is not None, or
    `connect` is set (matches CONNECT requests alone, as `connect_matcher`)."""

    prefix: str | None = None
    path: str | None = None
    regex: str | None = None
    path_separated_prefix: str | None = None
    connect: bool = False
    case_sensitive: bool = True
    headers: tuple[HeaderMatcher, ...] = ()
    query: tuple[QueryMatcher, ...] = ()
    grpc: bool = False
    runtime_fraction: float | None = None
    """Share of requests, 0..1."""


@dataclass(frozen=True, slots=True)
class HeaderOperation:
    """One of Envoy's `HeaderValueOption`s or removals. `action`: append, overwrite, add_if_absent,
    overwrite_if_exists or remove."""

    action: str
    name: bytes
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Envoy `RetryPolicy`. `retry_on` holds its names. Defaults retry what is always safe."""

    retry_on: frozenset[str] = frozenset(
        {"connect-failure", "refused-stream", "reset-before-request", "reset"}
    )
    num_retries: int = 2
    per_try_timeout: float = 0.0
    retriable_status_codes: frozenset[int] = frozenset()
    back_off_base: float = 0.025
    back_off_max: float = 0.25


@dataclass(frozen=True, slots=True)
class WeightedCluster:
    name: str
    weight: int
    request_headers: tuple[HeaderOperation, ...] = ()
    response_headers: tuple[HeaderOperation, ...] = ()


@dataclass(frozen=True, slots=True)
class Redirect:
    """Envoy `RedirectAction`."""

    status: int = 301
    scheme: str = ""
    host: str = ""
    port: int = 0
    path: str | None = None
    prefix_rewrite: str | None = None
    strip_query: bool = False


@dataclass(frozen=True, slots=True)
class DirectResponse:
    """Envoy `DirectResponseAction`."""

    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class RouteAction:
    """Envoy `RouteAction`: forward to clusters, weighted (one cluster: weight 1)."""

    clusters: tuple[WeightedCluster, ...]
    timeout: float = 15.0
    """Whole request including retries, until the end of the response; 0.0: none."""
    grpc_timeout_max: float | None = None
    """`max_stream_duration.grpc_timeout_header_max`: None ignores `grpc-timeout`; 0.0 takes any; else
    caps it."""
    idle_timeout: float = 0.0
    retry_policy: RetryPolicy | None = None
    """None: the virtual host's, or no retries."""
    prefix_rewrite: str = ""
    regex_rewrite: tuple[str, str] | None = None
    host_rewrite: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """Envoy `Route`; exactly one of action, redirect, direct_response."""

    name: str
    match: RouteMatch
    action: RouteAction | None = None
    redirect: Redirect | None = None
    direct_response: DirectResponse | None = None
    request_headers: tuple[HeaderOperation, ...] = ()
    response_headers: tuple[HeaderOperation, ...] = ()


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """Envoy `VirtualHost`. Domains: exact, `*.suffix`, `prefix.*` or `*`, most specific first as in Envoy."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]
    retry_policy: RetryPolicy | None = None
    request_headers: tuple[HeaderOperation, ...] = ()
    response_headers: tuple[HeaderOperation, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteConfiguration:
    name: str
    virtual_hosts: tuple[VirtualHost, ...] = ()
    request_headers: tuple[HeaderOperation, ...] = ()
    response_headers: tuple[HeaderOperation, ...] = ()
    ignore_port: bool = False
    """`ignore_port_in_host_matching`: domains are compared with the authority without its port."""


# --- listeners -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """HCM `tracing` with the OpenTelemetry provider over `http_service`. Percentages 0..100."""

    random_sampling: float = 100.0
    overall_sampling: float = 100.0
    service_name: str = "unknown_service:pilotfish"
    collector_cluster: str = ""
    """Cluster that the OTLP collector is reached through; empty: spans are not exported."""
    collector_uri: str = "/v1/traces"
    collector_timeout: float = 10.0
    """Request target (path) and deadline of the export call."""


class ClientCert(enum.Enum):
    """HCM `forward_client_cert_details`."""

    SANITIZE = "SANITIZE"
    FORWARD_ONLY = "FORWARD_ONLY"
    APPEND_FORWARD = "APPEND_FORWARD"
    SANITIZE_SET = "SANITIZE_SET"
    ALWAYS_FORWARD_ONLY = "ALWAYS_FORWARD_ONLY"


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """One HTTP filter; `config` is the filter's own frozen dataclass, made by its decoder."""

    name: str
    config: object = None


@dataclass(frozen=True, slots=True)
class AdaptiveConcurrency:
    """Envoy `AdaptiveConcurrency` (gradient controller). Times in seconds."""

    max_limit: int = 1000
    min_limit: int = 8
    """The floor: so many are always let through."""
    update_interval: float = 0.5
    min_samples: int = 50
    """Responses that an update needs; an interval goes on until it has them. In a queue that plainly grows
    what waits counts too, and after a cut that they do not come."""
    tolerance: float = 2.0
    """How many times as long as its work an answer takes when overload begins (Envoy `buffer`, plus one)."""


@dataclass(frozen=True, slots=True)
class HttpConnectionManagerConfig:
    """Envoy `HttpConnectionManager`. One of `route_config`, `rds_route_name`, `on_demand`."""

    stat_prefix: str
    codec: str = "AUTO"
    """AUTO (sniff or ALPN), HTTP1 or HTTP2."""
    route_config: RouteConfiguration | None = None
    rds_route_name: str = ""
    on_demand: bool = False
    """The `envoy.filters.http.on_demand` filter with an empty RDS name: routes are found by authority,
    as a proxyless gRPC client does (Listener `host:port` over LDS)."""
    filters: tuple[FilterConfig, ...] = ()
    """In order, without the router, which ends every chain, and without `on_demand`."""
    tracing: TracingConfig | None = None
    client_cert: ClientCert = ClientCert.SANITIZE
    client_cert_uri: bool = False
    http2: Http2Options = Http2Options(max_concurrent_streams=1024)
    access_log: bool = False
    access_log_path: str = "/dev/stdout"
    stream_idle_timeout: float = 300.0
    idle_timeout: float = 3600.0
    """Of a connection without streams."""
    request_headers_timeout: float = 10.0
    """For a request head from its first byte, and for a connection to begin its first; Envoy has no limit."""
    max_request_headers_kb: int = 0
    """0: the process' (`--header-limit`)."""
    max_headers_count: int = 100
    upgrades: tuple[str, ...] = ()
    """Protocols besides CONNECT that `upgrade_configs` enables, in lower case: `websocket`."""


@dataclass(frozen=True, slots=True)
class TcpProxyConfig:
    """Envoy `TcpProxy`. With `tunneling`, bytes travel in a CONNECT stream over the HTTP/2 cluster."""

    stat_prefix: str
    clusters: tuple[WeightedCluster, ...]
    idle_timeout: float = 3600.0
    tunneling: bool = False
    tunneling_hostname: str = ""
    """`tunneling_config.hostname`: the CONNECT authority; empty: the endpoint's `tunnel_authority`."""


@dataclass(frozen=True, slots=True)
class FilterChainMatch:
    """Envoy `FilterChainMatch`; a criterion that is not set takes everything."""

    destination_port: int = 0
    """Of the original destination where the connection was redirected."""
    server_names: tuple[str, ...] = ()
    """SNI in lower case: exact, or `*.suffix`."""
    transport_protocol: str = ""
    """tls or raw_buffer."""
    application_protocols: tuple[str, ...] = ()
    """ALPN: the client offers one of these."""


@dataclass(frozen=True, slots=True)
class FilterChainConfig:
    """Envoy `FilterChain` with one network filter."""

    network: HttpConnectionManagerConfig | TcpProxyConfig
    tls: TlsConfig | None = None
    match: FilterChainMatch = FilterChainMatch()


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """Envoy `Listener`. Either `address` (socket listener) or `api_listener` (routes for one authority)."""

    name: str
    address: SocketAddress | None = None
    filter_chains: tuple[FilterChainConfig, ...] = ()
    api_listener: HttpConnectionManagerConfig | None = None
    inbound: bool = False
    """`traffic_direction: INBOUND`."""
    draining: bool = False
    """Metadata `mesh.pilotfish.dev` / `draining`: the workload is about to end."""
    default_filter_chain: FilterChainConfig | None = None
    """For connections that match none of `filter_chains`."""
    additional_addresses: tuple[SocketAddress, ...] = ()
    bind_to_port: bool = True
    """False: gets its connections from a listener with `hand_off`."""
    original_dst: bool = False
    """Ask the kernel where a redirected connection was going (the listener filter of that name, or
    `use_original_dst`)."""
    hand_off: bool = False
    """`use_original_dst`: a redirected connection goes to the listener of its original destination if there
    is one."""
    inspect_tls: bool = False
    """Look at the client's first bytes before a filter chain is chosen: because the choice needs it, or, with
    `hand_off`, so that mesh peers wait for a listener that has not come yet."""
    listener_filters_timeout: float = 15.0
    """Seconds for these first bytes; 0.0: no limit."""
    continue_on_timeout: bool = False
    """A client that has said nothing by then is taken for plain text, instead of being dropped."""

    @property
    def direction(self) -> str:
        return "inbound" if self.inbound else "outbound"

    def chains(self) -> tuple[tuple[str, FilterChainConfig], ...]:
        """All filter chains, each with its path in the listener."""
        found = [(f"filter_chains[{i}]", chain) for i, chain in enumerate(self.filter_chains)]
        if self.default_filter_chain is not None:
            found.append(("default_filter_chain", self.default_filter_chain))
        return tuple(found)


# --- bootstrap -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """Envoy `Node`; `metadata` is kept as JSON text so that the object stays hashable."""

    id: str = ""
    cluster: str = ""
    region: str = ""
    zone: str = ""
    sub_zone: str = ""
    metadata_json: str = "{}"


@dataclass(frozen=True, slots=True)
class AdsConfig:
    """`dynamic_resources.ads_config`. The stream goes to `cluster`; `delta` False: state of the world."""

    cluster: str
    delta: bool = True
    token_file: str = ""
    """Sent as `authorization: Bearer`, read anew for each stream (from the certificate provider's config)."""


@dataclass(frozen=True, slots=True)
class CaProviderConfig:
    """Bootstrap `certificate_provider_instances` entry of type `mesh.pilotfish.dev/CaProvider`."""

    instance: str
    cluster: str
    """Static cluster of the control plane."""
    token_file: str
    spiffe_id: str = ""
    """The identity that the workload expects to get; checked against the certificate. Empty: any."""
    ttl: float = 86400.0
    """Lifetime asked for, in seconds."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Envoy `Bootstrap`, the part that is implemented."""

    node: Node = Node()
    admin: tuple[SocketAddress, ...] = ()
    """Where the admin port is bound; empty: there is none."""
    listeners: tuple[ListenerConfig, ...] = ()
    clusters: tuple[ClusterConfig, ...] = ()
    ads: AdsConfig | None = None
    lds_over_ads: bool = False
    cds_over_ads: bool = False
    ca_providers: tuple[CaProviderConfig, ...] = ()
    without_effect: tuple[str, ...] = field(default=())
    """Paths of fields that are set, only describe, and change nothing here; for /config_dump and the log."""
