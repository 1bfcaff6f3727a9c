"""A ResourceSource that tests fill by hand, what clients need at least, a control plane of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2

# ParseDict finds the message behind an `@type` only if its module was imported.
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: F401
    http_connection_manager_pb2,
)
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.json_format import ParseDict

from control_plane.app import Configuration, ControlPlane, issue_token
from control_plane.model.discovery import Change, NodeInfo, Resource
from control_plane.model.problem import Problem
from control_plane.settings import Settings
from control_plane.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTE

ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
MANAGER = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)


class MemorySource:
    """Resources in a dictionary, the same for every node. `asked` records each look-up."""

    def __init__(self) -> None:
        self.by_type: dict[str, dict[str, Resource]] = {}
        self.asked: list[tuple[NodeInfo, str, frozenset[str] | None]] = []
        self.callbacks: list[Callable[[Change], None]] = []

    def resources(
        self, node: NodeInfo, type_url: str, names: frozenset[str] | None
    ) -> Mapping[str, Resource]:
        self.asked.append((node, type_url, names))
        known = self.by_type.get(type_url, {})
        return {name: resource for name, resource in known.items() if names is None or name in names}

    def subscribe(self, callback: Callable[[Change], None]) -> None:
        self.callbacks.append(callback)

    def put(self, type_url: str, name: str, body: bytes | Any) -> Change:
        """Sets one resource; tells nobody. Returns the change to be told with `tell`."""
        data = body if isinstance(body, bytes) else body.SerializeToString(deterministic=True)
        version = blake2b(data, digest_size=8).hexdigest()
        self.by_type.setdefault(type_url, {})[name] = Resource(version, data)
        return Change({type_url: frozenset((name,))})

    def remove(self, type_url: str, name: str) -> Change:
        del self.by_type[type_url][name]
        return Change({type_url: frozenset((name,))})

    def tell(self, change: Change) -> None:
        for callback in self.callbacks:
            callback(change)


def cluster(name: str, **more: Any) -> Any:
    """An EDS cluster over ADS; `more` in protobuf's JSON form."""
    fields = {
        "name": name,
        "type": "EDS",
        "edsClusterConfig": {"edsConfig": {"ads": {}, "resourceApiVersion": "V3"}},
    }
    return ParseDict({**fields, **more}, cluster_pb2.Cluster())


def endpoints(cluster_name: str, *ports: int) -> Any:
    """Endpoints at 127.0.0.1 in one locality."""
    members = [
        {"endpoint": {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": port}}}}
        for port in ports
    ]
    locality = {"locality": {"zone": "a"}, "loadBalancingWeight": 1, "lbEndpoints": members}
    return ParseDict(
        {"clusterName": cluster_name, "endpoints": [locality]}, endpoint_pb2.ClusterLoadAssignment()
    )


def listener(name: str, route: str) -> Any:
    """An API listener, as proxyless clients take it, whose routes come over RDS."""
    manager = {
        "@type": MANAGER,
        "statPrefix": name,
        "rds": {"routeConfigName": route, "configSource": {"ads": {}, "resourceApiVersion": "V3"}},
        "httpFilters": [{"name": "router", "typedConfig": {"@type": ROUTER}}],
    }
    return ParseDict({"name": name, "apiListener": {"apiListener": manager}}, listener_pb2.Listener())


def socket_listener(name: str, host: str, port: int, route: str) -> Any:
    """A listener as Envoy takes it."""
    manager = {
        "@type": MANAGER,
        "statPrefix": name,
        "rds": {"routeConfigName": route, "configSource": {"ads": {}, "resourceApiVersion": "V3"}},
        "httpFilters": [{"name": "router", "typedConfig": {"@type": ROUTER}}],
    }
    fields = {
        "name": name,
        "address": {"socketAddress": {"address": host, "portValue": port}},
        "filterChains": [{"filters": [{"name": "http", "typedConfig": manager}]}],
    }
    return ParseDict(fields, listener_pb2.Listener())


def route(name: str, to: str) -> Any:
    """All requests to one cluster."""
    fields = {
        "name": name,
        "virtualHosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": to}}],
            }
        ],
    }
    return ParseDict(fields, route_pb2.RouteConfiguration())


def serve(source: MemorySource, target: str, cluster_name: str, *ports: int) -> None:
    """The four resources that take `xds:///target` to these ports. Imports the filters that they name."""
    source.put(LISTENER, target, listener(target, f"{target}-route"))
    source.put(ROUTE, f"{target}-route", route(f"{target}-route", cluster_name))
    source.put(CLUSTER, cluster_name, cluster(cluster_name))
    source.put(ENDPOINTS, cluster_name, endpoints(cluster_name, *ports))


HOUR = timedelta(hours=1)
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService"


class Plane:
    """A control plane on ephemeral ports that serves a MemorySource."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.source = MemorySource()
        self.problems: list[Problem] = []
        self.loaded = True
        given: dict[str, Any] = {
            "config_dir": directory,
            "ca_dir": directory / "ca",
            "listen": "127.0.0.1:0",
            "status": "127.0.0.1:0",
            "push_quiet": timedelta(milliseconds=10),
            "stop_grace": timedelta(seconds=1),
        }
        self.settings = Settings(**{**given, **settings})
        configuration = Configuration(
            self.source, lambda: self.problems, lambda: self.loaded, lambda stop: stop.wait()
        )
        self.app = ControlPlane(self.settings, configuration)

    async def __aenter__(self) -> Plane:
        await self.app.start()
        self.channel = grpc.aio.secure_channel(
            f"localhost:{self.app.port}",
            grpc.ssl_channel_credentials(self.app.authority.root_pem.encode()),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.app.stop()

    def token(self, account: str = "shop/users", lifetime: timedelta = HOUR) -> str:
        namespace, _, name = account.partition("/")
        return issue_token(self.settings.ca_dir, namespace, name, lifetime)

    def stream(self, token: str | None, delta: bool = True) -> Any:
        """An ADS stream of grpc.aio."""
        if delta:
            name, request, response = (
                "DeltaAggregatedResources",
                discovery_pb2.DeltaDiscoveryRequest,
                discovery_pb2.DeltaDiscoveryResponse,
            )
        else:
            name, request, response = (
                "StreamAggregatedResources",
                discovery_pb2.DiscoveryRequest,
                discovery_pb2.DiscoveryResponse,
            )
        method = self.channel.stream_stream(
            f"{ADS}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return method(metadata=None if token is None else [("authorization", f"Bearer {token}")])

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET on the status port."""
        url = f"http://127.0.0.1:{self.app.status_port}{path}"
        async with aiohttp.ClientSession() as client, client.get(url) as response:
            return response.status, await response.text()
