"""Certificates that live ten seconds, under load: renewed and swapped without a dropped request."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from tests.support.kubernetes import account, endpoint_slice, service
from tests.support.load import Load
from tests.support.mesh import Mesh
from tests.support.processes import eventually, loopback
from tests.support.sidecars import OUTBOUND, Sidecar


def certificate(sidecar: Sidecar) -> Any:
    return sidecar.json("/certs")["mesh"]


def test_leaves_of_ten_seconds_are_renewed_and_no_request_fails(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "--max-leaf-ttl", "10s")
    hosts = {name: loopback() for name in ("shopper", "users")}
    mesh.save("accounts", *(account(name) for name in hosts))
    mesh.save("users", service("users"), endpoint_slice("users-a", hosts["users"], runs_as="users"))
    try:
        mesh.start_control_plane()
        sidecars = [mesh.sidecar(name, name, host) for name, host in hosts.items()]
        mesh.app("users", hosts["users"])
        for sidecar in sidecars:
            sidecar.ready()
        serials: list[set[str]] = [set(), set()]

        def renewed_twice() -> bool:
            for seen, sidecar in zip(serials, sidecars, strict=True):
                seen.add(certificate(sidecar)["serial"])
            return all(len(seen) >= 3 for seen in serials)

        with Load((hosts["shopper"], OUTBOUND), "http://users/") as load:
            eventually(renewed_twice, "two renewals of both", patience=60.0)
            load.more(50)
        assert load.failures() == []
        assert len(load.outcomes) > 200
        for sidecar in sidecars:
            shown = certificate(sidecar)
            end = datetime.datetime.fromisoformat(shown["not_after"])
            left = end - datetime.datetime.now(datetime.UTC)
            assert datetime.timedelta(0) < left <= datetime.timedelta(seconds=10)
    finally:
        mesh.stop()
