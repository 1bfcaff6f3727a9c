"""`pilotfish status` and `pilotfish proxy-config` with a real control plane and real sidecars behind the API
server, and by address."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from pilotfish.cli import run as pilotfish
from pilotfish.operator import clock_facts
from pilotfish.operator.api import Api
from pilotfish.operator.kubeconfig import load_context
from pilotfish.operator.world import World
from tests.support.clients import fetch
from tests.support.kube_api import KubeApi
from tests.support.kubernetes import account, backend, endpoint_slice, route, service
from tests.support.mesh import STATUS, Mesh
from tests.support.operator_cluster import (
    SYSTEM,
    VERSION,
    client,
    not_pulled,
    page,
    plain,
    refusing,
    running,
    show_page,
)
from tests.support.processes import loopback
from tests.support.sidecars import ADMIN, OUTBOUND

Output = pytest.CaptureFixture[str]
HOSTS = {name: loopback() for name in ("shopper", "users")}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """`shopper` has called `users` once."""
    mesh = Mesh(tmp_path_factory.mktemp("mesh"))
    try:
        mesh.save("accounts", *(account(name) for name in HOSTS))
        mesh.save("users", service("users"), endpoint_slice("users-a", HOSTS["users"], runs_as="users"))
        mesh.save("route", route("r", {"backendRefs": [backend("users")]}))
        mesh.start_control_plane()
        sidecars = [mesh.sidecar(name, name, host) for name, host in HOSTS.items()]
        mesh.app("users", HOSTS["users"])
        for sidecar in sidecars:
            sidecar.ready()
        assert fetch((HOSTS["shopper"], OUTBOUND), "http://users/").status == 200
        yield mesh
    finally:
        mesh.stop()


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(pilotfish, arguments)


def in_cluster(directory: Path, scenario: Callable[[KubeApi, str], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), KubeApi(directory) as api:
            api.put(plain("cp-a", SYSTEM, **{"app.kubernetes.io/name": "pilotfish-control-plane"}))
            await scenario(api, f"--kubeconfig={api.kubeconfig()}")

    asyncio.run(main())


def in_mesh(directory: Path, mesh: Mesh, scenario: Callable[[KubeApi, str], Awaitable[None]]) -> None:
    """The mesh's processes as pods."""

    async def main(api: KubeApi, kubeconfig: str) -> None:
        api.proxies[SYSTEM, "cp-a:15014"] = (mesh.host, STATUS)
        for name, host in HOSTS.items():
            api.put(running(name))
            api.proxies["shop", f"{name}:15000"] = (host, ADMIN)
        await scenario(api, kubeconfig)

    in_cluster(directory, main)


def test_status_of_a_mesh_behind_an_api_server(mesh: Mesh, tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        assert await run("status", kubeconfig) == 0
        assert capsys.readouterr().out.splitlines() == [
            "NAMESPACE  NAME     VERSION  CONFIGURATION  CERTIFICATE  CONTROL PLANE",
            f"shop       shopper  {VERSION}    in step        23h left     cp-a",
            f"shop       users    {VERSION}    in step        23h left     cp-a",
            f"2 sidecars, 0 not in step; control plane {VERSION}, 1 replica",
        ]

    in_mesh(tmp_path, mesh, scenario)


def test_sidecars_tell_their_clocks(mesh: Mesh, tmp_path: Path) -> None:
    def found(kubeconfig: Path) -> list[str]:
        with Api(load_context({}, tmp_path, file=kubeconfig)) as api:
            return [fact.text for fact in clock_facts.sidecars(World(api, SYSTEM))]

    async def scenario(api: KubeApi, _: str) -> None:
        api.documents["/version"] = {"gitVersion": "v1.33.1"}
        assert await asyncio.to_thread(found, api.kubeconfig()) == [
            "clocks of sidecars agree with the API server's (asked: 2, one a node)"
        ]

    in_mesh(tmp_path, mesh, scenario)


def test_status_by_address_needs_no_cluster(mesh: Mesh, capsys: Output) -> None:
    address = f"{mesh.host}:{STATUS}"
    assert pilotfish(["status", "--address", address, "-n", "shop", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["replicas"] == [{"name": address, "version": VERSION, "error": ""}]
    assert [row["name"] for row in found["sidecars"]] == ["shopper", "users"]
    assert 80_000 < found["sidecars"][0]["certificate_seconds_left"] <= 86_400


def test_what_is_not_in_step_or_not_connected_says_why(mesh: Mesh, tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        done = {**running("done"), "status": {"phase": "Succeeded"}}
        api.put(
            running("users"), running("far"), running("waiting", ready=False), not_pulled("pulling"), done
        )
        far = "/api/v1/namespaces/shop/pods/far:15000/proxy"
        api.documents[f"{far}/ready"] = {}
        api.documents[f"{far}/config_dump"] = {"discovery": {"last_error": "no answer from 10.0.0.9:15010"}}
        api.answer(503, path="/pods/waiting:15000/proxy/ready")
        # Its certificate was signed before this replica began: its sidecar knows.
        api.proxies["shop", "users:15000"] = (HOSTS["users"], ADMIN)
        show_page(api, "cp-a", page(refusing("refuser", "no such field"), client("users", version="0.0.9")))
        assert await run("status", kubeconfig) == 1
        assert capsys.readouterr().out.splitlines() == [
            "NAMESPACE  NAME     VERSION  CONFIGURATION  CERTIFICATE  CONTROL PLANE",
            "shop       far      -        not connected  -            -",
            "    no answer from 10.0.0.9:15010",
            "shop       pulling  -        not connected  -            -",
            "    its sidecar does not run (ImagePullBackOff): kubectl -n shop describe pod pulling",
            f"shop       refuser  {VERSION}    not in step    -            cp-a",
            "    CDS refused users since 2026-01-01T00:00:00Z: no such field",
            "shop       users    0.0.9    in step        23h left     cp-a",
            "shop       waiting  -        not connected  -            -",
            "    the API server cannot reach shop/waiting at port 15000: as the test wants it",
            f"5 sidecars, 4 not in step; control plane {VERSION}, 1 replica",
        ]

    in_cluster(tmp_path, scenario)


def test_every_replica_is_asked_and_the_newest_connection_counts(tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        for name in ("cp-b", "cp-c"):
            api.put(plain(name, SYSTEM, **{"app.kubernetes.io/name": "pilotfish-control-plane"}))
        older, newer = "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"
        show_page(api, "cp-a", page(client("users", connected_at=newer)))
        show_page(api, "cp-b", page(client("users", connected_at=older), client("orders")))
        assert await run("status", "-o", "json", kubeconfig) == 1
        found = json.loads(capsys.readouterr().out)
        assert [(row["name"], row["control_plane"]) for row in found["sidecars"]] == [
            ("orders", "cp-b"),
            ("users", "cp-a"),
        ]
        assert [bool(replica["error"]) for replica in found["replicas"]] == [False, False, True]

    in_cluster(tmp_path, scenario)


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            ["listeners"],
            ["NAME ADDRESS DIRECTION WHAT", "outbound HOST:15001 outbound plain HTTP by authority"],
        ),
        (
            ["routes"],
            [
                "TABLE DOMAINS MATCH TO ROUTE",
                "users.shop.svc.cluster.local:80 * /* users.shop.svc.cluster.local:80 shop/r/0",
            ],
        ),
        (
            ["clusters"],
            [
                "NAME DISCOVERY BALANCING PROTOCOL TLS USABLE ACTIVE DNS",
                "control-plane STRICT_DNS ROUND_ROBIN HTTP/2 TLS 1/1 0",
                "users.shop.svc.cluster.local:80 EDS PEAK_EWMA HTTP/2 TLS 1/1 0",
            ],
        ),
        (
            ["endpoints"],
            [
                "CLUSTER NAME ADDRESS STATE LOCALITY WEIGHT LATENCY REQUESTS FAILURES",
                "control-plane XDS XDS healthy - 1 - 0 0",
                "users.shop.svc.cluster.local:80 endpoint-DASHED TARGET:18080 healthy - 1 N ms 1 0",
            ],
        ),
        (
            ["certs"],
            [
                "PROVIDER IDENTITY SERIAL ENDS LEFT LAST ERROR",
                "mesh spiffe://cluster.local/ns/shop/sa/shopper HEX TIME 23h",
            ],
        ),
    ],
)
def test_pages_of_a_sidecar(
    mesh: Mesh, tmp_path: Path, capsys: Output, words: list[str], lines: list[str]
) -> None:
    def shown() -> list[str]:
        text = capsys.readouterr().out
        for value, name in (
            (HOSTS["shopper"], "HOST"),
            (f"{mesh.host}:15010", "XDS"),
            (HOSTS["users"].replace(".", "-"), "DASHED"),
            (HOSTS["users"], "TARGET"),
        ):
            text = text.replace(value, name)
        text = re.sub(r"[\d.]+ ms", "N ms", re.sub(r"\b[0-9a-f]{30,40}\b", "HEX", text))
        text = re.sub(r"\d{4}-\S+", "TIME", text)
        return [" ".join(line.split()) for line in text.splitlines()]

    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        assert await run("proxy-config", "shopper.shop", *words, kubeconfig) == 0
        assert shown() == lines

    in_mesh(tmp_path, mesh, scenario)
    assert pilotfish(["proxy-config", "--admin", f"{HOSTS['shopper']}:{ADMIN}", *words]) == 0
    assert shown() == lines


def test_json_is_what_the_sidecar_says(mesh: Mesh, capsys: Output) -> None:
    arguments = ["proxy-config", "--admin", f"{HOSTS['users']}:{ADMIN}", "-o", "json"]
    assert pilotfish([*arguments, "certs"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["mesh"]["spiffe_id"] == "spiffe://cluster.local/ns/shop/sa/users"
    )
    assert pilotfish([*arguments, "routes"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["routes", "missing"]


@pytest.mark.parametrize(
    ("pod", "error", "hint"),
    [
        ("user.shop", "there is no pod user in namespace shop", "did you mean users-1, users-2?"),
        (
            "orders.none",
            "there is no pod orders in namespace none",
            "namespace none has no pods; another one: POD.NAMESPACE, or -n NAMESPACE",
        ),
        (
            "alone.shop",
            "pod shop/alone has no sidecar",
            "kubectl label namespace shop mesh.pilotfish.dev/inject",
        ),
        (
            "users-1.shop",
            "the sidecar of pod shop/users-1 does not run (ImagePullBackOff)",
            "kubectl -n shop",
        ),
        ("users-2.shop", "the API server cannot reach shop/users-2 at port 15000", "is a NetworkPolicy"),
        (
            "a.b",
            "you may not get pods in namespace b",
            "kubectl create role pilotfish-get-pods --namespace=b",
        ),
    ],
)
def test_what_is_not_to_be_had_is_said(
    tmp_path: Path, capsys: Output, pod: str, error: str, hint: str
) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        api.put(not_pulled("users-1"), running("users-2"), plain("alone"))
        api.answer(403, path="/namespaces/b/pods/a")
        assert await run("proxy-config", pod, "routes", kubeconfig) == 1
        first, second, *_ = capsys.readouterr().err.splitlines()
        assert first.startswith(f"error: {error}")
        assert second.startswith(f"  {hint}")

    in_cluster(tmp_path, scenario)


def test_no_control_plane_is_said(tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        assert await run("status", kubeconfig, "--system-namespace", "elsewhere") == 1
        assert capsys.readouterr().err.splitlines() == [
            "error: no control plane runs in namespace elsewhere",
            "  kubectl -n elsewhere get pods; if it is elsewhere, use --system-namespace",
            "  docs/troubleshooting.md#the-control-plane-is-not-ready",
        ]

    in_cluster(tmp_path, scenario)


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (
            ["status", "--address", "host:port"],
            "'host:port' is no address of a control plane: nonnumeric port: 'port'",
            "HOST:PORT of its port 15014; kubectl -n NAMESPACE port-forward pod/POD 15014 brings it here",
        ),
        (
            ["proxy-config", "--admin", "127.0.0.1:1", "certs"],
            "no answer from the sidecar at 127.0.0.1:1: [Errno 111] Connection refused",
            "HOST:PORT of its port 15000; kubectl -n NAMESPACE port-forward pod/POD 15000 brings it here",
        ),
    ],
)
def test_an_address_where_nobody_answers_is_said(
    capsys: Output, words: list[str], error: str, hint: str
) -> None:
    assert pilotfish(words) == 1
    assert capsys.readouterr().err.splitlines() == [f"error: {error}", f"  {hint}"]


def test_control_planes_that_do_not_answer_are_said(tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        api.put(plain("cp-b", SYSTEM, **{"app.kubernetes.io/name": "pilotfish-control-plane"}))
        show_page(api, "cp-b", page())
        assert await run("status", kubeconfig) == 1
        assert capsys.readouterr().out.splitlines()[1:] == [
            "! control plane cp-a did not answer: the API server cannot reach pilotfish-system/cp-a at port "
            "15014: error trying to reach service: i/o timeout",
            "    is a NetworkPolicy or a firewall between them?",
            "    docs/troubleshooting.md#the-api-server-cannot-reach-a-pod",
            f"0 sidecars, 0 not in step; control plane {VERSION}, 2 replicas",
        ]

    in_cluster(tmp_path, scenario)


def test_a_stranger_s_certificate_is_not_trusted(tmp_path: Path, capsys: Output) -> None:
    async def scenario(api: KubeApi, kubeconfig: str) -> None:
        other = tmp_path / "other"
        other.mkdir()
        (tmp_path / "api-ca.crt").write_bytes(KubeApi(other)._ca.ca_pem)
        assert await run("status", kubeconfig) == 1
        assert capsys.readouterr().err.startswith(
            f"error: the certificate of the API server https://127.0.0.1:{api.port} is not trusted: "
        )

    in_cluster(tmp_path, scenario)


@pytest.mark.parametrize(
    "words", [["routes"], ["a", "b", "routes"], ["a", "pages"], ["--admin", "h:1", "a", "routes"]]
)
def test_a_wrong_command_line_ends_with_2(capsys: Output, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        pilotfish(["proxy-config", *words])
    assert ended.value.code == 2
    assert "one of listeners, routes, clusters, endpoints, certs" in capsys.readouterr().err
