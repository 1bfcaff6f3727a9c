"""Where the HTTP servers of the control plane listen. Used by the status port and by the webhook.

Discovery binds its own port: grpc takes the same addresses.
"""

from __future__ import annotations

import socket
import ssl

from aiohttp import web

ALL = "*"
"""In place of a host: every address of the machine, IPv4 and IPv6."""


def site(runner: web.AppRunner, host: str, port: int, tls: ssl.SSLContext | None = None) -> web.BaseSite:
    """What makes `runner` listen at `host` and `port`. Raises OSError, and so does its start."""
    if host != ALL:
        return web.TCPSite(runner, host, port, ssl_context=tls)
    if not socket.has_dualstack_ipv6():  # a kernel without IPv6
        return web.SockSite(runner, socket.create_server(("", port)), ssl_context=tls)
    both = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return web.SockSite(runner, both, ssl_context=tls)
