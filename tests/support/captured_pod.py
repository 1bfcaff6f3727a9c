"""The bootstrap of a captured pod's sidecar, and servers and clients around it in two network namespaces."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded

from mesh_api.names import ADMIN_PORT, INBOUND_SOURCE
from pilotfish.workload_bootstrap import Workload
from pilotfish.workload_bootstrap import bootstrap as workload_bootstrap
from tests.support.certs import CertificateFiles
from tests.support.netns import Namespace
from tests.support.sidecars import Tree, address, any_of, cluster, http_filter, route, tls

SILENCE = "0.1s"
INSPECTOR = [
    {"name": "tls_inspector", "typed_config": any_of("filters.listener.tls_inspector.v3.TlsInspector")}
]


def bootstrap(host: str, control_plane: str, token: str, root: str) -> Tree:
    """A captured workload without inbound listeners."""
    workload = Workload(
        *("web", "shop", "users", host, token, root),
        outbound_address="127.0.0.1",
        control_plane=control_plane,
        captured=True,
        ipv6=True,
    )
    return workload_bootstrap(workload)


def tcp_filter(to: str) -> Tree:
    proxy = any_of("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="tcp", cluster=to)
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}


def serve_port(
    tree: Tree, host: str, port: int, files: CertificateFiles, default: str, alpn: tuple[str, ...]
) -> None:
    """An inbound listener without a port. `default`: http, tcp or "" (strict)."""
    name = f"inbound|{host}|{port}"
    socket = tls("Downstream", files, "caller", require_client_certificate=True)
    socket["typed_config"]["common_tls_context"]["alpn_protocols"] = list(alpn)
    manager = http_filter([route(cluster=name)], forward_client_cert_details="SANITIZE_SET")
    listener: Tree = {
        "name": name,
        "traffic_direction": "INBOUND",
        "address": address(host, port),
        "bind_to_port": False,
        "listener_filters": INSPECTOR,
        "listener_filters_timeout": SILENCE,
        "continue_on_listener_filters_timeout": True,
        "filter_chains": [
            {
                "filter_chain_match": {"transport_protocol": "tls", "application_protocols": list(alpn)},
                "transport_socket": socket,
                "filters": [manager],
            }
        ],
    }
    plain = {"http": http_filter([route(cluster=name)]), "tcp": tcp_filter(name)}
    if default:
        listener["default_filter_chain"] = {"filters": [plain[default]]}
    tree["static_resources"]["listeners"].append(listener)
    bind = {"source_address": {"address": INBOUND_SOURCE[":" in host], "port_value": 0}}
    tree["static_resources"]["clusters"].append(cluster(name, [(host, port)], upstream_bind_config=bind))


# --- servers and clients ----------------------------------------------------------------------------


@contextmanager
def serving(listener: socket.socket, serve: Callable[[socket.socket], None]) -> Iterator[list[str]]:
    """Each connection in a thread of its own. Yields the addresses of those who called."""
    callers: list[str] = []

    def one(accepted: socket.socket) -> None:
        with accepted:
            accepted.settimeout(10)
            with suppress(OSError):  # the test says what it expects
                serve(accepted)

    def loop() -> None:
        while True:
            try:
                accepted, caller = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            callers.append(caller[0])
            threading.Thread(target=one, args=(accepted,), daemon=True).start()

    listener.settimeout(0.2)
    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield callers
    finally:
        listener.close()
        thread.join(5)


def echo(accepted: socket.socket) -> None:
    """Until the client has ended its half; then says so."""
    while data := accepted.recv(65536):
        accepted.sendall(data)
    accepted.sendall(b"|end")


def greet(accepted: socket.socket) -> None:
    accepted.sendall(b"220 ready\r\n")
    echo(accepted)


def http(accepted: socket.socket) -> None:
    """HTTP/1.1 that answers with the Host and the path that it was asked for."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = accepted.recv(65536)
        if not received:
            return
        data += received
    lines = data.split(b"\r\n")
    host = next((line[5:].strip() for line in lines if line.lower().startswith(b"host:")), b"-")
    body = b"http " + host + b" " + lines[0].split(b" ")[1]
    accepted.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)


def call(client: socket.socket, target: tuple[str, int], data: bytes = b"", end: bool = True) -> bytes:
    """Everything that comes back."""
    with client:
        client.connect(target)
        if data:
            client.sendall(data)
        if end:
            client.shutdown(socket.SHUT_WR)
        return read(client)


def read(client: socket.socket) -> bytes:
    got = b""
    while received := client.recv(65536):
        got += received
    return got


def client_context(files: CertificateFiles | None, *alpn: str) -> ssl.SSLContext:
    """Checks nothing: it is the other side that is tested."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if files is not None:
        context.load_cert_chain(files.certificate, files.private_key)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def get_over_http2(client: socket.socket, path: str) -> tuple[bytes, bytes]:
    """Status and body."""
    h2 = H2Connection(H2Configuration(client_side=True))
    h2.initiate_connection()
    fields = [(":method", "GET"), (":scheme", "http"), (":authority", "any.example"), (":path", path)]
    h2.send_headers(1, fields, end_stream=True)
    client.sendall(h2.data_to_send())
    status, body = b"", b""
    while True:
        received = client.recv(65536)
        assert received, "the connection ended before the response"
        for event in h2.receive_data(received):
            if isinstance(event, ResponseReceived):
                status = next(bytes(value) for name, value in event.headers or [] if name == b":status")
            elif isinstance(event, DataReceived):
                body += event.data or b""
            elif isinstance(event, StreamEnded):
                return status, body
        client.sendall(h2.data_to_send())


def metric(pod: Namespace, host: str, name: str, **labels: str) -> int:
    """The value of one series on the sidecar's /metrics."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    url = f"http://{host}:{ADMIN_PORT}/metrics"
    for line in pod.must("curl", "-s", "--noproxy", "*", url).splitlines():
        if line.startswith(name + "{") and all(each in line for each in wanted):
            return int(float(line.rpartition(" ")[2]))
    return 0
