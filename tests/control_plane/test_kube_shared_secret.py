"""The mesh's keys in a Secret: made once, shared by replicas, never replaced."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from control_plane.ca import shared_secret
from control_plane.ca.shared_secret import NAME, SharedKeys, load_or_make
from control_plane.ca.store import CaError
from control_plane.kube.access import from_kubeconfig
from control_plane.kube.client import KubeClient
from control_plane.model.discovery import Identity
from tests.support.kube_api import KubeApi

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


class Rig:
    def __init__(self, api: KubeApi, client: KubeClient) -> None:
        self.api = api
        self.client = client
        self.stop = asyncio.Event()

    async def load(self, trust_domain: str = "cluster.local") -> SharedKeys:
        keys = await load_or_make(self.client, "mesh", trust_domain, DAY, self.stop)
        assert keys is not None
        return keys


def run(tmp_path: Path, scenario: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), KubeApi(tmp_path) as api:
            client = KubeClient(from_kubeconfig(api.kubeconfig()))
            try:
                await scenario(Rig(api, client))
            finally:
                await client.close()

    asyncio.run(main())


def test_replicas_that_start_at_once_have_one_root_and_one_join_key(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.api.delay = 0.02  # all of them look before the first has made it
        replicas = await asyncio.gather(*(rig.load() for _ in range(4)))
        assert len({replica.authority.root_pem for replica in replicas}) == 1
        token = replicas[0].join_tokens.issue("shop", "users", HOUR)
        for replica in replicas:
            assert await replica.join_tokens.attest(token) == Identity("shop", "users")
        assert len(rig.api.seen("POST", "/secrets")) > 1

    run(tmp_path, scenario)


def test_a_restart_reads_what_is_there(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        first = await rig.load()
        before = rig.api.get("Secret", NAME, "mesh")
        assert (await rig.load()).authority.root_pem == first.authority.root_pem
        assert rig.api.get("Secret", NAME, "mesh") == before
        assert set(before["data"]) == {"root.pem", "root-key.pem", "join-token-key.pem"}

    run(tmp_path, scenario)


def test_another_trust_domain_than_the_roots_stops_the_start(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.load()
        with pytest.raises(CaError, match=r"root\.pem of Secret mesh/pilotfish-ca is that of trust domain"):
            await rig.load("another.example")

    run(tmp_path, scenario)


@pytest.mark.parametrize("name", ["root.pem", "root-key.pem", "join-token-key.pem"])
def test_a_damaged_secret_is_named_and_not_replaced(tmp_path: Path, name: str) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.load()
        secret = rig.api.get("Secret", NAME, "mesh")
        value = secret["data"].pop(name)
        with pytest.raises(CaError, match=f"Secret mesh/pilotfish-ca has no {name}"):
            await rig.load()
        secret["data"][name] = "%"
        with pytest.raises(CaError, match=f"{name} of Secret mesh/pilotfish-ca is not base64"):
            await rig.load()
        secret["data"][name] = base64.b64encode(b"x").decode()
        with pytest.raises(CaError, match=f"{name} of Secret mesh/pilotfish-ca"):
            await rig.load()
        secret["data"][name] = value
        await rig.load()

    run(tmp_path, scenario)


def test_missing_rights_stop_the_start_and_an_absent_server_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_secret, "RETRY", 0.02)

    async def scenario(rig: Rig) -> None:
        rig.api.answer(403, path=NAME)
        with pytest.raises(CaError, match="must be allowed to get and create Secrets in mesh"):
            await rig.load()
        rig.api.answer(503, path=NAME, times=2)
        await rig.load()
        await rig.api.down()
        rig.stop.set()
        assert await load_or_make(rig.client, "mesh", "cluster.local", DAY, rig.stop) is None

    run(tmp_path, scenario)
