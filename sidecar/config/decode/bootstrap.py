"""Envoy `Bootstrap`: node, admin, static resources, where discovery is, and our certificate providers.

Called by `sidecar/bootstrap.py`, which reads the file.
"""

from __future__ import annotations

from envoy.config.bootstrap.v3 import bootstrap_pb2  # noqa: F401  registers the types
from google.protobuf import json_format
from xds.type.v3 import typed_struct_pb2

from mesh_api.names import CA_PROVIDER_TYPE
from sidecar.config.decode.checks import check_references
from sidecar.config.decode.cluster import cluster
from sidecar.config.decode.common import ads_source, listening_addresses
from sidecar.config.decode.listener import listener
from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import AdsConfig, Bootstrap, CaProviderConfig, Node, SocketAddress

_BOOTSTRAP = Fields(
    "node static_resources dynamic_resources admin certificate_provider_instances cluster_manager",
    "node_context_params flags_path stats_sinks deferred_stat_options stats_config stats_flush_interval "
    "stats_flush_on_admin stats_eviction_interval watchdog watchdogs layered_runtime overload_manager "
    "enable_dispatcher_stats stats_server_version_override fatal_actions inline_headers "
    "perf_tracing_file_path "
    "default_regex_engine application_log_config grpc_async_client_manager_config memory_allocator_manager",
    hints={"tracing": "use the tracing of each HttpConnectionManager"},
)
_STATIC = Fields("listeners clusters", "secrets")
_DYNAMIC = Fields("lds_config cds_config ads_config")
_NODE = Fields(
    "id cluster metadata locality",
    "dynamic_parameters user_agent_name user_agent_version user_agent_build_version extensions "
    "client_features "
    "listening_addresses",
)
_LOCALITY = Fields("region zone sub_zone")
_ADMIN = Fields("address", "access_log access_log_path profile_path socket_options ignore_global_conn_limit")
_CLUSTER_MANAGER = Fields(
    "", "local_cluster_name outlier_detection load_stats_config enable_deferred_cluster_creation"
)
_ADS = Fields(
    "api_type transport_api_version grpc_services",
    "request_timeout rate_limit_settings set_node_on_first_message_only refresh_delay",
    hints={"cluster_names": "use grpc_services with envoy_grpc"},
)
_GRPC_SERVICE = Fields("envoy_grpc", "timeout retry_policy", hints={"google_grpc": "use envoy_grpc"})
_ENVOY_GRPC = Fields("cluster_name", "max_receive_message_length skip_envoy_headers retry_policy")
_PROVIDER_KEYS = ("cluster", "token_file", "spiffe_id", "ttl_seconds")
_TYPED_STRUCT: str = typed_struct_pb2.TypedStruct.DESCRIPTOR.full_name


def bootstrap(view: View) -> Bootstrap:
    """The whole file, with its references checked."""
    view.check(_BOOTSTRAP)
    view.sub("cluster_manager", _CLUSTER_MANAGER)
    static = view.sub("static_resources", _STATIC)
    dynamic = view.sub("dynamic_resources", _DYNAMIC)
    for name in ("lds_config", "cds_config"):
        if dynamic.has(name):
            ads_source(dynamic.sub(name))
            if not dynamic.has("ads_config"):
                dynamic.error("needs ads_config", name)
    providers = tuple(
        _ca_provider(key, entry) for key, entry in view.entries("certificate_provider_instances")
    )
    listeners = tuple(listener(each) for each in static.subs("listeners"))
    clusters = tuple(cluster(each) for each in static.subs("clusters"))
    result = Bootstrap(
        node=_node(view.sub("node", _NODE)),
        admin=_admin(view),
        listeners=listeners,
        clusters=clusters,
        ads=_ads(dynamic.sub("ads_config"), providers) if dynamic.has("ads_config") else None,
        lds_over_ads=dynamic.has("lds_config"),
        cds_over_ads=dynamic.has("cds_config"),
        ca_providers=providers,
        without_effect=tuple(view.report.without_effect),
    )
    check_references(result, view)
    return result


def _node(view: View) -> Node:
    locality = view.sub("locality", _LOCALITY)
    return Node(
        id=view.text("id"),
        cluster=view.text("cluster"),
        region=locality.text("region"),
        zone=locality.text("zone"),
        sub_zone=locality.text("sub_zone"),
        metadata_json=json_format.MessageToJson(view.message.metadata, indent=None, sort_keys=True),
    )


def _admin(view: View) -> tuple[SocketAddress, ...]:
    admin = view.sub("admin", _ADMIN)
    return listening_addresses(admin.sub("address")) if admin.has("address") else ()


def _ads(view: View, providers: tuple[CaProviderConfig, ...]) -> AdsConfig:
    view.check(_ADS)
    delta = view.choice("api_type", {"GRPC": False, "DELTA_GRPC": True}, True)
    view.choice("transport_api_version", {"AUTO": None, "V3": None}, None)
    services = list(view.subs("grpc_services", _GRPC_SERVICE))
    if len(services) != 1:
        view.error(f"exactly one is supported, not {len(services)}", "grpc_services")
        return AdsConfig("", delta)
    if not services[0].has("envoy_grpc"):
        services[0].error("required", "envoy_grpc")
        return AdsConfig("", delta)
    name = services[0].sub("envoy_grpc", _ENVOY_GRPC).required("cluster_name")
    # The control plane that signs for this workload knows it by the same token.
    token_file = next((provider.token_file for provider in providers if provider.cluster == name), "")
    return AdsConfig(name, delta, token_file)


def _ca_provider(instance: str, view: View) -> CaProviderConfig:
    """One of our own certificate providers: a TypedStruct that no binding knows."""
    value = view.message.typed_config
    struct = typed_struct_pb2.TypedStruct()
    if (
        not value.Is(struct.DESCRIPTOR)
        or not value.Unpack(struct)
        or not struct.type_url.endswith(CA_PROVIDER_TYPE)
    ):
        view.error(f"only a {_TYPED_STRUCT} with type_url {CA_PROVIDER_TYPE} is supported", "typed_config")
        return CaProviderConfig(instance, "", "")
    settings = json_format.MessageToDict(struct.value)
    inside = View(struct, f"{view.at('typed_config')}.value", view.report)
    for key in sorted(settings.keys() - set(_PROVIDER_KEYS)):
        inside.error(f"unknown; known are {', '.join(_PROVIDER_KEYS)}", key)
    texts = {}
    for key in _PROVIDER_KEYS[:3]:
        text = settings.get(key, "")
        texts[key] = text if isinstance(text, str) else ""
        if text != texts[key] or (not text and key != "spiffe_id"):
            inside.error("required: a string", key)
    ttl = settings.get("ttl_seconds", 86400.0)
    if not isinstance(ttl, (int, float)) or not 1 <= ttl <= 10 * 365 * 86400:
        inside.error(f"must be a number of seconds, 1 or more, not {ttl!r}", "ttl_seconds")
        ttl = 86400.0
    return CaProviderConfig(instance, texts["cluster"], texts["token_file"], texts["spiffe_id"], float(ttl))
