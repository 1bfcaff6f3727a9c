"""Every field that is set, changes traffic and is not implemented is named by its path."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.bootstraps import CLUSTER, HOST, LISTENER, MANAGER, ROUTE, errors, load, put, small

LUA = {
    "name": "envoy.filters.http.lua",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"},
}
LOOPBACK = {"address": "127.0.0.2", "port_value": 1}
PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

REFUSED: list[tuple[str, Any]] = [
    ("hds_config", {"api_type": "GRPC"}),
    ("admin.allow_paths", [{"exact": "/stats"}]),
    ("bootstrap_extensions", [{"name": "x"}]),
    ("cluster_manager.upstream_bind_config", {"source_address": {"address": "127.0.0.1", "port_value": 0}}),
    (f"{LISTENER}.transparent", True),
    (f"{LISTENER}.freebind", True),
    (f"{LISTENER}.socket_options", [{"level": 1, "name": 2, "int_value": 3}]),
    (
        f"{LISTENER}.additional_addresses",
        [{"address": {"socket_address": LOOPBACK}, "socket_options": {"socket_options": []}}],
    ),
    (f"{LISTENER}.listener_filters[0]", {"name": "envoy.filters.listener.proxy_protocol"}),
    (f"{LISTENER}.filter_chains[0].filter_chain_match.transport_protocol", "quic"),
    (f"{LISTENER}.filter_chains[0].filter_chain_match.application_protocols", ["h2c"]),
    (f"{LISTENER}.filter_chains[0].filter_chain_match.server_names[0]", "a.*.example"),
    (f"{LISTENER}.filter_chains[0].filter_chain_match.prefix_ranges", [{"address_prefix": "10.0.0.0"}]),
    (f"{LISTENER}.filter_chains[0].filter_chain_match.source_type", "EXTERNAL"),
    (f"{LISTENER}.filter_chains[0].filter_chain_match.source_ports", [1]),
    (f"{LISTENER}.filter_chains[0].use_proxy_proto", True),
    (f"{MANAGER}.codec_type", "HTTP3"),
    (f"{MANAGER}.use_remote_address", True),
    (f"{MANAGER}.xff_num_trusted_hops", 1),
    (f"{MANAGER}.generate_request_id", True),
    (f"{MANAGER}.normalize_path", True),
    (f"{MANAGER}.merge_slashes", True),
    (f"{MANAGER}.path_with_escaped_slashes_action", "REJECT_REQUEST"),
    (f"{MANAGER}.server_name", "me"),
    (f"{MANAGER}.server_header_transformation", "APPEND_IF_ABSENT"),
    (f"{MANAGER}.via", "me"),
    (f"{MANAGER}.request_timeout", "5s"),
    (f"{MANAGER}.strip_any_host_port", True),
    (f"{MANAGER}.local_reply_config", {"body_format": {"text_format": "no"}}),
    (f"{MANAGER}.common_http_protocol_options.max_connection_duration", "60s"),
    (f"{MANAGER}.common_http_protocol_options.headers_with_underscores_action", "REJECT_REQUEST"),
    (f"{MANAGER}.http_protocol_options.allow_chunked_length", True),
    (f"{MANAGER}.http2_protocol_options.connection_keepalive", {"interval": "30s", "timeout": "5s"}),
    (f"{MANAGER}.http2_protocol_options.connection_keepalive", {"interval": "0.01s", "timeout": "0.01s"}),
    (f"{MANAGER}.set_current_client_cert_details.cert", True),
    (f"{MANAGER}.upgrade_configs[0]", {"upgrade_type": "websocket", "filters": [{"name": "x"}]}),
    (f"{MANAGER}.upgrade_configs[0].upgrade_type", "h2c"),
    (f"{MANAGER}.route_config.vhds", {"config_source": {"ads": {}}}),
    (f"{MANAGER}.route_config.internal_only_headers", ["x-internal"]),
    (f"{MANAGER}.route_config.most_specific_header_mutations_wins", True),
    (f"{MANAGER}.route_config.request_mirror_policies", [{"cluster": "app"}]),
    (f"{HOST}.require_tls", "ALL"),
    (f"{HOST}.include_request_attempt_count", True),
    (f"{HOST}.hedge_policy", {"hedge_on_per_try_timeout": True}),
    (f"{ROUTE}.typed_per_filter_config", {"x": {"@type": "type.googleapis.com/x.Y"}}),
    (f"{ROUTE}.tracing", {"random_sampling": {"numerator": 1}}),
    (f"{ROUTE}.match.dynamic_metadata[0].filter", "x"),
    (f"{ROUTE}.match.tls_context", {"presented": True}),
    (f"{ROUTE}.route.metadata_match", {"filter_metadata": {"envoy.lb": {"a": "b"}}}),
    (f"{ROUTE}.route.cluster_not_found_response_code", "NOT_FOUND"),
    (f"{ROUTE}.route.priority", "HIGH"),
    (f"{ROUTE}.route.auto_host_rewrite", True),
    (f"{ROUTE}.route.append_x_forwarded_host", True),
    (f"{ROUTE}.route.request_mirror_policies", [{"cluster": "app"}]),
    (f"{ROUTE}.route.internal_redirect_policy", {}),
    (f"{ROUTE}.route.max_stream_duration.max_stream_duration", "5s"),
    (f"{ROUTE}.route.retry_policy.per_try_idle_timeout", "5s"),
    (f"{ROUTE}.route.retry_policy.retry_on", "retriable-headers"),
    (f"{ROUTE}.route.retry_policy.retriable_headers", [{"name": "x"}]),
    (f"{CLUSTER}.lb_policy", "CLUSTER_PROVIDED"),
    (f"{CLUSTER}.original_dst_lb_config", {"use_http_header": True}),
    (f"{CLUSTER}.lb_policy", "MAGLEV"),
    (f"{CLUSTER}.health_checks", [{"timeout": "1s", "interval": "1s"}]),
    (f"{CLUSTER}.upstream_bind_config.freebind", True),
    (f"{CLUSTER}.upstream_bind_config.socket_options", [{"level": 1, "name": 2, "int_value": 3}]),
    (f"{CLUSTER}.upstream_bind_config.source_address", {"address": "127.0.0.6", "port_value": 9}),
    (f"{CLUSTER}.upstream_bind_config.source_address", {"address": "localhost", "port_value": 0}),
    (f"{CLUSTER}.lb_subset_config", {}),
    (f"{CLUSTER}.preconnect_policy", {}),
    (f"{CLUSTER}.common_lb_config.zone_aware_lb_config", {}),
    (f"{CLUSTER}.common_lb_config.healthy_panic_threshold", {"value": 50}),
    (f"{CLUSTER}.circuit_breakers.per_host_thresholds", [{"max_connections": 1}]),
    (f"{CLUSTER}.circuit_breakers.thresholds[0].max_connection_pools", 1),
    (f"{CLUSTER}.outlier_detection.enforcing_success_rate", 100),
    (f"{CLUSTER}.outlier_detection.enforcing_consecutive_gateway_failure", 100),
    (f"{CLUSTER}.outlier_detection.enforcing_consecutive_5xx", 50),
    (f"{CLUSTER}.outlier_detection.split_external_local_origin_errors", True),
    (f"{CLUSTER}.least_request_lb_config.choice_count", 3),
    (f"{CLUSTER}.load_assignment.policy.drop_overloads", [{"category": "x"}]),
    (f"{CLUSTER}.load_assignment.policy.overprovisioning_factor", 100),
    (f"{CLUSTER}.load_assignment.endpoints[0].lb_endpoints[0].health_status", "DEGRADED"),
    (f"{CLUSTER}.upstream_http_protocol_options.auto_sni", True),
]


@pytest.mark.parametrize(("path", "value"), REFUSED, ids=[path.split("_config.")[-1] for path, _ in REFUSED])
def test_a_field_that_changes_traffic_and_is_not_implemented_is_named(path: str, value: Any) -> None:
    found = errors(put(small(), path, value))
    # A field of a message that is refused as a whole is named by that message.
    assert len(found) == 1
    named = found[0].split(":")[0]
    assert path.startswith(named) or named.startswith(path)


ACCEPTED: list[tuple[str, Any]] = [
    ("stats_config", {"use_all_default_tags": True}),
    ("layered_runtime", {"layers": [{"name": "x", "static_layer": {}}]}),
    ("overload_manager", {"resource_monitors": []}),
    ("admin.access_log_path", "/dev/null"),
    ("node.user_agent_name", "someone"),
    (f"{LISTENER}.stat_prefix", "x"),
    (f"{LISTENER}.metadata", {"filter_metadata": {"x": {"y": 1}}}),
    (f"{LISTENER}.per_connection_buffer_limit_bytes", 32768),
    (f"{LISTENER}.filter_chains[0].name", "x"),
    (f"{MANAGER}.delayed_close_timeout", "1s"),
    (f"{MANAGER}.http_protocol_options.accept_http_10", True),
    (f"{ROUTE}.metadata", {"filter_metadata": {"x": {"y": 1}}}),
    (f"{ROUTE}.decorator", {"operation": "x"}),
    (f"{ROUTE}.route.hash_policy", [{"header": {"header_name": "x"}}]),
    (f"{CLUSTER}.alt_stat_name", "x"),
    (f"{CLUSTER}.per_connection_buffer_limit_bytes", 32768),
    (f"{CLUSTER}.outlier_detection.interval", "1s"),
]


@pytest.mark.parametrize(
    ("path", "value"), ACCEPTED, ids=[path.split("_config.")[-1] for path, _ in ACCEPTED]
)
def test_a_field_that_only_describes_is_listed_as_without_effect(path: str, value: Any) -> None:
    assert load(put(small(), path, value)).without_effect == (path,)


@pytest.mark.parametrize(
    "path",
    [
        f"{LISTENER}.use_original_dst",
        f"{LISTENER}.transparent",
        f"{MANAGER}.use_remote_address",
        f"{MANAGER}.normalize_path",
        f"{MANAGER}.generate_request_id",
        f"{ROUTE}.route.auto_host_rewrite",
    ],
)
def test_a_feature_that_is_switched_off_is_accepted(path: str) -> None:
    assert load(put(small(), path, False)) == load(small())


def test_an_unknown_filter_says_what_to_do() -> None:
    assert errors(put(small(), f"{MANAGER}.http_filters", [LUA, *_filters()])) == [
        f"{MANAGER}.http_filters[0]: filter envoy.filters.http.lua "
        "(envoy.extensions.filters.http.lua.v3.Lua) is not supported; remove it, or set is_optional to go "
        "without it"
    ]


def test_an_optional_unknown_filter_is_without_effect() -> None:
    config = load(put(small(), f"{MANAGER}.http_filters", [{**LUA, "is_optional": True}, *_filters()]))
    assert config.without_effect == (f"{MANAGER}.http_filters[0]",)


def test_two_filter_chains_that_take_the_same_connections_are_refused() -> None:
    tree = small()
    listener = tree["static_resources"]["listeners"][0]
    [chain] = listener["filter_chains"]
    listener["filter_chains"] = [
        {**chain, "filter_chain_match": {"application_protocols": ["a", "h2"]}},
        {**chain, "filter_chain_match": {"application_protocols": ["h2", "b"]}},
    ]
    assert errors(tree) == [
        f"{LISTENER}.filter_chains[1].filter_chain_match: matches the same connections as "
        f"{LISTENER}.filter_chains[0]"
    ]


def test_a_cluster_to_the_original_destination_has_no_endpoints_and_no_policy_of_its_own() -> None:
    assert errors(put(small(), f"{CLUSTER}.type", "ORIGINAL_DST")) == [
        f"{CLUSTER}.load_assignment: a cluster of type ORIGINAL_DST has no endpoints of its own; remove it",
        f"{CLUSTER}.lb_policy: ROUND_ROBIN is not supported; supported are CLUSTER_PROVIDED",
    ]


def test_the_router_must_be_the_last_filter() -> None:
    assert errors(put(small(), f"{MANAGER}.http_filters", [])) == [
        f"{MANAGER}.http_filters: the last filter must be envoy.filters.http.router"
    ]


def test_all_errors_are_reported_together_in_the_order_of_the_file() -> None:
    tree = put(small(), f"{LISTENER}.transparent", True)
    put(tree, f"{CLUSTER}.lb_policy", "RANDOM")
    put(tree, f"{CLUSTER}.connect_timeout", "0s")
    assert errors(tree) == [
        f"{LISTENER}.transparent: not supported; remove it",
        f"{CLUSTER}.lb_policy: RANDOM is not supported; supported are ROUND_ROBIN, LEAST_REQUEST, "
        "LOAD_BALANCING_POLICY_CONFIG",
        f"{CLUSTER}.connect_timeout: must be more than 0s, not 0s",
    ]


def _filters() -> list[dict[str, Any]]:
    manager = small()["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    filters: list[dict[str, Any]] = manager["http_filters"]
    return filters
