"""What an inbound sidecar accepts as a peer, what an outbound one does, and what both say of it."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apps import start_app
from tests.support.certs import TestCa, make_ca
from tests.support.clients import H2Client, fetch
from tests.support.processes import eventually, loopback
from tests.support.sidecars import (
    APP,
    INBOUND,
    OUTBOUND,
    SPIFFE,
    Pair,
    address,
    bootstrap,
    cluster,
    http_filter,
    listener,
    route,
    tls,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("mtls")
    (directory / "clients").mkdir()
    with Pair(directory) as made, start_app(made.hosts[0], APP, "app", directory):
        yield made.start()


def client_context(pair: Pair, ca: TestCa, account: str, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Of a client that runs as `account`, "" for one without a certificate. It checks nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if account:
        files = ca.write_files(pair.directory / "clients", SPIFFE + account, name=account)
        context.load_cert_chain(files.certificate, files.private_key)
    return context


def talk(pair: Pair, context: ssl.SSLContext) -> int:
    """Status of a request to the inbound sidecar. Raises OSError when it is not let in."""
    plain = socket.create_connection((pair.hosts[0], INBOUND), 30)
    with plain, context.wrap_socket(plain, server_hostname="server.test") as secured:
        try:
            with H2Client(("", 0), secured) as client:
                return client.fetch("/").status
        except AssertionError as error:
            raise ConnectionResetError(str(error)) from error


@pytest.fixture
def failures(pair: Pair) -> Iterator[None]:
    """The test is one failed handshake, in the inbound sidecar's books too."""
    before = pair.inbound[0].stats("listeners", listener="in")["tls_failures"]
    yield
    eventually(lambda: pair.inbound[0].stats("listeners", listener="in")["tls_failures"] == before + 1)


def test_a_client_of_the_mesh_is_let_in_over_tls_1_3(pair: Pair) -> None:
    assert talk(pair, client_context(pair, pair.ca, "caller", ssl.TLSVersion.TLSv1_3)) == 200


@pytest.mark.usefixtures("failures")
def test_tls_1_2_is_refused(pair: Pair) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        talk(pair, client_context(pair, pair.ca, "caller", ssl.TLSVersion.TLSv1_2))


@pytest.mark.usefixtures("failures")
def test_a_client_without_a_certificate_is_refused(pair: Pair) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
        talk(pair, client_context(pair, pair.ca, "", ssl.TLSVersion.TLSv1_3))


@pytest.mark.usefixtures("failures")
def test_a_certificate_of_another_authority_is_refused(pair: Pair) -> None:
    with pytest.raises(OSError):
        talk(pair, client_context(pair, make_ca("other"), "caller", ssl.TLSVersion.TLSv1_3))


@pytest.mark.usefixtures("failures")
def test_another_identity_of_the_mesh_is_refused(pair: Pair) -> None:
    with pytest.raises(OSError):
        talk(pair, client_context(pair, pair.ca, "stranger", ssl.TLSVersion.TLSv1_3))


def test_plain_text_is_refused(pair: Pair) -> None:
    with pytest.raises(OSError):
        fetch((pair.hosts[0], INBOUND), "/")


def test_the_caller_is_told_which_identity_the_server_has(pair: Pair, tmp_path: Path) -> None:
    """A server with a certificate of the mesh but of another account: no request goes there."""
    files = pair.ca.write_files(tmp_path, SPIFFE + "impostor", name="impostor")
    host = loopback()
    secured = tls("Downstream", files, "caller", require_client_certificate=True)
    inbound = listener("in", address(host, INBOUND), http_filter([route(cluster="app")]), secured)
    caller = tls("Upstream", pair.files["caller"], "server", sni="server.test")
    outbound = listener("out", address(host, OUTBOUND), http_filter([route()]))
    clusters = [
        cluster("app", [(pair.hosts[0], APP)]),
        cluster("peer", [(host, INBOUND)], True, transport_socket=caller),
    ]
    sidecar = pair.run("impostor", bootstrap(host, [inbound, outbound], clusters)).ready()
    answer = fetch((host, OUTBOUND), "/")
    assert answer.status == 503
    assert f"{host}:{INBOUND}".encode() in answer.body
    assert (
        f"peer's identity is {SPIFFE}impostor; accepted are: exact '{SPIFFE}server'".encode() in answer.body
    )
    assert sidecar.logged(direction="outbound")["flags"] == "UF"


def test_the_verified_identity_replaces_what_the_caller_claims(pair: Pair) -> None:
    claim = {"x-forwarded-client-cert": "URI=spiffe://cluster.local/ns/test/sa/root", "x-other": "kept"}
    answer = fetch((pair.host, OUTBOUND), "/", headers=claim)
    fields = answer.json()["fields"]
    [seen] = [value for name, value in fields if name == "x-forwarded-client-cert"]
    assert ["x-other", "kept"] in fields
    pattern = f"By={SPIFFE}server;Hash=[0-9a-f]{{64}};URI={SPIFFE}caller"
    assert re.fullmatch(pattern, seen), seen


def test_a_peer_may_not_claim_another_identity(pair: Pair) -> None:
    context = client_context(pair, pair.ca, "caller", ssl.TLSVersion.TLSv1_3)
    plain = socket.create_connection((pair.hosts[0], INBOUND), 30)
    with plain, context.wrap_socket(plain) as secured, H2Client(("", 0), secured) as client:
        stream = client.send("/", headers=[("x-forwarded-client-cert", "URI=spiffe://x"), ("a", "b")])
        fields = client.wait(stream).json()["fields"]
    values = [value for name, value in fields if name == "x-forwarded-client-cert"]
    assert len(values) == 1
    assert "spiffe://x" not in values[0]


def test_the_log_of_the_inbound_side_names_the_caller(pair: Pair, request: pytest.FixtureRequest) -> None:
    assert fetch((pair.host, OUTBOUND), f"/{request.node.name}").status == 200
    assert pair.inbound[0].logged(path=f"/{request.node.name}")["peer"] == SPIFFE + "caller"


def test_certificates_replaced_in_their_files_are_used_by_new_connections(pair: Pair) -> None:
    """Whoever writes the files needs nothing else: no signal, no restart. Old connections live on."""
    context = client_context(pair, pair.ca, "caller", ssl.TLSVersion.TLSv1_3)
    first = shown(pair, context)
    opened = pair.outbound.stats("clusters", cluster="peer")["connections_opened"]
    pair.ca.write_files(pair.directory, SPIFFE + "server", name="server")
    eventually(lambda: shown(pair, context) != first, "the new certificate")
    assert fetch((pair.host, OUTBOUND), "/").status == 200
    assert pair.outbound.stats("clusters", cluster="peer")["connections_opened"] == max(opened, 1)


def shown(pair: Pair, context: ssl.SSLContext) -> bytes:
    """The certificate that a new connection to the inbound sidecar is shown."""
    plain = socket.create_connection((pair.hosts[0], INBOUND), 30)
    with plain, context.wrap_socket(plain) as secured:
        certificate = secured.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate
