"""The cluster source: watches a Kubernetes API server and keeps the registry equal to what it says.

The control plane's app awaits `run`. Nothing is published before every kind that matters was read once,
so that a client is never told that something does not exist which was only not read yet. When the API
server is away, the last state serves. A mistake in one object concerns that object alone. Nothing here
knows xDS.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from random import Random
from types import MappingProxyType
from typing import Any

from control_plane.kube.client import KubeClient, Object
from control_plane.kube.reflector import Reflector
from control_plane.kube.store import Key, ResourceStore
from control_plane.kube.watch import follow
from control_plane.model.mesh import Mesh
from control_plane.model.problem import Problem, Severity
from control_plane.model.service import Endpoint, EndpointSlice, Workload, WorkloadSettings
from control_plane.sources import kube_objects as kinds
from control_plane.sources.fields import path_text
from control_plane.sources.kube_objects import PodFacts, SliceFacts
from control_plane.sources.policy_admission import PolicyAdmission, PolicyVerdict, admit_policies
from control_plane.sources.references import Finding, check_services
from control_plane.sources.route_admission import Admission, RouteVerdict, admit

QUIET = 0.02
"""Seconds from a change to a new mesh, so that changes that come together are one."""
Verdicts = tuple[RouteVerdict | PolicyVerdict, ...]
SHARE = 4.0
"""The pause after making a mesh, in units of the time that it took: a change after a quiet time is served
at once, and a storm of them takes a fifth of the time at most."""

_log = logging.getLogger(__name__)


class ClusterState:
    """What was read from the cluster, and the mesh that it makes. Used by the source and by its tests."""

    def __init__(self, on_change: Callable[[], object]) -> None:
        self._on_change = on_change
        self.services = ResourceStore(kinds.SERVICES, self._routing_changed)
        self.slices = ResourceStore(kinds.SLICES, self._slice_changed)
        self.pods = ResourceStore(kinds.PODS, self._pod_changed)
        self.nodes = ResourceStore(kinds.NODES, self._node_changed)
        self.namespaces = ResourceStore(kinds.NAMESPACES, _ignore)
        """For the injector alone: the mesh is made without them."""
        self.accounts = ResourceStore(kinds.ACCOUNTS, self._touched)
        self.http_routes = ResourceStore(kinds.HTTP_ROUTES, self._routing_changed)
        self.grpc_routes = ResourceStore(kinds.GRPC_ROUTES, self._routing_changed)
        self.tcp_routes = ResourceStore(kinds.TCP_ROUTES, self._routing_changed)
        self.grants = ResourceStore(kinds.GRANTS, self._routing_changed)
        self.policies = ResourceStore(kinds.POLICIES, self._policy_changed)
        self._slices_of: defaultdict[Key, set[Key]] = defaultdict(set)
        """By Pod: the slices that list it."""
        self._joined: dict[Key, tuple[EndpointSlice, ...]] = {}
        self._workloads: dict[Key, Workload] = {}
        """By Pod: those with a sidecar and an address."""
        self._admission: Admission | None = None
        """Of the Services, grants and routes as they are now; None: they have changed."""
        self._policy_admission: PolicyAdmission | None = None
        """Of the Services and policies, likewise."""

    def __repr__(self) -> str:
        return f"<ClusterState services={len(self.services.objects)} pods={len(self.pods.objects)}>"

    @property
    def stores(self) -> tuple[ResourceStore[Any], ...]:
        return (
            self.services,
            self.slices,
            self.pods,
            self.nodes,
            self.namespaces,
            self.accounts,
            self.http_routes,
            self.grpc_routes,
            self.tcp_routes,
            self.grants,
            self.policies,
        )

    @property
    def whole(self) -> bool:
        """Whether all that the mesh is made of was read once."""
        return all(store.answered for store in self.stores if store is not self.namespaces)

    def mesh(self) -> tuple[Mesh, Admission, PolicyAdmission]:
        """The mesh to serve, and what became of the routes and the policies."""
        mesh = Mesh(
            services=MappingProxyType({item.key: item for item in self.services.objects.values()}),
            slices=tuple(self._slices()),
            workloads=tuple(self._workloads.values()),
            grants=tuple(grant for found in self.grants.objects.values() for grant in found),
            service_accounts=frozenset(self.accounts.objects),
        )
        if self._admission is None:
            stores = (self.http_routes, self.grpc_routes, self.tcp_routes)
            self._admission = admit(mesh, {store.resource.kind: store.objects for store in stores})
        if self._policy_admission is None:
            self._policy_admission = admit_policies(mesh, self.policies.objects)
        routes, policies = self._admission, self._policy_admission
        return replace(mesh, routes=routes.routes, policies=policies.policies), routes, policies

    def problems(self) -> Iterator[Problem]:
        """Of the kinds and objects that cannot be read."""
        for store in self.stores:
            kind = store.resource.kind
            if store.error is not None:
                severity = Severity.WARNING if store.answered else Severity.ERROR
                kept = "what was read last stays in use" if store.answered else "nothing was read yet"
                yield Problem(severity, f"{store.error}; {kept}", object=kind)
            elif store.absent:
                yield Problem(Severity.NOTE, "the cluster does not have this kind", object=kind)
            for (namespace, name), error in store.refused.items():
                yield Problem(
                    Severity.ERROR,
                    f"{error.message}; what it was before stays in use",
                    object=f"{kind} {namespace}/{name}",
                    field=error.field,
                )

    # --- endpoints and their Pods ---

    def _slices(self) -> Iterator[EndpointSlice]:
        second = self._second_families()
        for key, facts in self.slices.objects.items():
            if (facts.item.service_key, facts.family) in second:
                continue
            joined = self._joined.get(key)
            if joined is None:
                joined = self._joined[key] = tuple(self._join(facts))
            yield from joined

    def _second_families(self) -> set[tuple[Key, str]]:
        """A dual-stack Service has each Pod in two slices: that of its second family is left out, or each
        Pod would be balanced twice. It is reached by either of its own addresses all the same."""
        families: defaultdict[Key, set[str]] = defaultdict(set)
        for facts in self.slices.objects.values():
            families[facts.item.service_key].add(facts.family)
        second = set()
        for key, found in families.items():
            if len(found) > 1:
                service = self.services.objects.get(key)
                first_is_6 = service is not None and service.cluster_ips and ":" in service.cluster_ips[0]
                second.add((key, "IPv4" if first_is_6 else "IPv6"))
        return second

    def _join(self, facts: SliceFacts) -> Iterable[EndpointSlice]:
        """The slice, divided by the accounts that its Pods run as and by their settings."""
        by_kind: defaultdict[tuple[str, WorkloadSettings], list[Endpoint]] = defaultdict(list)
        item = facts.item
        for endpoint, name, node in zip(item.endpoints, facts.pods, facts.nodes, strict=True):
            account, settings, leaving = item.service_account, item.settings, False
            if name:
                pod = self.pods.objects.get((item.namespace, name))
                if pod is None:
                    continue  # gone, or not read yet: whether it takes mTLS is not known
                account, settings, leaving = pod.service_account, pod.settings, pod.leaving
                node = node or pod.node
            zone = endpoint.zone or self.nodes.objects.get(("", node), "")
            if leaving and not endpoint.terminating:
                endpoint = replace(endpoint, ready=False, terminating=True)
            if zone != endpoint.zone:
                endpoint = replace(endpoint, zone=zone)
            by_kind[account, settings].append(endpoint)
        for (account, settings), endpoints in sorted(by_kind.items()):
            yield replace(item, service_account=account, endpoints=tuple(endpoints), settings=settings)

    def _workload(self, key: Key, pod: PodFacts) -> Workload:
        return Workload(
            *key,
            pod.service_account,
            pod.addresses,
            pod.ports,
            pod.settings,
            self.nodes.objects.get(("", pod.node), ""),
            pod.leaving,
        )

    # --- changes ---

    def _touched(self, _key: Key, _before: object, _after: object) -> None:
        self._on_change()

    def _routing_changed(self, _key: Key, _before: object, _after: object) -> None:
        self._admission = self._policy_admission = None
        self._on_change()

    def _policy_changed(self, _key: Key, _before: object, _after: object) -> None:
        self._policy_admission = None
        self._on_change()

    def _slice_changed(self, key: Key, before: SliceFacts | None, after: SliceFacts | None) -> None:
        self._joined.pop(key, None)
        if before is not None:
            for name in before.pods:
                self._slices_of[key[0], name].discard(key)
                if not self._slices_of[key[0], name]:
                    del self._slices_of[key[0], name]
        if after is not None:
            for name in after.pods:
                self._slices_of[key[0], name].add(key)
        self._on_change()

    def _pod_changed(self, key: Key, _before: PodFacts | None, after: PodFacts | None) -> None:
        for listed in self._slices_of.get(key, ()):
            self._joined.pop(listed, None)
            self._on_change()
        if after is not None and after.service_account and after.addresses:
            self._workloads[key] = self._workload(key, after)
            self._on_change()
        elif self._workloads.pop(key, None) is not None:
            self._on_change()

    def _node_changed(self, key: Key, _before: str | None, _after: str | None) -> None:
        self._joined.clear()
        for pod in self._workloads:
            facts = self.pods.objects[pod]
            if facts.node == key[1]:
                self._workloads[pod] = self._workload(pod, facts)
        self._on_change()


class KubernetesSource:
    """Keeps `publish` informed of the mesh that the cluster describes.

    `publish` is called on the event loop with each new Mesh, `on_verdicts` with what became of all routes
    and policies.
    """

    def __init__(
        self,
        client: KubeClient,
        publish: Callable[[Mesh], object],
        on_verdicts: Callable[[Verdicts], object] = lambda _verdicts: None,
        random: Random | None = None,
    ) -> None:
        self.published = 0
        """How many meshes were made so far."""
        self.state = ClusterState(self._wake)
        self._client = client
        self._publish = publish
        self._on_verdicts = on_verdicts
        self._random = random or Random()
        self._dirty = asyncio.Event()
        self._mesh: Mesh | None = None
        """What was published last."""
        self._checked: Mesh | None = None
        self._findings: tuple[Problem, ...] = ()
        """Of the mesh that was checked."""
        self._admitted: tuple[Problem, ...] = ()

    def __repr__(self) -> str:
        return f"<KubernetesSource {self._client!r} published={self.published} {self.state!r}>"

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Of the cluster as it is now. References between objects are checked when somebody asks: in a
        large cluster that takes longer than to serve a change."""
        if self._checked is not self._mesh and self._mesh is not None:
            self._checked = self._mesh
            self._findings = tuple(_warning(finding) for finding in check_services(self._mesh))
        return (*self.state.problems(), *self._findings, *self._admitted)

    def namespace(self, name: str) -> Object | None:
        """Labels and annotations of a Namespace that the injector reads; None: it is not known (yet)."""
        return self.state.namespaces.objects.get(("", name))

    def cluster_ips(self, namespace: str, name: str) -> tuple[str, ...]:
        """Of a Service; none if it is headless, or not known (yet)."""
        service = self.state.services.objects.get((namespace, name))
        return service.cluster_ips if service is not None else ()

    def _wake(self) -> None:
        self._dirty.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Follows the cluster until `stop` is set. Cancellation ends it too."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(follow(self._client, store, Reflector(self._random), self._wake))
                for store in self.state.stores
            ]
            tasks.append(group.create_task(self._keep_publishing()))
            await stop.wait()
            for task in tasks:
                task.cancel()

    async def _keep_publishing(self) -> None:
        clock = asyncio.get_running_loop().time
        not_before = 0.0
        while True:
            await self._dirty.wait()
            await asyncio.sleep(max(QUIET, not_before - clock()))
            self._dirty.clear()
            if self.state.whole:
                began = clock()
                self._refresh()
                not_before = clock() + SHARE * (clock() - began)

    def _refresh(self) -> None:
        mesh, routes, policies = self.state.mesh()
        self._mesh, self._admitted = mesh, (*routes.problems, *policies.problems)
        self.published += 1
        if self.published == 1:
            _log.info(
                "cluster read services=%d slices=%d pods=%d routes=%d",
                len(mesh.services),
                len(mesh.slices),
                len(self.state.pods.objects),
                len(mesh.routes),
            )
        self._publish(mesh)
        self._on_verdicts((*routes.verdicts, *policies.verdicts))


def _ignore(_key: Key, _before: object, _after: object) -> None:
    pass


def _warning(finding: Finding) -> Problem:
    """What would refuse a whole folder is one object's matter in a cluster."""
    severity = Severity.WARNING if finding.severity is Severity.ERROR else finding.severity
    return Problem(severity, finding.message, object=str(finding.object), field=path_text(finding.path))
