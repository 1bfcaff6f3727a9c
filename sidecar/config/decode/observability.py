"""The `tracing` and `access_log` of an HttpConnectionManager."""

from __future__ import annotations

from urllib.parse import urlsplit

from envoy.config.trace.v3 import opentelemetry_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2
from envoy.extensions.access_loggers.stream.v3 import stream_pb2

from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import TracingConfig

_OPENTELEMETRY_TYPE: str = opentelemetry_pb2.OpenTelemetryConfig.DESCRIPTOR.full_name
_FILE_TYPE: str = file_pb2.FileAccessLog.DESCRIPTOR.full_name
_STANDARD_STREAMS = {
    stream_pb2.StdoutAccessLog.DESCRIPTOR.full_name: "/dev/stdout",
    stream_pb2.StderrAccessLog.DESCRIPTOR.full_name: "/dev/stderr",
}

_TRACING = Fields(
    "random_sampling overall_sampling provider",
    # What a span holds follows OpenTelemetry's conventions and cannot be chosen.
    "client_sampling verbose max_path_tag_length custom_tags spawn_upstream_span operation "
    "upstream_operation",
)
_PROVIDER = Fields("name typed_config")
_OPENTELEMETRY = Fields(
    "http_service service_name",
    "resource_detectors max_cache_size",
    hints={
        "grpc_service": "use http_service",
        "sampler": "use random_sampling of the connection manager's tracing",
    },
)
_SERVICE = Fields("http_uri")
_URI = Fields("uri cluster timeout")
_ACCESS_LOG = Fields("name typed_config", "filter")


def tracing(view: View) -> TracingConfig:
    """Sampling and the collector; without a provider trace contexts are made and passed on, not exported."""
    view.check(_TRACING)
    random_sampling = view.percent("random_sampling", 100.0)
    overall_sampling = view.percent("overall_sampling", 100.0)
    if not view.has("provider"):
        return TracingConfig(random_sampling, overall_sampling)
    provider = view.sub("provider", _PROVIDER)
    type_name, config = provider.any("typed_config")
    if type_name != _OPENTELEMETRY_TYPE or config is None:
        provider.error(f"{type_name or provider.text('name')} is not supported; use {_OPENTELEMETRY_TYPE}")
        return TracingConfig(random_sampling, overall_sampling)
    config.check(_OPENTELEMETRY)
    standard = TracingConfig()
    service_name = config.text("service_name") or standard.service_name
    if not config.has("http_service"):
        return TracingConfig(random_sampling, overall_sampling, service_name)
    uri = config.sub("http_service", _SERVICE).sub("http_uri", _URI)
    parts = urlsplit(uri.required("uri"))
    target = parts.path or "/"
    return TracingConfig(
        random_sampling=random_sampling,
        overall_sampling=overall_sampling,
        service_name=service_name,
        collector_cluster=uri.required("cluster"),
        collector_uri=f"{target}?{parts.query}" if parts.query else target,
        collector_timeout=uri.seconds("timeout", standard.collector_timeout, positive=True),
    )


def access_log(view: View) -> tuple[bool, str]:
    """Whether requests are logged, and the file. The first logger that is known decides; the format is
    always one JSON object a line."""
    found = ""
    for logger in view.subs("access_log"):
        type_name, config = logger.any("typed_config")
        path = _STANDARD_STREAMS.get(type_name, "")
        if type_name == _FILE_TYPE and config is not None:
            path = config.required("path")
        if found or not path:
            logger.without_effect()
            continue
        logger.check(_ACCESS_LOG)
        found = path
        if config is not None:
            config.check(Fields("path", "format json_format typed_json_format log_format"))
    return bool(found), found
