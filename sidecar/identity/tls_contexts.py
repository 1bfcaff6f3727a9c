"""Turns TLS configuration into contexts that connections use, and keeps them while they are current.

Called by clusters and listeners once for each new connection, so that new certificates, from files or
from a provider, are used by new connections while old ones live on. Never logs or writes a private key.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence

from sidecar.config.resources import StringMatcher, TlsConfig
from sidecar.identity.certificate_provider import CertificateProvider
from sidecar.net.certificates import uri_sans_of
from sidecar.net.openssl import OpenSslError
from sidecar.net.peer import PeerInfo
from sidecar.net.tls import TlsConfigError, TlsParameters, accept_any_peer
from sidecar.net.tls_context import TlsContext

__all__ = ["TlsConfigError", "TlsContexts"]

_log = logging.getLogger(__name__)

FILE_CHECK_INTERVAL = 1.0
"""Seconds between looks at the files' modification times."""


_State = tuple[object, ...]


class TlsContexts:
    """Current contexts, by configuration."""

    def __init__(
        self, providers: Mapping[str, CertificateProvider], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._providers = providers
        self._clock = clock
        self._cache: dict[tuple[TlsConfig, bool], tuple[float, _State, TlsParameters]] = {}

    def client(self, config: TlsConfig) -> TlsParameters:
        """For connecting. Raises TlsConfigError."""
        return self._get(config, False)

    def server(self, config: TlsConfig) -> TlsParameters:
        """For accepting. Raises TlsConfigError."""
        return self._get(config, True)

    def _get(self, config: TlsConfig, server_side: bool) -> TlsParameters:
        key = (config, server_side)
        cached = self._cache.get(key)
        now = self._clock()
        if cached is not None and now < cached[0] and self._versions(config) == cached[1][0]:
            return cached[2]
        state = self._state(config)
        if cached is None:
            parameters = self._make(config, server_side)
        elif state == cached[1]:
            parameters = cached[2]
        else:
            parameters = self._remake(config, server_side, cached[2])
        self._cache[key] = (now + FILE_CHECK_INTERVAL, state, parameters)
        return parameters

    def _remake(self, config: TlsConfig, server_side: bool, old: TlsParameters) -> TlsParameters:
        try:
            return self._make(config, server_side)
        except TlsConfigError as error:
            # Seen in the middle of a rotation, when one file of two is new: its next change tries again.
            _log.warning("keeping the previous TLS certificate: %s", error)
            return old

    def _versions(self, config: TlsConfig) -> _State:
        names = (config.provider, config.trusted_ca_provider)
        return tuple(self._provider(name).version for name in names if name)

    def _state(self, config: TlsConfig) -> _State:
        """What a context depends on besides its configuration: equal states, same context."""
        names = (config.certificate_file, config.private_key_file, config.trusted_ca_file)
        return (self._versions(config), tuple(_modified(name) for name in names if name))

    def _provider(self, name: str) -> CertificateProvider:
        try:
            return self._providers[name]
        except KeyError:
            known = ", ".join(sorted(self._providers)) or "none"
            raise TlsConfigError(
                f"unknown certificate provider {name!r}; certificate_provider_instances has: {known}"
            ) from None

    def _make(self, config: TlsConfig, server_side: bool) -> TlsParameters:
        context = TlsContext(server_side)
        context.check_hostname = not server_side and bool(config.sni) and not config.uri_san_matchers
        trusted = self._load_trust(context, config)
        if server_side:
            if config.require_client_certificate and not trusted:
                raise TlsConfigError(
                    "require_client_certificate is set, but no trusted_ca to verify clients with"
                )
            if trusted:
                # As in Envoy, a certificate that is shown is verified even where none is required.
                context.verify_peer(config.require_client_certificate)
        elif not trusted:
            raise TlsConfigError("no trusted_ca to verify the server with; set validation_context.trusted_ca")
        else:
            context.verify_peer(required=True)
        identity = self._load_identity(context, config, server_side)
        if config.alpn:
            context.set_alpn(config.alpn)
        check = _SanCheck(config.uri_san_matchers) if config.uri_san_matchers else accept_any_peer
        # A peer that negotiates nothing means HTTP/1.1 (RFC 9113 section 3.2), so where that is offered
        # no agreement is needed.
        required_alpn = () if "http/1.1" in config.alpn else config.alpn
        return TlsParameters(context, config.sni or None, required_alpn, check, identity)

    def _load_trust(self, context: TlsContext, config: TlsConfig) -> bool:
        pems = []
        if config.trusted_ca_file:
            pems.append(
                (
                    config.trusted_ca_file,
                    _read(config.trusted_ca_file, "trusted_ca"),
                )
            )
        if config.trusted_ca_inline:
            pems.append(("inline trusted_ca", config.trusted_ca_inline.encode()))
        if config.trusted_ca_provider:
            bundle = self._provider(config.trusted_ca_provider).trust_bundle_pem
            pems.append((f"certificate provider {config.trusted_ca_provider!r}", bundle.encode()))
        for source, pem in pems:
            try:
                context.trust(pem)
            except (OpenSslError, ValueError) as error:
                raise TlsConfigError(f"{source} has no usable CA certificate in PEM form: {error}") from error
        return bool(pems)

    def _load_identity(self, context: TlsContext, config: TlsConfig, server_side: bool) -> str:
        """Returns the first URI SAN of the certificate, "" without one."""
        if config.provider:
            provider = self._provider(config.provider)
            chain, key = provider.certificate_chain_pem.encode(), provider.private_key_pem
            source = f"certificate provider {config.provider!r}"
            if not chain:
                raise TlsConfigError(f"{source} has no certificate yet; see /certs for its last error")
        elif config.certificate_file:
            chain = _read(config.certificate_file, "certificate_chain")
            key = _read(config.private_key_file, "private_key")
            source = f"{config.certificate_file} and {config.private_key_file}"
        elif server_side:
            raise TlsConfigError("a TLS server needs a certificate; set tls_certificates")
        else:
            return ""
        try:
            leaf = context.use_identity(chain, key)
            uri_sans = uri_sans_of(leaf)
        except (OpenSslError, ValueError) as error:
            raise TlsConfigError(
                f"certificate and private key from {source} cannot be used: {_why(str(error))}"
            ) from error
        return uri_sans[0] if uri_sans else ""


class _SanCheck:
    """`TlsParameters.check_peer` for URI SAN matchers."""

    def __init__(self, matchers: Sequence[StringMatcher]) -> None:
        self._matchers = matchers
        self._tests = [_compile(matcher) for matcher in matchers]

    def __call__(self, peer: PeerInfo) -> str | None:
        if not peer.cert_sha256:
            return None  # only where none is required; without one there is no identity to match
        for uri in peer.uri_sans:
            for test in self._tests:
                if test(uri):
                    return None
        wanted = ", ".join(f"{m.kind} {m.value!r}" for m in self._matchers)
        return f"peer's identity is {', '.join(peer.uri_sans) or 'no URI'}; accepted are: {wanted}"

    def __repr__(self) -> str:
        return f"<_SanCheck {self._matchers}>"


def _compile(matcher: StringMatcher) -> Callable[[str], bool]:
    """Envoy `StringMatcher`; `ignore_case` has no effect on regex there either."""
    if matcher.kind == "regex":
        pattern = re.compile(matcher.value)
        return lambda uri: pattern.fullmatch(uri) is not None
    value = matcher.value.lower() if matcher.ignore_case else matcher.value
    fold: Callable[[str], str] = str.lower if matcher.ignore_case else str
    if matcher.kind == "exact":
        return lambda uri: fold(uri) == value
    if matcher.kind == "prefix":
        return lambda uri: fold(uri).startswith(value)
    if matcher.kind == "suffix":
        return lambda uri: fold(uri).endswith(value)
    if matcher.kind == "contains":
        return lambda uri: value in fold(uri)
    raise TlsConfigError(f"unknown kind of string matcher: {matcher.kind!r}")


def _modified(name: str) -> tuple[int, int]:
    try:
        status = os.stat(name)
    except OSError:
        return (0, 0)  # `_read` says it better
    return (status.st_mtime_ns, status.st_ino)


def _read(name: str, what: str) -> bytes:
    if not name:
        raise TlsConfigError(f"{what} is missing")
    try:
        with open(name, "rb") as file:
            return file.read()
    except OSError as error:
        raise TlsConfigError(f"cannot read {what} file {name}: {error.strerror}") from error


def _why(reason: str) -> str:
    return "the key does not belong to the certificate" if reason == "key values mismatch" else reason
