"""What supported configuration becomes: defaults of Envoy, translated names, ranges."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.bootstrap import load_bootstrap
from sidecar.config.decode import ConfigError, decode_cluster, decode_listener
from sidecar.config.resources import (
    CircuitBreakers,
    ClientCert,
    ClusterConfig,
    DirectResponse,
    Discovery,
    EndpointConfig,
    EndpointsConfig,
    FilterChainMatch,
    HeaderOperation,
    Health,
    Http2Options,
    HttpConnectionManagerConfig,
    LbPolicy,
    LocalityEndpoints,
    OutlierDetection,
    Redirect,
    RetryPolicy,
    Route,
    RouteAction,
    RouteMatch,
    SocketAddress,
    StringMatcher,
    TcpProxyConfig,
    TlsConfig,
    TracingConfig,
    WeightedCluster,
)
from tests.support.bootstraps import CLUSTER, HOST, LISTENER, MANAGER, PAIR, ROUTE, errors, load, put, small

PREFIX = "type.googleapis.com/"
ENDPOINT = f"{CLUSTER}.load_assignment.endpoints[0].lb_endpoints[0]"


def manager(tree: dict[str, Any]) -> HttpConnectionManagerConfig:
    network = load(tree).listeners[0].filter_chains[0].network
    assert isinstance(network, HttpConnectionManagerConfig)
    return network


def route(tree: dict[str, Any]) -> Route:
    table = manager(tree).route_config
    assert table is not None
    return table.virtual_hosts[0].routes[0]


def cluster(tree: dict[str, Any]) -> ClusterConfig:
    return load(tree).clusters[0]


def test_defaults_are_those_of_envoy() -> None:
    assert route(small()) == Route(
        "", RouteMatch(prefix="/"), RouteAction((WeightedCluster("app", 1),), timeout=15.0)
    )
    address = EndpointConfig(SocketAddress("127.0.0.1", 8080))
    assert cluster(small()) == ClusterConfig(
        "app",
        Discovery.STATIC,
        endpoints=EndpointsConfig("app", (LocalityEndpoints("", "", "", 0, 1, (address,)),)),
        connect_timeout=5.0,
    )


def test_the_pair_has_mutual_tls_tracing_and_limits() -> None:
    config = load_bootstrap(str(PAIR))
    outbound = config.listeners[0].filter_chains[0].network
    inbound = config.listeners[1].filter_chains[0]
    assert isinstance(outbound, HttpConnectionManagerConfig)
    assert isinstance(inbound.network, HttpConnectionManagerConfig)
    assert outbound.tracing == TracingConfig(1.0, 100.0, "outbound", "collector", "/v1/traces", 1.0)
    assert inbound.network.client_cert is ClientCert.SANITIZE_SET
    assert (inbound.network.client_cert_uri, inbound.network.access_log) == (True, True)
    assert (config.listeners[0].inbound, config.listeners[1].inbound) == (False, True)
    assert inbound.tls == TlsConfig(
        certificate_file="certs/server.pem",
        private_key_file="certs/server.key",
        trusted_ca_file="certs/ca.pem",
        uri_san_matchers=(StringMatcher("prefix", "spiffe://cluster.local/"),),
        alpn=("h2",),
        require_client_certificate=True,
    )
    peer = config.clusters[0]
    assert (peer.lb_policy, peer.http2) == (LbPolicy.LEAST_REQUEST, Http2Options())
    assert peer.circuit_breakers == CircuitBreakers(100, 10000, 10000, None, 20.0, 10.0)
    assert peer.outlier_detection == OutlierDetection()
    assert peer.tls is not None
    assert (peer.tls.sni, peer.tls.certificate_file) == ("server.local", "certs/client.pem")


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"path": "/a", "case_sensitive": False}, RouteMatch(path="/a", case_sensitive=False)),
        ({"safe_regex": {"regex": r"/a\z"}}, RouteMatch(regex=r"/a\Z")),
        ({"path_separated_prefix": "/a"}, RouteMatch(path_separated_prefix="/a")),
        ({"prefix": "/", "grpc": {}}, RouteMatch(prefix="/", grpc=True)),
        (
            {
                "prefix": "/",
                "runtime_fraction": {"default_value": {"numerator": 5, "denominator": "TEN_THOUSAND"}},
            },
            RouteMatch(prefix="/", runtime_fraction=0.0005),
        ),
    ],
)
def test_path_matches(match: dict[str, Any], expected: RouteMatch) -> None:
    assert route(put(small(), f"{ROUTE}.match", match)).match == expected


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (
            f"{ROUTE}.match",
            {},
            "required: prefix, path, safe_regex, path_separated_prefix or connect_matcher",
        ),
        (f"{HOST}.domains", ["a*b"], "'a*b': a domain is exact, `*.suffix`, `prefix.*` or `*`"),
        (f"{ROUTE}.route.timeout", "-1s", "must be at least 0s, not -1s"),
        (f"{ROUTE}.route.retry_policy.retriable_status_codes", [99], "must be from 100 to 599, not 99"),
        (
            f"{CLUSTER}.circuit_breakers.thresholds",
            [{"retry_budget": {"budget_percent": {"value": 101}}}],
            "",
        ),
        (f"{CLUSTER}.outlier_detection.max_ejection_percent", 101, "must be from 0 to 100, not 101"),
        (
            f"{ENDPOINT}.endpoint.address.socket_address.port_value",
            65536,
            "must be from 1 to 65535, not 65536",
        ),
        (f"{ENDPOINT}.endpoint.address.socket_address.address", "app.example", ""),
        (f"{MANAGER}.max_request_headers_kb", 8193, "must be from 1 to 8192, not 8193"),
    ],
)
def test_values_out_of_range_are_refused_with_their_path(path: str, value: Any, expected: str) -> None:
    (found_error,) = errors(put(small(), path, value))
    assert found_error.startswith(path)
    assert found_error.endswith(expected)


def test_a_broken_regular_expression_is_named() -> None:
    (found,) = errors(put(small(), f"{ROUTE}.match", {"safe_regex": {"regex": "a("}}))
    assert found.startswith(f"{ROUTE}.match.safe_regex.regex: no valid regular expression: ")


def test_headers_are_removed_before_they_are_added() -> None:
    tree = put(small(), f"{ROUTE}.request_headers_to_remove", ["X-Old"])
    added = [
        {"header": {"key": "X-A", "value": "100%%"}},
        {"header": {"key": "x-b", "value": "1"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
        {"header": {"key": "x-c", "value": "1"}, "append_action": "ADD_IF_ABSENT"},
        {"header": {"key": "x-d", "value": "1"}, "append_action": "OVERWRITE_IF_EXISTS"},
        {"header": {"key": "x-e"}},
        {"header": {"key": "x-f"}, "keep_empty_value": True},
    ]
    assert route(put(tree, f"{ROUTE}.request_headers_to_add", added)).request_headers == (
        HeaderOperation("remove", b"x-old"),
        HeaderOperation("append", b"x-a", b"100%"),
        HeaderOperation("overwrite", b"x-b", b"1"),
        HeaderOperation("add_if_absent", b"x-c", b"1"),
        HeaderOperation("overwrite_if_exists", b"x-d", b"1"),
        HeaderOperation("append", b"x-f", b""),
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "x",
            "%REQ(a)%",
            "header.value: command operators such as %REQ(...)% are not supported; "
            "write %% for a percent sign",
        ),
        ("x", "a\nb", "header.value: control characters are not allowed in a header value"),
        (":path", "/", "header.key: :path cannot be changed as a header; use the rewrites of the route"),
        ("Host", "a", "header.key: Host cannot be changed as a header; use the rewrites of the route"),
        ("a b", "a", "header.key: 'a b' is no header name"),
    ],
)
def test_headers_that_cannot_be_set_are_refused(key: str, value: str, expected: str) -> None:
    path = f"{HOST}.response_headers_to_add"
    assert errors(put(small(), path, [{"header": {"key": key, "value": value}}])) == [f"{path}[0].{expected}"]


def test_retry_policy_has_the_defaults_of_envoy() -> None:
    assert route(
        put(small(), f"{ROUTE}.route.retry_policy", {"retry_on": "5xx, reset"})
    ).action == RouteAction(
        (WeightedCluster("app", 1),), retry_policy=RetryPolicy(frozenset({"5xx", "reset"}), 1, 0.0)
    )
    back_off = {"retry_back_off": {"base_interval": "0.1s"}, "num_retries": 0}
    policy = route(put(small(), f"{ROUTE}.route.retry_policy", back_off)).action
    assert policy is not None
    assert policy.retry_policy == RetryPolicy(frozenset(), 0, back_off_base=0.1, back_off_max=1.0)


def test_weights_that_are_zero_leave_their_cluster_out() -> None:
    weighted = {"clusters": [{"name": "app", "weight": 0}, {"name": "app", "weight": 3}]}
    tree = put(put(small(), f"{ROUTE}.route.cluster", None), f"{ROUTE}.route.weighted_clusters", weighted)
    action = route(tree).action
    assert action is not None
    assert action.clusters == (WeightedCluster("app", 3),)
    weighted["clusters"][1]["weight"] = 0
    assert errors(tree) == [
        f"{ROUTE}.route.weighted_clusters.clusters: the weights must add up to at least 1 "
        "and less than 2^32, not 0"
    ]


def test_redirects_and_direct_responses() -> None:
    tree = put(put(small(), f"{ROUTE}.route", None), f"{ROUTE}.redirect.https_redirect", True)
    put(tree, f"{ROUTE}.redirect.response_code", "PERMANENT_REDIRECT")
    put(tree, f"{ROUTE}.redirect.prefix_rewrite", "/x")
    assert route(tree).redirect == Redirect(308, "https", prefix_rewrite="/x")
    tree = put(put(small(), f"{ROUTE}.route", None), f"{ROUTE}.direct_response.status", 503)
    put(tree, f"{ROUTE}.direct_response.body.inline_string", "no")
    assert route(tree).direct_response == DirectResponse(503, b"no")


def test_connect_needs_a_route_that_terminates_it() -> None:
    tree = put(small(), f"{ROUTE}.match", {"connect_matcher": {}})
    assert errors(tree) == [
        f"{ROUTE}.route.upgrade_configs: a connect_matcher needs one with upgrade_type CONNECT and "
        "connect_config"
    ]
    put(tree, f"{ROUTE}.route.upgrade_configs", [{"upgrade_type": "CONNECT", "connect_config": {}}])
    put(tree, f"{MANAGER}.upgrade_configs", [{"upgrade_type": "CONNECT"}, {"upgrade_type": "websocket"}])
    assert route(tree).match == RouteMatch(connect=True)
    assert manager(tree).upgrades == ("websocket",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["peak_ewma.v3alpha.PeakEwma", "least_request.v3.LeastRequest"], LbPolicy.PEAK_EWMA),
        (["unknown.v3.Unknown", "least_request.v3.LeastRequest"], LbPolicy.LEAST_REQUEST),
        (["round_robin.v3.RoundRobin", "least_request.v3.LeastRequest"], LbPolicy.ROUND_ROBIN),
    ],
)
def test_the_first_known_balancing_policy_is_taken(names: list[str], expected: LbPolicy) -> None:
    policies = [
        {
            "typed_extension_config": {
                "name": name,
                "typed_config": {"@type": f"{PREFIX}envoy.extensions.load_balancing_policies.{name}"},
            }
        }
        for name in names
    ]
    assert cluster(put(small(), f"{CLUSTER}.load_balancing_policy.policies", policies)).lb_policy is expected


def test_endpoint_health_weight_and_metadata() -> None:
    tree = put(small(), f"{ENDPOINT}.health_status", "DRAINING")
    put(tree, f"{ENDPOINT}.load_balancing_weight", 7)
    put(tree, f"{ENDPOINT}.endpoint.hostname", "app-1")
    metadata = {
        "mesh.pilotfish.dev": {"tunnel": "10.0.0.1:80", "protocol": "http1"},
        "envoy.transport_socket_match": {"tlsMode": "disabled"},
    }
    put(tree, f"{ENDPOINT}.metadata", {"filter_metadata": metadata})
    endpoints = cluster(tree).endpoints
    assert endpoints is not None
    assert endpoints.localities[0].endpoints == (
        EndpointConfig(
            SocketAddress("127.0.0.1", 8080), 7, Health.DRAINING, "app-1", "10.0.0.1:80", True, True
        ),
    )


def test_an_endpoints_protocol_is_http1_or_the_clusters() -> None:
    metadata = {"filter_metadata": {"mesh.pilotfish.dev": {"protocol": "http3"}}}
    with pytest.raises(ConfigError, match=r'lb_endpoints\[0\].metadata.*"protocol".*http3 is not supported'):
        cluster(put(small(), f"{ENDPOINT}.metadata", metadata))


def test_a_tcp_proxy_with_a_tunnel() -> None:
    proxy = {
        "@type": f"{PREFIX}envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tcp",
        "cluster": "app",
        "idle_timeout": "60s",
        "tunneling_config": {"hostname": "db:5432"},
    }
    config = load(put(small(), f"{LISTENER}.filter_chains[0].filters[0].typed_config", proxy))
    assert config.listeners[0].filter_chains[0].network == TcpProxyConfig(
        "tcp", (WeightedCluster("app", 1),), 60.0, True, "db:5432"
    )


def test_a_listener_that_takes_redirected_connections() -> None:
    tree = small()
    [chain] = tree["static_resources"]["listeners"][0]["filter_chains"]
    match = {
        "destination_port": 8080,
        "server_names": ["A.Example", "*.b.example"],
        "transport_protocol": "tls",
        "application_protocols": ["pilotfish-h2", "h2"],
    }
    put(tree, f"{LISTENER}.filter_chains", [{**chain, "filter_chain_match": match}])
    put(tree, f"{LISTENER}.default_filter_chain", chain)
    put(tree, f"{LISTENER}.use_original_dst", True)
    put(tree, f"{LISTENER}.bind_to_port", False)
    extra = {"address": {"socket_address": {"address": "::1", "port_value": 15001}}}
    put(tree, f"{LISTENER}.additional_addresses", [extra])
    put(tree, f"{LISTENER}.listener_filters_timeout", "0.1s")
    put(tree, f"{LISTENER}.continue_on_listener_filters_timeout", True)
    found = load(tree).listeners[0]
    assert found.filter_chains[0].match == FilterChainMatch(
        8080, ("a.example", "*.b.example"), "tls", ("pilotfish-h2", "h2")
    )
    assert found.default_filter_chain is not None
    assert found.default_filter_chain.match == FilterChainMatch()
    assert (found.original_dst, found.hand_off, found.inspect_tls, found.bind_to_port) == (
        *(True, True, True, False),
    )
    assert found.additional_addresses == (SocketAddress("::1", 15001),)
    assert (found.listener_filters_timeout, found.continue_on_timeout) == (0.1, True)


def test_a_listener_that_hands_on_inspects_tls_only_where_the_filter_says_so() -> None:
    kind = f"{PREFIX}envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
    tree = put(small(), f"{LISTENER}.use_original_dst", True)
    assert load(tree).listeners[0].inspect_tls is False
    put(tree, f"{LISTENER}.listener_filters", [{"name": "tls", "typed_config": {"@type": kind}}])
    found = load(tree)
    assert found.listeners[0].inspect_tls is True
    assert found.without_effect == ()


@pytest.mark.parametrize("all_ipv6", ["::", "0::0", "0:0:0:0:0:0:0:0"])
def test_ipv4_compat_of_all_ipv6_addresses_is_all_addresses(all_ipv6: str) -> None:
    tree = small()
    listening = {"address": all_ipv6, "port_value": 80, "ipv4_compat": True}
    put(tree, f"{LISTENER}.address.socket_address", listening)
    found = load(tree)
    assert found.listeners[0].address == SocketAddress(all_ipv6, 80)
    assert found.listeners[0].additional_addresses == (SocketAddress("0.0.0.0", 80),)
    assert found.without_effect == ()


def test_a_plain_listener_inspects_nothing_and_takes_no_notice_of_redirection() -> None:
    found = load(small()).listeners[0]
    assert (found.original_dst, found.hand_off, found.inspect_tls, found.bind_to_port) == (
        *(False, False, False, True),
    )
    assert (found.listener_filters_timeout, found.continue_on_timeout) == (15.0, False)


@pytest.mark.parametrize("name", ["original_dst", "tls_inspector", "http_inspector"])
def test_listener_filters(name: str) -> None:
    kind = "".join(part.capitalize() for part in name.split("_"))
    each = {
        "name": name,
        "typed_config": {"@type": f"{PREFIX}envoy.extensions.filters.listener.{name}.v3.{kind}"},
    }
    config = load(put(small(), f"{LISTENER}.listener_filters", [each]))
    assert config.listeners[0].original_dst is (name == "original_dst")
    assert config.listeners[0].hand_off is False
    disabled = {**each, "filter_disabled": {"destination_port_range": {"start": 1, "end": 2}}}
    assert errors(put(small(), f"{LISTENER}.listener_filters", [disabled])) == [
        f"{LISTENER}.listener_filters[0].filter_disabled: not supported; remove it"
    ]


def test_a_listener_that_hands_everything_on_needs_no_filter_chain() -> None:
    tree = put(small(), f"{LISTENER}.filter_chains", [])
    assert errors(tree) == [f"{LISTENER}.filter_chains: required"]
    assert load(put(tree, f"{LISTENER}.use_original_dst", True)).listeners[0].filter_chains == ()


def test_references_in_the_default_filter_chain_are_checked() -> None:
    tree = small()
    proxy = {
        "@type": f"{PREFIX}envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tcp",
        "cluster": "nowhere",
    }
    put(tree, f"{LISTENER}.default_filter_chain.filters", [{"name": "tcp", "typed_config": proxy}])
    assert errors(tree) == [
        f"{LISTENER}.default_filter_chain.filters[0].typed_config: cluster 'nowhere' does not exist"
    ]


def test_a_cluster_to_the_original_destination_from_addresses_of_its_own() -> None:
    tree = put(small(), f"{CLUSTER}.type", "ORIGINAL_DST")
    put(tree, f"{CLUSTER}.lb_policy", "CLUSTER_PROVIDED")
    put(tree, f"{CLUSTER}.load_assignment", None)
    bind = {
        "source_address": {"address": "127.0.0.6", "port_value": 0},
        "extra_source_addresses": [{"address": {"address": "::6", "port_value": 0}}],
    }
    found = cluster(put(tree, f"{CLUSTER}.upstream_bind_config", bind))
    assert found.discovery is Discovery.ORIGINAL_DST
    assert found.source_addresses == ("127.0.0.6", "::6")
    assert found.endpoints is None


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        decode_cluster(b"\xff", "Cluster a")
    assert caught.value.errors == (
        "Cluster a: the bytes are no valid envoy.config.cluster.v3.Cluster; the sender is broken",
    )


def test_paths_of_discovered_resources_start_with_the_resource() -> None:
    with pytest.raises(ConfigError) as caught:
        decode_listener(b"", "Listener l")
    assert "Listener l.filter_chains: required" in caught.value.errors
