"""Contexts from configuration: what is verified, what is refused, and when new files are used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.config.resources import StringMatcher, TlsConfig
from sidecar.identity.tls_contexts import TlsConfigError, TlsContexts
from sidecar.net.peer import PeerInfo
from sidecar.net.tls import TlsError, TlsParameters, TlsSession
from tests.support.certs import CertificateFiles, TestCa, make_ca

USERS = "spiffe://cluster.local/ns/shop/sa/users"
ORDERS = "spiffe://cluster.local/ns/shop/sa/orders"


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _contexts() -> tuple[TlsContexts, Time]:
    clock = Time()
    return TlsContexts({}, clock), clock


def _files(files: CertificateFiles, **more: object) -> TlsConfig:
    identity = {"certificate_file": files.certificate, "private_key_file": files.private_key}
    return TlsConfig(**{**identity, "trusted_ca_file": files.ca, **more})  # type: ignore[arg-type]


def _handshake(server: TlsParameters, client: TlsParameters) -> tuple[TlsSession, TlsSession]:
    """Both ends, secured. Raises TlsError."""
    one, other = TlsSession(client, False), TlsSession(server, True)
    one.handshake(b"")
    other.handshake(one.take_output())
    one.handshake(other.take_output())
    other.handshake(one.take_output())
    return one, other


def _peer(*uris: str) -> PeerInfo:
    return PeerInfo(("127.0.0.1", 1), ("127.0.0.1", 2), True, "h2", uris, "00")


def test_mutual_tls_from_files(tmp_path: Path) -> None:
    contexts, _ = _contexts()
    files = make_ca().write_files(tmp_path, USERS)
    server = contexts.server(_files(files, require_client_certificate=True, alpn=("h2",)))
    client = contexts.client(
        _files(files, alpn=("h2",), sni="not-the-name", uri_san_matchers=(_exact(USERS),))
    )
    one, other = _handshake(server, client)
    assert (one.alpn, other.alpn, other.sni) == ("h2", "h2", "not-the-name")
    assert other.peer_certificate is not None


def test_client_without_certificate_is_refused_only_where_one_is_required(tmp_path: Path) -> None:
    contexts, _ = _contexts()
    files = make_ca().write_files(tmp_path, USERS)
    client = contexts.client(TlsConfig(trusted_ca_file=files.ca))
    _handshake(contexts.server(_files(files)), client)
    with pytest.raises(TlsError, match="peer did not return a certificate"):
        _handshake(contexts.server(_files(files, require_client_certificate=True)), client)


def test_host_name_is_checked_when_sni_is_all_there_is(tmp_path: Path) -> None:
    contexts, _ = _contexts()
    files = make_ca().write_files(tmp_path, dns=["users.example"])
    server = contexts.server(_files(files))
    _handshake(server, contexts.client(TlsConfig(trusted_ca_file=files.ca, sni="users.example")))
    with pytest.raises(TlsError, match="hostname mismatch"):
        _handshake(server, contexts.client(TlsConfig(trusted_ca_file=files.ca, sni="orders.example")))


@pytest.mark.parametrize(
    ("matcher", "uri", "accepted"),
    [
        (StringMatcher("exact", USERS), USERS, True),
        (StringMatcher("exact", USERS), USERS + "x", False),
        (StringMatcher("exact", USERS.upper(), ignore_case=True), USERS, True),
        (StringMatcher("prefix", "spiffe://cluster.local/"), USERS, True),
        (StringMatcher("prefix", "spiffe://cluster.local/"), "spiffe://cluster.local.evil/ns/a/sa/b", False),
        (StringMatcher("suffix", "/sa/users"), USERS, True),
        (StringMatcher("contains", "/ns/shop/"), USERS, True),
        (StringMatcher("contains", "/ns/SHOP/"), USERS, False),
        (StringMatcher("regex", r"spiffe://[^/]+/ns/shop/sa/\w+"), USERS, True),
        (StringMatcher("regex", r"spiffe://cluster.local"), USERS, False),
    ],
)
def test_uri_san_matchers(matcher: StringMatcher, uri: str, accepted: bool, tmp_path: Path) -> None:
    contexts, _ = _contexts()
    files = make_ca().write_files(tmp_path, USERS)
    check = contexts.client(_files(files, uri_san_matchers=(matcher,))).check_peer
    assert (check(_peer(uri)) is None) is accepted


def test_refused_identity_is_named_with_what_is_accepted(tmp_path: Path) -> None:
    contexts, _ = _contexts()
    files = make_ca().write_files(tmp_path, USERS)
    check = contexts.client(_files(files, uri_san_matchers=(_exact(USERS),))).check_peer
    assert check(_peer(ORDERS)) == f"peer's identity is {ORDERS}; accepted are: exact {USERS!r}"
    assert check(_peer()) == f"peer's identity is no URI; accepted are: exact {USERS!r}"
    assert check(_peer(ORDERS, USERS)) is None


def test_alpn_is_required_unless_http_1_is_among_it(tmp_path: Path) -> None:
    contexts, _ = _contexts()
    files = make_ca().write_files(tmp_path, USERS)
    assert contexts.server(_files(files, alpn=("h2",))).alpn_required == ("h2",)
    assert contexts.server(_files(files, alpn=("h2", "http/1.1"))).alpn_required == ()


def test_context_is_kept_until_the_files_change(tmp_path: Path) -> None:
    contexts, clock = _contexts()
    ca = make_ca()
    config = _files(ca.write_files(tmp_path, USERS))
    first = contexts.client(config)
    clock.now = 5.0
    assert contexts.client(config) is first
    _rewrite(ca, tmp_path)
    clock.now = 5.5
    assert contexts.client(config) is first  # looked at once a second
    clock.now = 6.5
    assert contexts.client(config) is not first


def test_half_written_rotation_keeps_the_old_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contexts, clock = _contexts()
    ca = make_ca()
    config = _files(ca.write_files(tmp_path, USERS))
    first = contexts.server(config)
    certificate, key = ca.issue(USERS)
    _replace(tmp_path / "tls.crt", certificate)
    clock.now = 2.0
    assert contexts.server(config) is first
    assert "the key does not belong to the certificate" in caplog.text
    _replace(tmp_path / "tls.key", key)
    clock.now = 4.0
    assert contexts.server(config) is not first


def test_errors_say_what_is_wrong_with_what(tmp_path: Path) -> None:
    contexts, _ = _contexts()
    ca = make_ca()
    files = ca.write_files(tmp_path, USERS)
    other = ca.write_files(tmp_path, ORDERS, name="other")
    missing = str(tmp_path / "missing.crt")

    def server(config: TlsConfig) -> str:
        with pytest.raises(TlsConfigError) as caught:
            contexts.server(config)
        return str(caught.value)

    assert server(_files(files, certificate_file=missing)) == (
        f"cannot read certificate_chain file {missing}: No such file or directory"
    )
    assert server(_files(files, private_key_file=other.private_key)) == (
        f"certificate and private key from {files.certificate} and {other.private_key} cannot be used: "
        "the key does not belong to the certificate"
    )
    assert server(_files(files, trusted_ca_file=files.private_key)).startswith(
        f"{files.private_key} has no usable CA certificate in PEM form: "
    )
    assert server(TlsConfig(provider="mesh")) == (
        "unknown certificate provider 'mesh'; certificate_provider_instances has: none"
    )
    assert server(TlsConfig()) == "a TLS server needs a certificate; set tls_certificates"
    with pytest.raises(TlsConfigError, match="no trusted_ca to verify the server with"):
        contexts.client(TlsConfig())


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    contexts, _ = _contexts()
    files = make_ca().write_files(tmp_path, USERS)
    before = len(os.listdir("/proc/self/fd"))
    contexts.client(_files(files))
    assert len(os.listdir("/proc/self/fd")) == before


def _exact(value: str) -> StringMatcher:
    return StringMatcher("exact", value)


def _rewrite(ca: TestCa, directory: Path) -> None:
    certificate, key = ca.issue(USERS)
    _replace(directory / "tls.crt", certificate)
    _replace(directory / "tls.key", key)


def _replace(path: Path, content: bytes) -> None:
    """As rotation does it: a new file under the old name."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.rename(path)
