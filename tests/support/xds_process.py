"""A control plane of its own process, for sidecars in network namespaces.

`python -m tests.support.xds_process DIRECTORY LISTEN DESTINATIONS`, where DESTINATIONS is a JSON object: by
`host:port`, what is declared of it (`http`, `tcp` or nothing) and its endpoints. Writes `root.pem` and
`token` into the directory, then serves until it is stopped.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf.json_format import ParseDict

from control_plane.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTE
from tests.support.xds_source import MemorySource, Plane, cluster, listener

CONNECT = {"upgradeType": "CONNECT", "connectConfig": {}}
OPAQUE = ({"connectMatcher": {}}, {"upgradeConfigs": [CONNECT]})
REQUESTS = ({"prefix": "/"}, {})
ROUTES: dict[str, list[tuple[Any, Any]]] = {"http": [REQUESTS], "tcp": [OPAQUE], "": [OPAQUE, REQUESTS]}


def declare(source: MemorySource, name: str, protocol: str, endpoints: list[tuple[str, int]]) -> None:
    """The four resources of a destination outside the mesh, in plain text."""
    routes = [
        {"match": match, "route": {"cluster": f"to {name}", **action}} for match, action in ROUTES[protocol]
    ]
    table = {"name": f"{name}-route", "virtualHosts": [{"name": "all", "domains": ["*"], "routes": routes}]}
    members = [
        {
            "endpoint": {"address": {"socketAddress": {"address": host, "portValue": port}}},
            "metadata": {"filterMetadata": {"envoy.transport_socket_match": {"tlsMode": "disabled"}}},
        }
        for host, port in endpoints
    ]
    locality = {"locality": {"zone": "a"}, "loadBalancingWeight": 1, "lbEndpoints": members}
    source.put(LISTENER, name, listener(name, f"{name}-route"))
    source.put(ROUTE, f"{name}-route", ParseDict(table, route_pb2.RouteConfiguration()))
    source.put(CLUSTER, f"to {name}", cluster(f"to {name}"))
    assignment = {"clusterName": f"to {name}", "endpoints": [locality]}
    source.put(ENDPOINTS, f"to {name}", ParseDict(assignment, endpoint_pb2.ClusterLoadAssignment()))


async def main(directory: Path, listen: str, destinations: dict[str, Any]) -> None:
    names = ("localhost", listen.rpartition(":")[0])
    async with Plane(directory, listen=listen, server_names=names) as plane:
        for name, (protocol, endpoints) in destinations.items():
            declare(plane.source, name, protocol, endpoints)
        (directory / "token").write_text(plane.token())
        (directory / "root.pem").write_text(plane.app.authority.root_pem)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
