"""Writes the bootstrap of one workload's sidecar: an Envoy v3 Bootstrap that points at the control plane.

Called by `pilotfish bootstrap`, by the demo for each of its workloads, and in a pod by `pod_bootstrap`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mesh_api.names import (
    ADMIN_PORT,
    CA_PROVIDER_TYPE,
    CERTIFICATE_PROVIDER,
    INBOUND_PORT,
    INBOUND_SOURCE,
    OUTBOUND_PORT,
    XDS_PORT,
)

CONTROL_PLANE = "control-plane"
OTLP = "otlp"
APPLICATION = "inbound-passthrough"
"""Cluster of a captured workload: its own ports that discovery does not know."""
_NO_LIMITS = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 2**32 - 1)
"""Said, because Envoy's own defaults are low."""
_ORIGINAL_DST = {
    "name": "envoy.filters.listener.original_dst",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
    },
}
_TLS_INSPECTOR = {
    "name": "envoy.filters.listener.tls_inspector",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
    },
}
_SILENCE = "0.02s"
"""After that an unknown port is dialled: its server may have the first word."""
_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


@dataclass(frozen=True, slots=True)
class TcpUpstream:
    """A local port that is a named upstream: what connects to it reaches that service, opaque, over mTLS."""

    port: int
    cluster: str
    """`SERVICE.NAMESPACE.svc.cluster.local:PORT`."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a sidecar has to know before it can ask the control plane for the rest."""

    name: str
    namespace: str
    service_account: str
    address: str
    """The workload's own IP address: the sidecar's ports are bound there."""
    token_file: str
    root_file: str = ""
    """PEM of the control plane's root."""
    root_pem: str = ""
    """The same as text; counts where there is no file."""
    outbound_address: str = ""
    """Where the outbound port is bound instead of `address`."""
    admin_address: str = ""
    """Where the admin port is bound instead of `address`; `::` is all addresses, of IPv4 too."""
    captured: bool = False
    """Rules redirect the workload's connections to the sidecar (`pilotfish capture`)."""
    strict: bool = False
    """A captured workload takes connections of the mesh alone."""
    ipv6: bool = False
    """Connections over IPv6 are captured too."""
    control_plane: str = f"127.0.0.1:{XDS_PORT}"
    trust_domain: str = "cluster.local"
    admin_port: int = ADMIN_PORT
    outbound_port: int = OUTBOUND_PORT
    access_log: bool = True
    otlp: str = ""
    """`HOST:PORT` of an OTLP/HTTP collector; empty: spans are not exported."""
    trace_sampling: float = 100.0
    certificate_ttl: float = 86400.0
    upstreams: tuple[TcpUpstream, ...] = field(default=())


def bootstrap(workload: Workload) -> dict[str, Any]:
    """The bootstrap as a tree of protobuf's JSON form."""
    listeners = [_outbound(workload), *(_tcp(workload, upstream) for upstream in workload.upstreams)]
    clusters = [_control_plane(workload)]
    if workload.captured:
        listeners.append(_captured_inbound(workload))
        if not workload.strict:
            clusters.append(_application(workload))
    if workload.otlp:
        clusters.append(_plain_cluster(OTLP, workload.otlp))
    return {
        "node": {
            "id": f"{workload.name}.{workload.namespace}",
            "cluster": workload.service_account,
            "metadata": {"WORKLOAD_IP": workload.address},
        },
        "admin": {"address": _admin(workload)},
        "certificate_provider_instances": {
            CERTIFICATE_PROVIDER: {
                "name": CERTIFICATE_PROVIDER,
                "typed_config": {
                    "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
                    "type_url": CA_PROVIDER_TYPE,
                    "value": {
                        "cluster": CONTROL_PLANE,
                        "token_file": workload.token_file,
                        "spiffe_id": f"spiffe://{workload.trust_domain}/ns/{workload.namespace}"
                        f"/sa/{workload.service_account}",
                        "ttl_seconds": workload.certificate_ttl,
                    },
                },
            }
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": CONTROL_PLANE}}],
            },
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _admin(workload: Workload) -> dict[str, Any]:
    address = _address(workload.admin_address or workload.address, workload.admin_port)
    if workload.admin_address == "::":
        address["socket_address"]["ipv4_compat"] = True
    return address


def _outbound(workload: Workload) -> dict[str, Any]:
    manager: dict[str, Any] = {
        "@type": _HCM,
        "stat_prefix": "outbound",
        "rds": {"config_source": {"ads": {}, "resource_api_version": "V3"}},
        "stream_idle_timeout": "0s",
        "http_filters": [
            {
                "name": "envoy.filters.http.on_demand",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand"
                },
            },
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            },
        ],
    }
    if workload.access_log:
        manager["access_log"] = [
            {
                "name": "envoy.access_loggers.stdout",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"
                },
            }
        ]
    if workload.otlp:
        manager["tracing"] = _tracing(workload)
    host = workload.outbound_address or workload.address
    listener: dict[str, Any] = {
        "name": "outbound",
        "traffic_direction": "OUTBOUND",
        "address": _address(host, workload.outbound_port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    if workload.captured:
        listener["listener_filters"] = [_ORIGINAL_DST]
        if workload.ipv6 and ":" not in host:
            listener["additional_addresses"] = [{"address": _address("::1", workload.outbound_port)}]
    return listener


def _captured_inbound(workload: Workload) -> dict[str, Any]:
    """Where all connections to the workload arrive; those to ports that discovery knows go on to the
    listeners that come from there. Mesh peers wait for theirs."""
    listener: dict[str, Any] = {
        "name": "inbound",
        "traffic_direction": "INBOUND",
        "address": _address("0.0.0.0", INBOUND_PORT),
        "use_original_dst": True,
        "listener_filters": [_ORIGINAL_DST, _TLS_INSPECTOR],
        "listener_filters_timeout": _SILENCE,
        "continue_on_listener_filters_timeout": True,
    }
    if workload.ipv6:
        listener["additional_addresses"] = [{"address": _address("::", INBOUND_PORT)}]
    if not workload.strict:
        proxy = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": APPLICATION,
            "cluster": APPLICATION,
            "idle_timeout": "0s",
        }
        filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
        listener["filter_chains"] = [{"filters": filters}]
    return listener


def _application(workload: Workload) -> dict[str, Any]:
    source, source6 = (_address(host, 0)["socket_address"] for host in INBOUND_SOURCE)
    bind: dict[str, Any] = {"source_address": source}
    if workload.ipv6:
        bind["extra_source_addresses"] = [{"address": source6}]
    return {
        "name": APPLICATION,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [_NO_LIMITS]},
        "upstream_bind_config": bind,
    }


def _tracing(workload: Workload) -> dict[str, Any]:
    uri = {"uri": f"http://{workload.otlp}/v1/traces", "cluster": OTLP, "timeout": "5s"}
    return {
        "random_sampling": {"value": workload.trace_sampling},
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "service_name": workload.service_account,
                "http_service": {"http_uri": uri},
            },
        },
    }


def _tcp(workload: Workload, upstream: TcpUpstream) -> dict[str, Any]:
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": upstream.cluster,
        "cluster": upstream.cluster,
        "idle_timeout": "0s",
        "tunneling_config": {"hostname": upstream.cluster},
    }
    return {
        "name": f"upstream|{upstream.cluster}",
        "traffic_direction": "OUTBOUND",
        "address": _address(workload.address, upstream.port),
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}],
    }


def _control_plane(workload: Workload) -> dict[str, Any]:
    cluster = _plain_cluster(CONTROL_PLANE, workload.control_plane)
    host = workload.control_plane.rpartition(":")[0].strip("[]")
    root = {"filename": workload.root_file} if workload.root_file else {"inline_string": workload.root_pem}
    cluster["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    cluster["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": host,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "validation_context": {"trusted_ca": root},
            },
        },
    }
    return cluster


def _plain_cluster(name: str, address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    endpoint = {"endpoint": {"address": _address(host.strip("[]"), int(port))}}
    return {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
