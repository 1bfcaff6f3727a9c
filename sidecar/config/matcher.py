"""Route tables compiled for look-up: authority to virtual host to the first route that matches.

Compiled once when configuration changes; the router calls `CompiledRoutes.match` for each new request
head. Nothing is parsed or formatted on a look-up, and a table never changes once made.

Matching follows Envoy: the most specific domain wins (exact, longest `*.suffix`, longest `prefix.*`, `*`)
and inside a virtual host the first route. Paths are compared without query and fragment. Exact paths and
prefixes are found in dictionaries, so that a thousand routes cost little more than one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from random import Random

from sidecar.config.conditions import Condition, compile_conditions
from sidecar.config.resources import (
    HeaderOperation,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from sidecar.protocol.events import NeverIndexedValue, RequestHead

_PORT = re.compile(rb":[0-9]+\Z")


class CompiledRoute:
    """One route with what its virtual host and table add to it. Compared by identity."""

    __slots__ = (
        "_rewrite",
        "action",
        "conditions",
        "config",
        "host_rewrite",
        "is_static",
        "name",
        "order",
        "path_test",
        "request_headers",
        "response_headers",
        "retry_policy",
        "virtual_host",
    )

    def __init__(self, table: RouteConfiguration, host: VirtualHost, order: int) -> None:
        config = host.routes[order]
        self.config: Route = config
        self.virtual_host = host.name
        self.name = config.name or f"{host.name}/{order}"
        self.order = order
        self.action: RouteAction | None = config.action
        # Envoy applies the most specific level first, so that less specific ones may overwrite.
        self.request_headers: tuple[HeaderOperation, ...] = (
            config.request_headers + host.request_headers + table.request_headers
        )
        self.response_headers: tuple[HeaderOperation, ...] = (
            config.response_headers + host.response_headers + table.response_headers
        )
        self.retry_policy: RetryPolicy | None = None
        self.host_rewrite = b""
        if config.action is not None:
            self.retry_policy = config.action.retry_policy or host.retry_policy
            self.host_rewrite = config.action.host_rewrite.encode()
        self.conditions: tuple[Condition, ...]
        self.conditions, stable = compile_conditions(config.match)
        self.is_static = stable
        """Reaching this route depends only on method, scheme, authority and path (its virtual host also
        counts the routes before it), so the outcome may be remembered with the head."""
        self.path_test = _path_test(config.match)
        self._rewrite = _compile_rewrite(config)

    def accepts(self, head: RequestHead, random: Random) -> bool:
        """Whether all conditions besides the path hold."""
        return all(condition(head, random) for condition in self.conditions)

    def rewrite_path(self, path: bytes) -> bytes:
        """The path (with query) to send upstream for a request that this route matched."""
        if self._rewrite is None or path == b"*":
            return path
        rewritten = self._rewrite(path)
        return NeverIndexedValue(rewritten) if type(path) is NeverIndexedValue else rewritten

    def __repr__(self) -> str:
        return f"<CompiledRoute {self.name} static={self.is_static} conditions={len(self.conditions)}>"


class CompiledVirtualHost:
    """The routes of one virtual host, indexed by path."""

    __slots__ = ("_connect", "_exact", "_lengths", "_prefixes", "_scan", "is_static", "name", "routes")

    def __init__(self, table: RouteConfiguration, host: VirtualHost) -> None:
        self.name = host.name
        self.routes = tuple(CompiledRoute(table, host, i) for i in range(len(host.routes)))
        exact: dict[bytes, list[CompiledRoute]] = {}
        prefixes: dict[bytes, list[CompiledRoute]] = {}
        scan: list[CompiledRoute] = []
        static = True
        for route in self.routes:
            static = static and route.is_static
            route.is_static = static
            _index(route, exact, prefixes, scan)
        self.is_static = static
        """True when every route of this host may be remembered with the head."""
        self._exact = {path: _reachable(routes) for path, routes in exact.items()}
        self._prefixes = {prefix: _reachable(routes) for prefix, routes in prefixes.items()}
        self._lengths = tuple(sorted({len(prefix) for prefix in prefixes}))
        self._scan = tuple(scan)
        self._connect = tuple(route for route in self.routes if route.config.match.connect)

    def match(self, head: RequestHead, random: Random) -> CompiledRoute | None:
        """The first route that matches, in the order of the configuration."""
        if head.method == b"CONNECT" and not head.protocol:
            return next((route for route in self._connect if route.accepts(head, random)), None)
        path = head.path
        if path == b"*":  # OPTIONS for the server as a whole goes where its root goes
            path = b"/"
        if b"?" in path:
            path = path[: path.index(b"?")]
        if b"#" in path:
            path = path[: path.index(b"#")]
        best: CompiledRoute | None = None
        order = len(self.routes)
        found = self._exact.get(path)
        if found is not None:
            for route in found:
                if not route.conditions or route.accepts(head, random):
                    best, order = route, route.order
                    break
        size = len(path)
        prefixes = self._prefixes
        for length in self._lengths:
            if length > size:
                break
            found = prefixes.get(path[:length])
            if found is None:
                continue
            for route in found:
                if route.order >= order:
                    break
                if not route.conditions or route.accepts(head, random):
                    best, order = route, route.order
                    break
        for route in self._scan:
            if route.order >= order:
                break
            if route.path_test(path) and route.accepts(head, random):
                return route
        return best

    def __repr__(self) -> str:
        return f"<CompiledVirtualHost {self.name} routes={len(self.routes)} static={self.is_static}>"


class CompiledRoutes:
    """A whole `RouteConfiguration`, ready for look-up."""

    __slots__ = (
        "_default",
        "_exact",
        "_ignore_port",
        "_prefixes",
        "_suffixes",
        "config",
        "identity",
        "is_static",
        "name",
        "virtual_hosts",
    )

    def __init__(self, config: RouteConfiguration) -> None:
        self.config = config
        self.identity = object()
        """For those who remember what they made by this table, and must not keep it."""
        self.name = config.name
        self.virtual_hosts = tuple(CompiledVirtualHost(config, host) for host in config.virtual_hosts)
        self.is_static = all(host.is_static for host in self.virtual_hosts)
        """Every match depends only on method, scheme, authority and path."""
        self._ignore_port = config.ignore_port
        self._exact: dict[bytes, CompiledVirtualHost] = {}
        self._default: CompiledVirtualHost | None = None
        suffixes: dict[bytes, CompiledVirtualHost] = {}
        prefixes: dict[bytes, CompiledVirtualHost] = {}
        for host, compiled in zip(config.virtual_hosts, self.virtual_hosts, strict=True):
            for domain in host.domains:
                key = domain.lower().encode()
                if key == b"*":
                    self._default = compiled
                elif key.startswith(b"*"):
                    suffixes[key[1:]] = compiled
                elif key.endswith(b"*"):
                    prefixes[key[:-1]] = compiled
                else:
                    self._exact[key] = compiled
        self._suffixes = _by_length(suffixes)
        self._prefixes = _by_length(prefixes)

    def match(self, head: RequestHead, random: Random) -> CompiledRoute | None:
        """The route for this request, or None when no virtual host or no route matches."""
        authority = head.authority
        if self._ignore_port:
            authority = _PORT.sub(b"", authority)
        host = self._exact.get(authority)
        if host is None:
            host = self.virtual_host(authority)
            if host is None:
                return None
        return host.match(head, random)

    def virtual_host(self, authority: bytes) -> CompiledVirtualHost | None:
        """The virtual host whose domains name the authority most specifically."""
        authority = authority.lower()
        host = self._exact.get(authority)
        if host is not None:
            return host
        size = len(authority)
        # A wildcard stands for at least one character.
        for length, group in self._suffixes:
            if length < size and (host := group.get(authority[size - length :])) is not None:
                return host
        for length, group in self._prefixes:
            if length < size and (host := group.get(authority[:length])) is not None:
                return host
        return self._default

    def __repr__(self) -> str:
        routes = sum(len(host.routes) for host in self.virtual_hosts)
        return f"<CompiledRoutes {self.name} hosts={len(self.virtual_hosts)} routes={routes}>"


_Group = tuple[int, dict[bytes, CompiledVirtualHost]]


def _by_length(hosts: dict[bytes, CompiledVirtualHost]) -> tuple[_Group, ...]:
    """Wildcards grouped by length, longest first."""
    lengths = sorted({len(key) for key in hosts}, reverse=True)
    return tuple((n, {key: host for key, host in hosts.items() if len(key) == n}) for n in lengths)


def _index(
    route: CompiledRoute,
    exact: dict[bytes, list[CompiledRoute]],
    prefixes: dict[bytes, list[CompiledRoute]],
    scan: list[CompiledRoute],
) -> None:
    match = route.config.match
    if match.connect:
        return
    if match.regex is not None or not match.case_sensitive:
        scan.append(route)
    elif match.path is not None:
        exact.setdefault(match.path.encode(), []).append(route)
    elif match.path_separated_prefix is not None:
        prefix = match.path_separated_prefix.encode()
        exact.setdefault(prefix, []).append(route)
        prefixes.setdefault(prefix + b"/", []).append(route)
    else:
        prefixes.setdefault((match.prefix or "").encode(), []).append(route)


def _reachable(routes: Iterable[CompiledRoute]) -> tuple[CompiledRoute, ...]:
    """Routes up to the first that takes everything: what follows it can never match."""
    kept = []
    for route in routes:
        kept.append(route)
        if not route.conditions:
            break
    return tuple(kept)


def _path_test(match: RouteMatch) -> Callable[[bytes], bool]:
    """The path condition on its own, for routes that no index holds."""
    if match.connect:
        return lambda path: False
    if match.regex is not None:
        pattern = re.compile(match.regex.encode())
        return lambda path: pattern.fullmatch(path) is not None
    text = match.path if match.path is not None else match.prefix
    separated = match.path_separated_prefix
    wanted = (separated if separated is not None else text or "").encode()
    fold: Callable[[bytes], bytes] = bytes if match.case_sensitive else bytes.lower
    wanted = fold(wanted)
    if match.path is not None:
        return lambda path: fold(path) == wanted
    if separated is not None:
        below = wanted + b"/"
        return lambda path: fold(path) == wanted or fold(path).startswith(below)
    return lambda path: fold(path).startswith(wanted)


def _compile_rewrite(config: Route) -> Callable[[bytes], bytes] | None:
    action, match = config.action, config.match
    if action is None:
        return None
    if action.regex_rewrite is not None:
        pattern = re.compile(action.regex_rewrite[0].encode())
        template = action.regex_rewrite[1].encode()

        def substitute(path: bytes) -> bytes:
            bare, mark, query = path.partition(b"?")
            return pattern.sub(template, bare) + mark + query

        return substitute
    if not action.prefix_rewrite:
        return None
    replacement = action.prefix_rewrite.encode()
    prefix = match.prefix if match.prefix is not None else match.path_separated_prefix
    if prefix is not None:
        size = len(prefix.encode())
        return lambda path: replacement + path[size:]

    def replace_path(path: bytes) -> bytes:
        # An exact path or regular expression matched the path as a whole.
        _, mark, query = path.partition(b"?")
        return replacement + mark + query

    return replace_path
