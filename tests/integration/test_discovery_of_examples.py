"""What the control plane makes of the example mesh is what the sidecar takes: decoded, joined, complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from control_plane.model.discovery import Dialect, Identity, NodeInfo
from control_plane.model.mesh import MeshSettings, TracingSettings
from control_plane.pipeline import Pipeline
from control_plane.registry import Registry
from control_plane.sources.load import load
from sidecar.config.dependency_manager import Answer, DependencyManager
from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import (
    AdsConfig,
    Bootstrap,
    ClusterConfig,
    Discovery,
    EndpointsConfig,
    LbPolicy,
    ListenerConfig,
)
from sidecar.xds.resource_types import RESOURCE_TYPES

SHOP = Path(__file__).parent.parent.parent / "examples" / "shop"


class Mesh:
    """Answers subscriptions from the control plane's pipeline, through the sidecar's decoders."""

    def __init__(self, identity: Identity, address: str) -> None:
        loaded = load(SHOP)
        assert loaded.mesh is not None
        registry = Registry()
        tracing = TracingSettings(cluster="collector")
        self.pipeline = Pipeline(registry, MeshSettings(tracing=tracing))
        registry.replace(loaded.mesh)
        self.node = NodeInfo("n", "c", Dialect.PILOTFISH, identity, address)
        self.connected = True
        self.queue: list[tuple[str, list[str]]] = []
        self.applied: dict[str, ClusterConfig] = {}
        self.endpoints: dict[str, EndpointsConfig] = {}
        self.listeners: dict[str, ListenerConfig] = {}
        bootstrap = Bootstrap(
            clusters=(ClusterConfig("collector"),), ads=AdsConfig("cp"), lds_over_ads=True, cds_over_ads=True
        )
        self.manager = DependencyManager(bootstrap, self, self, self.on_listeners, lambda: 0.0)
        self.manager.start()
        self.pump()

    def subscribe(self, type_url: str, names: Iterable[str]) -> None:
        self.queue.append((type_url, sorted(names)))

    def unsubscribe(self, type_url: str, names: Iterable[str]) -> None:
        raise AssertionError(f"nothing of this test goes away: {type_url} {names}")

    def apply(self, configs: Mapping[str, ClusterConfig]) -> None:
        self.applied = dict(configs)

    def set_endpoints(self, cluster: str, endpoints: EndpointsConfig) -> None:
        self.endpoints[cluster] = endpoints

    def on_listeners(self, listeners: Mapping[str, ListenerConfig]) -> None:
        self.listeners = dict(listeners)

    def pump(self) -> None:
        while self.queue:
            type_url, names = self.queue.pop(0)
            wanted = None if names == ["*"] else frozenset(names)
            found = self.pipeline.resources(self.node, type_url, wanted)
            kind = RESOURCE_TYPES[type_url]
            accepted = {name: kind.decode(each.body, f"{kind.label} {name}") for name, each in found.items()}
            self.manager.on_update(type_url, accepted, (wanted or frozenset()) - accepted.keys())

    def ask(self, authority: str) -> Answer:
        answers: list[Answer] = []
        self.manager.watch_authority(authority, answers.append)
        self.pump()
        assert len(answers) == 1
        return answers[0]


def test_each_service_of_the_shop_is_found_by_its_name() -> None:
    mesh = Mesh(Identity("shop", "orders"), "127.0.9.9")
    loaded = load(SHOP)
    assert loaded.mesh is not None
    for key, service in loaded.mesh.services.items():
        for port in service.ports:
            name = f"{key.name}.{key.namespace}.svc.cluster.local:{port.port}"
            assert isinstance(mesh.ask(name), CompiledRoutes), name
            cluster = mesh.applied[name]
            assert (cluster.discovery, cluster.lb_policy) == (Discovery.EDS, LbPolicy.PEAK_EWMA)
            assert any(locality.endpoints for locality in mesh.endpoints[name].localities)


def test_a_name_that_no_service_has_is_answered() -> None:
    mesh = Mesh(Identity("shop", "orders"), "127.0.9.9")
    assert mesh.ask("nowhere:80") == "nowhere:80: the control plane knows no such destination"


def test_a_workload_gets_a_complete_listener_for_each_of_its_ports() -> None:
    loaded = load(SHOP)
    assert loaded.mesh is not None
    registry = Registry()
    registry.replace(loaded.mesh)
    for address, ports in registry.index.workloads.items():
        mesh = Mesh(Identity(ports[0].namespace, ports[0].service_account), address)
        assert len(mesh.listeners) == len(ports)
        for listener in mesh.listeners.values():
            assert listener.inbound
            assert listener.filter_chains[0].tls is not None
            assert listener.filter_chains[0].tls.require_client_certificate
        assert mesh.manager.ready
