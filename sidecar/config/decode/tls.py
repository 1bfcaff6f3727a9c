"""Envoy transport sockets: `UpstreamTlsContext`, `DownstreamTlsContext`, `RawBuffer`.

TLS 1.3 alone is spoken, so that what only matters to older versions has no effect.
"""

from __future__ import annotations

from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2

from sidecar.config.decode.common import string_matcher
from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import StringMatcher, TlsConfig

_UPSTREAM_TYPE: str = tls_pb2.UpstreamTlsContext.DESCRIPTOR.full_name
_DOWNSTREAM_TYPE: str = tls_pb2.DownstreamTlsContext.DESCRIPTOR.full_name
RAW_BUFFER_TYPE: str = raw_buffer_pb2.RawBuffer.DESCRIPTOR.full_name

SOCKET = Fields("name typed_config")
# Renegotiation and RSA key usage are of TLS 1.2; sessions are never resumed.
_UPSTREAM = Fields("common_tls_context sni", "allow_renegotiation max_session_keys enforce_rsa_key_usage")
_DOWNSTREAM = Fields(
    "common_tls_context require_client_certificate ocsp_staple_policy",
    "session_ticket_keys disable_stateless_session_resumption disable_stateful_session_resumption "
    "session_timeout "
    "full_scan_certs_on_sni_mismatch prefer_client_ciphers",
    off="require_sni",
)
_SDS = "SDS is not supported; name files, or a certificate provider with {}"
_COMMON = Fields(
    "tls_params tls_certificates tls_certificate_provider_instance validation_context "
    "combined_validation_context "
    "alpn_protocols",
    hints={
        "tls_certificate_sds_secret_configs": _SDS.format("tls_certificate_provider_instance"),
        "validation_context_sds_secret_config": _SDS.format("ca_certificate_provider_instance"),
    },
)
_PARAMS = Fields("tls_minimum_protocol_version tls_maximum_protocol_version", "cipher_suites")
_CERTIFICATE = Fields("certificate_chain private_key", "watched_directory")
_VALIDATION = Fields(
    "trusted_ca ca_certificate_provider_instance match_typed_subject_alt_names match_subject_alt_names "
    "trust_chain_verification",
    "watched_directory",
)
_COMBINED = Fields(
    "default_validation_context",
    hints={"validation_context_sds_secret_config": _SDS.format("ca_certificate_provider_instance")},
)
_INSTANCE = Fields("instance_name", "certificate_name")
_FILE = Fields(
    "filename",
    "watched_directory",
    hints=dict.fromkeys(
        ("inline_string", "inline_bytes", "environment_variable"), "name a file with filename"
    ),
)
_SAN = Fields("san_type matcher")
_TLS_1_3 = {"TLS_AUTO": None, "TLSv1_3": None}


def upstream_socket(view: View) -> TlsConfig | None:
    """The transport socket of a cluster; None for plain text."""
    context = _context(view, _UPSTREAM_TYPE)
    if context is None:
        return None
    context.check(_UPSTREAM)
    return _tls(context, sni=context.text("sni"))


def downstream_socket(view: View) -> TlsConfig | None:
    """The transport socket of a filter chain; None for plain text."""
    context = _context(view, _DOWNSTREAM_TYPE)
    if context is None:
        return None
    context.check(_DOWNSTREAM)
    context.choice("ocsp_staple_policy", {"LENIENT_STAPLING": None}, None)
    required = context.flag("require_client_certificate")
    config = _tls(context, require_client_certificate=required)
    if not (config.certificate_file or config.provider):
        context.error(
            "a server needs tls_certificates or tls_certificate_provider_instance", "common_tls_context"
        )
    if required and not _has_ca(config):
        context.error("needs a trusted_ca or ca_certificate_provider_instance", "require_client_certificate")
    return config


def _context(view: View, wanted: str) -> View | None:
    view.check(SOCKET)
    type_name, context = view.any("typed_config")
    if type_name == RAW_BUFFER_TYPE:
        return None
    if type_name != wanted or context is None:
        view.error(
            f"{type_name or 'a socket without typed_config'} is not supported; use {wanted}", "typed_config"
        )
        return None
    return context


def _has_ca(config: TlsConfig) -> bool:
    return bool(config.trusted_ca_file or config.trusted_ca_inline or config.trusted_ca_provider)


def _tls(context: View, sni: str = "", require_client_certificate: bool = False) -> TlsConfig:
    common = context.sub("common_tls_context", _COMMON)
    params = common.sub("tls_params", _PARAMS)
    params.choice("tls_minimum_protocol_version", _TLS_1_3, None)
    params.choice("tls_maximum_protocol_version", _TLS_1_3, None)
    chain, key, provider = _certificate(common)
    ca_file, ca_inline, ca_provider = "", "", ""
    sans: tuple[StringMatcher, ...] = ()
    validation = _validation(common)
    if validation is not None:
        ca_file, ca_inline, ca_provider = _trusted_ca(validation)
        sans = _uri_sans(validation)
        if sans and not (ca_file or ca_inline or ca_provider):
            validation.error("matchers of names need a trusted_ca or ca_certificate_provider_instance")
    return TlsConfig(
        certificate_file=chain,
        private_key_file=key,
        provider=provider,
        trusted_ca_file=ca_file,
        trusted_ca_inline=ca_inline,
        trusted_ca_provider=ca_provider,
        uri_san_matchers=sans,
        alpn=common.texts("alpn_protocols"),
        sni=sni,
        require_client_certificate=require_client_certificate,
    )


def _certificate(common: View) -> tuple[str, str, str]:
    """Files of chain and key, or the name of the certificate provider."""
    provider = ""
    if common.has("tls_certificate_provider_instance"):
        provider = common.sub("tls_certificate_provider_instance", _INSTANCE).required("instance_name")
    certificates = list(common.subs("tls_certificates", _CERTIFICATE))
    if not certificates:
        return "", "", provider
    if provider or len(certificates) > 1:
        common.error("one certificate or certificate provider is supported", "tls_certificates")
    chain = _file(certificates[0], "certificate_chain")
    return chain, _file(certificates[0], "private_key"), provider


def _file(view: View, name: str) -> str:
    source = view.sub(name, _FILE)
    return source.required("filename") if source.which("specifier") in (None, "filename") else ""


def _validation(common: View) -> View | None:
    kind = common.which("validation_context_type")
    if kind == "validation_context":
        return common.sub("validation_context", _VALIDATION)
    if kind == "combined_validation_context":
        return common.sub("combined_validation_context", _COMBINED).sub(
            "default_validation_context", _VALIDATION
        )
    return None


def _trusted_ca(view: View) -> tuple[str, str, str]:
    """File, inline PEM and provider of the trusted authorities; at most one is set."""
    view.choice("trust_chain_verification", {"VERIFY_TRUST_CHAIN": None}, None)
    if view.has("ca_certificate_provider_instance"):
        if view.has("trusted_ca"):
            view.error("trusted_ca and ca_certificate_provider_instance exclude each other", "trusted_ca")
        instance = view.sub("ca_certificate_provider_instance", _INSTANCE)
        return "", "", instance.required("instance_name")
    source = view.sub("trusted_ca", Fields("filename inline_string inline_bytes", "watched_directory"))
    kind = source.which("specifier")
    if kind == "filename":
        return source.required("filename"), "", ""
    if kind == "inline_bytes":
        return "", source.message.inline_bytes.decode("latin-1"), ""
    if kind is None and view.has("trusted_ca"):
        source.error("required: filename, inline_string or inline_bytes")
    return "", source.text("inline_string"), ""


def _uri_sans(view: View) -> tuple[StringMatcher, ...]:
    matchers = []
    for typed in view.subs("match_typed_subject_alt_names", _SAN):
        typed.choice("san_type", {"URI": None}, None)
        matchers.append(string_matcher(typed.sub("matcher")))
    for plain in view.subs("match_subject_alt_names"):
        # The older form names no type; what starts like a SPIFFE id can only be meant for a URI.
        matcher = string_matcher(plain)
        if matcher.kind not in ("exact", "prefix") or not matcher.value.startswith("spiffe://"):
            plain.error(
                "only exact or prefix with spiffe://...; use match_typed_subject_alt_names with san_type URI"
            )
        matchers.append(matcher)
    return tuple(matchers)
