"""What discovery sends comes into use when it is complete, and stays in use until what follows is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from random import Random

from sidecar.config.dependency_manager import Answer, DependencyManager
from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import (
    AdsConfig,
    Bootstrap,
    ClusterConfig,
    Discovery,
    EndpointConfig,
    EndpointsConfig,
    FilterChainConfig,
    HttpConnectionManagerConfig,
    ListenerConfig,
    LocalityEndpoints,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    SocketAddress,
    TcpProxyConfig,
    TlsConfig,
    VirtualHost,
    WeightedCluster,
)
from sidecar.config.type_urls import CLUSTER, ENDPOINTS, LISTENER, ROUTE
from sidecar.protocol.events import RequestHead


def api(name: str, routes: str) -> ListenerConfig:
    return ListenerConfig(name, api_listener=HttpConnectionManagerConfig("", rds_route_name=routes))


def routes(name: str, *clusters: str) -> RouteConfiguration:
    targets = tuple(WeightedCluster(cluster, 1) for cluster in clusters)
    route = Route("r", RouteMatch(prefix="/"), RouteAction(targets))
    return RouteConfiguration(name, (VirtualHost("h", ("*",), (route,)),))


def eds(name: str, service: str = "") -> ClusterConfig:
    return ClusterConfig(name, Discovery.EDS, service)


class World:
    """The manager between a discovery and a cluster manager that only write down."""

    def __init__(self, **bootstrap: object) -> None:
        self.connected = True
        self.subscribed: dict[str, set[str]] = {url: set() for url in (LISTENER, ROUTE, CLUSTER, ENDPOINTS)}
        self.applied: dict[str, ClusterConfig] = {}
        self.endpoints: dict[str, EndpointsConfig] = {}
        self.listeners: dict[str, ListenerConfig] = {}
        self.time = 0.0
        self.log: list[str] = []
        config = replace(Bootstrap(ads=AdsConfig("cp")), **bootstrap)  # type: ignore[arg-type]
        self.manager = DependencyManager(config, self, self, self.on_listeners, lambda: self.time, idle=300.0)
        self.manager.start()

    def subscribe(self, type_url: str, names: Iterable[str]) -> None:
        self.subscribed[type_url] |= set(names)

    def unsubscribe(self, type_url: str, names: Iterable[str]) -> None:
        self.subscribed[type_url] -= set(names)

    def apply(self, configs: Mapping[str, ClusterConfig]) -> None:
        self.applied = dict(configs)
        self.log.append("apply")

    def set_endpoints(self, cluster: str, endpoints: EndpointsConfig) -> None:
        self.endpoints[cluster] = endpoints
        self.log.append(f"endpoints {cluster}")

    def on_listeners(self, listeners: Mapping[str, ListenerConfig]) -> None:
        self.listeners = dict(listeners)

    def send(self, type_url: str, *resources: object, removed: Iterable[str] = ()) -> None:
        names = [getattr(each, "cluster_name", None) or each.name for each in resources]  # type: ignore[attr-defined]
        self.manager.on_update(type_url, dict(zip(names, resources, strict=True)), frozenset(removed))

    def complete(self) -> list[Answer]:
        """Watches a:80 and sends all that it needs: listener, routes, cluster a, endpoints."""
        answers: list[Answer] = []
        self.manager.watch_authority("a:80", answers.append)
        self.send(LISTENER, api("a:80", "routes-a"))
        self.send(ROUTE, routes("routes-a", "a"))
        self.send(CLUSTER, eds("a"))
        self.send(ENDPOINTS, EndpointsConfig("a"))
        return answers

    def target(self, authority: str) -> str:
        """The cluster that requests go to now."""
        table = self.manager.current(authority)
        assert isinstance(table, CompiledRoutes)
        route = table.match(RequestHead(b"GET", b"http", authority.encode(), b"/"), Random(1))
        assert route is not None
        assert route.action is not None
        return route.action.clusters[0].name


def test_each_step_asks_for_the_next_and_the_last_completes_it() -> None:
    world = World()
    answers: list[Answer] = []
    world.manager.watch_authority("a:80", answers.append)
    assert world.subscribed[LISTENER] == {"a:80"}
    world.send(LISTENER, api("a:80", "routes-a"))
    assert world.subscribed[ROUTE] == {"routes-a"}
    world.send(ROUTE, routes("routes-a", "a", "b"))
    assert world.subscribed[CLUSTER] == {"a", "b"}
    world.send(CLUSTER, eds("a"), eds("b", "b-service"))
    assert world.subscribed[ENDPOINTS] == {"a", "b-service"}
    world.send(ENDPOINTS, EndpointsConfig("a"))
    assert (answers, world.manager.current("a:80")) == ([], None)
    world.send(ENDPOINTS, EndpointsConfig("b-service"))
    assert len(answers) == 1
    assert world.manager.current("a:80") is answers[0]
    assert world.applied == {"a": eds("a"), "b": eds("b", "b-service")}
    assert world.endpoints == {"a": EndpointsConfig("a"), "b": EndpointsConfig("b-service")}


def test_clusters_have_their_endpoints_before_they_are_applied_and_before_routes_use_them() -> None:
    world = World()
    world.manager.watch_authority("a:80", lambda answer: world.log.append("answer"))
    world.send(LISTENER, api("a:80", "routes-a"))
    world.send(ROUTE, routes("routes-a", "a"))
    world.send(CLUSTER, eds("a"))
    world.send(ENDPOINTS, EndpointsConfig("a"))
    assert world.log == ["endpoints a", "apply", "answer"]


def test_inline_routes_to_a_static_cluster_need_nothing_more() -> None:
    world = World(clusters=(ClusterConfig("s"),))
    inline = HttpConnectionManagerConfig("", route_config=routes("inline", "s"))
    world.manager.watch_authority("a:80", lambda answer: None)
    world.send(LISTENER, ListenerConfig("a:80", api_listener=inline))
    assert world.target("a:80") == "s"
    assert world.subscribed[CLUSTER] == set()


def test_a_known_answer_is_given_at_once_and_to_each() -> None:
    world = World()
    first = world.complete()
    second: list[Answer] = []
    world.manager.watch_authority("a:80", second.append)
    assert second == first


def test_a_destination_that_does_not_exist_is_an_answer_until_it_does() -> None:
    world = World()
    answers: list[Answer] = []
    world.manager.watch_authority("a:80", answers.append)
    world.send(LISTENER, removed=["a:80"])
    assert answers == ["a:80: the control plane knows no such destination"]
    world.complete()
    assert world.target("a:80") == "a"


def test_unknown_destinations_do_not_stir_what_is_in_use() -> None:
    world = World()
    world.complete()
    world.log.clear()
    answers: list[Answer] = []
    world.manager.watch_authority("10.0.0.1:443", answers.append)
    world.manager.watch_authority("10.0.0.2:443", answers.append)
    assert world.subscribed[LISTENER] == {"a:80", "10.0.0.1:443", "10.0.0.2:443"}
    world.send(LISTENER, removed=["10.0.0.1:443", "10.0.0.2:443"])
    assert sorted(map(str, answers)) == [
        "10.0.0.1:443: the control plane knows no such destination",
        "10.0.0.2:443: the control plane knows no such destination",
    ]
    assert (world.log, world.target("a:80")) == ([], "a")
    # Together with one that was known: that one is gone too.
    world.manager.watch_authority("10.0.0.3:443", answers.append)
    world.send(LISTENER, removed=["10.0.0.3:443", "a:80"])
    assert world.manager.current("a:80") == "a:80: the control plane knows no such destination"


def test_an_authority_of_which_a_socket_listener_has_the_name_gets_its_answer_at_once() -> None:
    world = World(lds_over_ads=True)
    world.send(LISTENER, socket_listener("10.0.0.1:80", TcpProxyConfig("", ())))
    answers: list[Answer] = []
    world.manager.watch_authority("10.0.0.1:80", answers.append)
    assert answers == ["10.0.0.1:80: the Listener of that name is no API listener"]


def test_a_missing_route_table_is_an_answer() -> None:
    world = World()
    answers: list[Answer] = []
    world.manager.watch_authority("a:80", answers.append)
    world.send(LISTENER, api("a:80", "routes-a"))
    world.send(ROUTE, removed=["routes-a"])
    assert answers == ["route table routes-a does not exist"]


def test_a_cluster_that_does_not_exist_does_not_hold_up_the_others() -> None:
    world = World()
    answers: list[Answer] = []
    world.manager.watch_authority("a:80", answers.append)
    world.send(LISTENER, api("a:80", "routes-a"))
    world.send(ROUTE, routes("routes-a", "a", "gone"))
    world.send(CLUSTER, eds("a"), removed=["gone"])
    world.send(ENDPOINTS, removed=["a"])
    assert len(answers) == 1
    assert world.applied == {"a": eds("a")}
    assert world.endpoints == {"a": EndpointsConfig("a")}


def test_old_routes_stay_while_the_clusters_of_new_ones_are_missing() -> None:
    world = World()
    world.complete()
    world.send(ROUTE, routes("routes-a", "b"))
    assert (world.target("a:80"), set(world.applied)) == ("a", {"a"})
    world.send(CLUSTER, ClusterConfig("b"))
    assert (world.target("a:80"), set(world.applied)) == ("b", {"a", "b"})
    world.manager.tick()
    assert set(world.applied) == {"b"}
    assert world.subscribed[CLUSTER] == {"b"}
    assert world.subscribed[ENDPOINTS] == set()


def test_an_old_cluster_stays_while_the_endpoints_of_the_new_one_are_missing() -> None:
    world = World()
    world.complete()
    world.send(CLUSTER, eds("a", "other"))
    assert world.applied == {"a": eds("a")}
    assert world.subscribed[ENDPOINTS] == {"a", "other"}
    world.send(ENDPOINTS, EndpointsConfig("other"))
    assert world.applied == {"a": eds("a", "other")}
    assert world.endpoints == {"a": EndpointsConfig("other")}


def test_new_endpoints_touch_nothing_else() -> None:
    world = World()
    world.complete()
    before = world.manager.current("a:80")
    world.log.clear()
    world.send(ENDPOINTS, EndpointsConfig("a", ()))
    assert world.log == []
    world.send(ENDPOINTS, EndpointsConfig("unknown"))
    world.manager.on_update(ENDPOINTS, {"a": EndpointsConfig("a changed")}, frozenset())
    assert world.log == ["endpoints a"]
    assert world.manager.current("a:80") is before


def test_equal_routes_keep_the_compiled_table() -> None:
    world = World()
    world.complete()
    before = world.manager.current("a:80")
    world.send(ROUTE, routes("routes-a", "a"))
    assert world.manager.current("a:80") is before


def test_a_cluster_that_is_removed_goes_and_comes_back() -> None:
    world = World()
    world.complete()
    world.send(CLUSTER, removed=["a"])
    assert world.applied == {}
    world.send(CLUSTER, eds("a"))
    world.send(ENDPOINTS, EndpointsConfig("a"))
    assert world.applied == {"a": eds("a")}


def test_two_authorities_share_routes_and_clusters() -> None:
    world = World()
    world.complete()
    world.manager.watch_authority("10.0.0.1:80", lambda answer: None)
    world.send(LISTENER, api("10.0.0.1:80", "routes-a"))
    assert world.target("10.0.0.1:80") == "a"


def test_an_authority_that_is_not_used_is_dropped_after_the_idle_time() -> None:
    world = World()
    world.complete()
    world.manager.tick()
    world.time = 299.0
    world.manager.tick()
    assert world.manager.current("a:80") is not None  # which is a use
    world.time = 300.0
    world.manager.tick()
    world.time = 599.0
    world.manager.tick()
    assert world.subscribed[LISTENER] == {"a:80"}
    world.time = 600.0
    world.manager.tick()
    assert world.subscribed == {LISTENER: set(), ROUTE: set(), CLUSTER: set(), ENDPOINTS: set()}
    assert world.applied == {}
    assert world.manager.current("a:80") is None


def test_nothing_is_dropped_while_the_control_plane_is_out_of_reach() -> None:
    world = World()
    world.complete()
    world.manager.tick()
    world.connected, world.time = False, 10_000.0
    world.manager.tick()
    assert world.target("a:80") == "a"


def test_nobody_waits_for_longer_than_fifteen_seconds() -> None:
    world = World()
    answers: list[Answer] = []
    world.manager.watch_authority("a:80", answers.append)
    world.time = 14.0
    world.manager.tick()
    assert answers == []
    world.connected, world.time = False, 15.0
    world.manager.tick()
    assert answers == ["a:80: no answer from the control plane (not connected) within 15 s"]
    world.complete()
    assert world.target("a:80") == "a"
    assert len(answers) == 1


def test_whoever_stops_waiting_is_not_called() -> None:
    world = World()
    answers: list[Answer] = []
    stop = world.manager.watch_authority("a:80", answers.append)
    stop()
    stop()
    world.send(LISTENER, removed=["a:80"])
    assert answers == []


def test_a_callback_may_ask_for_another_authority() -> None:
    world = World()
    answers: list[Answer] = []
    world.manager.watch_authority(
        "a:80", lambda _: world.manager.watch_authority("b:80", answers.append) and None
    )
    world.send(LISTENER, removed=["a:80"])
    world.send(LISTENER, removed=["b:80"])
    assert answers == ["b:80: the control plane knows no such destination"]


def socket_listener(name: str, network: HttpConnectionManagerConfig | TcpProxyConfig) -> ListenerConfig:
    return ListenerConfig(name, SocketAddress("127.0.0.1", 0), (FilterChainConfig(network),))


def test_socket_listeners_are_published_when_their_clusters_are_there() -> None:
    world = World(lds_over_ads=True)
    assert world.subscribed[LISTENER] == {"*"}
    assert not world.manager.ready
    tcp = socket_listener("tcp", TcpProxyConfig("", (WeightedCluster("a", 1),)))
    rds = socket_listener("http", HttpConnectionManagerConfig("", rds_route_name="routes-b"))
    world.send(LISTENER, tcp, rds)
    assert (world.listeners, world.subscribed[CLUSTER], world.subscribed[ROUTE]) == ({}, {"a"}, {"routes-b"})
    world.send(CLUSTER, ClusterConfig("a"))
    assert world.listeners == {"tcp": tcp}
    assert not world.manager.ready
    world.send(ROUTE, routes("routes-b", "a"))
    assert world.listeners == {"tcp": tcp, "http": rds}
    assert world.manager.ready
    assert isinstance(world.manager.current_routes("routes-b"), CompiledRoutes)
    world.send(LISTENER, removed=["tcp"])
    assert world.listeners == {"http": rds}


def test_a_changed_listener_stays_as_it_was_until_the_new_one_is_complete() -> None:
    world = World(lds_over_ads=True, clusters=(ClusterConfig("s"),))
    old = socket_listener("tcp", TcpProxyConfig("", (WeightedCluster("s", 1),)))
    new = socket_listener("tcp", TcpProxyConfig("", (WeightedCluster("a", 1),)))
    world.send(LISTENER, old)
    world.send(LISTENER, new)
    assert world.listeners == {"tcp": old}
    world.send(CLUSTER, ClusterConfig("a"))
    assert world.listeners == {"tcp": new}


def test_an_empty_answer_makes_a_sidecar_without_listeners_ready() -> None:
    world = World(lds_over_ads=True)
    world.manager.on_update(LISTENER, {}, frozenset())
    assert world.manager.ready


def test_listeners_of_the_bootstrap_get_their_routes_and_clusters_over_discovery() -> None:
    listener = socket_listener("http", HttpConnectionManagerConfig("", rds_route_name="main"))
    world = World(listeners=(listener,))
    answers: list[Answer] = []
    world.manager.watch_routes("main", answers.append)
    assert world.subscribed[ROUTE] == {"main"}
    world.send(ROUTE, routes("main", "a"))
    assert (answers, world.manager.ready) == ([], False)
    world.send(CLUSTER, ClusterConfig("a"))
    assert (len(answers), world.manager.ready) == (1, True)


def test_clusters_that_come_by_wildcard_are_applied_and_not_asked_for_by_name() -> None:
    world = World(cds_over_ads=True)
    assert world.subscribed[CLUSTER] == {"*"}
    world.send(CLUSTER, ClusterConfig("a"), eds("b"))
    world.send(ENDPOINTS, EndpointsConfig("b"))
    assert set(world.applied) == {"a", "b"}
    assert world.subscribed[CLUSTER] == {"*"}
    world.send(CLUSTER, removed=["a"])
    world.manager.tick()
    assert set(world.applied) == {"b"}


def test_static_clusters_of_type_eds_get_their_endpoints() -> None:
    world = World(clusters=(eds("a"),))
    assert world.subscribed[ENDPOINTS] == {"a"}
    assert world.applied == {}
    world.send(ENDPOINTS, EndpointsConfig("a"))
    assert world.applied == {"a": eds("a")}


def members(name: str, *tunnels: str) -> EndpointsConfig:
    """Endpoints, with a sidecar where `tunnels` has something."""
    found = tuple(EndpointConfig(SocketAddress("10.0.0.1", 80), tunnel_authority=each) for each in tunnels)
    return EndpointsConfig(name, (LocalityEndpoints("", "", "", 0, 1, found),))


PLAIN, MESHED = members("a", ""), members("a", "10.0.0.0:80")
SECURED = replace(eds("a"), tls=TlsConfig())


def test_endpoints_with_sidecars_wait_for_the_cluster_s_tls_and_the_old_ones_serve() -> None:
    world = World()
    world.complete()
    world.send(ENDPOINTS, PLAIN)
    world.send(ENDPOINTS, MESHED)
    assert (world.applied, world.endpoints) == ({"a": eds("a")}, {"a": PLAIN})
    world.send(CLUSTER, SECURED)
    assert (world.applied, world.endpoints) == ({"a": SECURED}, {"a": MESHED})


def test_a_cluster_keeps_its_tls_until_no_endpoint_has_a_sidecar() -> None:
    world = World()
    world.complete()
    world.send(CLUSTER, SECURED)
    world.send(ENDPOINTS, MESHED)
    world.send(CLUSTER, eds("a"))
    assert (world.applied, world.endpoints) == ({"a": SECURED}, {"a": MESHED})
    world.send(ENDPOINTS, PLAIN)
    assert (world.applied, world.endpoints) == ({"a": eds("a")}, {"a": PLAIN})


def test_a_first_cluster_and_endpoints_that_do_not_fit_are_not_used() -> None:
    """Between two states of the control plane; the second completes them."""
    world = World()
    answers: list[Answer] = []
    world.manager.watch_authority("a:80", answers.append)
    world.send(LISTENER, api("a:80", "routes-a"))
    world.send(ROUTE, routes("routes-a", "a"))
    world.send(CLUSTER, eds("a"))
    world.send(ENDPOINTS, MESHED)
    assert (answers, world.applied) == ([], {})
    world.send(ENDPOINTS, PLAIN)
    assert len(answers) == 1
    assert world.applied == {"a": eds("a")}
