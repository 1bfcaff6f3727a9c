"""Answers that a route gives without a cluster: redirects, direct responses, and none at all.

Called by the router.
"""

from __future__ import annotations

from sidecar.config.matcher import CompiledRoute, CompiledRoutes
from sidecar.config.resources import Redirect
from sidecar.http.local_reply import LocalReply
from sidecar.protocol.events import RequestHead


def direct_reply(head: RequestHead, route: CompiledRoute | None, routes: CompiledRoutes) -> LocalReply:
    """The reply of a route that does not forward, or 404 when none matched."""
    if route is None:
        method = head.method.decode("latin-1")
        target = f"{head.authority.decode('latin-1')}{head.path.decode('latin-1')}"
        return LocalReply(404, "NR", f"no route in {routes.name} matches {method} {target}")
    config = route.config
    if config.redirect is not None:
        location = redirect_location(
            head, config.redirect, config.match.prefix or config.match.path_separated_prefix
        )
        return LocalReply(
            config.redirect.status,
            "",
            f"redirected by route {route.name}",
            None,
            ((b"location", location),),
            b"",
        )
    response = config.direct_response
    assert response is not None
    return LocalReply(response.status, "", f"answered by route {route.name}", body=response.body)


def redirect_location(head: RequestHead, redirect: Redirect, prefix: str | None) -> bytes:
    """The Location value (Envoy `RedirectAction`; GEP-713 defaults for scheme and port)."""
    scheme = redirect.scheme or head.scheme.decode("latin-1")
    host, _, port = head.authority.decode("latin-1").rpartition(":")
    if not port.isdigit():  # there is none; an IPv6 address ends in a bracket
        host, port = head.authority.decode("latin-1"), ""
    host = redirect.host or host
    if redirect.port:
        port = str(redirect.port)
    elif redirect.scheme:
        port = ""
    default = {"http": "80", "https": "443"}.get(scheme)
    authority = host if not port or port == default else f"{host}:{port}"
    path, mark, query = head.path.decode("latin-1").partition("?")
    if redirect.path is not None:
        path = redirect.path
    elif redirect.prefix_rewrite is not None:
        path = redirect.prefix_rewrite + path[len(prefix or "") :]
    tail = "" if redirect.strip_query or not mark else f"?{query}"
    return f"{scheme}://{authority}{path}{tail}".encode("latin-1")
