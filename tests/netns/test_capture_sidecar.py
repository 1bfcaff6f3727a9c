"""A sidecar that captures, in a pod with a namespace of its own and the real rules: what its application
calls, and who calls its application. Clients and servers know nothing of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mesh_api.names import ADMIN_PORT, INBOUND_PORT, INBOUND_SOURCE, MESH_ALPN, OUTBOUND_PORT, SIDECAR_USER
from tests.support.captured_pod import (
    bootstrap,
    call,
    client_context,
    echo,
    get_over_http2,
    greet,
    http,
    metric,
    read,
    serve_port,
    serving,
)
from tests.support.certs import CertificateFiles, make_ca
from tests.support.netns import FAR, PEER, POD, Namespace, pod_and_peer
from tests.support.processes import PILOTFISH, Process, eventually, stopping
from tests.support.sidecars import SPIFFE

TOOLS = ("ip", "nft", "setpriv", "curl")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason="needs iproute2, nftables, curl, util-linux"
    ),
]
ipv4_and_ipv6 = pytest.mark.parametrize("version", [4, 6])
VIRTUAL = {4: "192.0.2.1", 6: "2001:db8::1"}
"""Nobody has them; discovery knows their endpoints."""
HTTP, REDIS, SMTP, UNKNOWN_PORT, UNKNOWN_GREETING = 80, 6379, 2525, 7777, 7778
PERMISSIVE, STRICT, OWN_TLS, OPAQUE, CLIENT_FIRST = 8080, 8081, 8443, 3307, 6380


@dataclass
class Mesh:
    pod: Namespace
    peer: Namespace
    sidecar: Process
    caller: CertificateFiles
    callers: dict[tuple[int, int], list[str]]
    """Who called the application, by IP version and port."""

    def count(self, name: str, **labels: str) -> int:
        return metric(self.pod, POD[4], f"pilotfish_listener_{name}", **labels)


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def destinations() -> dict[str, tuple[str, list[tuple[str, int]]]]:
    """What discovery knows: virtual addresses, whose endpoints are the peer's ports."""
    declared = {HTTP: "http", REDIS: "tcp", SMTP: "tcp", 9000: ""}
    found: dict[str, tuple[str, list[tuple[str, int]]]] = {}
    for version, host in VIRTUAL.items():
        for port, protocol in declared.items():
            found[authority(host, port)] = (protocol, [(PEER[version], port + 10000)])
    return found


def tls_echo(files: CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.private_key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with ExitStack() as stack:
        pod, peer = stack.enter_context(pod_and_peer())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pilotfish-")))
        directory.chmod(0o755)
        pod.must(sys.executable, "-m", "pilotfish", "capture", "install")
        ca = make_ca()
        files = {
            name: ca.write_files(directory, SPIFFE + name, name=name) for name in ("caller", "server", "own")
        }
        for file in directory.iterdir():
            file.chmod(0o644)
        plane = Process(
            "plane",
            [
                *("ip", "netns", "exec", peer.name, sys.executable, "-m", "tests.support.xds_process"),
                *(directory, f"{PEER[4]}:15010", json.dumps(destinations())),
            ],
            directory,
        )
        stack.enter_context(stopping(plane))
        eventually((directory / "root.pem").exists, "the control plane to come up")
        for name in ("token", "root.pem"):
            (directory / name).chmod(0o644)
        callers = servers(stack, pod, peer, files["own"])
        sidecar = started(stack, directory, pod, tree_of(directory, files["server"]))
        yield Mesh(pod, peer, sidecar, files["caller"], callers)


def tree_of(directory: Path, files: CertificateFiles) -> str:
    tree = bootstrap(POD[4], f"{PEER[4]}:15010", str(directory / "token"), str(directory / "root.pem"))
    for host in POD.values():
        serve_port(tree, host, PERMISSIVE, files, "http", (MESH_ALPN, "h2"))
        serve_port(tree, host, STRICT, files, "", (MESH_ALPN, "h2"))
        serve_port(tree, host, OWN_TLS, files, "tcp", (MESH_ALPN,))
        serve_port(tree, host, OPAQUE, files, "tcp", (MESH_ALPN, "h2"))
        serve_port(tree, host, CLIENT_FIRST, files, "tcp", (MESH_ALPN, "h2"))
    return yaml.safe_dump(tree)


def started(stack: ExitStack, directory: Path, pod: Namespace, tree: str) -> Process:
    file = directory / "sidecar.yaml"
    file.write_text(tree)
    user = ["setpriv", f"--reuid={SIDECAR_USER}", f"--regid={SIDECAR_USER}", "--clear-groups"]
    command = ["ip", "netns", "exec", pod.name, *user, PILOTFISH, "sidecar", "--config", file]
    sidecar = Process("sidecar", command, directory)
    stack.enter_context(stopping(sidecar))

    url = f"http://{POD[4]}:{ADMIN_PORT}/ready"

    def ready() -> bool:
        sidecar.check()
        code = pod.run("curl", "-s", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", url).stdout
        assert code == "200", f"{code} {sidecar.last_words()}"
        return True

    eventually(ready, f"{sidecar} to be ready")
    return sidecar


def servers(
    stack: ExitStack, pod: Namespace, peer: Namespace, own: CertificateFiles
) -> dict[tuple[int, int], list[str]]:
    context = tls_echo(own)

    def secure(accepted: socket.socket) -> None:
        with context.wrap_socket(accepted, server_side=True) as session:
            session.sendall(session.recv(1000))

    callers: dict[tuple[int, int], list[str]] = {}
    for version in (4, 6):
        for port, serve in ((HTTP, http), (REDIS, echo), (SMTP, greet), (9000, http)):
            stack.enter_context(serving(peer.listener(PEER[version], port + 10000), serve))
        stack.enter_context(serving(peer.listener(FAR[version], UNKNOWN_PORT), greet))
        stack.enter_context(serving(peer.listener(FAR[version], HTTP), http))
        for port, serve in (
            *((PERMISSIVE, http), (STRICT, http), (OWN_TLS, secure), (OPAQUE, greet)),
            *((CLIENT_FIRST, echo), (UNKNOWN_PORT, echo), (UNKNOWN_GREETING, greet)),
        ):
            listener = pod.listener(POD[version], port)
            callers[version, port] = stack.enter_context(serving(listener, serve))
    return callers


# --- what the application calls ---------------------------------------------------------------------


@ipv4_and_ipv6
def test_http_is_routed_by_the_address_that_was_called_whatever_the_host_says(
    mesh: Mesh, version: int
) -> None:
    url = f"http://{authority(VIRTUAL[version], HTTP)}/a"
    for _ in range(2):
        text = mesh.pod.must("curl", "-s", "--noproxy", "*", "-H", "Host: elsewhere.example", url)
        assert text == "http elsewhere.example /a"
    upstream = authority(PEER[version], HTTP + 10000)
    eventually(lambda: upstream in mesh.sidecar.out.read_text(), "the access log")


@ipv4_and_ipv6
@pytest.mark.parametrize("port", [HTTP, 9000])
def test_http2_with_prior_knowledge_is_routed_too(mesh: Mesh, version: int, port: int) -> None:
    with mesh.pod.socket(version) as client:
        client.connect((VIRTUAL[version], port))
        assert get_over_http2(client, "/b") == (b"200", b"http any.example /b")


@ipv4_and_ipv6
def test_http_to_a_destination_of_which_nothing_is_declared_is_found_out(mesh: Mesh, version: int) -> None:
    request = b"GET /c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = call(mesh.pod.socket(version), (VIRTUAL[version], 9000), request, end=False)
    assert answer.endswith(b"http x /c")


@ipv4_and_ipv6
def test_declared_tcp_is_joined_unread_even_when_it_looks_like_http(mesh: Mesh, version: int) -> None:
    answer = call(mesh.pod.socket(version), (VIRTUAL[version], REDIS), b"GET key\r\n")
    assert answer == b"GET key\r\n|end"


@ipv4_and_ipv6
def test_a_server_that_speaks_first_is_heard_at_once(mesh: Mesh, version: int) -> None:
    call(mesh.pod.socket(version), (VIRTUAL[version], SMTP))
    with mesh.pod.socket(version) as client:
        begun = time.monotonic()
        client.connect((VIRTUAL[version], SMTP))
        assert client.recv(100) == b"220 ready\r\n"
        assert time.monotonic() - begun < 1.0


@ipv4_and_ipv6
def test_what_discovery_does_not_know_passes_through_unread_and_is_counted(mesh: Mesh, version: int) -> None:
    before = mesh.count("original_dst_passthrough_total", listener="outbound")
    request = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % VIRTUAL[version].encode()
    answer = call(mesh.pod.socket(version), (FAR[version], HTTP), request)
    assert answer.endswith(b"http %s /" % VIRTUAL[version].encode())
    assert call(mesh.pod.socket(version), (FAR[version], UNKNOWN_PORT), b"x") == b"220 ready\r\nx|end"
    assert mesh.count("original_dst_passthrough_total", listener="outbound") == before + 2


def test_a_destination_that_is_not_there_ends_the_connection(mesh: Mesh) -> None:
    with pytest.raises(ConnectionResetError):  # at any step: the sidecar may know before `connect` returns
        call(mesh.pod.socket(4), (FAR[4], 9), b"x")


def test_the_outbound_port_is_still_a_proxy(mesh: Mesh) -> None:
    url = f"http://{FAR[4]}/p"
    text = mesh.pod.must("curl", "-s", "--noproxy", "", "-x", "http://127.0.0.1:15001", url)
    assert text == f"http {FAR[4]} /p"


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_requests_to_the_outbound_port_itself_do_not_go_round_in_circles(mesh: Mesh, address: str) -> None:
    answer = mesh.pod.must("curl", "-s", "--noproxy", "*", f"http://{address}:{OUTBOUND_PORT}/")
    assert answer.startswith(f"{address}:{OUTBOUND_PORT} is the sidecar")


# --- who calls the application ----------------------------------------------------------------------


@ipv4_and_ipv6
@pytest.mark.parametrize("port", [PERMISSIVE, STRICT])
@pytest.mark.parametrize("alpn", [MESH_ALPN, "h2"])
def test_mesh_peers_come_in_over_mtls(mesh: Mesh, version: int, port: int, alpn: str) -> None:
    context = client_context(mesh.caller, alpn)
    with mesh.peer.socket(version) as plain:
        plain.connect((POD[version], port))
        with context.wrap_socket(plain) as client:
            assert client.selected_alpn_protocol() == alpn
            assert get_over_http2(client, "/m") == (b"200", b"http any.example /m")
    assert set(mesh.callers[version, port]) == {INBOUND_SOURCE[version == 6]}


@ipv4_and_ipv6
@pytest.mark.parametrize("port", [STRICT, PERMISSIVE, CLIENT_FIRST])
def test_a_mesh_peer_whose_hello_is_late_and_in_pieces_is_waited_for(
    mesh: Mesh, version: int, port: int
) -> None:
    context = client_context(mesh.caller, MESH_ALPN)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    hello = outgoing.read()
    with mesh.peer.socket(version) as client:
        client.connect((POD[version], port))
        time.sleep(0.3)
        for part in (hello[:1], hello[1:60], hello[60:]):
            client.sendall(part)
            time.sleep(0.15)
        answer = client.recv(65536)
        assert (answer[0], answer[5]) == (22, 2)  # a handshake record with a ServerHello


@ipv4_and_ipv6
def test_a_plain_client_may_take_its_time(mesh: Mesh, version: int) -> None:
    with mesh.peer.socket(version) as client:
        client.connect((POD[version], CLIENT_FIRST))
        time.sleep(0.3)
        client.sendall(b"late")
        client.shutdown(socket.SHUT_WR)
        assert read(client) == b"late|end"


@ipv4_and_ipv6
def test_a_mesh_peer_without_a_certificate_is_refused(mesh: Mesh, version: int) -> None:
    with mesh.peer.socket(version) as plain:
        plain.connect((POD[version], PERMISSIVE))
        with client_context(None, MESH_ALPN).wrap_socket(plain) as client, pytest.raises(ssl.SSLError):
            read(client)  # TLS 1.3 says so after the handshake


@ipv4_and_ipv6
def test_plain_http_is_served_where_it_is_permitted(mesh: Mesh, version: int) -> None:
    text = mesh.peer.must("curl", "-s", "--noproxy", "*", f"http://{authority(POD[version], PERMISSIVE)}/q")
    assert text == f"http {authority(POD[version], PERMISSIVE)} /q"
    assert set(mesh.callers[version, PERMISSIVE]) == {INBOUND_SOURCE[version == 6]}


@ipv4_and_ipv6
def test_plain_text_is_refused_in_strict_mode_and_counted(mesh: Mesh, version: int) -> None:
    labels = {"listener": f"inbound|{POD[version]}|{STRICT}"}
    before = mesh.count("no_filter_chain_match_total", **labels)
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    assert call(mesh.peer.socket(version), (POD[version], STRICT), request, end=False) == b""
    assert mesh.count("no_filter_chain_match_total", **labels) == before + 1
    assert f"closes a connection from {authority(PEER[version], 0)[:-1]}" in mesh.sidecar.log()


@ipv4_and_ipv6
@pytest.mark.parametrize("alpn", [(), ("h2",), ("http/1.1",)])
def test_the_applications_own_tls_passes_through(mesh: Mesh, version: int, alpn: tuple[str, ...]) -> None:
    with mesh.peer.socket(version) as plain:
        plain.connect((POD[version], OWN_TLS))
        with client_context(None, *alpn).wrap_socket(plain) as client:
            client.sendall(b"secret")
            assert client.recv(100) == b"secret"
            assert client.selected_alpn_protocol() == (alpn[0] if alpn else None)


@ipv4_and_ipv6
def test_a_plain_client_of_a_server_that_speaks_first_waits_a_moment(mesh: Mesh, version: int) -> None:
    with mesh.peer.socket(version) as client:
        begun = time.monotonic()
        client.connect((POD[version], OPAQUE))
        assert client.recv(100) == b"220 ready\r\n"
        assert time.monotonic() - begun < 1.0
        client.sendall(b"QUIT")
        client.shutdown(socket.SHUT_WR)
        assert read(client) == b"QUIT|end"


@ipv4_and_ipv6
def test_a_client_that_ends_its_half_before_it_says_anything_gets_its_answer(
    mesh: Mesh, version: int
) -> None:
    assert call(mesh.peer.socket(version), (POD[version], OPAQUE)) == b"220 ready\r\n|end"


@ipv4_and_ipv6
def test_a_port_without_a_listener_reaches_the_application(mesh: Mesh, version: int) -> None:
    assert call(mesh.peer.socket(version), (POD[version], UNKNOWN_PORT), b"hi") == b"hi|end"
    assert set(mesh.callers[version, UNKNOWN_PORT]) == {INBOUND_SOURCE[version == 6]}


@ipv4_and_ipv6
def test_a_server_that_speaks_first_at_a_port_without_a_listener_is_heard(mesh: Mesh, version: int) -> None:
    with mesh.peer.socket(version) as client:
        client.connect((POD[version], UNKNOWN_GREETING))
        assert client.recv(100) == b"220 ready\r\n"


@ipv4_and_ipv6
def test_a_direct_call_of_the_inbound_port_is_closed(mesh: Mesh, version: int) -> None:
    before = mesh.count("not_redirected_total", listener="inbound")
    with pytest.raises(ConnectionResetError):
        call(mesh.peer.socket(version), (POD[version], INBOUND_PORT), end=False)
    assert mesh.count("not_redirected_total", listener="inbound") == before + 1
    assert "was not redirected" in mesh.sidecar.log()


@ipv4_and_ipv6
def test_the_sidecar_that_is_led_back_to_its_own_pod_meets_its_own_inbound_listener(
    mesh: Mesh, version: int
) -> None:
    context = client_context(mesh.caller, MESH_ALPN)
    with mesh.pod.socket(version, user=SIDECAR_USER) as plain:
        plain.connect((POD[version], STRICT))
        with context.wrap_socket(plain) as client:
            assert get_over_http2(client, "/m") == (b"200", b"http any.example /m")
