"""Envoy is the oracle: the same filter chains and the same ClientHello must meet in the same chain."""

from __future__ import annotations

import itertools
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from sidecar.config.resources import FilterChainMatch
from sidecar.server.filter_chain_match import Seen, match_filter_chain
from tests.support.bootstraps import LISTENER, MANAGER, load, put, small
from tests.support.certs import make_ca
from tests.support.envoy import running

pytestmark = pytest.mark.envoy

MATCHES: dict[str, dict[str, Any]] = {
    "mesh": {"transport_protocol": "tls", "application_protocols": ["mesh", "h2"]},
    "tls": {"transport_protocol": "tls"},
    "exact": {"server_names": ["a.example"], "application_protocols": ["mesh"]},
    "suffix": {"server_names": ["*.example"]},
    "near": {"server_names": ["*.b.example"], "transport_protocol": "tls"},
    "port": {"destination_port": 9, "transport_protocol": "tls"},
    "raw": {"transport_protocol": "raw_buffer"},
}
NAMES = ("", "a.example", "A.Example", "x.a.example", "b.example", "x.b.example", "other")
OFFERS = ((), ("mesh",), ("h2", "mesh"), ("x", "h2"), ("x",))


def tree(directory: Path) -> dict[str, Any]:
    """Each chain answers its name."""
    made = put(small(), f"{LISTENER}.address.socket_address.port_value", 0)
    put(made, f"{MANAGER}.delayed_close_timeout", "0s")
    chain = made["static_resources"]["listeners"][0]["filter_chains"][0]
    files = make_ca().write_files(directory, dns=["any"], name="server")
    certificate = {
        "certificate_chain": {"filename": files.certificate},
        "private_key": {"filename": files.private_key},
    }
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    context = {"@type": kind, "common_tls_context": {"tls_certificates": [certificate]}}
    secure = {"transport_socket": {"name": "tls", "typed_config": context}}
    chains = []
    for name, match in MATCHES.items():
        chains.append({**answering(chain, name), "filter_chain_match": match})
        if name != "raw":
            chains[-1].update(secure)
    put(made, f"{LISTENER}.filter_chains", chains)
    put(made, f"{LISTENER}.default_filter_chain", answering(chain, "default"))
    kind = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
    return put(made, f"{LISTENER}.listener_filters", [{"name": "tls", "typed_config": {"@type": kind}}])


def answering(chain: dict[str, Any], text: str) -> dict[str, Any]:
    manager = dict(chain["filters"][0]["typed_config"])
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": text}}}
    manager["route_config"] = {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}
    return {"name": text, "filters": [{"name": "hcm", "typed_config": manager}]}


def ask(address: tuple[str, int], tls: bool, name: str, offer: tuple[str, ...]) -> str:
    """The chain that answers; `default` also where a plain chain cannot read the ClientHello."""
    with socket.create_connection(address, 10) as plain:
        if not tls:
            return exchange(plain)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if offer:
            context.set_alpn_protocols(list(offer))
        try:
            client = context.wrap_socket(plain, server_hostname=name or None)
        except OSError:
            return "default"
        with client:
            return exchange(client)


def exchange(client: socket.socket) -> str:
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    got = b""
    while received := client.recv(65536):
        got += received
    return got.rpartition(b"\r\n\r\n")[2].decode()


def test_every_combination_meets_in_the_same_chain(tmp_path: Path) -> None:
    written = tree(tmp_path)
    [listener] = load(written).listeners
    chains: list[tuple[FilterChainMatch, str]] = [
        (chain.match, name) for chain, name in zip(listener.filter_chains, MATCHES, strict=True)
    ]
    combinations = [(False, "", ()), *((True, *rest) for rest in itertools.product(NAMES, OFFERS))]
    with running(written, tmp_path) as address:
        for tls, name, offer in combinations:
            seen = Seen(address[1], "tls" if tls else "raw_buffer", name.lower(), offer)
            ours = match_filter_chain(chains, seen) or "default"
            assert ours == ask(address, tls, name, offer), (tls, name, offer)
