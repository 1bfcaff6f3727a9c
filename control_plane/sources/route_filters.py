"""The `filters` of a route's rule or backend to the model. Called by `routes`.

A filter that the mesh does not have is an error, because leaving it out would change what traffic does.
"""

from __future__ import annotations

import re

from control_plane.model.route import Filters, HeaderModifier, PathRewrite, Redirect, Rewrite, RouteKind
from control_plane.sources.fields import Fields

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+")
HEADER_RULE = "a header name (RFC 9110, section 5.1)"
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
_HOST = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
# Set by the proxies themselves; a route that changed them would break the connection or the routing.
_RESERVED = frozenset(
    {"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)

_BODIES = {
    "RequestHeaderModifier": "requestHeaderModifier",
    "ResponseHeaderModifier": "responseHeaderModifier",
    "RequestRedirect": "requestRedirect",
    "URLRewrite": "urlRewrite",
}
_UNSUPPORTED = ("RequestMirror", "CORS", "ExtensionRef", "ExternalAuth")


def parse_filters(kind: RouteKind, owner: Fields) -> Filters:
    """`owner.filters`. Raises FieldError."""
    found: dict[str, Fields] = {}
    for item in owner.mappings("filters"):
        name = item.text("type")
        if name in _UNSUPPORTED:
            raise item.error("type", f"the filter {name} is not supported; remove it")
        allowed = _BODIES if kind is RouteKind.HTTP else tuple(_BODIES)[:2]
        item.choice("type", tuple(allowed))
        body = _BODIES[name]
        item.only(("type", body))
        if not item.has(body):
            raise item.error(body, f"is required: type is {name}")
        if name in found:
            raise item.error("type", f"{name} is there twice; join the two")
        found[name] = item.mapping(body)
    if "RequestRedirect" in found and "URLRewrite" in found:
        raise owner.error("filters", "RequestRedirect and URLRewrite exclude each other; remove one")
    return Filters(
        request_headers=_modifier(found.get("RequestHeaderModifier")),
        response_headers=_modifier(found.get("ResponseHeaderModifier")),
        rewrite=_rewrite(found.get("URLRewrite")),
        redirect=_redirect(found.get("RequestRedirect")),
    )


def _modifier(item: Fields | None) -> HeaderModifier | None:
    if item is None:
        return None
    item.only(("add", "remove", "set"))
    removed = []
    for name in item.texts("remove"):
        if not HEADER_NAME.fullmatch(name) or name.lower() in _RESERVED:
            raise item.error(
                "remove", f"{name!r} cannot be removed; expected {HEADER_RULE}, not one of the connection's"
            )
        removed.append(name.lower())
    return HeaderModifier(_pairs(item, "set"), _pairs(item, "add"), tuple(removed))


def _pairs(item: Fields, key: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for entry in item.mappings(key):
        entry.only(("name", "value"))
        name = entry.matching("name", HEADER_NAME, HEADER_RULE).lower()
        if name in _RESERVED:
            hint = "; use URLRewrite's hostname" if name == "host" else ""
            raise entry.error("name", f"{name!r} belongs to the proxies and cannot be changed{hint}")
        value = entry.matching("value", _HEADER_VALUE, "a header value on one line")
        found.setdefault(name, value)
    return tuple(found.items())


def _rewrite(item: Fields | None) -> Rewrite | None:
    if item is None:
        return None
    item.only(("hostname", "path"))
    return Rewrite(item.matching("hostname", _HOST, "a host name", ""), _path_rewrite(item))


def _redirect(item: Fields | None) -> Redirect | None:
    if item is None:
        return None
    item.only(("hostname", "path", "port", "scheme", "statusCode"))
    status = item.integer("statusCode", 300, 399, 302)
    if status not in (301, 302, 303, 307, 308):
        raise item.error("statusCode", f"is {status}; expected 301, 302, 303, 307 or 308")
    return Redirect(
        status=status,
        scheme=item.choice("scheme", ("", "http", "https"), ""),
        hostname=item.matching("hostname", _HOST, "a host name", ""),
        port=item.port("port") if item.has("port") else 0,
        path=_path_rewrite(item),
    )


def _path_rewrite(owner: Fields) -> PathRewrite | None:
    if not owner.has("path"):
        return None
    item = owner.mapping("path")
    item.only(("replaceFullPath", "replacePrefixMatch", "type"))
    prefix = item.choice("type", ("ReplaceFullPath", "ReplacePrefixMatch")) == "ReplacePrefixMatch"
    name, other = (
        ("replacePrefixMatch", "replaceFullPath") if prefix else ("replaceFullPath", "replacePrefixMatch")
    )
    if other in item.value or name not in item.value:
        raise item.error(name, f"is required, alone: type is {item.text('type')}")
    value = item.text(name, "")
    if value:
        check_path(item, name, value)
    return PathRewrite(value.rstrip("/") if prefix else value or "/", prefix)


def check_path(item: Fields, name: str, value: str) -> None:
    """Raises FieldError unless `value` is an absolute path as Gateway API takes it."""
    if not value.startswith("/"):
        raise item.error(name, f"is {value!r}; a path starts with '/'")
    for bad in ("//", "/./", "/../", "%2f", "%2F", "#"):
        if bad in value:
            raise item.error(name, f"is {value!r}; a path cannot hold {bad!r}")
    if value.endswith(("/.", "/..")) or any(character <= " " or character == "\x7f" for character in value):
        raise item.error(name, f"is {value!r}; a path cannot end in dots or hold blanks")
