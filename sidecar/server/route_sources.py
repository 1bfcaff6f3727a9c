"""Where an HTTP connection manager finds its route table: in itself, over RDS, or by authority.

Made by `snapshot.py`; asked by the router for every request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from sidecar.config.dependency_manager import DependencyManager
from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import (
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
)
from sidecar.http.context import Clock
from sidecar.http.plan import is_grpc_request
from sidecar.protocol.events import RequestHead
from sidecar.upstream.cluster_manager import ClusterManager

DISCOVERY_TIMEOUT = 5.0
MAX_PASSTHROUGH = 1024

Answer = Callable[[CompiledRoutes | str], None]


class StaticRoutes:
    """The table written in the listener."""

    def __init__(self, routes: CompiledRoutes) -> None:
        self._routes = routes

    def current(self, head: RequestHead) -> CompiledRoutes:
        return self._routes

    def wait(self, head: RequestHead, callback: Answer) -> Callable[[], None]:
        raise AssertionError("a static route table is always there")


class Waiter:
    """One request that waits for discovery, no longer than `DISCOVERY_TIMEOUT`."""

    def __init__(self, clock: Clock, callback: Answer, what: str) -> None:
        self._callback: Answer | None = callback
        self._what = what
        self._timer = clock.call_later(DISCOVERY_TIMEOUT, self._expired)

    def answer(self, routes: CompiledRoutes | str) -> None:
        callback, self._callback = self._callback, None
        self._timer.cancel()
        if callback is not None:
            callback(routes)

    def _expired(self) -> None:
        self.answer(
            f"the control plane sent no configuration for {self._what} within {DISCOVERY_TIMEOUT:g} s; "
            "see /config_dump on the admin port for the state of discovery"
        )

    def cancel(self) -> None:
        self._callback = None
        self._timer.cancel()


class RdsRoutes:
    """A table that discovery replaces as a whole."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._routes: CompiledRoutes | None = None
        self._waiting: list[Waiter] = []

    def update(self, routes: CompiledRoutes) -> None:
        self._routes = routes
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.answer(routes)

    def current(self, head: RequestHead) -> CompiledRoutes | None:
        return self._routes

    def wait(self, head: RequestHead, callback: Answer) -> Callable[[], None]:
        waiter = Waiter(self._clock, callback, f"route configuration {self._name}")
        self._waiting.append(waiter)
        return waiter.cancel


class OnDemandRoutes:
    """One table for each authority, asked for when it is first met (Listener `host:port` over LDS). What
    discovery does not know is outside the mesh and is passed through to the address in the request."""

    def __init__(self, dependencies: DependencyManager, clusters: ClusterManager, clock: Clock) -> None:
        self._dependencies = dependencies
        self._clusters = clusters
        self._clock = clock
        self._passthrough: OrderedDict[tuple[str, bool], CompiledRoutes] = OrderedDict()

    def current(self, head: RequestHead) -> CompiledRoutes | None:
        return self._dependencies.routes(resource_name(head))

    def wait(self, head: RequestHead, callback: Answer) -> Callable[[], None]:
        name = resource_name(head)
        waiter = Waiter(self._clock, callback, name)

        def found(routes: CompiledRoutes | None) -> None:
            waiter.answer(self._pass_through(name, head) if routes is None else routes)

        self._dependencies.watch_authority(name, found)
        return waiter.cancel

    def _pass_through(self, name: str, head: RequestHead) -> CompiledRoutes:
        http2 = is_grpc_request(head)
        routes = self._passthrough.get((name, http2))
        if routes is None:
            host, _, port = name.rpartition(":")
            cluster = self._clusters.passthrough(host.strip("[]"), int(port), http2)
            routes = CompiledRoutes(passthrough_table(cluster.name))
            self._passthrough[(name, http2)] = routes
            if len(self._passthrough) > MAX_PASSTHROUGH:
                self._passthrough.popitem(last=False)
        return routes


def passthrough_table(cluster: str) -> RouteConfiguration:
    """Everything to one cluster, without a time limit: the mesh was told nothing about this destination."""
    action = RouteAction((WeightedCluster(cluster, 1),), timeout=0.0)
    matches = (RouteMatch(prefix="/"), RouteMatch(path="*"), RouteMatch(connect=True))
    routes = tuple(Route("passthrough", match, action) for match in matches)
    return RouteConfiguration("passthrough", (VirtualHost("passthrough", ("*",), routes),))


def resource_name(head: RequestHead) -> str:
    """`host:port` in lower case, the port from the scheme where the authority has none."""
    authority = head.authority.decode("latin-1").lower()
    host, colon, port = authority.rpartition(":")
    if colon and port.isdigit() and not host.endswith(":"):
        return authority
    return f"{authority}:{443 if head.scheme == b'https' else 80}"
