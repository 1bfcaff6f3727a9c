"""Reading the configuration file: forms, errors with their place, references across resources."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.bootstrap import ConfigError, load_bootstrap, parse_bootstrap
from sidecar.config.resources import AdsConfig, CaProviderConfig, Node, SocketAddress
from tests.support.bootstraps import CLUSTER, LISTENER, MANAGER, PAIR, ROUTE, errors, load, put, small
from tests.support.certs import make_ca
from tests.support.envoy import validate


def test_yaml_and_json_mean_the_same(tmp_path: Path) -> None:
    file = tmp_path / "bootstrap.json"
    file.write_text(json.dumps(yaml.safe_load(PAIR.read_text())))
    assert load_bootstrap(str(file)) == load_bootstrap(str(PAIR))


def test_camel_case_and_snake_case_both_work() -> None:
    tree = small()
    tree["staticResources"] = tree.pop("static_resources")
    cluster = tree["staticResources"]["clusters"][0]
    cluster["loadAssignment"] = cluster.pop("load_assignment")
    cluster["connectTimeout"] = "0.25s"
    assert load(tree) == load(put(small(), f"{CLUSTER}.connect_timeout", "0.250s"))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load_bootstrap("/nonexistent/pair.yaml")
    assert caught.value.errors == ("/nonexistent/pair.yaml: cannot be read: No such file or directory",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\nb: 2", "f.yaml:2:2: not valid YAML: expected ',' or ']', but got ':'"),
        ("node:\n  id: a\n  id: b\n", "f.yaml:3:3: not valid YAML: 'id' appears twice"),
        ("- 1", "f.yaml: must be a mapping (an Envoy v3 Bootstrap), not list"),
        ("", "f.yaml: must be a mapping (an Envoy v3 Bootstrap), not NoneType"),
        ("{[a]: 1}", "f.yaml:1:2: not valid YAML: a key must be text"),
    ],
)
def test_broken_text_is_reported_with_line_and_column(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bootstrap(text, "f.yaml")
    assert caught.value.errors == (expected,)


def test_unknown_fields_are_all_named_with_a_suggestion() -> None:
    tree = put(small(), f"{CLUSTER}.conect_timeout", "1s")
    put(tree, f"{MANAGER}.stat_prefixx", "x")
    assert errors(tree) == [
        f"{CLUSTER}.conect_timeout: envoy.config.cluster.v3.Cluster has no such field; did you mean "
        "connect_timeout?",
        f"{MANAGER}.stat_prefixx: envoy.extensions.filters.network.http_connection_manager.v3."
        "HttpConnectionManager has no such field; did you mean stat_prefix?",
    ]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (f"{CLUSTER}.connect_timeout", 5, "Duration JSON value not a string: 5"),
        (
            f"{CLUSTER}.lb_policy",
            "X",
            "Invalid enum value X for enum type envoy.config.cluster.v3.Cluster.LbPolicy",
        ),
        (f"{CLUSTER}.max_requests_per_connection", "a", "invalid literal for int() with base 10: 'a'"),
        (f"{CLUSTER}.name", 1, "expected string or bytes-like object, got 'int'"),
        (f"{CLUSTER}.load_assignment", [], "must be a mapping, not a list"),
        ("static_resources.clusters", {}, "must be a list, not a mapping"),
        (f"{LISTENER}.filter_chains[0].filters[0].typed_config", {}, 'must be a mapping with "@type"'),
    ],
)
def test_values_of_the_wrong_kind_are_named(path: str, value: Any, expected: str) -> None:
    assert errors(put(small(), path, value)) == [f"{path}: {expected}"]


def test_a_oneof_given_twice_is_an_error() -> None:
    found = errors(put(small(), f"{ROUTE}.redirect", {"https_redirect": True}))
    assert len(found) == 1
    assert 'should not have multiple "action" oneof fields' in found[0]


def test_an_unknown_type_is_named_by_the_decoder() -> None:
    path = f"{LISTENER}.filter_chains[0].filters[0]"
    tree = put(small(), path, {"name": "x", "typed_config": {"@type": "type.googleapis.com/a.B", "c": 1}})
    assert errors(tree) == [
        f"{path}: network filter x (a.B) is not supported; supported are "
        "envoy.filters.network.http_connection_manager and tcp_proxy"
    ]


def test_a_typed_struct_of_a_known_type_is_that_type() -> None:
    path = f"{LISTENER}.filter_chains[0].filters[0].typed_config"
    tree = small()
    manager = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    value = {key: each for key, each in manager.items() if key != "@type"}
    wrapped = {
        "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
        "type_url": manager["@type"],
        "value": value,
    }
    assert load(put(small(), path, wrapped)) == load(small())


def test_routes_to_clusters_that_do_not_exist_are_named() -> None:
    tree = put(small(), f"{ROUTE}.route.cluster", "nowhere")
    assert errors(tree) == [f"{ROUTE}.route: cluster 'nowhere' does not exist"]


def test_names_and_addresses_appear_once() -> None:
    tree = small()
    for kind in ("listeners", "clusters"):
        tree["static_resources"][kind] *= 2
    assert errors(tree) == [
        "static_resources.clusters[1].name: 'app' is also at static_resources.clusters[0]",
        "static_resources.listeners[1].name: 'in' is also at static_resources.listeners[0]",
        "static_resources.listeners[1].address: '127.0.0.1:15001' is also at static_resources.listeners[0]",
    ]


def test_ephemeral_ports_may_appear_more_than_once() -> None:
    tree = put(small(), f"{LISTENER}.address.socket_address.port_value", 0)
    second = dict(tree["static_resources"]["listeners"][0], name="other")
    tree["static_resources"]["listeners"].append(second)
    assert errors(tree) == []


def _mesh() -> dict[str, Any]:
    tree = small()
    control_plane = put({}, "name", "control-plane")
    put(control_plane, "type", "STRICT_DNS")
    put(control_plane, "http2_protocol_options", {})
    tree["static_resources"]["clusters"].append(control_plane)
    ads = {
        "api_type": "DELTA_GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "control-plane"}}],
    }
    tree["dynamic_resources"] = {"ads_config": ads, "lds_config": {"ads": {}, "resource_api_version": "V3"}}
    tree["certificate_provider_instances"] = {
        "mesh": {
            "name": "mesh",
            "typed_config": {
                "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
                "type_url": "mesh.pilotfish.dev/CaProvider",
                "value": {
                    "cluster": "control-plane",
                    "token_file": "/run/token",
                    "spiffe_id": "spiffe://cluster.local/ns/a/sa/b",
                    "ttl_seconds": 3600,
                },
            },
        }
    }
    tree["node"] = {
        "id": "n",
        "cluster": "c",
        "locality": {"region": "r", "zone": "z", "sub_zone": "s"},
        "metadata": {"WORKLOAD_IP": "127.0.0.9"},
    }
    return tree


def test_discovery_node_and_certificate_provider() -> None:
    config = load(_mesh())
    assert config.ads == AdsConfig("control-plane", delta=True, token_file="/run/token")
    assert (config.lds_over_ads, config.cds_over_ads) == (True, False)
    assert config.ca_providers == (
        CaProviderConfig("mesh", "control-plane", "/run/token", "spiffe://cluster.local/ns/a/sa/b", 3600.0),
    )
    assert config.node == Node("n", "c", "r", "z", "s", '{"WORKLOAD_IP": "127.0.0.9"}')


PROVIDER = 'certificate_provider_instances["mesh"]'


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (
            "dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name",
            "x",
            "dynamic_resources.ads_config: cluster 'x' does not exist in static_resources.clusters",
        ),
        (
            "static_resources.clusters[1].http2_protocol_options",
            None,
            "dynamic_resources.ads_config: cluster 'control-plane' must have HTTP/2 and a type other "
            "than EDS",
        ),
        (
            "dynamic_resources.ads_config.api_type",
            "REST",
            "dynamic_resources.ads_config.api_type: REST is not supported; supported are GRPC, DELTA_GRPC",
        ),
        (
            "dynamic_resources.lds_config",
            {"path": "/x"},
            "dynamic_resources.lds_config.path: not supported; use `ads: {}`",
        ),
        (
            "dynamic_resources.ads_config",
            None,
            "dynamic_resources.lds_config: needs ads_config",
        ),
    ],
)
def test_discovery_that_cannot_work_is_refused(path: str, value: Any, expected: str) -> None:
    assert expected in errors(put(_mesh(), path, value))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("token_file", "", "token_file: required: a string"),
        ("cluster", 3, "cluster: required: a string"),
        ("ttl_seconds", "1h", "ttl_seconds: must be a number of seconds, 1 or more, not '1h'"),
        ("ttl", 1, "ttl: unknown; known are cluster, token_file, spiffe_id, ttl_seconds"),
    ],
)
def test_certificate_provider_settings_are_checked(key: str, value: Any, expected: str) -> None:
    tree = _mesh()
    tree["certificate_provider_instances"]["mesh"]["typed_config"]["value"][key] = value
    assert errors(tree) == [f"{PROVIDER}.typed_config.value.{expected}"]


def test_a_certificate_provider_that_is_not_defined_is_named() -> None:
    socket = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {"tls_certificate_provider_instance": {"instance_name": "other"}},
        },
    }
    assert errors(put(_mesh(), f"{CLUSTER}.transport_socket", socket)) == [
        f"{CLUSTER}.transport_socket: certificate provider 'other' is not in certificate_provider_instances"
    ]


def test_admin_address_and_effects_of_the_pair() -> None:
    config = load_bootstrap(str(PAIR))
    assert config.admin == (SocketAddress("127.0.0.1", 9901),)
    tracing = f"{MANAGER}.tracing.spawn_upstream_span"
    assert config.without_effect == (tracing,)


def test_reading_a_bootstrap_imports_no_grpc() -> None:
    script = f"import sys; from sidecar.bootstrap import load_bootstrap; load_bootstrap({str(PAIR)!r}); "
    script += "import sidecar.xds.client; assert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


@pytest.mark.envoy
def test_envoy_accepts_the_pair(tmp_path: Path) -> None:
    authority = make_ca()
    files = {}
    for name in ("server", "client"):
        files[name] = authority.write_files(
            tmp_path, f"spiffe://cluster.local/ns/default/sa/{name}", name=name
        )
    text = PAIR.read_text().replace("certs/ca.pem", files["server"].ca)
    for name, each in files.items():
        text = text.replace(f"certs/{name}.pem", each.certificate).replace(
            f"certs/{name}.key", each.private_key
        )
    assert validate(yaml.safe_load(text), tmp_path) == ""


@pytest.mark.envoy
def test_envoy_accepts_the_small_bootstrap_of_these_tests(tmp_path: Path) -> None:
    assert validate(small(), tmp_path) == ""
