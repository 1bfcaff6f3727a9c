"""Whether new pods get sidecars: each answer of the API server to a dry run, in one namespace and in many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from aiohttp import web

from control_plane.injector.patch import inject
from control_plane.injector.sidecar_container import InjectionSettings
from pilotfish.operator.api import Api
from pilotfish.operator.dry_run_facts import MOST, new_pods, probe_pod
from pilotfish.operator.errors import ApiError
from pilotfish.operator.facts import Fact
from pilotfish.operator.kubeconfig import load_context
from pilotfish.operator.world import World
from tests.support.kube_api import KubeApi, Object
from tests.support.operator_cluster import SYSTEM, injected, install, labelled
from tests.support.served_cluster import Served


def lines(facts: list[Fact]) -> list[str]:
    return [f"{fact.state.value} {fact.text}" for fact in facts]


def refusing(messages: Mapping[str, str], status: int = 403) -> Callable[[Object], Object | web.Response]:
    """What becomes of pods, where some namespaces refuse them."""

    def admit(pod: Object) -> Object | web.Response:
        message = messages.get(pod["metadata"]["namespace"])
        if message is None:
            return injected(pod)
        return web.json_response({"kind": "Status", "code": status, "message": message}, status=status)

    return admit


OURS = 'webhook "inject.mesh.pilotfish.dev"'


@pytest.mark.parametrize(
    ("status", "message", "expected", "hint"),
    [
        (
            500,
            f"Internal error occurred: failed calling {OURS}: x509: unknown authority",
            "failed no pod can be made in namespace shop: Internal error occurred: failed calling "
            f"{OURS}: x509: unknown authority",
            "the words behind the last colon say why: x509 is the caBundle, timeout a firewall",
        ),
        (
            400,
            f"admission {OURS} denied the request: mesh.pilotfish.dev/proxy-cpu is 'much'",
            f"failed the injector refuses pods in namespace shop: admission {OURS} denied the request: "
            "mesh.pilotfish.dev/proxy-cpu is 'much'",
            "an annotation of the namespace is wrong: kubectl get namespace shop -o yaml",
        ),
        (
            403,
            'pods "x" is forbidden: violates PodSecurity "restricted:latest"',
            'failed a pod with a sidecar is refused in namespace shop: pods "x" is forbidden: '
            'violates PodSecurity "restricted:latest"',
            "capture needs NET_ADMIN in an init container: let the namespace have it, "
            "or annotate pods with mesh.pilotfish.dev/capture: disabled",
        ),
        (
            403,
            'pods "x" is forbidden: maximum memory usage per Container is 256Mi, but limit is 384Mi',
            'failed a pod with a sidecar is outside of the limits of namespace shop: pods "x" is forbidden: '
            "maximum memory usage per Container is 256Mi, but limit is 384Mi",
            "kubectl -n shop describe limitrange,resourcequota; the sidecar's share is "
            "mesh.pilotfish.dev/proxy-cpu, proxy-cpu-limit and proxy-memory",
        ),
        (
            403,
            'pods "x" is forbidden: failed quota: all: must specify limits.cpu for: pilotfish-sidecar',
            'failed a pod with a sidecar is outside of the limits of namespace shop: pods "x" is forbidden: '
            "failed quota: all: must specify limits.cpu for: pilotfish-sidecar",
            "kubectl -n shop describe limitrange,resourcequota; the sidecar's share is "
            "mesh.pilotfish.dev/proxy-cpu, proxy-cpu-limit and proxy-memory",
        ),
        (
            403,
            'pods "x" is forbidden: exceeded quota: all, requested: pods=1, used: pods=9, limited: pods=9',
            'warning no room for another pod with a sidecar in namespace shop: pods "x" is forbidden: '
            "exceeded quota: all, requested: pods=1, used: pods=9, limited: pods=9",
            "kubectl -n shop describe resourcequota",
        ),
        (
            403,
            'admission webhook "images.example.com" denied the request: no such registry',
            "warning another webhook stops a pod with a sidecar in namespace shop: admission webhook "
            '"images.example.com" denied the request: no such registry',
            "is it about the sidecar (its image; NET_ADMIN and NET_RAW of pilotfish-init), or about any pod "
            "(the tried one has the image `probe`)?",
        ),
        (
            403,
            'pods is forbidden: User "me" cannot create resource "pods" in the namespace "shop"',
            "warning whether new pods get sidecars was not tried in namespace shop: you may not create pods",
            "kubectl create role pilotfish-create-pods --namespace=shop --verb=create --resource=pods && "
            "kubectl create rolebinding pilotfish-create-pods --namespace=shop --role=pilotfish-create-pods "
            "--user=NAME  (kubectl auth whoami)",
        ),
        (
            422,
            'Pod "x" is invalid: {}',
            'warning a pod with a sidecar cannot be made in namespace shop: 422: Pod "x" is invalid: {}',
            "a policy of the cluster, perhaps: the API server's words are above",
        ),
    ],
)
def test_a_refusal_says_what_it_means(
    served: Served, status: int, message: str, expected: str, hint: str
) -> None:
    [fact] = served.facts(new_pods, lambda api: setattr(api, "admit", refusing({"shop": message}, status)))
    assert (f"{fact.state.value} {fact.text}", fact.hint) == (expected, hint)


def test_a_pod_that_the_webhook_missed_has_no_sidecar(served: Served) -> None:
    assert lines(served.facts(new_pods, lambda api: setattr(api, "admit", lambda pod: pod))) == [
        "failed a new pod in namespace shop would get no sidecar (dry run): the webhook did not answer"
    ]


def test_a_sidecar_that_the_api_server_made_an_ordinary_init_container_lets_no_pod_start(
    served: Served,
) -> None:
    def without_restart_policy(pod: Object) -> Object:
        made = injected(pod)
        made["spec"]["initContainers"] = [{"name": "pilotfish-sidecar"}]
        return made

    [fact] = served.facts(new_pods, lambda api: setattr(api, "admit", without_restart_policy))
    assert f"{fact.state.value} {fact.text}" == (
        "failed a new pod in namespace shop would never start (dry run): the API server takes away what lets "
        "its sidecar run on (restartPolicy of an init container)"
    )


def test_every_labelled_namespace_is_tried_and_like_answers_make_one_line(served: Served) -> None:
    security = 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'
    quota = 'pods "x" is forbidden: exceeded quota: all'

    def change(api: KubeApi) -> None:
        api.put(*map(labelled, ("auth", "bank", "cart", "kube-system")))
        api.admit = refusing({"bank": security, "cart": security, "shop": quota})

    assert lines(served.facts(new_pods, change)) == [
        "ok a new pod in namespace auth would get its sidecar (dry run)",
        f"failed a pod with a sidecar is refused in namespaces bank, cart (bank: {security})",
        f"warning no room for another pod with a sidecar in namespace shop: {quota}",
    ]


def test_namespaces_that_do_not_answer_hide_no_others(served: Served) -> None:
    def change(api: KubeApi) -> None:
        api.put(*map(labelled, ("auth", "bank", "cart")))
        api.silent |= {"/bank/pods", "/cart/pods"}

    found = served.facts(new_pods, change, timeout=2.0)
    assert lines(found) == [
        "ok a new pod in namespaces auth, shop would get its sidecar (dry run)",
        "failed no answer came to a new pod in namespaces bank, cart "
        "(bank: a dry run of pods took longer than 2 s)",
    ]
    assert found[1].hint.startswith("is there a webhook that does not answer?")


def test_an_api_server_that_goes_away_is_no_verdict_on_a_namespace(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), KubeApi(tmp_path) as api:
            install(api)
            with Api(load_context({}, tmp_path, file=api.kubeconfig())) as asked:
                world = World(asked, SYSTEM)
                await asyncio.to_thread(lambda: (world.webhook, world.labelled))
                await api.down()
                with pytest.raises(ApiError) as away:
                    await asyncio.to_thread(lambda: list(new_pods(world)))
                assert away.value.status == 0

    asyncio.run(main())


def test_so_many_namespaces_are_tried_and_the_line_says_of_how_many(served: Served) -> None:
    tried: set[str] = set()

    def change(api: KubeApi) -> None:
        api.delete("Namespace", "shop", "")
        api.put(*(labelled(f"team-{number:02}") for number in range(MOST + 3)))
        api.admit = lambda pod: tried.add(pod["metadata"]["namespace"]) or injected(pod)

    assert lines(served.facts(new_pods, change)) == [
        "ok a new pod in namespaces team-00, team-01, team-02, team-03, team-04 and 15 more would get its "
        "sidecar (dry run in 20 of 23 namespaces; -n tries another)"
    ]
    assert tried == {f"team-{number:02}" for number in range(MOST)}


def test_a_namespace_that_is_being_deleted_is_not_tried(served: Served) -> None:
    going = labelled("shop")
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert served.facts(new_pods, lambda api: api.put(going)) == []


def test_the_tried_pod_takes_no_more_than_its_sidecar() -> None:
    """Or else a namespace's limits could refuse it for its own sake."""
    pod = probe_pod()
    [sidecar] = inject(pod["metadata"], pod["spec"], InjectionSettings(image="x")).spec["initContainers"]
    [probe] = pod["spec"]["containers"]
    assert probe["resources"]["requests"] == sidecar["resources"]["requests"]
