"""The mesh's TLS in xDS: every certificate and trust bundle comes from the client's own provider (gRFC A29).

No key and no certificate ever travels over xDS. Used by `listeners` and `clusters`.
"""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.core.v3.base_pb2 import TransportSocket
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import (
    CertificateProviderPluginInstance,
    CertificateValidationContext,
    SubjectAltNameMatcher,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import (
    CommonTlsContext,
    DownstreamTlsContext,
    UpstreamTlsContext,
)
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from google.protobuf.wrappers_pb2 import BoolValue

from control_plane.model.discovery import Dialect
from control_plane.translate.protobuf import pack
from mesh_api.names import CERTIFICATE_PROVIDER, MESH_ALPN
from mesh_api.spiffe import SpiffeId

_ALPN = (MESH_ALPN, "h2")


def _provider() -> CertificateProviderPluginInstance:
    return CertificateProviderPluginInstance(instance_name=CERTIFICATE_PROVIDER)


def _context(validation: CertificateValidationContext, alpn: Iterable[str]) -> CommonTlsContext:
    validation.ca_certificate_provider_instance.CopyFrom(_provider())
    return CommonTlsContext(
        tls_certificate_provider_instance=_provider(),
        combined_validation_context=CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=validation
        ),
        alpn_protocols=alpn,
    )


def downstream() -> TransportSocket:
    """For an inbound listener: whom the mesh's authority signed may connect."""
    context = DownstreamTlsContext(
        common_tls_context=_context(CertificateValidationContext(), _ALPN),
        require_client_certificate=BoolValue(value=True),
    )
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(context))


def upstream(identities: Iterable[SpiffeId], dialect: Dialect) -> TransportSocket:
    """For a cluster: the peer must prove one of `identities`."""
    matchers = [StringMatcher(exact=uri) for uri in sorted(map(str, identities))]
    validation = CertificateValidationContext()
    if dialect is Dialect.GRPC:
        # gRPC knows only the older field (gRFC A29), and negotiates ALPN by itself.
        validation.match_subject_alt_names.extend(matchers)
        context = _context(validation, ())
    else:
        validation.match_typed_subject_alt_names.extend(
            SubjectAltNameMatcher(san_type=SubjectAltNameMatcher.SanType.URI, matcher=matcher)
            for matcher in matchers
        )
        context = _context(validation, _ALPN)
    return TransportSocket(
        name="envoy.transport_sockets.tls", typed_config=pack(UpstreamTlsContext(common_tls_context=context))
    )
