"""Small messages that several resources share: addresses, header operations, string matchers, sources.

Used by the other modules of this package.
"""

from __future__ import annotations

import ipaddress
import re
from types import MappingProxyType

from sidecar.config.decode.regex import translate
from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import HeaderOperation, Http2Options, SocketAddress, StringMatcher

_ADDRESS = Fields("socket_address", hints={"pipe": "use a socket_address"})
_NAMED_PORT = {"named_port": "use port_value"}
_SOCKET_ADDRESS = Fields("address port_value protocol", "ipv4_compat", hints=_NAMED_PORT)
_LISTENING_ADDRESS = Fields("address port_value protocol ipv4_compat", hints=_NAMED_PORT)
_HEADER_OPTION = Fields("header append append_action keep_empty_value")
_HEADER_VALUE = Fields("key value raw_value")
_STRING = Fields("exact prefix suffix contains safe_regex ignore_case")
_REGEX = Fields("regex", "google_re2")
_CONFIG_SOURCE = Fields(
    "ads resource_api_version",
    "initial_fetch_timeout self",
    hints=MappingProxyType(
        dict.fromkeys(("path", "path_config_source", "api_config_source"), "use `ads: {}`")
    ),
)
_KEEPALIVE = Fields("interval timeout")
_MIN_KEEPALIVE = 0.1
_HTTP2 = Fields(
    "max_concurrent_streams initial_stream_window_size initial_connection_window_size allow_connect "
    "connection_keepalive",
    # The codec's own limits against floods hold whatever is set here.
    "hpack_table_size max_outbound_frames max_outbound_control_frames max_metadata_size use_oghttp2_codec "
    "max_consecutive_inbound_frames_with_empty_payload max_inbound_priority_frames_per_stream "
    "max_inbound_window_update_frames_per_data_frame_sent stream_error_on_invalid_http_messaging "
    "override_stream_error_on_invalid_http_message",
)
_ACTIONS = MappingProxyType(
    {
        "APPEND_IF_EXISTS_OR_ADD": "append",
        "ADD_IF_ABSENT": "add_if_absent",
        "OVERWRITE_IF_EXISTS_OR_ADD": "overwrite",
        "OVERWRITE_IF_EXISTS": "overwrite_if_exists",
    }
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_MAX_WINDOW = 0x7FFFFFFF


def listening_addresses(view: View) -> tuple[SocketAddress, ...]:
    """Where one `core.v3.Address` listens: `::` with `ipv4_compat` is all addresses of both families."""
    found = address(view, 0, ip_only=True, fields=_LISTENING_ADDRESS)
    if view.message.socket_address.ipv4_compat and is_ip(found.host):
        ip = ipaddress.ip_address(found.host)
        if ip.version == 6 and ip.is_unspecified:
            return found, SocketAddress("0.0.0.0", found.port)
    return (found,)


def address(view: View, low_port: int, ip_only: bool, fields: Fields = _SOCKET_ADDRESS) -> SocketAddress:
    """A `core.v3.Address`; ports from `low_port`. `ip_only`: names are an error."""
    view.check(_ADDRESS)
    if not view.has("socket_address"):
        if view.which("address") is None:
            view.error("required: a socket_address")
        return SocketAddress("", low_port)
    socket = view.sub("socket_address", fields)
    socket.choice("protocol", {"TCP": None}, None)
    host = socket.required("address")
    if ip_only and host and not is_ip(host):
        socket.error(
            f"{host!r} is no IP address; names need a cluster of type STRICT_DNS or LOGICAL_DNS", "address"
        )
    if socket.which("port_specifier") is None:
        socket.error("required", "port_value")
    port = socket.in_range(socket.message.port_value, low_port, 65535, "port_value")
    return SocketAddress(host, port)


def is_ip(host: str) -> bool:
    """True for an IPv4 or IPv6 address without brackets."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def ads_source(view: View) -> None:
    """A `ConfigSource` that must be ADS."""
    view.check(_CONFIG_SOURCE)
    view.choice("resource_api_version", {"AUTO": None, "V3": None}, None)
    if view.which("config_source_specifier") is None:
        view.error("required: `ads: {}`")


def header_operations(view: View, kind: str) -> tuple[HeaderOperation, ...]:
    """`{kind}_headers_to_remove` and `{kind}_headers_to_add` of a message, in the order of application
    (Envoy removes first)."""
    operations = []
    for index, name in enumerate(view.texts(f"{kind}_headers_to_remove")):
        path = f"{kind}_headers_to_remove[{index}]"
        operations.append(HeaderOperation("remove", _header_name(view, name, path)))
    for option in view.subs(f"{kind}_headers_to_add", _HEADER_OPTION):
        operation = _header_option(option)
        if operation is not None:
            operations.append(operation)
    return tuple(operations)


def _header_option(option: View) -> HeaderOperation | None:
    header = option.sub("header", _HEADER_VALUE)
    name = _header_name(header, header.text("key"), "key")
    value: bytes = header.message.raw_value or header.text("value").encode()
    if _BAD_VALUE.search(value):
        header.error("control characters are not allowed in a header value", "value")
    if b"%" in value.replace(b"%%", b""):
        header.error(
            "command operators such as %REQ(...)% are not supported; write %% for a percent sign", "value"
        )
    action = option.choice("append_action", _ACTIONS, "append")
    if option.has("append"):
        action = "append" if option.flag("append") else "overwrite"
    if not value and not option.flag("keep_empty_value"):
        option.without_effect()  # Envoy skips empty values too.
        return None
    return HeaderOperation(action, name, value.replace(b"%%", b"%"))


def _header_name(view: View, name: str, path: str) -> bytes:
    lower = name.lower()
    if lower.startswith(":") or lower == "host":
        view.error(f"{name} cannot be changed as a header; use the rewrites of the route", path)
    elif not _TOKEN.fullmatch(lower):
        view.error(f"{name!r} is no header name", path)
    return lower.encode()


def string_matcher(view: View) -> StringMatcher:
    """A `type.matcher.v3.StringMatcher`."""
    view.check(_STRING)
    kind = view.which("match_pattern")
    if kind is None:
        view.error("required: exact, prefix, suffix, contains or safe_regex")
        return StringMatcher("exact", "")
    if kind == "safe_regex":
        # Envoy ignores ignore_case here.
        return StringMatcher("regex", regex(view.sub("safe_regex")))
    value = view.text(kind) if kind != "custom" else ""
    if not value and kind in ("prefix", "suffix", "contains"):
        view.error("must not be empty", kind)
    return StringMatcher(kind, value, view.flag("ignore_case"))


def regex(view: View) -> str:
    """A `RegexMatcher` as a Python pattern."""
    view.check(_REGEX)
    return python_pattern(view, view.required("regex"), "regex")


def python_pattern(view: View, pattern: str, name: str) -> str:
    """An RE2 pattern as a Python pattern, with errors at the field `name`."""
    try:
        return translate(pattern)
    except ValueError as error:
        view.error(f"{error}: {pattern!r}", name)
        return ""


def http2_options(view: View) -> Http2Options:
    """`Http2ProtocolOptions`."""
    view.check(_HTTP2)
    standard = Http2Options()
    return Http2Options(
        max_concurrent_streams=view.number(
            "max_concurrent_streams", standard.max_concurrent_streams, 1, _MAX_WINDOW
        ),
        initial_stream_window_size=view.number(
            "initial_stream_window_size", standard.initial_stream_window_size, 65535, _MAX_WINDOW
        ),
        initial_connection_window_size=view.number(
            "initial_connection_window_size", standard.initial_connection_window_size, 65535, _MAX_WINDOW
        ),
        allow_connect=view.flag("allow_connect"),
        keepalive_interval=_keepalive_interval(view, standard.keepalive_interval),
    )


def _keepalive_interval(view: View, standard: float) -> float:
    if not view.has("connection_keepalive"):
        return standard
    keepalive = view.sub("connection_keepalive", _KEEPALIVE)
    interval = keepalive.seconds("interval", standard)
    if interval < _MIN_KEEPALIVE:
        keepalive.error(f"must be at least {_MIN_KEEPALIVE:g} s", "interval")
    if keepalive.seconds("timeout", interval) != interval:
        keepalive.error("the answer to a PING is awaited for one interval; set it to the same", "timeout")
    return interval
