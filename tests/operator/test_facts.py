"""Every fact of `pilotfish check` when it is not as it should be: the state of the cluster, and the line."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from pilotfish.operator import (
    cluster_facts,
    control_plane_facts,
    injection_facts,
    rights_facts,
    route_facts,
    sidecar_facts,
)
from pilotfish.operator.check import Look
from pilotfish.operator.world import World
from tests.support.kube_api import KubeApi, Object
from tests.support.manifests import documents, manifest_files
from tests.support.operator_changes import (
    PROBLEM,
    Change,
    certificates,
    gone,
    hook,
    pages,
    replaced,
    with_init,
)
from tests.support.operator_cluster import (
    ROOT_PEM,
    SYSTEM,
    at,
    client,
    issued,
    labelled,
    not_pulled,
    page,
    plain,
    policy,
    refusing,
    route,
    running,
)
from tests.support.served_cluster import Served

FactsOf = Callable[[Look, Change], list[str]]


@pytest.fixture
def facts_of(served: Served) -> FactsOf:
    """`state text` of the facts that are not well in a mesh that was healthy before a change."""
    return lambda one, change: [
        f"{fact.state.value} {fact.text}" for fact in served.facts(one, change) if fact.state.value != "ok"
    ]


NODE = {"kind": "Node", "metadata": {"name": "old"}, "status": {"nodeInfo": {"kubeletVersion": "v1.28.4"}}}


def told(*arguments: str) -> Change:
    """The control plane."""
    spec = {"replicas": 2, "template": {"spec": {"containers": [{"args": list(arguments)}]}}}
    return replaced("Deployment", "pilotfish-control-plane", spec=spec)


@pytest.mark.parametrize(
    ("one", "change", "expected"),
    [
        (
            cluster_facts.node_versions,
            lambda api: api.put(NODE),
            "failed 1 of 2 nodes are too old for native sidecars (1.29): old",
        ),
        (
            cluster_facts.node_versions,
            lambda api: api.answer(403, path="/nodes"),
            "warning versions of kubelets: you may not list nodes: as the test wants it",
        ),
        (
            cluster_facts.gateway_definitions,
            lambda api: api.documents.pop("/apis/gateway.networking.k8s.io/v1"),
            "warning Gateway API's definitions are not installed (httproutes, grpcroutes "
            "gateway.networking.k8s.io/v1): there can be no routes",
        ),
        (
            cluster_facts.gateway_definitions,
            lambda api: api.put(
                {
                    "kind": "CustomResourceDefinition",
                    "metadata": {
                        "name": "httproutes.gateway.networking.k8s.io",
                        "annotations": {"gateway.networking.k8s.io/bundle-version": "v1.1.0"},
                    },
                }
            ),
            "warning Gateway API v1.1.0 is older than 1.2",
        ),
        (
            rights_facts.reading,
            lambda api: api.denied.add(("get", "pods/proxy")),
            "failed you may not read what this command looks at: "
            f"no right to get pods/proxy in all namespaces, get pods/proxy in {SYSTEM}",
        ),
        (
            rights_facts.installing,
            lambda api: api.denied.add(("create", "deployments")),
            f"failed you may not install the mesh: no right to create deployments.apps in {SYSTEM}",
        ),
        (
            cluster_facts.leftovers,
            gone("Deployment", "pilotfish-control-plane"),
            "warning MutatingWebhookConfiguration pilotfish-injector is left of another installation "
            "(Ignore)",
        ),
        (
            control_plane_facts.deployment,
            gone("Deployment", "pilotfish-control-plane"),
            f"failed there is no Deployment pilotfish-control-plane in namespace {SYSTEM}",
        ),
        (
            control_plane_facts.deployment,
            replaced("Deployment", "pilotfish-control-plane", status={}),
            "failed 0 of 2 replicas of the control plane are ready",
        ),
        (
            control_plane_facts.deployment,
            replaced(
                "Deployment", "pilotfish-control-plane", status={"readyReplicas": 2, "updatedReplicas": 1}
            ),
            "warning 2 of 2 replicas of the control plane are ready; 1 are of the newest generation",
        ),
        (
            control_plane_facts.services,
            gone("Service", "pilotfish-injector"),
            f"failed there is no Service pilotfish-injector in namespace {SYSTEM}",
        ),
        (
            control_plane_facts.services,
            replaced("EndpointSlice", "pilotfish-injector-x", endpoints=[{"conditions": {"ready": False}}]),
            "failed Service pilotfish-injector has no ready endpoints",
        ),
        (
            control_plane_facts.replicas,
            lambda api: api.documents.pop(f"/api/v1/namespaces/{SYSTEM}/pods/cp-a:15014/proxy/status.json"),
            f"failed {SYSTEM}/cp-a: the API server cannot reach {SYSTEM}/cp-a at port 15014: "
            "error trying to reach service: i/o timeout",
        ),
        (
            control_plane_facts.replicas,
            pages(page(not_ready="no configuration")),
            f"failed {SYSTEM}/cp-a is not ready: no configuration",
        ),
        (
            control_plane_facts.one_version,
            pages(page(version="0.1.0"), page(version="0.2.0")),
            "warning the replicas of the control plane are of versions 0.1.0, 0.2.0",
        ),
        (
            control_plane_facts.one_version,
            pages(page(version="7.1.0"), page(version="7.1.0")),
            f"warning this command is of version {page()['version']}, the control plane of 7.1.0: "
            "more than one minor apart",
        ),
        (
            control_plane_facts.root,
            pages(certificates(root_sha256="other")),
            "failed the replicas of the control plane sign with different roots",
        ),
        (
            control_plane_facts.root,
            pages(certificates(root_days_left=100)),
            "warning the mesh's root ends in 100 days",
        ),
        (
            control_plane_facts.root,
            pages(certificates(root_days_left=29)),
            "failed the mesh's root ends in 29 days",
        ),
        (
            control_plane_facts.serving_certificates,
            lambda api: pages(certificates(webhook_not_after=at(minutes=10, seconds=30)))(api),
            "warning cp-a: the certificate of the webhook ends in 10m",
        ),
        (
            control_plane_facts.serving_certificates,
            lambda api: pages(certificates(serving_not_after=at(hours=-2, minutes=-1)))(api),
            "failed cp-a: the certificate of discovery ended 2h ago",
        ),
        (
            control_plane_facts.configuration,
            pages(page(problems=[{"severity": "error", **PROBLEM}])),
            "failed 1 error in the configuration: HTTPRoute shop/r spec.rules[0]: no such Service",
        ),
        (
            injection_facts.webhook,
            gone("MutatingWebhookConfiguration", "pilotfish-injector", ""),
            "failed there is no MutatingWebhookConfiguration pilotfish-injector: no pod gets a sidecar",
        ),
        (
            injection_facts.webhook,
            hook(clientConfig={}),
            "failed the webhook's caBundle is empty: the API server will not trust the webhook",
        ),
        (
            injection_facts.webhook,
            hook(clientConfig={"caBundle": base64.b64encode(b"-----").decode()}),
            "failed the webhook's caBundle is not the mesh's root: the API server will not trust the webhook",
        ),
        (
            injection_facts.namespaces,
            lambda api: api.put({"kind": "Namespace", "metadata": {"name": "shop"}}),
            "warning no namespace is labelled mesh.pilotfish.dev/inject=enabled",
        ),
        (
            injection_facts.namespaces,
            lambda api: api.put(labelled("kube-system")),
            "warning the label of namespace kube-system has no effect: its pods never get a sidecar",
        ),
        (
            injection_facts.missed_pods,
            lambda api: api.put(plain("old-1")),
            "warning pods without a sidecar in namespace shop: old-1",
        ),
        (
            sidecar_facts.rules,
            lambda api: api.put(
                with_init(
                    state={"waiting": {"reason": "CrashLoopBackOff"}},
                    lastState={"terminated": {"exitCode": 1, "message": "log\nerror: no nft here\n"}},
                )
            ),
            "failed the rules of capture are not set in 1 of 2: shop/users-1 (shop/users-1: exit status 1: "
            "error: no nft here)",
        ),
        (
            sidecar_facts.ready,
            lambda api: api.put(running("users-1", ready=False)),
            "failed not ready: the sidecars of 1 of 2: shop/users-1 (shop/users-1: running, but not ready)",
        ),
        (
            sidecar_facts.ready,
            lambda api: api.put(not_pulled("users-1")),
            "failed not ready: the sidecars of 1 of 2: shop/users-1 (shop/users-1: ImagePullBackOff)",
        ),
        (
            sidecar_facts.connected,
            lambda api: api.put(running("lost")),
            "failed not connected to the control plane: 1 of 3: shop/lost",
        ),
        (
            sidecar_facts.connected,
            lambda api: api.documents.pop(f"/api/v1/namespaces/{SYSTEM}/pods/cp-a:15014/proxy/status.json"),
            "warning 1 of 2: shop/users-1 may be connected to cp-a, which did not answer",
        ),
        (
            sidecar_facts.identities,
            pages(certificates(refused=2)),
            "warning identities: 4 certificates were signed since the control plane started, 2 refused",
        ),
        (
            sidecar_facts.identities,
            lambda api: pages(page(client("users-1"), issued=(issued(minutes=10, seconds=30),)))(api),
            "warning certificates that were not renewed: 1 of 1: shop/users-1 (shop/users-1: 10m left)",
        ),
        (
            sidecar_facts.in_step,
            pages(page(refusing("users-1", "clusters.x: no such field"), client("users-2"))),
            "failed not in step: 1 of 2: shop/users-1 (shop/users-1: CDS refused users since "
            "2026-01-01T00:00:00Z: clusters.x: no such field)",
        ),
        (
            sidecar_facts.versions,
            pages(page(client("users-1", version="0.3.0"), version="0.1.0"), page(version="0.1.0")),
            "warning more than one minor version from the control plane: 1 of 1: shop/users-1",
        ),
        (
            route_facts.routes,
            lambda api: api.put(route("r", Accepted="True", ResolvedRefs="BackendNotFound")),
            "failed HTTPRoute shop/r: ResolvedRefs is False (BackendNotFound): so it is",
        ),
        (
            route_facts.routes,
            lambda api: api.put(route("new")),
            "warning HTTPRoute: the control plane has not decided on shop/new",
        ),
        (
            route_facts.routes,
            lambda api: api.put({**route("t", Accepted="Conflicted"), "kind": "TCPRoute"}),
            "failed TCPRoute shop/t: Accepted is False (Conflicted): so it is",
        ),
        (
            route_facts.policies,
            lambda api: api.put(policy("p", "Conflicted")),
            "failed TrafficPolicy shop/p: Accepted is False (Conflicted): so it is",
        ),
        (
            route_facts.policies,
            lambda api: api.put({**policy("p", "True"), "status": {}}),
            "warning TrafficPolicy: the control plane has not decided on shop/p",
        ),
    ],
)
def test_what_is_wrong_is_said(facts_of: FactsOf, one: Look, change: Change, expected: str) -> None:
    assert facts_of(one, change) == [expected]


@pytest.mark.parametrize(
    "pod",
    [
        {**plain("host"), "spec": {"hostNetwork": True, "containers": [{"name": "app"}]}},
        plain("out", **{"mesh.pilotfish.dev/inject": "disabled"}),
        {**plain("done"), "status": {"phase": "Succeeded"}},
        plain("elsewhere", SYSTEM),
        plain("dns", "kube-system"),
    ],
    ids=lambda pod: str(pod["metadata"]["name"]),
)
def test_a_pod_that_is_to_have_no_sidecar_is_not_missed(facts_of: FactsOf, pod: Object) -> None:
    assert facts_of(injection_facts.missed_pods, lambda api: api.put(pod, labelled("kube-system"))) == []


@pytest.mark.parametrize(
    ("version", "choice", "doubtful"),
    [
        ("v1.29.0", ["--native-sidecars=auto"], [cluster_facts.node_versions]),
        ("v1.29.0", ["--native-sidecars=off"], []),
        ("v1.29.0", ["--native-sidecars=on"], []),
        ("v1.29.0", ["--native-sidecars", "auto"], [cluster_facts.node_versions]),
        ("v1.29.0", ["--native-sidecars=on", "--native-sidecars=auto"], [cluster_facts.node_versions]),
        ("v1.28.9", ["--native-sidecars=auto"], [cluster_facts.kubernetes_version]),
        ("v1.28.9", ["--native-sidecars=on"], []),
        ("v1.28.9", ["--native-sidecars", "on"], []),
    ],
)
def test_old_kubelets_are_wrong_only_where_the_api_server_s_version_makes_sidecars_native(
    facts_of: FactsOf, version: str, choice: list[str], doubtful: list[Look]
) -> None:
    def change(api: KubeApi) -> None:
        api.put(NODE)
        api.documents["/version"] = {"gitVersion": version}
        told("control-plane", *choice)(api)

    looks = (cluster_facts.kubernetes_version, cluster_facts.node_versions)
    assert [one for one in looks if facts_of(one, change)] == doubtful


def test_kubelets_that_are_new_enough_need_no_right_to_read_the_control_plane(facts_of: FactsOf) -> None:
    def change(api: KubeApi) -> None:
        api.answer(403, path="/deployments/pilotfish-control-plane")

    assert facts_of(cluster_facts.node_versions, change) == []


def test_a_route_of_a_gateway_is_left_alone(facts_of: FactsOf) -> None:
    foreign = route("g", Accepted="NotAllowed")
    foreign["spec"]["parentRefs"] = [{"name": "gateway"}]
    assert facts_of(route_facts.routes, lambda api: api.put(foreign)) == []


def test_a_webhook_that_fails_everything_and_has_nobody_behind_it_stops_an_installation(
    facts_of: FactsOf,
) -> None:
    def change(api: KubeApi) -> None:
        hook(failurePolicy="Fail")(api)
        api.delete("Deployment", "pilotfish-control-plane", SYSTEM)

    assert facts_of(cluster_facts.leftovers, change) == [
        "failed MutatingWebhookConfiguration pilotfish-injector is left of another installation (Fail)"
    ]


@pytest.mark.parametrize(
    ("one", "other", "minors"),
    [("0.1.0", "0.1.7", 0), ("0.1.0", "0.2.0", 1), ("1.0.0", "0.9.0", 99), ("0.1.0", "unknown", 99)],
)
def test_how_far_versions_are_apart(one: str, other: str, minors: int) -> None:
    assert control_plane_facts.apart(one, other) == minors


def test_the_definitions_that_are_looked_for_are_those_of_the_manifests() -> None:
    objects = [item for file in manifest_files() for item in documents(file.read_text())]
    found = [o["metadata"]["name"] for o in objects if o.get("kind") == "CustomResourceDefinition"]
    assert sorted(found) == sorted(cluster_facts.OWN_DEFINITIONS)


def test_a_definition_that_is_missing_is_named(facts_of: FactsOf) -> None:
    def ours(world: World) -> Any:
        return cluster_facts.own_definitions(world, ["policies.mesh.pilotfish.dev"])

    assert facts_of(ours, lambda api: None) == [
        "failed definition policies.mesh.pilotfish.dev is not installed"
    ]


def test_the_print_of_a_bundle_is_that_of_its_certificate() -> None:
    assert (
        injection_facts.bundle_print(base64.b64encode(ROOT_PEM.encode()).decode())
        == (page()["certificates"]["root_sha256"])
    )
