"""TokenReview: whose token it is, for whom it was made, how long an answer holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.ca.attestation import AttestationError, AttestorUnavailable, JoinTokens
from control_plane.ca.token_review import PATH, ByIssuer, TokenReviews
from control_plane.kube.access import from_kubeconfig
from control_plane.kube.client import KubeClient
from control_plane.model.discovery import Identity
from tests.support.kube_api import KubeApi

NOW = 1_800_000_000.0


class Rig:
    def __init__(self, api: KubeApi, client: KubeClient) -> None:
        self.api = api
        self.now = NOW
        self.reviews = TokenReviews(client, lambda: self.now)

    def token(self, lifetime: float = 3600.0, status: dict[str, Any] | None = None, **more: Any) -> str:
        """A token that the API server vouches for, unless `status` says otherwise."""
        token = jwt.encode({"exp": NOW + lifetime, **more}, "k" * 32, algorithm="HS256")
        self.api.tokens[token] = valid() if status is None else status
        return token

    async def refusal(self, token: str) -> str:
        with pytest.raises(AttestationError) as caught:
            await self.reviews.attest(token)
        assert token not in str(caught.value)
        return str(caught.value)


def valid(**more: Any) -> dict[str, Any]:
    user = {"username": "system:serviceaccount:shop:users", "groups": ["system:serviceaccounts"]}
    return {"authenticated": True, "user": user, "audiences": ["mesh-ca"], **more}


def run(tmp_path: Path, scenario: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), KubeApi(tmp_path) as api:
            client = KubeClient(from_kubeconfig(api.kubeconfig()))
            try:
                await scenario(Rig(api, client))
            finally:
                await client.close()

    asyncio.run(main())


def test_the_account_is_what_the_api_server_says(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        assert await rig.reviews.attest(rig.token(sub="someone-else")) == Identity("shop", "users")
        assert len(rig.api.seen("POST", PATH)) == 1

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"authenticated": False, "error": "token expired"}, "token expired"),
        ({}, "does not know it"),
        (valid(authenticated="true"), "not valid"),
        (valid(audiences=["api"]), "expected 'mesh-ca'"),
        (valid(audiences=[]), "expected 'mesh-ca'"),
        (valid(audiences=None), "expected 'mesh-ca'"),
        (valid(user={"username": "system:node:n1"}), "system:serviceaccount:NAMESPACE:ACCOUNT"),
        (valid(user={"username": "system:serviceaccount:shop:users:x"}), "system:serviceaccount"),
        (valid(user={"username": "kubernetes-admin"}), "system:serviceaccount"),
        (valid(user=None), "system:serviceaccount"),
    ],
)
def test_a_token_that_is_not_an_accounts_and_for_us_is_refused(
    tmp_path: Path, status: dict[str, Any], says: str
) -> None:
    async def scenario(rig: Rig) -> None:
        assert says in await rig.refusal(rig.token(status=status))

    run(tmp_path, scenario)


def test_an_answer_holds_for_a_minute(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        token = rig.token()
        await rig.reviews.attest(token)
        rig.api.tokens.clear()
        rig.now += 59.9
        await rig.reviews.attest(token)
        assert rig.reviews.reviews == 1
        rig.now += 0.2
        await rig.refusal(token)

    run(tmp_path, scenario)


@pytest.mark.parametrize("lifetime", [10.0, 0.0])
def test_an_answer_does_not_outlive_the_token(tmp_path: Path, lifetime: float) -> None:
    async def scenario(rig: Rig) -> None:
        token = rig.token(lifetime)
        await rig.reviews.attest(token)
        rig.now += lifetime
        rig.api.tokens.clear()
        await rig.refusal(token)

    run(tmp_path, scenario)


def test_what_says_nothing_of_its_end_is_reviewed_each_time(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.api.tokens["opaque"] = valid()
        for _ in range(2):
            await rig.reviews.attest("opaque")
        assert rig.reviews.reviews == 2

    run(tmp_path, scenario)


def test_refusals_are_not_remembered(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        token = rig.token(status={"authenticated": False})
        await rig.refusal(token)
        rig.api.tokens[token] = valid()
        assert await rig.reviews.attest(token) == Identity("shop", "users")

    run(tmp_path, scenario)


def test_without_an_answer_nobody_is_refused_and_those_known_still_pass(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        known, new = rig.token(), rig.token(nr=2)
        await rig.reviews.attest(known)
        rig.api.answer(403, path=PATH)
        with pytest.raises(AttestorUnavailable, match="may the control plane create tokenreviews"):
            await rig.reviews.attest(new)
        await rig.api.down()
        assert await rig.reviews.attest(known) == Identity("shop", "users")
        with pytest.raises(AttestorUnavailable, match="cannot be reviewed"):
            await rig.reviews.attest(new)

    run(tmp_path, scenario)


def test_an_endless_token_does_not_reach_the_api_server(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        assert "longer than" in await rig.refusal("x" * 9000)
        assert rig.reviews.reviews == 0

    run(tmp_path, scenario)


def test_join_tokens_pass_beside_reviews_and_a_forged_issuer_does_not(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        join = JoinTokens(ec.generate_private_key(ec.SECP256R1()))
        either = ByIssuer(join, rig.reviews)
        outside = join.issue("shop", "laptop", timedelta(hours=1))
        assert await either.attest(outside) == Identity("shop", "laptop")
        assert rig.reviews.reviews == 0
        assert await either.attest(rig.token()) == Identity("shop", "users")
        stranger = JoinTokens(ec.generate_private_key(ec.SECP256R1()))
        with pytest.raises(AttestationError, match="not signed by this mesh's join-token key"):
            await either.attest(stranger.issue("shop", "users", timedelta(hours=1)))

    run(tmp_path, scenario)
