"""Where an HTTP connection manager finds its route table: in itself, over RDS, or by authority.

Made by `chain_factory.py`; asked by the router for every request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

from sidecar.config.dependency_manager import DependencyManager, UnknownDestination
from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import (
    DirectResponse,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
)
from sidecar.http.context import RouteSource
from sidecar.http.plan import is_grpc_request
from sidecar.protocol.events import RequestHead
from sidecar.upstream.cluster_manager import ClusterManager

MAX_PASSTHROUGH = 1024
"""Tables kept for destinations outside the mesh."""
PASSTHROUGH_TABLE = "passthrough"
"""Name of each of them."""

Callback = Callable[[CompiledRoutes | str], None]


class StaticRoutes:
    """The table written in the listener."""

    def __init__(self, routes: CompiledRoutes) -> None:
        self._routes = routes

    def current(self, head: RequestHead) -> CompiledRoutes:
        return self._routes

    def wait(self, head: RequestHead, callback: Callback) -> Callable[[], None]:
        raise AssertionError("a static route table is always there")


class RdsRoutes:
    """The table of that name, which discovery replaces as a whole."""

    def __init__(self, name: str, dependencies: DependencyManager) -> None:
        self._name = name
        self._dependencies = dependencies

    def current(self, head: RequestHead) -> CompiledRoutes | None:
        answer = self._dependencies.current_routes(self._name)
        return None if isinstance(answer, str) else answer

    def wait(self, head: RequestHead, callback: Callback) -> Callable[[], None]:
        try:
            return self._dependencies.watch_routes(self._name, callback)
        except KeyError:  # this listener was replaced, and its connections have not gone yet
            callback(f"route table {self._name} is not configured any more")
            return lambda: None


class OnDemandRoutes:
    """One table for each authority, asked for when it is first met (Listener `host:port` over LDS). What
    discovery does not know is outside the mesh and is passed through to the address in the request."""

    def __init__(
        self, dependencies: DependencyManager, clusters: ClusterManager, own: Collection[str] = ()
    ) -> None:
        """`own`: addresses of the listener, where nothing may be passed through to."""
        self._dependencies = dependencies
        self._clusters = clusters
        self._own = own
        self._passthrough: OrderedDict[tuple[str, bool], CompiledRoutes] = OrderedDict()

    def current(self, head: RequestHead) -> CompiledRoutes | None:
        return self.current_of(resource_name(head), head)

    def wait(self, head: RequestHead, callback: Callback) -> Callable[[], None]:
        return self.wait_for(resource_name(head), head, callback)

    def current_of(self, name: str, head: RequestHead) -> CompiledRoutes | None:
        """As `current`, for the table of that name."""
        answer = self._dependencies.current(name)
        if isinstance(answer, UnknownDestination):
            return self._pass_through(name, head)
        return None if isinstance(answer, str) else answer

    def wait_for(self, name: str, head: RequestHead, callback: Callback) -> Callable[[], None]:
        """As `wait`, for the table of that name."""

        def answered(answer: CompiledRoutes | str) -> None:
            unknown = isinstance(answer, UnknownDestination)
            callback(self._pass_through(name, head) if unknown else answer)

        return self._dependencies.watch_authority(name, answered)

    def _pass_through(self, name: str, head: RequestHead) -> CompiledRoutes:
        http2 = is_grpc_request(head)
        routes = self._passthrough.get((name, http2))
        if routes is None:
            routes = CompiledRoutes(self._table(name, http2))
            self._passthrough[(name, http2)] = routes
            if len(self._passthrough) > MAX_PASSTHROUGH:
                self._passthrough.popitem(last=False)
        return routes

    def _table(self, name: str, http2: bool) -> RouteConfiguration:
        if name in self._own:
            return own_address_table(name)
        host, _, port = name.rpartition(":")
        return passthrough_table(self._clusters.passthrough(host.strip("[]"), int(port), http2).name)


class DestinationRoutes:
    """The table of one captured connection: that of its original destination, whatever its requests say."""

    def __init__(self, routes: OnDemandRoutes, destination: str) -> None:
        self._routes = routes
        self._destination = destination

    def current(self, head: RequestHead) -> CompiledRoutes | None:
        return self._routes.current_of(self._destination, head)

    def wait(self, head: RequestHead, callback: Callback) -> Callable[[], None]:
        return self._routes.wait_for(self._destination, head, callback)


class OverdueRoutes:
    """A source that was waited for in vain: the first who asks is told so, and those after wait again."""

    def __init__(self, routes: RouteSource, reason: str) -> None:
        self._routes = routes
        self._reason = reason

    def current(self, head: RequestHead) -> CompiledRoutes | None:
        return self._routes.current(head)

    def wait(self, head: RequestHead, callback: Callback) -> Callable[[], None]:
        reason, self._reason = self._reason, ""
        if not reason:
            return self._routes.wait(head, callback)
        callback(reason)
        return lambda: None


def own_address_table(address: str) -> RouteConfiguration:
    """Requests for the listener itself, by its address or without a Host: passed through, they would come
    back for ever."""
    text = f"{address} is the sidecar: send requests through it as a proxy, or name a service in Host\n"
    route = Route("own address", RouteMatch(prefix="/"), direct_response=DirectResponse(421, text.encode()))
    return RouteConfiguration("own address", (VirtualHost("own address", ("*",), (route,)),))


def passthrough_table(cluster: str) -> RouteConfiguration:
    """Everything to one cluster, without a time limit: the mesh was told nothing about this destination."""
    action = RouteAction((WeightedCluster(cluster, 1),), timeout=0.0)
    matches = (RouteMatch(prefix="/"), RouteMatch(connect=True))
    routes = tuple(Route("passthrough", match, action) for match in matches)
    return RouteConfiguration(PASSTHROUGH_TABLE, (VirtualHost("passthrough", ("*",), routes),))


def resource_name(head: RequestHead) -> str:
    """`host:port` in lower case, the port from the scheme where the authority has none."""
    authority = head.authority.decode("latin-1").lower()
    host, colon, port = authority.rpartition(":")
    if colon and port.isdigit() and not host.endswith(":"):
        return authority
    return f"{authority}:{443 if head.scheme == b'https' else 80}"
