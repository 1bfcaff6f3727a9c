"""Joins what discovery sends: a route table comes into use when all that it names has come.

`xds/ads.py` reports resources to `on_update`; connection managers ask for tables by authority (`current`,
`watch_authority`) or by name; clusters and listeners go to the functions that were injected. It never waits:
time is read from an injected clock, and `tick` must be called every second or so.

What is complete and in use stays in use while an update's dependencies are missing. A dependency that the
control plane says does not exist counts as settled: requests that need it fail, the others do not. A cluster
and its endpoints come one after the other: neither is used before it fits the other, so that no endpoint with
a sidecar is ever called in plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from sidecar.config.matcher import CompiledRoutes
from sidecar.config.references import (
    endpoints_name,
    fits,
    listener_clusters,
    listener_route_names,
    route_clusters,
)
from sidecar.config.resources import (
    Bootstrap,
    ClusterConfig,
    EndpointsConfig,
    ListenerConfig,
    RouteConfiguration,
)
from sidecar.config.type_urls import CLUSTER, ENDPOINTS, LISTENER, ROUTE

WILDCARD = "*"
IDLE = 300.0
"""Seconds after which an authority that nobody asked for is dropped."""
PATIENCE = 15.0
"""Seconds that those who wait for a table are kept waiting (as long as gRPC waits for a resource)."""


class UnknownDestination(str):
    """Why there is no table: the control plane has never heard of that authority."""

    __slots__ = ()


Answer = CompiledRoutes | str
"""A route table, or why there is none."""


class Discovery(Protocol):
    """The part of `xds.ads.AdsClient` that is needed here."""

    connected: bool

    def subscribe(self, type_url: str, names: Iterable[str]) -> None: ...
    def unsubscribe(self, type_url: str, names: Iterable[str]) -> None: ...


class Clusters(Protocol):
    """The part of `upstream.cluster_manager.ClusterManager` that is needed here."""

    def apply(self, configs: Mapping[str, ClusterConfig]) -> None: ...
    def set_endpoints(self, cluster: str, endpoints: EndpointsConfig) -> None: ...


class _Table:
    """One route table that somebody uses, found by authority (through its Listener) or by its own name."""

    __slots__ = ("answer", "by_authority", "last_used", "name", "used", "waiting", "waiting_since")

    def __init__(self, name: str, by_authority: bool, now: float) -> None:
        self.name = name
        self.by_authority = by_authority
        self.answer: Answer | None = None
        self.used = True
        self.last_used = now
        self.waiting: list[Callable[[Answer], None]] = []
        self.waiting_since = now

    def settle(self, answer: Answer) -> None:
        self.answer = answer
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback(answer)

    def __repr__(self) -> str:
        kind = "authority" if self.by_authority else "name"
        return f"<_Table {kind}={self.name} answer={self.answer!r} waiting={len(self.waiting)}>"


class DependencyManager:
    def __init__(
        self,
        bootstrap: Bootstrap,
        discovery: Discovery,
        clusters: Clusters,
        on_listeners: Callable[[Mapping[str, ListenerConfig]], None],
        now: Callable[[], float],
        idle: float = IDLE,
    ) -> None:
        """`on_listeners` gets all socket listeners that discovery gave and that are complete, whenever that
        set changes; `now` is monotonic, in seconds."""
        self._bootstrap = bootstrap
        self._discovery = discovery
        self._clusters = clusters
        self._on_listeners = on_listeners
        self._now = now
        self._idle = idle
        # What discovery said, by type and name; None: it does not exist.
        self._held: dict[str, dict[str, Any]] = {url: {} for url in (LISTENER, ROUTE, CLUSTER, ENDPOINTS)}
        self._asked: dict[str, set[str]] = {url: set() for url in self._held}
        self._static = {cluster.name: cluster for cluster in bootstrap.clusters}
        self._authorities: dict[str, _Table] = {}
        self._tables: dict[str, _Table] = {}
        self._applied: dict[str, ClusterConfig] = {}
        self._endpoints: dict[str, EndpointsConfig] = {}
        self._listeners: dict[str, ListenerConfig] = {}
        self._answered: set[str] = set()

    @property
    def ready(self) -> bool:
        """Whether all listeners that the bootstrap or discovery names have what they need."""
        if self._bootstrap.lds_over_ads and LISTENER not in self._answered:
            return False
        listeners = (*self._bootstrap.listeners, *self._socket_listeners().values())
        return all(self._complete(listener) for listener in listeners)

    def start(self) -> None:
        """Apply the static clusters and subscribe to what the bootstrap needs."""
        if self._bootstrap.lds_over_ads:
            self._discovery.subscribe(LISTENER, (WILDCARD,))
        if self._bootstrap.cds_over_ads:
            self._discovery.subscribe(CLUSTER, (WILDCARD,))
        self._resolve()

    # --- for connection managers ----------------------------------------------------------------

    def current(self, authority: str) -> Answer | None:
        """The table for an authority, or why there is none; None when it was never asked for or has not
        come yet. Cheap: called for every request."""
        table = self._authorities.get(authority)
        if table is None:
            return None
        table.used = True
        return table.answer

    def watch_authority(self, authority: str, callback: Callable[[Answer], None]) -> Callable[[], None]:
        """Ask for an authority's table. `callback` is called once, perhaps at once. Returns a function that
        stops waiting."""
        table = self._authorities.get(authority)
        if table is None:
            table = self._authorities[authority] = _Table(authority, True, self._now())
            if authority in self._held[LISTENER]:
                self._resolve()
            else:  # nothing can depend on it yet, and captured workloads call very many addresses
                self._asked[LISTENER].add(authority)
                self._discovery.subscribe(LISTENER, {authority})
        return self._wait(table, callback)

    def current_routes(self, name: str) -> Answer | None:
        """The table of that name (RDS), which a listener of the bootstrap or of discovery refers to."""
        table = self._tables.get(name)
        return None if table is None else table.answer

    def watch_routes(self, name: str, callback: Callable[[Answer], None]) -> Callable[[], None]:
        """Like `watch_authority`, by name. Raises KeyError when no listener refers to the table."""
        return self._wait(self._tables[name], callback)

    def _wait(self, table: _Table, callback: Callable[[Answer], None]) -> Callable[[], None]:
        table.used = True
        if table.answer is not None:
            callback(table.answer)
            return lambda: None
        if not table.waiting:
            table.waiting_since = self._now()
        table.waiting.append(callback)

        def stop() -> None:
            if callback in table.waiting:
                table.waiting.remove(callback)

        return stop

    # --- for discovery and the clock ------------------------------------------------------------

    def on_update(self, type_url: str, accepted: Mapping[str, object], removed: frozenset[str]) -> None:
        """Resources that came, and names of those that do not exist (any more)."""
        held = self._held[type_url]
        asked = self._asked[type_url]
        self._answered.add(type_url)
        known = held.keys() >= accepted.keys() | removed
        nowhere = type_url == LISTENER and not accepted and all(self._never_known(name) for name in removed)
        held.update(accepted)
        for name in removed:
            if name in asked:
                held[name] = None
            else:
                held.pop(name, None)
        if type_url == ENDPOINTS and known:
            # The most frequent update by far: nothing waits for it, but a cluster that did not fit before.
            changed = accepted.keys() | removed
            for config in self._applied.values():
                if endpoints_name(config) in changed:
                    self._apply_endpoints(config)
            if not any(
                config is not None and endpoints_name(config) in changed and self._applied.get(name) != config
                for name, config in self._held[CLUSTER].items()
            ):
                return
        if nowhere and removed:
            for name in removed:
                self._settle(self._authorities[name], self._wanted_answer(self._authorities[name]))
            return
        self._resolve()

    def _never_known(self, authority: str) -> bool:
        """Somebody asks for it, and there never was an answer but that it does not exist."""
        return authority in self._authorities and self._held[LISTENER].get(authority) is None

    def tick(self) -> None:
        """Drop authorities that were not used for long, and stop letting callers wait for what never came."""
        now = self._now()
        for table in list(self._authorities.values()):
            if table.used or table.waiting:
                table.used = False
                table.last_used = now
            elif now - table.last_used >= self._idle and self._discovery.connected:
                del self._authorities[table.name]
        for table in (*self._authorities.values(), *self._tables.values()):
            if table.waiting and now - table.waiting_since >= PATIENCE:
                state = "" if self._discovery.connected else " (not connected)"
                waiting, table.waiting = table.waiting, []
                for callback in waiting:
                    callback(f"{table.name}: no answer from the control plane{state} within {PATIENCE:g} s")
        self._resolve(prune=True)

    def describe(self) -> dict[str, object]:
        """For the admin port's `/config_dump`: what discovery sent, what is in use, and what is awaited."""
        return {
            "listeners": list(self._listeners.values()),
            "routes": [t.answer.config for t in self._all_tables() if isinstance(t.answer, CompiledRoutes)],
            "clusters": list(self._applied.values()),
            "endpoints": list(self._endpoints.values()),
            "missing": {
                t.name: t.answer or "awaited"
                for t in self._all_tables()
                if not isinstance(t.answer, CompiledRoutes)
            },
        }

    # --- inside ---------------------------------------------------------------------------------

    def _resolve(self, prune: bool = False) -> None:
        """Bring subscriptions, clusters, listeners and tables to what the held resources allow. `prune`:
        also let go of clusters that nothing names; they are kept until the next tick because a request
        may still be retried on one."""
        listeners = self._socket_listeners()
        self._make_tables(listeners)
        answers = {table: self._wanted_answer(table) for table in self._all_tables()}
        names = self._cluster_names(listeners, answers)
        self._subscribe(LISTENER, set(self._authorities))
        self._subscribe(ROUTE, set(self._tables) | self._routes_of_authorities())
        self._subscribe(CLUSTER, names - self._static.keys() - self._by_wildcard())
        self._apply_clusters(names | self._by_wildcard(), prune)
        for table, answer in answers.items():
            self._settle(table, answer)
        self._publish(listeners)

    def _socket_listeners(self) -> dict[str, ListenerConfig]:
        """Listeners that discovery gave for sockets."""
        return {
            name: listener
            for name, listener in self._held[LISTENER].items()
            if name not in self._authorities and listener is not None and listener.address is not None
        }

    def _make_tables(self, listeners: Mapping[str, ListenerConfig]) -> None:
        """A table for each name that a socket listener, wanted or in use, gets its routes by."""
        users = [*self._bootstrap.listeners, *self._listeners.values(), *listeners.values()]
        names = {name for each in users for name in listener_route_names(each)}
        for name in self._tables.keys() - names:
            del self._tables[name]
        for name in names - self._tables.keys():
            self._tables[name] = _Table(name, False, self._now())

    def _all_tables(self) -> tuple[_Table, ...]:
        return (*self._authorities.values(), *self._tables.values())

    def _wanted_answer(self, table: _Table) -> RouteConfiguration | str | None:
        """What the table should become: a configuration, why there is none, or None for not known yet."""
        if not table.by_authority:
            return self._routes(table.name)
        listeners = self._held[LISTENER]
        if table.name not in listeners:
            return None
        listener: ListenerConfig | None = listeners[table.name]
        if listener is None:
            return UnknownDestination(f"{table.name}: the control plane knows no such destination")
        if listener.api_listener is None:
            return f"{table.name}: the Listener of that name is no API listener"
        if listener.api_listener.route_config is not None:
            return listener.api_listener.route_config
        return self._routes(listener.api_listener.rds_route_name)

    def _routes(self, name: str) -> RouteConfiguration | str | None:
        routes = self._held[ROUTE]
        if name not in routes:
            return None
        found: RouteConfiguration | None = routes[name]
        return f"route table {name} does not exist" if found is None else found

    def _routes_of_authorities(self) -> set[str]:
        found = (self._held[LISTENER].get(name) for name in self._authorities)
        managers = (listener.api_listener for listener in found if listener is not None)
        return {each.rds_route_name for each in managers if each is not None and each.rds_route_name}

    def _by_wildcard(self) -> set[str]:
        """Clusters that came without being asked for by name."""
        if not self._bootstrap.cds_over_ads:
            return set()
        held = self._held[CLUSTER]
        return {name for name, config in held.items() if config is not None} - self._asked[CLUSTER]

    def _cluster_names(
        self,
        listeners: Mapping[str, ListenerConfig],
        answers: Mapping[_Table, RouteConfiguration | str | None],
    ) -> set[str]:
        """Every cluster that is named by what is in use or wanted."""
        names = set(self._static)
        users = [*self._bootstrap.listeners, *self._listeners.values(), *listeners.values()]
        for listener in users:
            names.update(name for _, name in listener_clusters(listener))
        for table, wanted in answers.items():
            if isinstance(wanted, RouteConfiguration):
                names.update(name for _, name in route_clusters(wanted))
            if isinstance(table.answer, CompiledRoutes):
                names.update(name for _, name in route_clusters(table.answer.config))
        return names

    def _subscribe(self, type_url: str, wanted: set[str]) -> None:
        asked = self._asked[type_url]
        new, gone = wanted - asked, asked - wanted
        if gone:
            asked -= gone
            for name in gone:
                self._held[type_url].pop(name, None)
            self._discovery.unsubscribe(type_url, gone)
        if new:
            asked |= new
            self._discovery.subscribe(type_url, new)

    def _wanted_cluster(self, name: str) -> ClusterConfig | None:
        return self._static.get(name) or self._held[CLUSTER].get(name)

    def _settled(self, name: str) -> bool:
        """Whether all is known of a cluster, be it that it does not exist."""
        if name not in self._static and name not in self._held[CLUSTER]:
            return False
        config = self._wanted_cluster(name)
        if config is None or not endpoints_name(config):
            return True
        held = self._held[ENDPOINTS]
        return endpoints_name(config) in held and fits(config, held[endpoints_name(config)])

    def _apply_clusters(self, names: set[str], prune: bool) -> None:
        wanted = [config for name in names if (config := self._wanted_cluster(name)) is not None]
        applied = {name: each for name, each in self._applied.items() if name in names or not prune}
        self._subscribe(ENDPOINTS, {endpoints_name(each) for each in (*wanted, *applied.values())} - {""})
        for name in names:
            if self._settled(name):
                config = self._wanted_cluster(name)
                if config is None:
                    applied.pop(name, None)
                else:
                    applied[name] = config
        for config in applied.values():
            self._apply_endpoints(config)
        if applied != self._applied:
            self._applied = applied
            self._endpoints = {name: each for name, each in self._endpoints.items() if name in applied}
            self._clusters.apply(applied)

    def _apply_endpoints(self, cluster: ClusterConfig) -> None:
        name = endpoints_name(cluster)
        if not name or name not in self._held[ENDPOINTS]:
            return
        endpoints = self._held[ENDPOINTS][name] or EndpointsConfig(name)
        if self._endpoints.get(cluster.name) != endpoints and fits(cluster, endpoints):
            self._endpoints[cluster.name] = endpoints
            self._clusters.set_endpoints(cluster.name, endpoints)

    def _settle(self, table: _Table, wanted: RouteConfiguration | str | None) -> None:
        """Swap the table in when it is complete."""
        if isinstance(wanted, RouteConfiguration):
            if isinstance(table.answer, CompiledRoutes) and table.answer.config == wanted:
                return
            if all(self._settled(name) for _, name in route_clusters(wanted)):
                table.settle(CompiledRoutes(wanted))
        elif wanted is not None and table.answer != wanted:
            table.settle(wanted)

    def _publish(self, listeners: Mapping[str, ListenerConfig]) -> None:
        """Hand out the socket listeners when those that are complete have changed."""
        published = {name: listener for name, listener in self._listeners.items() if name in listeners}
        for name, listener in listeners.items():
            if self._complete(listener):
                published[name] = listener
        if published != self._listeners:
            self._listeners = published
            self._on_listeners(published)

    def _complete(self, listener: ListenerConfig) -> bool:
        tables = (self._tables.get(name) for name in listener_route_names(listener))
        return all(table is not None and table.answer is not None for table in tables) and all(
            self._settled(name) for _, name in listener_clusters(listener)
        )

    def __repr__(self) -> str:
        pending = sum(table.answer is None for table in self._all_tables())
        return (
            f"<DependencyManager authorities={len(self._authorities)} tables={len(self._tables)} "
            f"pending={pending} clusters={len(self._applied)} listeners={len(self._listeners)}>"
        )
