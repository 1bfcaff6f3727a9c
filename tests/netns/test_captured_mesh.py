"""The mesh as a cluster runs it: injected pods with captured connections, and clients that know nothing.

Control plane, API server, sidecars, rules, applications and clients are real; the tests stand in for the
kubelet, kube-proxy and the cluster's DNS alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.captured_mesh import CapturedMesh, CapturedPod
from tests.support.captured_pod import call, metric
from tests.support.cluster_network import NODE
from tests.support.wire import Wire

TOOLS = ("ip", "nft", "setpriv", "curl")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason="needs iproute2, nftables, curl, util-linux"
    ),
]
ipv4_and_ipv6 = pytest.mark.parametrize("version", [4, 6])
CLIENT, SERVER, DB = (f"spiffe://cluster.local/ns/shop/sa/{name}" for name in ("client", "server", "db"))
NODE_PORT, SKIPPED_IN, SKIPPED_OUT, UNKNOWN = 30080, 9090, 7070, 7777
SERVER_PORTS = [
    {"name": "http", "port": 80, "targetPort": 8080},
    {"name": "grpc", "port": 9000, "targetPort": 9000},
    {"name": "cache", "port": 6379, "targetPort": 6379},
    {"name": "tcp-greet", "port": 25, "targetPort": 2525},
    {"name": "mail", "port": 26, "targetPort": 2526},
    {"name": "https", "port": 443, "targetPort": 8443},
    {"name": "undeclared", "port": 7000, "targetPort": 7000},
    {"name": "own-tls", "port": 7443, "targetPort": 7443},
    {"name": "skipped", "port": 9090, "targetPort": SKIPPED_IN},
]
SERVER_APPS = ("http=8080", "grpc=9000", "greet=2525", "greet=2526", "https=8443", "http=7000", "https=7443")
DB_PORTS = [
    {"name": name, "port": port, "targetPort": port}
    for name, port in (("http", 8080), ("tcp-greet", 2525), ("mail", 2526), ("https", 8443))
]
PROBED = {
    "ports": [{"name": "web", "containerPort": 8080}, {"name": "grpc", "containerPort": 9000}],
    "readinessProbe": {"httpGet": {"path": "/health", "port": "web"}},
    "livenessProbe": {"tcpSocket": {"port": 8080}},
    "startupProbe": {"grpc": {"port": 9000}},
}
PROBED_HTTP = {"readinessProbe": {"httpGet": {"path": "/health", "port": 8080}}}


@dataclass
class World:
    mesh: CapturedMesh
    client: CapturedPod
    server: CapturedPod
    """Permissive."""
    db: CapturedPod
    """Strict; replica 0 of a headless Service."""
    six: CapturedPod
    """Its first address is of IPv6."""
    legacy: CapturedPod
    """With a sidecar, and not captured."""
    plain: CapturedPod
    """Without a sidecar."""
    outside: CapturedPod
    """No pod, and not of the cluster."""
    virtual: dict[str, dict[int, str]]
    """Virtual addresses, by Service."""

    def url(self, service: str, version: int, path: str = "/", port: int = 80) -> str:
        return f"http://{at(self.virtual[service][version], port)}{path}"


def at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="pilotfish-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        with CapturedMesh(directory) as mesh:
            yield made(mesh)


def made(mesh: CapturedMesh) -> World:
    client = mesh.add_pod("client-1", "client", "http=8080", skip_outbound_ports=str(SKIPPED_OUT))
    server = mesh.add_pod(
        "server-1",
        "server",
        *(*SERVER_APPS, f"http={SKIPPED_IN}", f"echo={UNKNOWN}"),
        opaque_ports="6379",
        skip_inbound_ports=str(SKIPPED_IN),
    )
    if shutil.which("redis-server"):
        options = ["--port", "6379", "--bind", "0.0.0.0", "::", "--save", "", "--protected-mode", "no"]
        mesh.start(server, "redis", "redis-server", *options, "--dir", "/tmp")
    db = mesh.add_pod(
        *("db-0", "db", "http=8080", "grpc=9000", "greet=2525", "greet=2526", "https=8443"),
        subdomain="db",
        inbound="strict",
        container=PROBED,
    )
    six = mesh.add_pod("six-1", "six", "http=8080", first=6, inbound="strict", container=PROBED_HTTP)
    legacy = mesh.add_pod("legacy-1", "legacy", "http=8080", capture="disabled")
    plain = mesh.add_pod("plain-1", "plain", "http=8080", sidecar=False)
    outside = mesh.add_outside("outside", "http=80", f"http={SKIPPED_OUT}", f"greet={UNKNOWN}", "https=443")
    virtual = {
        "client": mesh.add_service("client", client),
        "server": mesh.add_service("server", server, ports=SERVER_PORTS, node_port=NODE_PORT),
        "six": mesh.add_service("six", six),
        "legacy": mesh.add_service("legacy", legacy),
        "plain": mesh.add_service("plain", plain),
        "api": mesh.add_service("api", outside, ports=[{"name": "https", "port": 443, "targetPort": 443}]),
        "empty": mesh.add_service("empty"),
        "vault": mesh.add_service("vault", db, node_port=NODE_PORT + 1),
    }
    mesh.add_service("db", db, headless=True, ports=DB_PORTS)
    mesh.add_external_name("alias", "server.shop.svc.cluster.local")
    mesh.add_external_name("partner", "partner.example")
    mesh.network.records["partner.example"] = list(outside.host.addresses.values())
    mesh.ready(client, server, db, six, legacy, plain, outside)
    return World(mesh, client, server, db, six, legacy, plain, outside, virtual)


def curl(pod: CapturedPod, *arguments: str) -> dict[str, Any]:
    """What `captured_app` answered."""
    text = pod.must("curl", "-sS", "--noproxy", "*", "--max-time", "10", *arguments)
    try:
        return dict(json.loads(text))
    except ValueError:
        raise AssertionError(text) from None


def status_of(pod: CapturedPod, *arguments: str) -> str:
    """HTTP status, 000 where there was none."""
    command = ["curl", "-s", "--noproxy", "*", "--max-time", "10", "-o", "/dev/null"]
    return pod.run(*command, "-w", "%{http_code}", *arguments).stdout


def caller(answer: dict[str, Any]) -> str:
    """Who called, as the server's sidecar has proved it; empty: nobody is known."""
    certificate = answer["headers"].get("x-forwarded-client-cert", "")
    return str(certificate.rpartition("URI=")[2])


def listener_count(pod: CapturedPod, name: str, **labels: str) -> int:
    return metric(pod.host.namespace, pod.ip, f"pilotfish_listener_{name}", **labels)


# --- what an application calls ----------------------------------------------------------------------


@ipv4_and_ipv6
def test_a_virtual_address_leads_to_the_service_over_mutual_tls(world: World, version: int) -> None:
    answer = curl(world.client, world.url("server", version, "/a?b=c"))
    assert (answer["name"], answer["path"], caller(answer)) == ("server-1", "/a?b=c", CLIENT)
    # Each pod is balanced once, by its first address; the application sees its own sidecar.
    assert answer["peer"] == "127.0.0.6"


@ipv4_and_ipv6
@pytest.mark.parametrize("port", [8080, 7000])
def test_a_pods_address_leads_to_that_pod_over_mutual_tls(world: World, version: int, port: int) -> None:
    url = f"http://{at(world.server.host.addresses[version], port)}/"
    answer = curl(world.client, "-H", "Host: whatever.example", url)
    assert (answer["name"], answer["host"], caller(answer)) == ("server-1", "whatever.example", CLIENT)
    assert answer["peer"] == {4: "127.0.0.6", 6: "::6"}[version]


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://server/", "server-1"),
        ("http://server.shop.svc.cluster.local/", "server-1"),
        ("http://server:7000/", "server-1"),
        ("http://db:8080/", "db-0"),
        ("http://db-0.db:8080/", "db-0"),
        ("http://db-0.db.shop.svc.cluster.local:8080/", "db-0"),
        ("http://vault/", "db-0"),
        ("http://alias/", "server-1"),
    ],
)
def test_names_lead_where_dns_says_over_mutual_tls(world: World, family: str, url: str, name: str) -> None:
    answer = curl(world.client, family, url)
    assert (answer["name"], caller(answer)) == (name, CLIENT)
    assert answer["host"] == url.removeprefix("http://").rstrip("/")


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_external_names_outside_of_the_mesh_pass_through(world: World, family: str) -> None:
    before = listener_count(world.client, "original_dst_passthrough_total", listener="outbound")
    answer = curl(world.client, family, "http://partner/")
    assert (answer["name"], answer["host"]) == ("outside", "partner")
    assert listener_count(world.client, "original_dst_passthrough_total", listener="outbound") == before + 1
    assert status_of(world.client, family, "-k", "https://partner/") == "200"


@ipv4_and_ipv6
def test_http2_with_prior_knowledge_and_a_body(world: World, version: int, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(os.urandom(3_000_000))
    for parent in (tmp_path, *tmp_path.parents):
        if str(parent).startswith(tempfile.gettempdir()) and parent != Path(tempfile.gettempdir()):
            parent.chmod(0o755)
    for protocol in ("--http1.1", "--http2-prior-knowledge"):
        url = world.url("server", version, "/upload")
        answer = curl(world.client, protocol, "--data-binary", f"@{body}", url)
        assert (answer["method"], answer["length"]) == ("POST", 3_000_000)
        assert answer["sha256"] == hashlib.sha256(body.read_bytes()).hexdigest()
        assert caller(answer) == CLIENT


@pytest.mark.parametrize("target", ["server:9000", "server-4", "server-6", "pod-4", "pod-6"])
def test_grpc_of_all_four_kinds_and_a_hundred_calls_at_once(world: World, target: str) -> None:
    where, _, version = target.partition("-")
    if version:
        hosts = {"server": world.virtual["server"], "pod": world.server.host.addresses}[where]
        target = at(hosts[int(version)], 9000)
    answer = json.loads(world.client.client("grpc", target))
    assert answer == {
        "unary": "server-1: x",
        "server stream": ["0", "1", "2"],
        "client stream": "500000",
        "both": ["1", "2"],
        "concurrent": 100,
        "failure": ["FAILED_PRECONDITION", "as you wished: 100 %"],
    }


@pytest.mark.debian
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
@ipv4_and_ipv6
def test_redis(world: World, version: int) -> None:
    for host in (world.virtual["server"][version], world.server.host.addresses[version]):
        assert json.loads(world.client.client("redis", host, "6379")) == [True, 1_000_000, 100]


@pytest.mark.parametrize("host", ["server", "vault"])
def test_websockets(world: World, host: str) -> None:
    name = {"server": "server-1", "vault": "db-0"}[host]
    answers = json.loads(world.client.client("websocket", f"ws://{host}/ws"))
    assert answers == [f"{name}: message {number}" for number in range(3)]


@ipv4_and_ipv6
@pytest.mark.parametrize("port", [25, 26])
def test_servers_that_speak_first(world: World, version: int, port: int) -> None:
    """Port 25 is declared to be TCP, port 26 is not declared to be anything."""
    with world.client.host.namespace.socket(version) as client:
        client.connect((world.virtual["server"][version], port))
        assert client.recv(100) == b"220 server-1\r\n"
        client.sendall(b"QUIT")
        assert client.recv(100) == b"QUIT"


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize("port", [443, 7443])
def test_the_applications_own_tls_travels_inside_of_the_meshs(world: World, family: str, port: int) -> None:
    """Port 443 is declared to be TLS, port 7443 is found out to be no HTTP. A ClientHello says in plain text
    which name it is for, unless it is wrapped."""
    name = "server.shop.svc.cluster.local"
    with Wire(world.mesh.network.node) as wire:
        answer = curl(world.client, family, "-k", f"https://{name}:{port}/secret")
    assert (answer["name"], answer["path"], caller(answer)) == ("server-1", "/secret", "")
    assert wire.between(world.client.host, world.server.host)
    assert not wire.saw(name.encode(), world.client.host, world.server.host)
    with Wire(world.mesh.network.node) as wire:
        assert curl(world.plain, family, "-k", f"https://{name}:{port}/")["name"] == "server-1"
    assert wire.saw(name.encode(), world.plain.host, world.server.host)


@ipv4_and_ipv6
def test_a_pod_that_calls_its_own_service_gets_itself(world: World, version: int) -> None:
    answer = curl(world.client, world.url("client", version))
    assert (answer["name"], caller(answer)) == ("client-1", CLIENT)
    # By its own address it goes past the sidecar, as over loopback.
    answer = curl(world.client, f"http://{at(world.client.host.addresses[version], 8080)}/")
    assert (answer["name"], caller(answer), answer["peer"]) == (
        "client-1",
        "",
        world.client.host.addresses[version],
    )


def test_a_strict_pod_that_calls_its_own_service_gets_itself(world: World) -> None:
    answer = curl(world.db, "http://vault/")
    assert (answer["name"], caller(answer)) == ("db-0", DB)
    assert curl(world.db, "http://db-0.db:8080/")["name"] == "db-0"


def test_a_pod_that_calls_its_own_service_at_a_skipped_port_gets_itself(world: World) -> None:
    assert curl(world.server, "http://server:9090/")["name"] == "server-1"


@ipv4_and_ipv6
def test_services_without_sidecars_are_called_in_plain_text(world: World, version: int) -> None:
    answer = curl(world.client, world.url("plain", version))
    assert (answer["name"], answer["peer"]) == ("plain-1", world.client.ip)
    answer = curl(world.client, f"http://{at(world.plain.host.addresses[version], 8080)}/")
    assert (answer["name"], answer["peer"]) == ("plain-1", world.client.host.addresses[version])


@ipv4_and_ipv6
def test_what_discovery_does_not_know_passes_through(world: World, version: int) -> None:
    before = listener_count(world.client, "original_dst_passthrough_total", listener="outbound")
    address = world.outside.host.addresses[version]
    with world.client.host.namespace.socket(version) as client:
        client.connect((address, UNKNOWN))
        assert client.recv(100) == b"220 outside\r\n"
    assert curl(world.client, f"http://{at(address, 80)}/")["name"] == "outside"
    assert listener_count(world.client, "original_dst_passthrough_total", listener="outbound") == before + 2


@ipv4_and_ipv6
def test_skipped_outbound_ports_go_past_the_sidecar(world: World, version: int) -> None:
    before = listener_count(world.client, "connections_opened_total", listener="outbound")
    url = f"http://{at(world.outside.host.addresses[version], SKIPPED_OUT)}/"
    assert curl(world.client, url)["name"] == "outside"
    assert listener_count(world.client, "connections_opened_total", listener="outbound") == before


@ipv4_and_ipv6
def test_skipped_inbound_ports_go_past_the_sidecar(world: World, version: int) -> None:
    for pod in (world.outside, world.client):
        answer = curl(pod, f"http://{at(world.server.host.addresses[version], SKIPPED_IN)}/")
        assert (answer["name"], caller(answer)) == ("server-1", "")
        assert answer["peer"] == pod.host.addresses[version]
    answer = curl(world.client, world.url("server", version, port=9090))
    assert (answer["name"], caller(answer), answer["peer"]) == ("server-1", "", world.client.ip)


@ipv4_and_ipv6
def test_a_service_without_endpoints_is_told_so(world: World, version: int) -> None:
    assert status_of(world.client, world.url("empty", version)) == "503"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_loopback_is_the_pods_own(world: World, host: str) -> None:
    answer = curl(world.db, f"http://{host}:8080/")
    assert (answer["name"], caller(answer)) == ("db-0", "")


def test_http_1_0(world: World) -> None:
    assert curl(world.client, "--http1.0", "http://server/")["name"] == "server-1"


@ipv4_and_ipv6
def test_half_an_end_passes_and_the_other_direction_goes_on(world: World, version: int) -> None:
    """Opaque through the mesh, and past it: inbound to a port that discovery does not know."""
    for address, greeting in (
        ((world.virtual["server"][version], 25), b"220 server-1\r\n"),
        ((world.server.host.addresses[version], UNKNOWN), b""),
    ):
        data = os.urandom(500_000)
        client = world.client.host.namespace.socket(version)
        assert call(client, address, data) == greeting + data + b"|end"


@ipv4_and_ipv6
@pytest.mark.parametrize("port", [2525, 2526])
def test_servers_that_speak_first_in_a_strict_pod_by_its_address(
    world: World, version: int, port: int
) -> None:
    address = (world.db.host.addresses[version], port)
    with world.client.host.namespace.socket(version) as client:
        client.connect(address)
        assert client.recv(100) == b"220 db-0\r\n"
    assert call(world.outside.host.namespace.socket(version), address) == b""


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_the_own_tls_of_a_strict_pod_is_for_the_mesh_alone(world: World, family: str) -> None:
    url = "https://db-0.db.shop.svc.cluster.local:8443/"
    assert curl(world.client, family, "-k", url)["name"] == "db-0"
    assert status_of(world.outside, family, "-k", url) == "000"


@ipv4_and_ipv6
def test_a_service_whose_endpoints_are_no_pods(world: World, version: int) -> None:
    """As that of the API server is."""
    url = f"https://{at(world.virtual['api'][version], 443)}/"
    answer = curl(world.client, "-k", url)
    assert (answer["name"], answer["peer"]) == ("outside", world.client.ip)


def test_an_offer_to_upgrade_to_http2_is_passed_over(world: World) -> None:
    assert curl(world.client, "--http2", "http://server/")["name"] == "server-1"


@ipv4_and_ipv6
def test_a_pod_whose_first_address_is_of_ipv6(world: World, version: int) -> None:
    for url in (world.url("six", version), f"http://{at(world.six.host.addresses[version], 8080)}/"):
        answer = curl(world.client, url)
        assert (answer["name"], caller(answer)) == ("six-1", CLIENT)
    answer = curl(world.six, world.url("client", version))
    assert (answer["name"], caller(answer)) == ("client-1", "spiffe://cluster.local/ns/shop/sa/six")
    assert status_of(world.outside, f"http://{at(world.six.host.addresses[version], 8080)}/") == "000"
    assert world.mesh.kubelet(world.six, "/app-health/app/readyz")[0] == 200


def test_pods_that_are_not_captured_are_called_and_call_over_mutual_tls(world: World) -> None:
    for url in ("http://legacy/", f"http://{world.legacy.ip}:8080/"):
        answer = curl(world.client, url)
        assert (answer["name"], caller(answer)) == ("legacy-1", CLIENT)
    variables = {item["name"]: item["value"] for item in world.legacy.container("app")["env"]}
    for host, name in (("server", "server-1"), ("vault", "db-0"), ("db-0.db:8080", "db-0")):
        done = world.legacy.run("curl", "-sS", "--max-time", "10", f"http://{host}/", **variables)
        answer = json.loads(done.stdout)
        assert (answer["name"], caller(answer)) == (name, "spiffe://cluster.local/ns/shop/sa/legacy")


# --- who calls from outside -------------------------------------------------------------------------


@ipv4_and_ipv6
@pytest.mark.parametrize("who", ["outside", "plain"])
def test_plain_text_is_taken_by_a_permissive_pod_and_counted(world: World, version: int, who: str) -> None:
    pod = {"outside": world.outside, "plain": world.plain}[who]
    url = f"http://{at(world.server.host.addresses[version], 8080)}/"
    name = f"inbound|{world.server.host.addresses[version]}|8080"
    before = listener_count(world.server, "connections_opened_total", listener=name)
    plain = {"cluster": f"inbound|8080|{world.server.host.addresses[version]}", "peer": ""}
    namespace = world.server.host.namespace
    unknown = metric(namespace, world.server.ip, "pilotfish_requests_total", **plain)
    forged = ["-H", f"x-forwarded-client-cert: URI={CLIENT}"]
    answer = curl(pod, *forged, url)
    assert (answer["name"], caller(answer), answer["peer"]) == (
        "server-1",
        "",
        {4: "127.0.0.6", 6: "::6"}[version],
    )
    assert listener_count(world.server, "connections_opened_total", listener=name) == before + 1
    assert metric(namespace, world.server.ip, "pilotfish_requests_total", **plain) == unknown + 1


@ipv4_and_ipv6
@pytest.mark.parametrize("who", ["outside", "plain"])
def test_plain_text_is_refused_by_a_strict_pod_and_counted(world: World, version: int, who: str) -> None:
    pod = {"outside": world.outside, "plain": world.plain}[who]
    name = f"inbound|{world.db.host.addresses[version]}|8080"
    before = listener_count(world.db, "no_filter_chain_match_total", listener=name)
    assert status_of(pod, f"http://{at(world.db.host.addresses[version], 8080)}/") == "000"
    assert listener_count(world.db, "no_filter_chain_match_total", listener=name) == before + 1
    # Neither does a port that discovery does not know.
    assert status_of(pod, f"http://{at(world.db.host.addresses[version], 12345)}/") == "000"


@ipv4_and_ipv6
def test_virtual_addresses_and_node_ports_work_for_those_without_sidecars(world: World, version: int) -> None:
    assert curl(world.plain, world.url("server", version))["name"] == "server-1"
    assert curl(world.outside, f"http://{at(NODE[version], NODE_PORT)}/")["name"] == "server-1"
    assert status_of(world.outside, f"http://{at(NODE[version], NODE_PORT + 1)}/") == "000"
    # A pod that calls a node port leaves the mesh on its way.
    assert curl(world.client, f"http://{at(NODE[version], NODE_PORT)}/")["name"] == "server-1"


@ipv4_and_ipv6
def test_opaque_and_unknown_ports_reach_the_application_from_outside(world: World, version: int) -> None:
    for port, said in ((2525, b"220 server-1\r\n"), (2526, b"220 server-1\r\n")):
        with world.outside.host.namespace.socket(version) as client:
            client.connect((world.server.host.addresses[version], port))
            assert client.recv(100) == said
    with world.outside.host.namespace.socket(version) as client:
        client.connect((world.server.host.addresses[version], UNKNOWN))
        client.sendall(b"hi")
        assert client.recv(100) == b"hi"
    answer = curl(world.outside, "-k", f"https://{at(world.server.host.addresses[version], 8443)}/")
    assert answer["name"] == "server-1"


@ipv4_and_ipv6
def test_grpc_and_websockets_in_plain_text_from_outside(world: World, version: int) -> None:
    host = world.server.host.addresses[version]
    assert json.loads(world.outside.client("grpc", at(host, 9000)))["concurrent"] == 100
    answers = json.loads(world.outside.client("websocket", f"ws://{at(host, 8080)}/ws"))
    assert answers == [f"server-1: message {number}" for number in range(3)]


# --- what can be seen -------------------------------------------------------------------------------


def routes_of(world: World, pod: CapturedPod) -> list[dict[str, Any]]:
    text = world.mesh.kubelet(pod, "/stats")[1]
    return list(json.loads(text)["routes"])


@ipv4_and_ipv6
@pytest.mark.parametrize("port", [80, 7000])
def test_nothing_of_a_call_between_captured_pods_is_readable_on_the_wire(
    world: World, version: int, port: int
) -> None:
    """The same call by a pod without a sidecar is."""
    secret = f"s3cret{version}{port}"
    with Wire(world.mesh.network.node) as wire:
        curl(world.client, world.url("server", version, f"/{secret}", port))
    assert wire.between(world.client.host, world.server.host)
    assert not wire.saw(secret.encode(), world.client.host, world.server.host)
    with Wire(world.mesh.network.node) as wire:
        curl(world.plain, world.url("server", version, f"/{secret}", port))
    assert wire.saw(secret.encode(), world.plain.host, world.server.host)


def test_traces_and_metrics_name_the_services(world: World) -> None:
    trace = os.urandom(16).hex()
    curl(world.client, "-H", f"traceparent: 00-{trace}-{'1' * 16}-01", world.url("server", 4, "/traced"))
    spans = world.mesh.spans.trace(trace, 4)
    assert [span["service"] for span in spans] == ["client", "client", "server", "server"]
    outbound = [route for route in routes_of(world, world.client) if route["direction"] == "outbound"]
    assert "server.shop.svc.cluster.local:80" in {route["route"] for route in outbound} | {
        route.get("cluster") for route in outbound
    }


# --- the kubelet ------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["readyz", "livez", "startupz"])
def test_rewritten_probes_pass_in_strict_mode(world: World, probe: str) -> None:
    status, text = world.mesh.kubelet(world.db, f"/app-health/app/{probe}")
    assert status == 200, text


def test_a_probe_says_what_the_application_says(world: World) -> None:
    assert world.mesh.kubelet(world.db, "/app-health/app/readyz")[0] == 200
    curl_health = ["curl", "-s", "--noproxy", "*", f"http://{world.db.ip}:8080/health?becomes="]
    try:
        world.db.must(*curl_health[:-1], curl_health[-1] + "500")
        status, text = world.mesh.kubelet(world.db, "/app-health/app/readyz")
        assert status == 503
        assert "500" in text
    finally:
        world.db.must(*curl_health[:-1], curl_health[-1] + "200")


@pytest.mark.parametrize("loopback", ["127.0.0.1", "[::1]"])
def test_kubectl_port_forward_reaches_the_admin_port(world: World, loopback: str) -> None:
    """It calls loopback, in the pod's namespace."""
    for pod in (world.client, world.db, world.legacy):
        ready = pod.run("curl", "-sg", "--noproxy", "*", f"http://{loopback}:15000/ready", user=0)
        assert ready.stdout == "ready\n"


@ipv4_and_ipv6
def test_another_pod_cannot_end_a_sidecar_at_any_of_its_addresses(world: World, version: int) -> None:
    url = f"http://{at(world.db.host.addresses[version], 15000)}/quitquitquit"
    said = world.plain.must("curl", "-sg", "--noproxy", "*", "-X", "POST", url)
    assert said == "refused: /quitquitquit is for this host alone\n"


def test_probes_that_were_not_rewritten_reach_a_permissive_pod(world: World) -> None:
    assert world.mesh.kubelet(world.server, "/health", 8080) == (200, "server-1")


# --- the validator ----------------------------------------------------------------------------------


def test_the_check_passes_in_the_sidecars_container(world: World) -> None:
    for pod in (world.client, world.server, world.db):
        done = world.mesh.hook(pod, "capture", "check")
        assert done.returncode == 0, done.stdout
        assert "IPv4 connection" in done.stdout
        assert "IPv6 connection" in done.stdout


def test_the_check_fails_where_the_rules_were_flushed(world: World) -> None:
    namespace = world.plain.host.namespace
    saved = world.client.host.namespace.must("nft", "list", "table", "inet", "pilotfish")
    try:
        world.client.host.namespace.must("nft", "delete", "table", "inet", "pilotfish")
        done = world.mesh.hook(world.client, "capture", "check")
        assert done.returncode == 1, done.stdout
        assert "was not redirected to port" in done.stdout
    finally:
        world.mesh.run_init(world.client)
    assert world.client.host.namespace.must("nft", "list", "table", "inet", "pilotfish") == saved
    assert namespace.run("nft", "list", "table", "inet", "pilotfish").returncode == 1


# --- many connections -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["in, unknown port", "in, opaque", "out, unknown address", "out, opaque"])
def test_more_connections_than_envoys_default_limit_at_once(world: World, way: str) -> None:
    """Of what nobody has set a limit for."""
    pod, address, greeting = {
        "in, unknown port": (world.outside, (world.server.ip, UNKNOWN), b""),
        "in, opaque": (world.outside, (world.server.ip, 2525), b"220 server-1\r\n"),
        "out, unknown address": (world.client, (world.outside.ip, UNKNOWN), b"220 outside\r\n"),
        "out, opaque": (world.client, (world.virtual["server"][4], 25), b"220 server-1\r\n"),
    }[way]
    with ExitStack() as stack:
        clients = [stack.enter_context(pod.host.namespace.socket(4)) for _ in range(1100)]
        for client in clients:
            client.connect(address)
            client.sendall(b"hello")
        for client in clients:
            answer = b""
            while len(answer) < len(greeting) + 5:
                received = client.recv(100)
                assert received, answer
                answer += received
            assert answer == greeting + b"hello"
