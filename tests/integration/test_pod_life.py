"""A workload's sidecar and its control plane: it waits for it at first, and drains on its word."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kubernetes import account, endpoint_slice, service
from tests.support.mesh import Mesh
from tests.support.processes import eventually, loopback


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    made = Mesh(tmp_path)
    made.save("accounts", account("users"))
    try:
        yield made
    finally:
        made.stop()


def says(mesh: Mesh, host: str, **conditions: bool) -> None:
    endpoint = {"addresses": [host], "conditions": conditions}
    mesh.save("users", service("users"), endpoint_slice("users-a", endpoint, runs_as="users"))


def test_draining_begins_when_discovery_says_that_the_workload_ends(mesh: Mesh) -> None:
    host = loopback()
    says(mesh, host, ready=True)
    mesh.start_control_plane()
    sidecar = mesh.sidecar("users", "users", host, (), "--drain-deadline", "30").ready()
    says(mesh, host, ready=False, serving=True, terminating=True)
    eventually(lambda: sidecar.get("/ready") == (503, "draining\n"), "draining by discovery")
    # The hook comes later, and begins nothing anew.
    assert sidecar.get("/drain", "POST") == (200, "draining\n")
    time.sleep(0.2)  # of the one deadline
    sidecar.terminate()
    assert sidecar.wait(15) == 0
    log = sidecar.err.read_text()
    assert log.count("draining: clients are told to go elsewhere") == 1
    [seconds] = re.findall(r"draining, for at most ([\d.]+) s", log)
    assert float(seconds) < 30


def test_a_sidecar_waits_for_its_control_plane_and_says_so(mesh: Mesh) -> None:
    host = loopback()
    says(mesh, host, ready=True)
    mesh.start_control_plane()  # makes the root that the sidecar is given
    mesh.control_plane.stop()
    sidecar = mesh.sidecar("users", "users", host)

    def waits() -> bool:
        status, text = sidecar.get("/ready")
        return status == 503 and text.startswith("waiting for the first certificate of provider mesh: ")

    eventually(waits, "the sidecar to say what it waits for")
    assert "connection refused" in sidecar.get("/ready")[1]
    mesh.start_control_plane()
    sidecar.ready()
