"""In a cluster a workload presents its projected service-account token; the API server says whose it is.

`TokenReviews` is an Attestor: it asks by TokenReview (authentication.k8s.io/v1). An answer is used again
for a minute, and until the token's own end where the API server gives no other. `ByIssuer` lets join tokens
in as well, for workloads outside of the cluster. Must never take a token that is not for our audience (one
made for another service would do), nor one that the API server has refused since.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt

from control_plane.ca.attestation import (
    ISSUER,
    MAX_TOKEN_CHARS,
    SUBJECT,
    AttestationError,
    Attestor,
    AttestorUnavailable,
)
from control_plane.kube.client import KubeClient, KubeError
from control_plane.model.discovery import Identity
from mesh_api.names import CA_AUDIENCE

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
FRESH = 60.0
"""Seconds that an answer is used without asking again: so long a deleted Pod's token is still taken."""
MAX_REMEMBERED = 20_000
"""Some 8 MB; past it those go that were reviewed longest ago, a deleted Pod's before a living one's."""
TIMEOUT = 10.0
PATIENCE = 2.0
"""The same with an earlier answer at hand: who waits gives up after 10 s (a sidecar's signing request)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Remembered:
    identity: Identity
    fresh_until: float
    ends: float
    """When the token does."""


class TokenReviews:
    """Asks the API server about tokens. An Attestor. `now` is seconds since the epoch."""

    def __init__(self, client: KubeClient, now: Callable[[], float] = time.time) -> None:
        self.reviews = 0
        """How often the API server was asked."""
        self.stale = 0
        """How often an earlier answer had to do."""
        self._client = client
        self._now = now
        self._silent = False
        """Earlier answers are in use: the API server gave none when it was asked last."""
        self._remembered: dict[bytes, _Remembered] = {}
        """By the token's hash, the one reviewed longest ago first."""

    def __repr__(self) -> str:
        counts = f"reviews={self.reviews} stale={self.stale} known={len(self._remembered)}"
        return f"<TokenReviews audience={CA_AUDIENCE} {counts}>"

    async def attest(self, token: str) -> Identity:
        """Raises AttestationError, and AttestorUnavailable when the API server gives no answer and never
        gave one."""
        if len(token) > MAX_TOKEN_CHARS:
            raise AttestationError(f"the token is longer than {MAX_TOKEN_CHARS} characters")
        key = hashlib.sha256(token.encode()).digest()
        known = self._remembered.get(key)
        if known is not None and self._now() < known.fresh_until:
            return known.identity
        try:
            status = await self._review(token, TIMEOUT if known is None else PATIENCE)
        except KubeError as error:
            return self._earlier(key, error)
        if self._silent:
            self._silent = False
            log.info("tokens are reviewed again: the API server answers")
        try:
            identity = _identity(status)
        except AttestationError:
            self._remembered.pop(key, None)
            raise
        self._remember(key, identity, token)
        return identity

    async def _review(self, token: str, within: float) -> dict[str, Any]:
        """The status that the API server gives the token. Raises KubeError."""
        self.reviews += 1
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "metadata": {},
            "spec": {"token": token, "audiences": [CA_AUDIENCE]},
        }
        answer = await self._client.request("POST", PATH, body, within=within)
        status = answer.get("status")
        return status if isinstance(status, dict) else {}

    def _earlier(self, key: bytes, error: KubeError) -> Identity:
        """What an earlier review said, where this one found the API server away or overloaded. Raises
        AttestorUnavailable."""
        known = self._remembered.get(key)
        away = error.status in (0, 429) or error.status >= 500
        if known is None or not away or self._now() >= known.ends:
            hint = " (may the control plane create tokenreviews?)" if error.status in (401, 403) else ""
            raise AttestorUnavailable(f"the token cannot be reviewed: {error}{hint}") from error
        self.stale += 1
        if not self._silent:
            self._silent = True
            log.warning("tokens cannot be reviewed, earlier answers hold until the tokens end: %s", error)
        return known.identity

    def _remember(self, key: bytes, identity: Identity, token: str) -> None:
        now = self._now()
        ends = _end(token, now)
        self._remembered.pop(key, None)
        self._remembered[key] = _Remembered(identity, min(now + FRESH, ends), ends)
        while self._remembered:
            oldest = next(iter(self._remembered))
            if len(self._remembered) <= MAX_REMEMBERED and now < self._remembered[oldest].ends:
                break
            del self._remembered[oldest]


def _identity(status: dict[str, Any]) -> Identity:
    """Raises AttestationError unless the API server vouches for the token, to us, as an account's."""
    if status.get("authenticated") is not True:
        why = status.get("error") or "the API server does not know it"
        raise AttestationError(f"the token is not valid: {why}")
    # A server that knows no audiences answers without them: such a token may have been meant for anyone.
    audiences = status.get("audiences") or []
    if CA_AUDIENCE not in audiences:
        raise AttestationError(
            f"the token is for audiences {audiences!r}; expected {CA_AUDIENCE!r}: mount a projected "
            f"serviceAccountToken with audience {CA_AUDIENCE}"
        )
    name = (status.get("user") or {}).get("username")
    match = SUBJECT.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise AttestationError(f"the token is for {name!r}; expected system:serviceaccount:NAMESPACE:ACCOUNT")
    return Identity(*match.groups())


def _end(token: str, now: float) -> float:
    """When the token expires, as it says itself: the API server has verified it. `now` if it does not."""
    expires = _claims(token).get("exp")
    return float(expires) if isinstance(expires, int | float) and not isinstance(expires, bool) else now


def _claims(token: str) -> dict[str, Any]:
    """Unverified; empty for what is no JWT."""
    try:
        return jwt.decode(token, options={"verify_signature": False})
    except (jwt.InvalidTokenError, ValueError):
        return {}


class ByIssuer:
    """Join tokens to the one attestor, all others to the other. Both verify what they take."""

    def __init__(self, join_tokens: Attestor, others: Attestor) -> None:
        self._join_tokens = join_tokens
        self._others = others

    def __repr__(self) -> str:
        return f"<ByIssuer {self._join_tokens!r} {self._others!r}>"

    async def attest(self, token: str) -> Identity:
        """Raises AttestationError and AttestorUnavailable."""
        join = len(token) <= MAX_TOKEN_CHARS and _claims(token).get("iss") == ISSUER
        return await (self._join_tokens if join else self._others).attest(token)
