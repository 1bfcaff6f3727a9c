"""Captured pods as they come and go: rolled under load, drained, crashed, and without a control plane.

As `test_captured_mesh.py`; the tests stand in for the kubelet, kube-proxy and the cluster's DNS.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.captured_mesh import CapturedMesh, CapturedPod
from tests.support.processes import Process, eventually

TOOLS = ("ip", "nft", "setpriv", "curl")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason="needs iproute2, nftables, curl, util-linux"
    ),
]
CLIENT = "spiffe://cluster.local/ns/shop/sa/client"
PROBED = {"readinessProbe": {"httpGet": {"path": "/health", "port": 8080}}}


@pytest.fixture(scope="module")
def mesh() -> Iterator[CapturedMesh]:
    with tempfile.TemporaryDirectory(prefix="pilotfish-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        with CapturedMesh(directory) as made:
            client = made.add_pod("client", "client", "http=8080")
            users = [add_users(made, number) for number in (1, 2)]
            outside = made.add_outside("outside", "http=80")
            made.network.records["partner.example"] = list(outside.host.addresses.values())
            made.ready(client, *users, outside)
            made.add_service("users", *users)
            made.add_service("client", client)
            eventually(lambda: curl(client, "http://users/")["name"].startswith("users"))
            yield made


def add_users(mesh: CapturedMesh, number: int) -> CapturedPod:
    return mesh.add_pod(f"users-{number}", "users", "http=8080", container=PROBED)


def curl(pod: CapturedPod, *arguments: str) -> dict[str, Any]:
    text = pod.must("curl", "-sS", "--noproxy", "*", "--max-time", "10", *arguments)
    try:
        return dict(json.loads(text))
    except ValueError:
        raise AssertionError(text) from None


def proved(answer: dict[str, Any]) -> str:
    return str(answer["headers"].get("x-forwarded-client-cert", "").rpartition("URI=")[2])


def load(mesh: CapturedMesh, pod: CapturedPod, url: str) -> Process:
    """Goes on until it is terminated; its last line counts what it has seen."""
    command = (sys.executable, "-m", "tests.support.captured_clients", "load", url)
    return mesh.start(pod, f"{pod.name}-load", *command)


def leave(mesh: CapturedMesh, pod: CapturedPod, stay: list[CapturedPod]) -> None:
    """As Kubernetes takes a pod away: discovery says so; the kubelet runs the hooks of the sidecar and of the
    application side by side; SIGTERM comes to the application first."""
    pod.manifest["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    mesh.kube.put(pod.manifest)
    eventually(lambda: mesh.kubelet(pod, "/ready") == (503, "draining\n"), "draining by discovery")
    with ThreadPoolExecutor() as kubelet:
        drained = kubelet.submit(mesh.hook, pod, "drain", "--deadline", "25")
        mesh.add_service("users", pod, *stay)
        time.sleep(1.5)  # the application's own preStop
        pod.terminated()
        assert drained.result().returncode == 0, drained.result().stdout
    mesh.add_service("users", *stay)
    mesh.kube.delete("Pod", pod.name)


def test_a_service_is_rolled_under_load_without_a_failure(mesh: CapturedMesh) -> None:
    one, two = mesh.pods["users-1"], mesh.pods["users-2"]
    running = load(mesh, mesh.pods["client"], "http://users/")

    def answered(*names: str) -> bool:
        running.check()
        lines = running.out.read_text().splitlines()
        return all(f"200 {name}" in lines for name in names)

    eventually(lambda: answered("users-1", "users-2"))
    new = add_users(mesh, 3)
    mesh.ready(new)
    mesh.add_service("users", one, two, new)
    # A first connection that a busy machine makes too slowly is held against the new one for a while.
    eventually(lambda: answered("users-3"), patience=60)
    leave(mesh, one, [two, new])
    running.terminate()
    running.wait()
    seen = json.loads(running.out.read_text().splitlines()[-1])
    assert set(seen) == {"200 users-1", "200 users-2", "200 users-3"}
    assert sum(seen.values()) > 100


def test_a_service_of_pods_that_run_already_answers_from_the_first_request(mesh: CapturedMesh) -> None:
    """Its callers may hear of it before the pods' own sidecars do."""
    client = mesh.pods["client"]
    ports = range(9001, 9009)
    pod = mesh.add_pod("late", "late", *(f"http={port}" for port in ports))
    mesh.ready(pod)
    for port in ports:
        name = f"late-{port}"
        mesh.add_service(name, pod, ports=[{"name": "http", "port": 80, "targetPort": port}])
        answered = client.run("curl", "-s", "--noproxy", "*", "--max-time", "10", *[f"http://{name}/"] * 20)
        assert answered.stdout.count('"name": "late"') == 20, answered.stdout


def test_a_pod_that_drains_still_calls_and_ends_what_was_begun(mesh: CapturedMesh) -> None:
    client, pod, stays = mesh.pods["client"], mesh.pods["users-2"], mesh.pods["users-3"]
    with ThreadPoolExecutor() as background:
        slow = background.submit(curl, client, f"http://{pod.ip}:8080/slow?after=2")
        time.sleep(0.5)
        begun = time.monotonic()
        drained = background.submit(mesh.hook, pod, "drain", "--deadline", "25")
        eventually(lambda: mesh.kubelet(pod, "/ready") == (503, "draining\n"), "draining")
        mesh.add_service("users", stays)
        assert proved(curl(pod, "http://client/")).endswith("/sa/users")
        assert curl(pod, "http://partner.example/")["name"] == "outside"
        assert slow.result()["name"] == "users-2"
        assert drained.result().returncode == 0, drained.result().stdout
        assert time.monotonic() - begun < 20
    for own in ("127.0.0.1", "[::1]", pod.ip, f"[{pod.host.addresses[6]}]"):
        # The pod controls its sidecar at any of its addresses.
        drain = f"http://{own}:15000/drain"
        assert pod.must("curl", "-sg", "--noproxy", "*", "-X", "POST", drain) == "draining\n"
    # The application outlives the hook, and still calls.
    assert proved(curl(pod, "http://client/")).endswith("/sa/users")
    pod.terminated()
    assert pod.sidecar is not None
    assert pod.sidecar.child.returncode == 0


def test_draining_waits_for_sessions_of_opaque_tcp(mesh: CapturedMesh) -> None:
    pod = mesh.add_pod("cache-1", "cache", "echo=6379")
    mesh.ready(pod)
    with mesh.pods["outside"].host.namespace.socket(4) as client:
        client.connect((pod.ip, 6379))
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        waited = mesh.hook(pod, "drain", "--deadline", "0")
        assert waited.stdout == "deadline passed: 1 inbound connections are left\n"
        assert waited.returncode == 1
    assert mesh.hook(pod, "drain", "--deadline", "25").returncode == 0


def test_an_application_beside_an_ordinary_sidecar_calls_until_it_says_that_it_has_ended(
    mesh: CapturedMesh,
) -> None:
    pod = mesh.add_pod("worker-1", "worker", "http=8080", native_sidecar="disabled")
    mesh.ready(pod)
    sidecar = pod.sidecar
    assert sidecar is not None
    sidecar.terminate()  # with the application, not after it
    eventually(lambda: "the others stay until the applications have ended" in sidecar.log())
    assert proved(curl(pod, "http://client/")).endswith("/sa/worker")
    assert pod.must("curl", "-s", "-X", "POST", "http://127.0.0.1:15000/quitquitquit")
    assert sidecar.wait() == 0
    assert pod.run("curl", "-s", "--noproxy", "*", "http://client/").returncode == 7  # no connection


@pytest.fixture
def works(mesh: CapturedMesh) -> Callable[[], bool]:
    """Both directions of the client's pod."""

    def both() -> bool:
        client, users = mesh.pods["client"], mesh.pods["users-3"]
        assert proved(curl(client, "http://users/")) == CLIENT
        assert proved(curl(users, "http://client/")).endswith("/sa/users")
        return True

    return both


def test_a_sidecar_that_crashes_fails_fast_and_its_successor_takes_over(
    mesh: CapturedMesh, works: Callable[[], bool]
) -> None:
    client, users = mesh.pods["client"], mesh.pods["users-3"]
    eventually(works)
    rules = client.host.namespace.must("nft", "list", "table", "inet", "pilotfish")
    assert client.sidecar is not None
    client.sidecar.kill()
    begun = time.monotonic()
    failed = client.run("curl", "-sS", "--noproxy", "*", "--max-time", "10", "http://users/")
    assert failed.returncode == 7, failed.stdout  # no connection
    failed = users.run("curl", "-s", "--noproxy", "*", "--max-time", "10", "http://client/")
    assert "client/" not in failed.stdout
    assert time.monotonic() - begun < 5
    assert client.host.namespace.must("nft", "list", "table", "inet", "pilotfish") == rules
    mesh.start_sidecar(client)
    mesh.ready(client)
    works()


def test_what_was_known_works_without_a_control_plane(mesh: CapturedMesh, works: Callable[[], bool]) -> None:
    client, users = mesh.pods["client"], mesh.pods["users-3"]
    eventually(works)
    direct = f"http://{users.ip}:8080/"
    assert proved(curl(client, direct)) == CLIENT
    assert curl(users, "http://partner.example/")["name"] == "outside"
    mesh.control_plane.kill()
    works()
    assert proved(curl(client, direct)) == CLIENT
    assert curl(users, "http://partner.example/")["name"] == "outside"
    assert mesh.kubelet(users, "/app-health/app/readyz")[0] == 200
    mesh.start_control_plane()
    new = add_users(mesh, 4)
    mesh.ready(new)
    mesh.add_service("users", new)
    eventually(lambda: curl(client, "http://users/")["name"] == "users-4")
    works()
