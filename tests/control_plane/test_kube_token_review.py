"""TokenReview: whose token it is, for whom it was made, how long an answer holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.ca import token_review
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

    def reviews_log(self, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == token_review.__name__]

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


def test_a_day_without_the_api_server_shuts_nobody_out_before_their_token_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig) -> None:
        token = rig.token(lifetime=12 * 3600.0)
        await rig.reviews.attest(token)
        await rig.api.down()
        for _ in range(23):
            rig.now += 1800
            assert await rig.reviews.attest(token) == Identity("shop", "users")
        assert (rig.reviews.stale, len(rig.reviews_log(caplog))) == (23, 1)
        rig.now += 1800
        with pytest.raises(AttestorUnavailable, match="cannot be reviewed"):
            await rig.reviews.attest(token)

    run(tmp_path, scenario)


def test_what_is_known_from_earlier_is_asked_again_once_the_api_server_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def scenario(rig: Rig) -> None:
        token = rig.token()
        await rig.reviews.attest(token)
        for _ in range(2):
            await rig.api.down()
            rig.now += 100
            await rig.reviews.attest(token)
            await rig.api.up()
            await rig.reviews.attest(token)
        assert rig.reviews.stale == 2
        assert [record.levelname for record in rig.reviews_log(caplog)] == ["WARNING", "INFO"] * 2
        rig.now += 59
        await rig.reviews.attest(token)
        assert rig.reviews.reviews == 5

    run(tmp_path, scenario)


@pytest.mark.parametrize(("status", "overloaded"), [(429, True), (500, True), (503, True), (403, False)])
def test_an_overloaded_api_server_gives_no_answer_and_one_that_forbids_does(
    tmp_path: Path, status: int, overloaded: bool
) -> None:
    async def scenario(rig: Rig) -> None:
        token = rig.token()
        await rig.reviews.attest(token)
        rig.now += 100
        rig.api.answer(status, path=PATH)
        if overloaded:
            assert await rig.reviews.attest(token) == Identity("shop", "users")
        else:
            with pytest.raises(AttestorUnavailable, match="403"):
                await rig.reviews.attest(token)

    run(tmp_path, scenario)


def test_a_silent_api_server_does_not_make_a_known_caller_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(rig: Rig) -> None:
        token = rig.token()
        await rig.reviews.attest(token)
        rig.now += 100
        rig.api.delay = 3600.0
        monkeypatch.setattr(token_review, "PATIENCE", 0.05)
        assert await rig.reviews.attest(token) == Identity("shop", "users")

    run(tmp_path, scenario)


def test_a_token_that_was_refused_since_is_not_known_any_more(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        token = rig.token()
        await rig.reviews.attest(token)
        rig.now += 100
        rig.api.tokens[token] = {"authenticated": False, "error": "the pod is gone"}
        await rig.refusal(token)
        await rig.api.down()
        with pytest.raises(AttestorUnavailable):
            await rig.reviews.attest(token)

    run(tmp_path, scenario)


def test_past_its_bound_the_memory_loses_what_was_reviewed_longest_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_review, "MAX_REMEMBERED", 2)

    async def scenario(rig: Rig) -> None:
        first, second, third = (rig.token(nr=number) for number in range(3))
        await rig.reviews.attest(first)
        await rig.reviews.attest(second)
        rig.now += 100
        await rig.reviews.attest(first)
        await rig.reviews.attest(third)
        await rig.api.down()
        for token in (first, third):
            await rig.reviews.attest(token)
        with pytest.raises(AttestorUnavailable):
            await rig.reviews.attest(second)

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
