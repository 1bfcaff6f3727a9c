"""Join tokens: what they prove, and what is said of those that prove nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from control_plane.ca.attestation import AttestationError, JoinTokens
from control_plane.model.discovery import Identity

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
HOUR = timedelta(hours=1)


def tokens(now: datetime = NOW, key: ec.EllipticCurvePrivateKey = KEY) -> JoinTokens:
    return JoinTokens(key, lambda: now)


def attest(token: str, now: datetime = NOW) -> Identity:
    return asyncio.run(tokens(now).attest(token))


def forged(algorithm: str = "ES256", key: Any = KEY, **changes: Any) -> str:
    claims: dict[str, Any] = {
        "iss": "pilotfish-join-token",
        "sub": "system:serviceaccount:shop:users",
        "aud": "mesh-ca",
        "exp": NOW + HOUR,
    }
    claims.update(changes)
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm=algorithm)


def test_a_token_proves_the_account_that_it_was_issued_for() -> None:
    assert attest(tokens().issue("shop", "users", HOUR)) == Identity("shop", "users")
    assert attest(forged(aud=["other", "mesh-ca"])) == Identity("shop", "users")


def test_a_token_expires_at_its_second() -> None:
    token = tokens().issue("shop", "users", HOUR)
    assert attest(token, NOW + HOUR - timedelta(seconds=1)) == Identity("shop", "users")
    with pytest.raises(AttestationError, match=r"expired at 2026-06-01T13:00:00Z, 0 s ago.*pilotfish token"):
        attest(token, NOW + HOUR)
    with pytest.raises(AttestationError, match=r"shop:users expired at 2026-06-01T13:00:00Z, 60 s ago"):
        attest(token, NOW + HOUR + timedelta(seconds=60))


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (lambda: forged(aud="vault"), r"for audience 'vault'; expected 'mesh-ca'"),
        (lambda: forged(sub="users"), r"for 'users'; expected system:serviceaccount:NAMESPACE:ACCOUNT"),
        (lambda: forged(sub="system:serviceaccount:a/b:c"), "expected system:serviceaccount"),
        (lambda: forged(sub="system:serviceaccount:a:b:c"), "expected system:serviceaccount"),
        (lambda: forged(exp=None), "no claim 'exp'"),
        (lambda: forged(aud=None), "no claim 'aud'"),
        (lambda: forged(sub=None), "no claim 'sub'"),
        (lambda: forged(iss="somebody"), "issuer is not 'pilotfish-join-token'"),
        (lambda: forged(key=ec.generate_private_key(ec.SECP256R1())), "not signed by this mesh's"),
        (lambda: forged("HS256", b"0" * 32), "not signed with ES256"),
        (lambda: forged("none", None), "not signed with ES256"),
        (lambda: "not-a-token", "not a valid JWT"),
        (lambda: "x" * 10_000, "longer than 8192"),
    ],
)
def test_a_token_that_proves_nothing_is_refused_with_its_reason(token: Any, text: str) -> None:
    with pytest.raises(AttestationError, match=text):
        attest(token())


def test_an_expired_token_of_another_mesh_is_told_apart_from_an_expired_one() -> None:
    token = forged(key=ec.generate_private_key(ec.SECP256R1()), exp=NOW - HOUR)
    with pytest.raises(AttestationError, match="not signed by this mesh's"):
        attest(token)


@given(st.text(max_size=200))
def test_no_text_passes_for_a_token(text: str) -> None:
    with pytest.raises(AttestationError):
        attest(text)


@given(st.integers(0, 10_000), st.characters(codec="ascii"))
def test_no_single_character_of_a_token_can_be_changed(place: int, character: str) -> None:
    token = TOKEN
    place %= len(token)
    changed = token[:place] + character + token[place + 1 :]
    try:
        assert attest(changed) == Identity("shop", "users")
        # The last character of a base64 part carries unused bits: the same bytes, not another token.
        assert place in (token.find(".") - 1, token.rfind(".") - 1, len(token) - 1) or changed == token
    except AttestationError:
        assert changed != token


TOKEN = tokens().issue("shop", "users", HOUR)


@pytest.mark.parametrize(
    ("namespace", "account"), [("", "a"), ("a", ""), ("A", "b"), ("a:b", "c"), ("a", "b/c")]
)
def test_tokens_are_issued_for_possible_names_alone(namespace: str, account: str) -> None:
    with pytest.raises(ValueError, match="not a namespace and service account"):
        tokens().issue(namespace, account, HOUR)


def test_a_token_must_live() -> None:
    with pytest.raises(ValueError, match="positive"):
        tokens().issue("shop", "users", timedelta(0))


def test_the_key_is_kept_beside_the_root_and_used_again(tmp_path: Path) -> None:
    directory = tmp_path / "ca"
    token = JoinTokens.in_directory(directory).issue("shop", "users", HOUR)
    assert asyncio.run(JoinTokens.in_directory(directory).attest(token)) == Identity("shop", "users")
    assert (directory / "join-token-key.pem").stat().st_mode & 0o777 == 0o600
