"""The webhook over TLS, as the API server calls it, and what is published so that it trusts it."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from control_plane.ca import root
from control_plane.ca.authority import CertificateAuthority
from control_plane.injector.namespaces import Namespaces
from control_plane.injector.native import native_sidecars
from control_plane.injector.publish import publish_ca_bundle, publish_root
from control_plane.injector.service import Injector, webhook_name
from control_plane.injector.sidecar_container import InjectionSettings
from control_plane.kube.access import from_kubeconfig
from control_plane.kube.client import KubeClient, KubeError
from tests.support.kube_api import KubeApi

NAMESPACE = "pilotfish-system"
NAME = "pilotfish-injector.pilotfish-system.svc"
POD = {"metadata": {"generateName": "users-"}, "spec": {"containers": [{"name": "app", "image": "x"}]}}
CONFIGURATION = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "MutatingWebhookConfiguration",
    "metadata": {"name": "pilotfish-injector", "namespace": ""},
    "webhooks": [{"name": "inject.mesh.pilotfish.dev", "clientConfig": {"service": {"name": "x"}}}],
}


CLUSTER_IPS = {(NAMESPACE, "pilotfish-control-plane"): ("10.96.14.3", "fd96::3")}


class Clock:
    """Moved by the test."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


def review(pod: object = POD, **more: Any) -> dict[str, Any]:
    request = {"uid": "705ab4f5", "namespace": "shop", "operation": "CREATE", "object": pod, **more}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


class Rig:
    """An injector on a port, an API server, and the trust between them."""

    def __init__(
        self,
        injector: Injector,
        authority: CertificateAuthority,
        client: KubeClient,
        watched: dict[str, Any],
    ) -> None:
        self.watched = watched
        """Metadata of the Namespaces that the source has seen."""
        self.injector = injector
        self.authority = authority
        self.client = client
        self.port = 0

    async def ask(self, body: object, name: str = NAME, host: str = "127.0.0.1") -> tuple[int, Any]:
        context = ssl.create_default_context(cadata=self.authority.root_pem)
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"https://{host}:{self.port}/inject", json=body, ssl=context, server_hostname=name
            ) as response,
        ):
            text = await response.text()
            return response.status, json.loads(text) if response.status == 200 else text


def run(tmp_path: Path, test: Callable[[Rig, KubeApi, Clock], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = Clock()
        authority = root.self_made(tmp_path / "ca", "cluster.local", timedelta(hours=24), clock)
        async with KubeApi(tmp_path) as api:
            client = KubeClient(from_kubeconfig(api.kubeconfig()))
            settings = InjectionSettings(image="sidecar:1", init_image="init:1")
            watched: dict[str, Any] = {}
            injector = Injector(
                client,
                NAMESPACE,
                authority,
                settings,
                clock,
                watched.get,
                lambda *service: CLUSTER_IPS[service],
            )
            rig = Rig(injector, authority, client, watched)
            rig.port = await injector.start("*", 0)
            try:
                await test(rig, api, clock)
            finally:
                await injector.close()
                await client.close()

    asyncio.run(main())


def test_a_pod_gets_a_patch_with_the_mesh_s_root(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        status, answer = await rig.ask(review())
        assert status == 200
        assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        response = answer["response"]
        assert (response["uid"], response["allowed"], response["patchType"]) == (
            "705ab4f5",
            True,
            "JSONPatch",
        )
        patch = {item["path"]: item["value"] for item in json.loads(base64.b64decode(response["patch"]))}
        environment = {item["name"]: item.get("value") for item in patch["/spec/initContainers"][1]["env"]}
        assert environment["PILOTFISH_ROOT_PEM"] == rig.authority.root_pem

    run(tmp_path, test)


def test_the_webhook_answers_at_all_addresses_of_both_families(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        for host in ("127.0.0.1", "[::1]"):
            assert (await rig.ask(review(), host=host))[0] == 200

    run(tmp_path, test)


def test_a_pod_that_wants_none_is_allowed_without_a_patch(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        pod = {**POD, "metadata": {"annotations": {"mesh.pilotfish.dev/inject": "disabled"}}}
        assert (await rig.ask(review(pod)))[1]["response"] == {"uid": "705ab4f5", "allowed": True}

    run(tmp_path, test)


def test_a_mistake_in_an_annotation_is_told_to_its_author(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        pod = {**POD, "metadata": {"annotations": {"mesh.pilotfish.dev/proxy-cpu": "many"}}}
        response = (await rig.ask(review(pod)))[1]["response"]
        assert response["allowed"] is False
        assert response["status"]["message"].startswith("pilotfish: mesh.pilotfish.dev/proxy-cpu is 'many'")

    run(tmp_path, test)


def patched(answer: Any) -> dict[str, Any]:
    patch = json.loads(base64.b64decode(answer["response"]["patch"]))
    return {item["path"]: item["value"] for item in patch}


def namespace(**metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "shop", "namespace": "", **metadata},
    }


def test_the_namespace_s_annotations_are_defaults_and_its_pod_security_is_obeyed(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        api.put(
            namespace(
                annotations={"mesh.pilotfish.dev/log-level": "debug"},
                labels={"pod-security.kubernetes.io/enforce": "restricted"},
            )
        )
        answer = (await rig.ask(review()))[1]
        sidecar = patched(answer)["/spec/initContainers"][0]
        assert sidecar["name"] == "pilotfish-sidecar"
        assert sidecar["args"][-2:] == ["--log-level", "debug"]
        [warning] = answer["response"]["warnings"]
        assert warning.startswith("pilotfish: not captured, because the namespace enforces")

    run(tmp_path, test)


def test_a_pod_with_other_name_servers_is_told_where_the_control_plane_is(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        api.put(namespace())
        pod = {**POD, "spec": {**POD["spec"], "dnsPolicy": "Default"}}
        answer = (await rig.ask(review(pod)))[1]
        host = "pilotfish-control-plane.pilotfish-system.svc"
        assert patched(answer)["/spec/hostAliases"] == [
            {"ip": "10.96.14.3", "hostnames": [host]},
            {"ip": "fd96::3", "hostnames": [host]},
        ]
        assert "warnings" not in answer["response"]

    run(tmp_path, test)


def test_what_the_author_should_know_comes_as_warnings(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        api.put(namespace())
        pod = {**POD, "metadata": {"annotations": {"mesh.pilotfish.dev/proxy-cpus": "1"}}}
        response = (await rig.ask(review(pod)))[1]["response"]
        assert response["allowed"] is True
        assert response["warnings"] == [
            "pilotfish: annotation mesh.pilotfish.dev/proxy-cpus is not known and does nothing; "
            "did you mean proxy-cpu?"
        ]

    run(tmp_path, test)


def test_pods_are_injected_when_their_namespace_cannot_be_read(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        api.answer(500, path="namespaces/shop", times=1)
        answer = (await rig.ask(review()))[1]
        assert "/spec/initContainers" in patched(answer)
        [warning] = answer["response"]["warnings"]
        assert warning.startswith("pilotfish: namespace shop could not be read")

    run(tmp_path, test)


def test_reviews_are_counted_by_outcome(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        api.put(namespace())
        for annotation in ({}, {"inject": "disabled"}, {"proxy-cpu": "many"}):
            named = {f"mesh.pilotfish.dev/{knob}": value for knob, value in annotation.items()}
            await rig.ask(review({**POD, "metadata": {"annotations": named}}))
        await rig.ask({})
        counts = rig.injector.webhook.counts
        assert counts.by_outcome() == {"injected": 1, "skipped": 1, "refused": 1, "malformed": 1}
        assert counts.seconds > 0

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("version", "choice", "native"),
    [
        ("v1.28.15", "auto", False),
        ("v1.28.15", "on", True),
        ("v1.29.0", "auto", True),
        ("v1.33.1-eks-1a2b3c", "auto", True),
        ("v1.33.1", "off", False),
        ("", "auto", False),
    ],
)
def test_sidecars_are_native_where_the_api_server_s_version_or_the_operator_says_so(
    tmp_path: Path, version: str, choice: str, native: bool
) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        api.documents["/version"] = {"gitVersion": version}
        assert await native_sidecars(rig.client, choice, asyncio.Event()) is native

    run(tmp_path, test)


def test_the_api_server_s_version_is_waited_for_and_not_where_it_is_withheld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.injector.native.RETRY", 0.01)

    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        stop = asyncio.Event()
        api.answer(503, path="/version", times=2)
        assert await native_sidecars(rig.client, "auto", stop) is True
        api.answer(403, path="/version")
        with pytest.raises(KubeError, match="403"):
            await native_sidecars(rig.client, "auto", stop)
        stop.set()
        assert await native_sidecars(rig.client, "auto", stop) is None

    run(tmp_path, test)


def test_a_namespace_that_is_watched_is_not_asked_for(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        rig.watched["shop"] = {"labels": {}, "annotations": {"mesh.pilotfish.dev/log-level": "debug"}}
        sidecar = patched((await rig.ask(review()))[1])["/spec/initContainers"][1]
        assert sidecar["args"][-2:] == ["--log-level", "debug"]
        assert not api.seen("GET", "/namespaces/shop")

    run(tmp_path, test)


def test_a_namespace_that_the_watch_does_not_know_yet_is_asked_for(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        namespaces = Namespaces(rig.client, rig.watched.get)
        api.put(namespace(annotations={"a": "1"}))
        assert (await namespaces.metadata("shop") or {})["annotations"] == {"a": "1"}
        api.answer(500, path="namespaces/shop", times=1)
        assert await namespaces.metadata("shop") is None
        assert await namespaces.metadata("nowhere") == {}
        assert await namespaces.metadata("../pods") == {}

    run(tmp_path, test)


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"request": None},
        {"request": {"uid": "1"}},
        {**review(), "apiVersion": "admission.k8s.io/v1beta1"},
        review({"kind": "Deployment"}),
    ],
)
def test_what_is_no_review_of_a_pod_is_a_bad_request(tmp_path: Path, body: object) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        status, text = await rig.ask(body)
        assert status == 400
        assert text.startswith("not an AdmissionReview v1 of a Pod")

    run(tmp_path, test)


def test_the_certificate_is_for_the_service_alone(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await rig.ask(review(), "kubernetes.default.svc")

    assert webhook_name(NAMESPACE) == NAME
    run(tmp_path, test)


def test_new_connections_see_a_new_certificate_at_half_of_its_life(tmp_path: Path) -> None:
    async def serial(port: int) -> str:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        return bytes(der).hex()

    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        tls = rig.injector.webhook.tls
        before = await serial(rig.port)
        clock.now += timedelta(hours=11)
        assert not tls.renew_if_due()
        assert await serial(rig.port) == before
        clock.now += timedelta(hours=2)
        assert tls.renew_if_due()
        assert await serial(rig.port) != before

    run(tmp_path, test)


def test_the_ca_bundle_is_written_once_and_again_when_somebody_removed_it(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        api.put(CONFIGURATION)
        assert await publish_ca_bundle(rig.client, rig.authority.root_pem)
        assert not await publish_ca_bundle(rig.client, rig.authority.root_pem)
        written = api.get("MutatingWebhookConfiguration", "pilotfish-injector", "")
        bundle = written["webhooks"][0]["clientConfig"]["caBundle"]
        assert base64.b64decode(bundle).decode() == rig.authority.root_pem
        assert written["webhooks"][0]["clientConfig"]["service"] == {"name": "x"}
        api.put(CONFIGURATION)
        assert await publish_ca_bundle(rig.client, rig.authority.root_pem)

    run(tmp_path, test)


def test_a_cluster_without_the_webhook_s_configuration_is_no_error(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        assert not await publish_ca_bundle(rig.client, rig.authority.root_pem)

    run(tmp_path, test)


def test_the_root_is_published_and_put_right(tmp_path: Path) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        assert await publish_root(rig.client, NAMESPACE, "OLD")
        assert not await publish_root(rig.client, NAMESPACE, "OLD")
        assert await publish_root(rig.client, NAMESPACE, "NEW")
        assert api.get("ConfigMap", "pilotfish-root", NAMESPACE)["data"] == {"root.pem": "NEW"}

    run(tmp_path, test)


def test_publishing_goes_on_when_the_api_server_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(rig: Rig, api: KubeApi, clock: Clock) -> None:
        monkeypatch.setattr("control_plane.injector.publish.RETRY", 0.01)
        api.put(CONFIGURATION)
        api.answer(503, path="configmaps/pilotfish-root", times=2)
        stop = asyncio.Event()
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(rig.injector.run(stop))
            while ("configmaps", NAMESPACE, "pilotfish-root") not in api.objects:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            stop.set()

    run(tmp_path, test)
