"""Bootstraps for tests: a pair of sidecars in one file, and small trees to set a single field in."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import yaml

from sidecar.bootstrap import ConfigError, parse_bootstrap
from sidecar.config.resources import Bootstrap

PAIR = Path(__file__).parent.parent / "config" / "data" / "pair.yaml"

HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
}
LISTENER = "static_resources.listeners[0]"
MANAGER = f"{LISTENER}.filter_chains[0].filters[0].typed_config"
HOST = f"{MANAGER}.route_config.virtual_hosts[0]"
ROUTE = f"{HOST}.routes[0]"
CLUSTER = "static_resources.clusters[0]"


def small() -> dict[str, Any]:
    """One listener with one route to one cluster."""
    manager = {
        "@type": HCM,
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}],
                }
            ]
        },
        "http_filters": [ROUTER],
    }
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 8080}}}}
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "in",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 15001}},
                    "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "app",
                    "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [endpoint]}]},
                }
            ],
        }
    }


def put(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Sets the value at a path such as `a.b[0].c` in place; containers on the way are made. A value of
    None removes the key."""
    at: Any = tree
    steps: list[str | int] = []
    for part in path.split("."):
        name, *indices = part.replace("]", "").split("[")
        steps += [name, *map(int, indices)]
    for step, following in itertools.pairwise(steps):
        if isinstance(step, int):
            while len(at) <= step:
                at.append([] if isinstance(following, int) else {})
            at = at[step]
        else:
            at = at.setdefault(step, [] if isinstance(following, int) else {})
    last = steps[-1]
    if value is None:
        del at[last]
    elif isinstance(last, int) and last == len(at):
        at.append(value)
    else:
        at[last] = value
    return tree


def load(tree: dict[str, Any]) -> Bootstrap:
    return parse_bootstrap(yaml.safe_dump(tree))


def errors(tree: dict[str, Any]) -> list[str]:
    """What is wrong with the tree, [] for nothing."""
    try:
        load(tree)
    except ConfigError as error:
        return list(error.errors)
    return []
