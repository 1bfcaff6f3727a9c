"""`pilotfish check`: the whole of it on a healthy mesh, its options, and what an API server can do to it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pilotfish.cli import run as pilotfish
from pilotfish.operator import check
from tests.support.kube_api import KubeApi
from tests.support.operator_cluster import SYSTEM, VERSION, install

Output = pytest.CaptureFixture[str]


def in_cluster(directory: Path, scenario: Callable[[KubeApi, str], Awaitable[None]]) -> None:
    """A scenario with a healthy mesh, and the kubeconfig's path."""

    async def main() -> None:
        async with asyncio.timeout(30), KubeApi(directory) as api:
            install(api)
            await scenario(api, str(api.kubeconfig()))

    asyncio.run(main())


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(pilotfish, arguments)


def test_a_healthy_mesh(tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        assert await run("check", "--kubeconfig", kubeconfig) == 0
        text = capsys.readouterr().out.replace(api.kubeconfig().name, "").replace(str(api.port), "PORT")
        assert text.splitlines() == [
            "cluster",
            "  ✓ Kubernetes v1.33.1 at https://127.0.0.1:PORT",
            "  ✓ nodes: 1, kubelet v1.33.1",
            "  ✓ this machine's clock agrees with the API server's",
            "  ✓ clocks of nodes agree with the API server's, to a minute (nodes: 1)",
            "  ✓ no network plugin chooses pods before sidecars do (Cilium, Calico)",
            "  ✓ Gateway API v1.3.0: HTTPRoute, GRPCRoute, TCPRoute",
            "  ✓ definition trafficpolicies.mesh.pilotfish.dev is installed",
            "you",
            "  ✓ you may read what this command looks at",
            "control plane",
            "  ✓ 2 of 2 replicas of the control plane are ready",
            "  ✓ Service pilotfish-control-plane has 2 ready endpoints",
            "  ✓ Service pilotfish-injector has 2 ready endpoints",
            f"  ✓ {SYSTEM}/cp-a answers, version {VERSION}",
            f"  ✓ {SYSTEM}/cp-b answers, version {VERSION}",
            f"  ✓ control plane {VERSION}, this command {VERSION}",
            "  ✓ the clock of cp-a agrees with the API server's",
            "  ✓ the clock of cp-b agrees with the API server's",
            "  ✓ the mesh's root ends in 3649 days",
            "  ✓ cp-a: the certificate of discovery ends in 23h",
            "  ✓ cp-a: the certificate of the webhook ends in 23h",
            "  ✓ cp-b: the certificate of discovery ends in 23h",
            "  ✓ cp-b: the certificate of the webhook ends in 23h",
            "  ✓ the control plane found no errors in Services, routes and policies",
            "injection",
            "  ✓ the webhook is configured (failure policy Ignore)",
            "  ✓ the webhook's caBundle is the mesh's root",
            "  ✓ namespaces with injection: shop",
            "  ✓ a new pod in namespace shop would get its sidecar (dry run)",
            "  ✓ no pod of these namespaces lacks its sidecar",
            "sidecars",
            "  ✓ the rules of capture are set (pods: 2)",
            "  ✓ sidecars: 2 ready",
            "  ✓ sidecars: 2 connected to the control plane",
            "  ✓ identities: 4 certificates were signed since the control plane started, 0 refused",
            "  ✓ certificates of sidecars last 23h at least",
            "  ✓ sidecars: 2 in step with their configuration",
            f"  ✓ versions of sidecars: 2 of {VERSION}",
            "  ✓ clocks of sidecars agree with the API server's (asked: 2, one a node)",
            "routes",
            "  ✓ HTTPRoute: 1 accepted, and all that they name is there",
            "policies",
            "  ✓ TrafficPolicy: 1 accepted, and all that they name is there",
            "0 failed, 0 to look at, 37 as they should be",
        ]

    in_cluster(tmp_path, scenario)


def test_before_installing_only_the_cluster_and_the_user_are_looked_at(
    tmp_path: Path, capsys: Output
) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        api.delete("Deployment", "pilotfish-control-plane", SYSTEM)
        api.delete("MutatingWebhookConfiguration", "pilotfish-injector", "")
        assert await run("check", "--pre", "--kubeconfig", kubeconfig) == 0
        assert capsys.readouterr().out.splitlines()[7:] == [
            "you",
            "  ✓ you may install the mesh",
            "  ✓ you may give the control plane its rights",
            "before installing",
            "  ✓ nothing is left of another installation",
            "0 failed, 0 to look at, 9 as they should be",
        ]

    in_cluster(tmp_path, scenario)


def test_json_has_names_and_states_for_scripts(tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        api.documents["/version"] = {"gitVersion": "v1.28.9"}
        api.denied.add(("create", "namespaces"))
        assert await run("check", "--pre", "-o", "json", "--kubeconfig", kubeconfig) == 1
        found = json.loads(capsys.readouterr().out)
        assert found["ok"] is False
        assert found["facts"][0] == {
            "section": "cluster",
            "name": "kubernetes-version",
            "state": "warning",
            "text": f"Kubernetes v1.28.9 at https://127.0.0.1:{api.port} has no native sidecars "
            "(1.29 and later): sidecars are ordinary containers",
            "hint": "nothing, unless its feature gate SidecarContainers is on: then --native-sidecars=on",
            "link": "docs/kubernetes.md#without-native-sidecars",
        }

    in_cluster(tmp_path, scenario)


def test_waiting_ends_when_all_is_well(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_INTERVAL", 0.01)

    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        api.answer(500, path="/deployments/pilotfish-control-plane", times=1)
        assert await run("check", "--wait", "20", "--kubeconfig", kubeconfig) == 0
        assert len(api.seen("GET", "/deployments/pilotfish-control-plane")) == 2

    in_cluster(tmp_path, scenario)
    assert "0 failed" in capsys.readouterr().out


def test_waiting_keeps_its_connections(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each of the eight requests that may be under way at once, and one for the others."""
    monkeypatch.setattr(check, "_INTERVAL", 0.01)

    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        api.answer(500, path="/deployments/pilotfish-control-plane", times=5)
        assert await run("check", "--wait", "20", "--kubeconfig", kubeconfig) == 0
        assert len(api.seen("GET", "/deployments/pilotfish-control-plane")) == 6
        assert len(api.callers) <= 9

    in_cluster(tmp_path, scenario)
    assert "0 failed" in capsys.readouterr().out


def test_a_right_that_is_missing_is_named_once_with_the_command_that_gives_it(
    tmp_path: Path, capsys: Output
) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        api.answer(403, path="/api/v1/pods", times=9)
        assert await run("check", "-o", "json", "--kubeconfig", kubeconfig) == 1
        found = json.loads(capsys.readouterr().out)["facts"]
        assert [(fact["text"], fact["hint"]) for fact in found if fact["state"] == "failed"] == [
            (
                "you may not list pods: as the test wants it",
                "kubectl create clusterrole pilotfish-list-pods --verb=list --resource=pods && "
                "kubectl create clusterrolebinding pilotfish-list-pods --clusterrole=pilotfish-list-pods "
                "--user=NAME  (kubectl auth whoami)",
            )
        ]
        assert found[-1]["name"] == "policies"

    in_cluster(tmp_path, scenario)


def test_without_a_control_plane_everything_else_is_still_said(tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        for name in ("cp-a", "cp-b"):
            api.delete("Pod", name, SYSTEM)
        assert await run("check", "-o", "json", "--kubeconfig", kubeconfig) == 1
        facts = json.loads(capsys.readouterr().out)["facts"]
        assert [fact["text"] for fact in facts if fact["state"] == "failed"] == [
            f"no control plane runs in namespace {SYSTEM}"
        ]
        assert {"webhook", "new-pods", "rules", "sidecars-ready", "routes"} <= {f["name"] for f in facts}

    in_cluster(tmp_path, scenario)


def test_an_api_server_that_is_away_is_the_only_line(tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        await api.down()
        assert await run("check", "--kubeconfig", kubeconfig) == 1
        lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch(
            rf"  ✗ no answer from the API server https://127.0.0.1:{api.port}: .*refused", lines[1]
        )
        assert (
            lines[2].strip() == "is context 'test' the right one, and is a VPN needed? kubectl cluster-info"
        )
        assert lines[3].strip() == "docs/troubleshooting.md#the-api-server-does-not-answer-a-command"
        assert lines[-1] == "1 failed, 0 to look at, 0 as they should be"

    in_cluster(tmp_path, scenario)


def test_whoever_is_not_known_is_told_so_once(tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        api.answer(401, times=99)
        assert await run("check", "--kubeconfig", kubeconfig) == 1
        assert capsys.readouterr().out.splitlines() == [
            "cluster",
            f"  ✗ the API server https://127.0.0.1:{api.port} does not know you",
            "      log in again",
            "      docs/troubleshooting.md#the-api-server-does-not-answer-a-command",
            "1 failed, 0 to look at, 0 as they should be",
        ]

    in_cluster(tmp_path, scenario)


def test_a_namespace_that_is_not_there_is_said(tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        assert await run("check", "-n", "shpo", "-o", "json", "--kubeconfig", kubeconfig) == 1
        found = json.loads(capsys.readouterr().out)["facts"]
        assert [fact["text"] for fact in found if fact["state"] == "failed"] == ["there is no namespace shpo"]

    in_cluster(tmp_path, scenario)


def test_interrupting_it_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "open_api", interrupted)
    assert pilotfish(["check"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_wrong_option_ends_with_2(capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        pilotfish(["check", "--output", "yaml"])
    assert ended.value.code == 2
    assert "invalid choice: 'yaml'" in capsys.readouterr().err


def test_every_link_leads_to_a_heading() -> None:
    """The pages are part of the repository, and so are the links."""
    root = Path(check.__file__).parents[2]
    sources = "".join(path.read_text() for path in (root / "pilotfish" / "operator").glob("*.py"))
    links = set(re.findall(r"docs/[\w-]+\.md(?:#[\w-]+)?", sources))
    assert len(links) > 10
    for link in links:
        name, _, anchor = link.partition("#")
        headings = re.findall(r"^#+ (.*)$", (root / name).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, link
