"""The cluster source against an API server over TLS: what it reads, follows, survives and serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from control_plane.kube import reflector
from control_plane.kube.access import from_kubeconfig
from control_plane.kube.client import KubeClient
from control_plane.model.mesh import Mesh
from control_plane.model.problem import Severity
from control_plane.model.service import (
    AppProtocol,
    EndpointPort,
    ServiceKey,
    Workload,
    WorkloadSettings,
)
from control_plane.sources.kubernetes import ClusterState, KubernetesSource
from control_plane.sources.route_admission import RouteVerdict
from tests.support import kube_api
from tests.support.kube_api import KubeApi, endpoint, pod
from tests.support.kubernetes import Object, account, backend, endpoint_slice, grant, parent, route, service

USERS = ServiceKey("shop", "users")
KINDS = len(ClusterState(lambda: None).stores)
"""How many are watched."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "BACKOFF_FIRST", 0.02)
    monkeypatch.setattr(reflector, "BACKOFF_MOST", 0.05)
    monkeypatch.setattr(reflector, "ABSENT_RETRY", 0.1)
    monkeypatch.setattr(reflector, "TOO_SHORT", 0.01)


class Follower:
    """A source that runs, and what it published."""

    def __init__(self, api: KubeApi) -> None:
        self.client = KubeClient(from_kubeconfig(api.kubeconfig()))
        self.meshes: list[Mesh] = []
        self.verdicts: tuple[RouteVerdict, ...] = ()
        self.source = KubernetesSource(self.client, self.meshes.append, self._keep, Random(1))
        self._stop = asyncio.Event()

    def _keep(self, verdicts: tuple[RouteVerdict, ...]) -> None:
        self.verdicts = verdicts

    @property
    def mesh(self) -> Mesh:
        return self.meshes[-1]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not (self.meshes and condition()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def run(self) -> None:
        await self.source.run(self._stop)

    def stop(self) -> None:
        self._stop.set()


@asynccontextmanager
async def following(api: KubeApi) -> AsyncIterator[Follower]:
    follower = Follower(api)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(follower.run())
            try:
                yield follower
            finally:
                follower.stop()
    finally:
        await follower.client.close()


def run(tmp_path: Path, scenario: Callable[[KubeApi], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), KubeApi(tmp_path) as api:
            await scenario(api)

    asyncio.run(main())


def users(api: KubeApi, *pods: str, runs_as: str = "users") -> None:
    """Service users with a slice of these pods at 10.0.0.1, 10.0.0.2, ..."""
    api.put(service("users"), account("users"), *(pod(name, runs_as) for name in pods))
    listed = [endpoint(f"10.0.0.{number}", name) for number, name in enumerate(pods, 1)]
    api.put(endpoint_slice("users-1", *listed))


def addresses(mesh: Mesh) -> dict[str, tuple[str, ...]]:
    """By account."""
    found: dict[str, tuple[str, ...]] = {}
    for item in mesh.slices:
        found[item.service_account] = found.get(item.service_account, ()) + tuple(
            e.address for e in item.endpoints
        )
    return found


# --- what is read ---


def test_endpoints_run_as_the_accounts_of_their_pods(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a", "users-b", "users-c")
        api.put(pod("users-b", "other"), pod("users-c", meshed=False))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert addresses(follower.mesh) == {
                "users": ("10.0.0.1",),
                "other": ("10.0.0.2",),
                "": ("10.0.0.3",),
            }
            assert set(follower.mesh.services) == {USERS}
            assert follower.mesh.slices[0].endpoints[0].hostname == "users-c"

    run(tmp_path, scenario)


def test_a_pod_with_the_sidecars_container_is_in_the_mesh_and_the_label_can_deny_it(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a", "users-b", "users-c")
        for name, sort in (
            ("users-a", "initContainers"),
            ("users-b", "containers"),
            ("users-c", "containers"),
        ):
            item = pod(name, meshed=False)
            item["spec"][sort] = [{"name": "pilotfish-sidecar"}]
            if name == "users-c":
                item["metadata"]["labels"]["mesh.pilotfish.dev/injected"] = "false"
            api.put(item)
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert addresses(follower.mesh) == {"users": ("10.0.0.1", "10.0.0.2"), "": ("10.0.0.3",)}

    run(tmp_path, scenario)


def test_an_endpoint_waits_until_its_pod_is_known(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a", "users-b")
        api.delete("Pod", "users-b")
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert addresses(follower.mesh) == {"users": ("10.0.0.1",)}
            api.put(pod("users-b"))
            await follower.until(lambda: addresses(follower.mesh) == {"users": ("10.0.0.1", "10.0.0.2")})

    run(tmp_path, scenario)


def test_a_pod_that_is_being_deleted_is_leaving_before_its_endpoint_says_so(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a", "users-b")
        async with following(api) as follower:
            await follower.until(lambda: True)
            api.put(pod("users-b", leaving=True))
            await follower.until(lambda: follower.mesh.slices[0].endpoints[1].terminating)
            first, second = follower.mesh.slices[0].endpoints
            assert (first.ready, first.terminating) == (True, False)
            assert (second.ready, second.serving) == (False, True)

    run(tmp_path, scenario)


def test_zones_come_from_the_endpoint_or_else_from_its_node(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        api.put(service("users"), kube_api.node("n1", "zone-1"), kube_api.node("n2", "zone-2"))
        api.put(pod("users-a", node="n1"), pod("users-b"), pod("users-c"))
        listed = [
            endpoint("10.0.0.1", "users-a"),
            endpoint("10.0.0.2", "users-b", nodeName="n2"),
            endpoint("10.0.0.3", "users-c", nodeName="n2", zone="zone-3"),
        ]
        api.put(endpoint_slice("users-1", *listed))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert [e.zone for e in follower.mesh.slices[0].endpoints] == ["zone-1", "zone-2", "zone-3"]
            api.put(kube_api.node("n2", "zone-9"))
            await follower.until(lambda: follower.mesh.slices[0].endpoints[1].zone == "zone-9")

    run(tmp_path, scenario)


def test_of_a_dual_stack_service_one_family_is_balanced_and_both_are_names(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        second = endpoint_slice("users-2", endpoint("fd00::1", "users-a"))
        api.put({**second, "addressType": "IPv6"})
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert addresses(follower.mesh) == {"users": ("10.0.0.1",)}
            api.put(service("users", clusterIPs=["fd00::99", "10.9.9.9"]))
            await follower.until(lambda: addresses(follower.mesh) == {"users": ("fd00::1",)})

    run(tmp_path, scenario)


def test_a_pod_with_a_sidecar_is_known_by_all_its_addresses_behind_a_service_or_not(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        ports = [
            {"name": "http", "containerPort": 8080},
            {"containerPort": 9090},
            {"containerPort": 53, "protocol": "UDP"},
        ]
        both = ("10.0.0.9", "fd00::9")
        lone = pod(
            "lone", "jobs", node="n1", addresses=both, ports=ports, capture="enabled", inbound="strict"
        )
        native = {"name": "log", "restartPolicy": "Always", "ports": [{"containerPort": 7000}]}
        setup = {"name": "setup", "ports": [{"containerPort": 7001}]}
        proxy = {"name": "pilotfish-sidecar", "restartPolicy": "Always", "ports": [{"containerPort": 15000}]}
        lone["spec"]["initContainers"] = [native, setup, proxy]
        api.put(kube_api.node("n1", "zone-1"), lone, pod("outside", meshed=False, addresses=("10.0.0.8",)))
        async with following(api) as follower:
            await follower.until(lambda: True)
            expected = Workload(
                "shop",
                "lone",
                "jobs",
                both,
                (
                    EndpointPort("http", 8080, AppProtocol.HTTP, True),
                    EndpointPort("", 9090, AppProtocol.HTTP),
                    EndpointPort("", 7000, AppProtocol.HTTP),
                ),
                WorkloadSettings(captured=True, strict=True),
                "zone-1",
            )
            assert follower.mesh.workloads == (expected,)
            lone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            api.put(lone, kube_api.node("n1", "zone-2"))
            await follower.until(
                lambda: follower.mesh.workloads == (replace(expected, terminating=True, zone="zone-2"),)
            )
            api.delete("Pod", "lone")
            await follower.until(lambda: follower.mesh.workloads == ())

    run(tmp_path, scenario)


def test_a_pod_that_has_no_address_yet_shares_one_or_has_ended_is_no_workload(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        shared, ended = pod("shared", addresses=("10.9.9.9",)), pod("ended", addresses=("10.0.0.2",))
        shared["spec"]["hostNetwork"] = True
        ended["status"]["phase"] = "Succeeded"
        api.put(shared, ended, pod("waiting"))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert follower.mesh.workloads == ()
            api.put(pod("waiting", addresses=("10.0.0.3",)))
            await follower.until(
                lambda: [item.addresses for item in follower.mesh.workloads] == [("10.0.0.3",)]
            )

    run(tmp_path, scenario)


def test_a_slice_is_divided_by_the_settings_of_its_pods(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a", "users-b", "users-c")
        api.put(pod("users-b", capture="enabled"), pod("users-c", meshed=False, opaque_ports="8080"))
        async with following(api) as follower:
            await follower.until(lambda: True)
            found = {item.endpoints[0].address: item.settings for item in follower.mesh.slices}
            assert found == {
                "10.0.0.1": WorkloadSettings(),
                "10.0.0.2": WorkloadSettings(captured=True),
                "10.0.0.3": WorkloadSettings(opaque_ports=(8080,)),
            }
            # An annotation that cannot be leaves the Pod as it was.
            api.put(pod("users-b", capture="perhaps"))
            await follower.until(lambda: follower.source.state.pods.refused)
            [problem] = [p for p in follower.source.problems if p.severity is Severity.ERROR]
            assert (problem.object, problem.field) == (
                "Pod shop/users-b",
                "metadata.annotations['mesh.pilotfish.dev/capture']",
            )
            assert {item.endpoints[0].address: item.settings for item in follower.mesh.slices} == found

    run(tmp_path, scenario)


def test_external_names_are_read(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        api.put(service("away", type="ExternalName", externalName="example.org"))
        async with following(api) as follower:
            await follower.until(lambda: True)
            away = follower.mesh.services[ServiceKey("shop", "away")]
            assert (away.external_name, away.ports) == ("example.org", ())
            assert follower.source.problems == ()

    run(tmp_path, scenario)


def test_endpoints_that_the_mesh_cannot_reach_are_left_out_without_a_word(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        names = endpoint_slice("users-2", "example.org")
        api.put({**names, "addressType": "FQDN"})
        foreign = endpoint_slice("foreign-1", "10.1.1.1")
        del foreign["metadata"]["labels"]["kubernetes.io/service-name"]
        api.put(foreign)
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert (set(follower.mesh.services), len(follower.mesh.slices)) == ({USERS}, 1)
            assert follower.source.problems == ()

    run(tmp_path, scenario)


def namespace(name: str, **metadata: Object) -> Object:
    return {"kind": "Namespace", "metadata": {"name": name, "namespace": "", **metadata}}


def test_namespaces_are_followed_for_what_the_injector_reads(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        labels = {"pod-security.kubernetes.io/enforce": "baseline", "team": "x"}
        api.put(namespace("shop", labels=labels, annotations={"mesh.pilotfish.dev/log-level": "debug"}))
        async with following(api) as follower:
            known = follower.source.namespace
            await follower.until(lambda: known("shop"))
            assert known("shop") == {
                "labels": {"pod-security.kubernetes.io/enforce": "baseline"},
                "annotations": {"mesh.pilotfish.dev/log-level": "debug"},
            }
            assert known("lab") is None
            api.put(namespace("shop"), namespace("lab"))
            await follower.until(lambda: known("lab"))
            assert known("shop") == {"labels": {}, "annotations": {}}
            api.delete("Namespace", "shop", "")
            await follower.until(lambda: known("shop") is None)

    run(tmp_path, scenario)


def test_the_injector_is_told_the_addresses_of_services(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        api.put(service("users", clusterIPs=["10.96.0.9", "fd96::9"]), service("db", clusterIP="None"))
        async with following(api) as follower:
            cluster_ips = follower.source.cluster_ips
            await follower.until(lambda: cluster_ips("shop", "users") == ("10.96.0.9", "fd96::9"))
            assert cluster_ips("shop", "db") == cluster_ips("shop", "nobody") == ()

    run(tmp_path, scenario)


def test_namespaces_make_no_new_mesh_and_none_waits_for_them(tmp_path: Path) -> None:
    changes: list[None] = []
    ClusterState(lambda: changes.append(None)).namespaces.put(namespace("shop"))
    assert changes == []

    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        api.answer(403, path="/namespaces", times=1000)
        async with following(api) as follower:
            await follower.until(lambda: follower.source.problems)
            [problem] = follower.source.problems
            assert (problem.severity, problem.object) == (Severity.ERROR, "Namespace")

    run(tmp_path, scenario)


def test_lists_come_in_pages_and_are_whole_before_anything_is_published(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        api.max_page = 7
        api.put(*(service(f"s{number}") for number in range(50)))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert len(follower.meshes[0].services) == 50
            pages = [r for r in api.seen("GET", "/services") if "watch" not in r.query]
            assert [r.query.get("continue", "").partition(":")[2] for r in pages] == [
                "", "7", "14", "21", "28", "35", "42", "49",
            ]  # fmt: skip
            assert {r.query["limit"] for r in pages} == {"500"}

    run(tmp_path, scenario)


# --- following ---


def test_changes_arrive_by_the_watch_and_bookmarks_move_it_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    on_event = reflector.Reflector.on_event

    def hear(self: reflector.Reflector, version: str) -> None:
        on_event(self, version)
        heard.append(version)

    monkeypatch.setattr(reflector.Reflector, "on_event", hear)

    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        async with following(api) as follower:
            await follower.until(lambda: api.watches == KINDS)
            api.put(service("carts"))
            await follower.until(lambda: len(follower.mesh.services) == 2)
            api.delete("Service", "users")
            await follower.until(lambda: set(follower.mesh.services) == {ServiceKey("shop", "carts")})
            await api.bookmark()
            bookmark = str(api._version)
            await follower.until(lambda: heard.count(bookmark) == KINDS)
            await api.drop_watches()
            await follower.until(lambda: api.watches == KINDS)
            [first, again] = [r for r in api.seen("GET", "/services") if "watch" in r.query]
            assert again.query["resourceVersion"] == bookmark
            assert first.query["allowWatchBookmarks"] == "true"
            assert float(first.query["timeoutSeconds"]) >= 300

    run(tmp_path, scenario)


def test_events_of_a_cut_watch_are_not_lost(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        async with following(api) as follower:
            await follower.until(lambda: api.watches == KINDS)
            await api.drop_watches()
            api.put(service("carts"))
            await follower.until(lambda: len(follower.mesh.services) == 2)
            lists = [r for r in api.seen("GET", "/services") if "watch" not in r.query]
            assert len(lists) == 1

    run(tmp_path, scenario)


@pytest.mark.parametrize("cut", [True, False], ids=["HTTP status", "ERROR event"])
def test_after_410_everything_is_read_anew_and_nothing_is_dropped_meanwhile(
    tmp_path: Path, cut: bool
) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a", "users-b")
        api.put(service("carts"))
        async with following(api) as follower:
            await follower.until(lambda: api.watches == KINDS)
            published = len(follower.meshes)
            api.max_page = 1
            if cut:
                await api.down()
            api.delete("Service", "carts")
            api.put(service("orders"))
            api.compact()
            if cut:
                await api.up()
            wanted = {USERS, ServiceKey("shop", "orders")}
            await follower.until(lambda: set(follower.mesh.services) == wanted)
            for mesh in follower.meshes[published:]:
                assert USERS in mesh.services
                assert addresses(mesh) == {"users": ("10.0.0.1", "10.0.0.2")}

    run(tmp_path, scenario)


def test_a_list_whose_continue_token_expired_starts_over(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        api.put(*(service(f"s{number}") for number in range(5)))
        api.max_page = 2
        expired = api._list
        calls = 0

        def once(request: object, plural: str, *rest: object) -> object:
            nonlocal calls
            if plural == "services":
                calls += 1
                if calls == 2:
                    api.compact()
                    api._version += 1
                    api._oldest = api._version
            return expired(request, plural, *rest)  # type: ignore[arg-type]

        api._list = once  # type: ignore[assignment,method-assign]
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert len(follower.mesh.services) == 5
            starts = [
                r
                for r in api.seen("GET", "/services")
                if "watch" not in r.query and "continue" not in r.query
            ]
            assert len(starts) == 2

    run(tmp_path, scenario)


def test_losing_the_api_server_disturbs_nothing_and_is_said(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        async with following(api) as follower:
            await follower.until(lambda: api.watches == KINDS)
            served = follower.mesh
            await api.down()
            await follower.until(lambda: len(follower.source.problems) == KINDS)
            assert {p.severity for p in follower.source.problems} == {Severity.WARNING}
            assert "what was read last stays in use" in follower.source.problems[0].message
            assert follower.mesh == served
            api.put(service("carts"))
            await api.up()
            await follower.until(lambda: len(follower.mesh.services) == 2)
            await follower.until(lambda: not follower.source.problems)

    run(tmp_path, scenario)


def test_a_throttled_client_waits_as_long_as_it_was_told(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        api.answer(429, path="/services", Retry_After="1")
        began = asyncio.get_running_loop().time()
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert 0.95 <= asyncio.get_running_loop().time() - began < 10

    run(tmp_path, scenario)


def test_a_server_that_fails_now_and_then_is_asked_again(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        api.answer(503, times=5)
        api.answer(500, watch=True, times=5)
        async with following(api) as follower:
            await follower.until(lambda: api.watches == KINDS)
            assert addresses(follower.mesh) == {"users": ("10.0.0.1",)}

    run(tmp_path, scenario)


def test_without_the_right_to_list_a_kind_nothing_is_published_and_the_problem_says_why(
    tmp_path: Path,
) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        api.answer(403, path="/pods", times=1000)
        async with following(api) as follower:
            async with asyncio.timeout(10):
                while not (problems := follower.source.problems):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert (problems[0].severity, problems[0].object) == (Severity.ERROR, "Pod")
            assert "403 Forbidden" in problems[0].message
            assert follower.meshes == []

    run(tmp_path, scenario)


# --- routes ---


def verdict(follower: Follower, name: str) -> dict[str, tuple[bool, str]]:
    [found] = [v for v in follower.verdicts if v.key == ("shop", name)]
    [(_, conditions)] = found.parents
    return {c.type: (c.status, c.reason) for c in conditions}


ACCEPTED = {"Accepted": (True, "Accepted"), "ResolvedRefs": (True, "ResolvedRefs")}


def test_a_cluster_without_gateway_api_is_served_and_its_routes_when_they_come(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        api.absent = {"httproutes", "grpcroutes", "tcproutes", "referencegrants"}
        async with following(api) as follower:
            await follower.until(lambda: True)
            notes = {p.object for p in follower.source.problems if p.severity is Severity.NOTE}
            assert notes == {"HTTPRoute", "GRPCRoute", "TCPRoute", "ReferenceGrant"}
            api.put(route("r", {"backendRefs": [backend("users")]}))
            # An older one: HTTPRoute is v1beta1 still, and TCPRoute is not standard yet.
            api.absent = {"gateway.networking.k8s.io/v1/httproutes", "tcproutes"}
            await follower.until(lambda: follower.mesh.routes)
            assert verdict(follower, "r") == ACCEPTED
            api.put(route("t", {"backendRefs": [backend("users")]}, kind="TCPRoute"))
            api.absent = {"gateway.networking.k8s.io/v1/httproutes"}
            await follower.until(lambda: "TCPRoute" in {found.kind for found in follower.verdicts})

    run(tmp_path, scenario)


def test_routes_in_use_outlive_a_server_that_denies_their_kind_while_it_starts(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        api.put(route("r", {"backendRefs": [backend("users")]}))
        async with following(api) as follower:
            await follower.until(lambda: api.watches == KINDS)
            published = len(follower.meshes)
            api.answer(404, path="/httproutes", times=2)
            await api.drop_watches()
            await follower.until(lambda: api.watches == KINDS)
            api.put(service("carts"))
            await follower.until(lambda: len(follower.mesh.services) == 2)
            assert all(mesh.routes for mesh in follower.meshes[published:])

    run(tmp_path, scenario)


def test_a_mistake_in_one_route_leaves_it_as_it_was_and_the_others_alone(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        good = {"backendRefs": [backend("users")]}
        api.put(route("a", good), route("b", good), route("new", {"retry": {"codes": [200]}}))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert [r.name for r in follower.mesh.routes] == ["a", "b"]
            assert verdict(follower, "new") == {"Accepted": (False, "UnsupportedValue")}
            before = follower.mesh.routes
            api.put(route("a", {"timeouts": {"request": "soon"}}), route("c", good))
            await follower.until(lambda: len(follower.mesh.routes) == 3)
            assert follower.mesh.routes[:2] == before
            assert verdict(follower, "a") == {"Accepted": (False, "UnsupportedValue")}
            assert verdict(follower, "b") == ACCEPTED
            problems = {p.object: p for p in follower.source.problems if p.severity is Severity.ERROR}
            assert problems["HTTPRoute shop/a"].field == "spec.rules[0].timeouts.request"
            assert problems["HTTPRoute shop/a"].message.endswith("its last good version stays in use")
            assert problems["HTTPRoute shop/new"].message.endswith("it is left out")

    run(tmp_path, scenario)


def test_a_backend_that_does_not_exist_is_marked_and_heals_when_it_comes(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        rule = {"backendRefs": [backend("users", weight=9), backend("gone"), backend("users", 81)]}
        api.put(route("r", rule))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert [b.resolved for b in follower.mesh.routes[0].rules[0].backends] == [True, False, False]
            assert verdict(follower, "r") == {**ACCEPTED, "ResolvedRefs": (False, "BackendNotFound")}
            api.put(
                service("gone"), service("users", {"name": "http", "port": 80}, {"name": "b", "port": 81})
            )
            await follower.until(lambda: verdict(follower, "r") == ACCEPTED)
            assert [b.resolved for b in follower.mesh.routes[0].rules[0].backends] == [True, True, True]

    run(tmp_path, scenario)


def test_a_backend_in_another_namespace_needs_a_grant(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        api.put(service("other", namespace="bank"))
        api.put(route("r", {"backendRefs": [backend("other", namespace="bank")]}))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert verdict(follower, "r")["ResolvedRefs"] == (False, "RefNotPermitted")
            assert not follower.mesh.routes[0].rules[0].backends[0].resolved
            api.put(grant("bank", "shop"))
            await follower.until(lambda: verdict(follower, "r") == ACCEPTED)

    run(tmp_path, scenario)


def test_a_backend_of_another_kind_is_answered_for_its_share_and_the_others_serve(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        import_ = {"group": "multicluster.x-k8s.io", "kind": "ServiceImport", "name": "users"}
        api.put(route("r", {"backendRefs": [backend("users"), import_]}))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert verdict(follower, "r") == {**ACCEPTED, "ResolvedRefs": (False, "InvalidKind")}
            [rule] = follower.mesh.routes[0].rules
            assert [(b.resolved, b.kind) for b in rule.backends] == [
                (True, ""),
                (False, "multicluster.x-k8s.io/ServiceImport"),
            ]

    run(tmp_path, scenario)


def test_a_parent_that_does_not_exist_is_left_out(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        to = [parent("users"), parent("gone"), parent("users", port=81)]
        api.put(route("r", {"backendRefs": [backend("users")]}, to=to))
        async with following(api) as follower:
            await follower.until(lambda: True)
            [found] = follower.verdicts
            assert [conditions[0].reason for _, conditions in found.parents] == [
                "Accepted",
                "NoMatchingParent",
                "NoMatchingParent",
            ]
            [served] = follower.mesh.routes
            assert [(ref.name, ref.port) for ref in served.parents] == [("users", None)]

    run(tmp_path, scenario)


def test_two_routes_for_the_same_requests_both_serve_and_the_younger_is_warned_about(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        rule = {"backendRefs": [backend("users")]}
        api.put(route("a", rule, created="2026-02-01T00:00:00Z"))
        api.put(route("b", rule, created="2026-01-01T00:00:00Z"))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert len(follower.mesh.routes) == 2
            assert verdict(follower, "a") == verdict(follower, "b") == ACCEPTED
            [problem] = follower.source.problems
            assert (problem.severity, problem.object) == (Severity.WARNING, "HTTPRoute shop/a")

    run(tmp_path, scenario)


def test_of_two_kinds_of_route_at_one_port_the_grpc_one_is_accepted(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        rule = {"backendRefs": [backend("users")]}
        api.put(route("h", rule), route("g", rule, kind="GRPCRoute"))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert [str(served) for served in follower.mesh.routes] == ["GRPCRoute shop/g"]
            assert verdict(follower, "h")["Accepted"] == (False, "Conflicted")
            assert verdict(follower, "g") == ACCEPTED

    run(tmp_path, scenario)


def test_of_tcp_routes_at_one_port_the_oldest_is_accepted_and_none_beside_other_kinds(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        rule = {"backendRefs": [backend("users")]}
        api.put(route("a", rule, kind="TCPRoute", created="2026-02-02T00:00:00Z"))
        api.put(route("b", rule, kind="TCPRoute", created="2026-01-01T00:00:00Z"))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert [str(served) for served in follower.mesh.routes] == ["TCPRoute shop/b"]
            assert verdict(follower, "a")["Accepted"] == (False, "Conflicted")
            assert verdict(follower, "b") == ACCEPTED
            api.put(route("h", rule, created="2026-03-03T00:00:00Z"))
            await follower.until(lambda: "HTTPRoute shop/h" in map(str, follower.mesh.routes))
            assert [str(served) for served in follower.mesh.routes] == ["HTTPRoute shop/h"]
            assert verdict(follower, "b")["Accepted"] == (False, "Conflicted")
            assert verdict(follower, "h") == ACCEPTED

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        (backend("gone"), "BackendNotFound"),
        (backend("users", 81), "BackendNotFound"),
        (backend("users", namespace="other"), "RefNotPermitted"),
        ({"group": "example.org", "kind": "Queue", "name": "q"}, "InvalidKind"),
    ],
)
def test_a_tcp_route_to_what_is_no_backend_is_served_and_says_so(
    tmp_path: Path, ref: Object, reason: str
) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        api.put(service("users", namespace="other"))
        api.put(route("r", {"backendRefs": [backend("users"), ref]}, kind="TCPRoute"))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert verdict(follower, "r") == {
                "Accepted": (True, "Accepted"),
                "ResolvedRefs": (False, reason),
            }
            [served] = follower.mesh.routes
            assert [each.resolved for each in served.rules[0].backends] == [True, False]
            if reason == "RefNotPermitted":
                api.put(grant("other", "shop", kind="TCPRoute"))
                await follower.until(lambda: verdict(follower, "r") == ACCEPTED)

    run(tmp_path, scenario)


def test_a_route_for_a_gateway_alone_is_none_of_our_business(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        api.put(route("r", {"backendRefs": [backend("users")]}, to=[{"name": "gateway"}]))
        async with following(api) as follower:
            await follower.until(lambda: True)
            assert follower.mesh.routes == ()
            assert follower.verdicts[0].parents == ()
            assert {p.severity for p in follower.source.problems} == {Severity.NOTE}

    run(tmp_path, scenario)


def test_a_bad_service_keeps_its_last_good_version(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        users(api, "users-a")
        async with following(api) as follower:
            await follower.until(lambda: True)
            api.put(service("users", {"name": "http", "port": 99999}))
            await follower.until(lambda: follower.source.problems)
            [problem] = follower.source.problems
            assert (problem.object, problem.field) == ("Service shop/users", "spec.ports[0].port")
            assert follower.mesh.services[USERS].ports[0].port == 80

    run(tmp_path, scenario)


def test_hints_readiness_and_addresses_that_are_published_before_come_from_the_slice(tmp_path: Path) -> None:
    async def scenario(api: KubeApi) -> None:
        api.put(service("users"), pod("users-a"), pod("users-b"))
        hints = {"forZones": [{"name": "b"}, {"name": "a"}]}
        early = {"ready": True, "serving": False, "terminating": False}  # publishNotReadyAddresses
        listed = [
            endpoint("10.0.0.1", "users-a", zone="a", hints=hints),
            endpoint("10.0.0.2", "users-b", conditions=early),
        ]
        api.put(endpoint_slice("users-1", *listed))
        async with following(api) as follower:
            await follower.until(lambda: True)
            first, second = follower.mesh.slices[0].endpoints
            assert (first.zone, first.hints) == ("a", ("a", "b"))
            assert (second.ready, second.serving) == (True, False)

    run(tmp_path, scenario)
