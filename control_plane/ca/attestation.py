"""Who a caller is: from the token that it presents to the account that it runs as.

Used by the ADS server and by the signing service through `control_plane.ca.service`. Off Kubernetes a
workload presents a join token: a JWT signed with a key that lies beside the mesh's root, for one service
account. Other proofs implement Attestor. Must never trust what a caller says beside its token.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.types import Options

from control_plane.ca import store
from control_plane.ca.authority import Clock, utc_now
from control_plane.model.discovery import Identity
from mesh_api.names import CA_AUDIENCE

JOIN_TOKEN_KEY_FILE = "join-token-key.pem"
ISSUER = "pilotfish-join-token"
MAX_TOKEN_CHARS = 8192
_LABEL = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
SUBJECT = re.compile(rf"system:serviceaccount:({_LABEL}):({_LABEL})")


class AttestationError(Exception):
    """A token proves nothing; the text says why and what to do, and never quotes the token."""


class AttestorUnavailable(Exception):
    """Nobody can say now what a token proves: the caller is to come again."""


class Attestor(Protocol):
    """Tells a caller's account from its token."""

    async def attest(self, token: str) -> Identity:
        """Raises AttestationError and AttestorUnavailable."""


class JoinTokens:
    """Issues join tokens and tells accounts from them. An Attestor."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, now: Clock = utc_now) -> None:
        self._key = key
        self._now = now

    def __repr__(self) -> str:
        return f"<JoinTokens audience={CA_AUDIENCE}>"

    @classmethod
    def in_directory(cls, directory: Path, now: Clock = utc_now) -> JoinTokens:
        """With the key kept in the CA directory, made at the first use. Raises CaError."""
        store.private_directory(directory)
        return cls(store.load_or_make_key(directory / JOIN_TOKEN_KEY_FILE), now)

    def issue(self, namespace: str, service_account: str, lifetime: timedelta) -> str:
        """A token that proves this account until `lifetime` is over. Raises ValueError for names that
        Kubernetes would not take."""
        subject = f"system:serviceaccount:{namespace}:{service_account}"
        if SUBJECT.fullmatch(subject) is None:
            raise ValueError(f"not a namespace and service account: {namespace!r}, {service_account!r}")
        if lifetime <= timedelta(0):
            raise ValueError("a token's lifetime must be positive")
        now = self._now()
        claims = {"iss": ISSUER, "sub": subject, "aud": CA_AUDIENCE, "iat": now, "exp": now + lifetime}
        return jwt.encode(claims, self._key, algorithm="ES256")

    async def attest(self, token: str) -> Identity:
        """Raises AttestationError."""
        claims = self._verified(token)
        self._check_time(claims)
        audience = claims["aud"]
        if audience != CA_AUDIENCE and not (isinstance(audience, list) and CA_AUDIENCE in audience):
            raise AttestationError(f"the token is for audience {audience!r}; expected {CA_AUDIENCE!r}")
        match = SUBJECT.fullmatch(claims["sub"])
        if match is None:
            raise AttestationError(
                f"the token is for {claims['sub']!r}; expected system:serviceaccount:NAMESPACE:ACCOUNT"
            )
        return Identity(*match.groups())

    def _verified(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_CHARS:
            raise AttestationError(f"the token is longer than {MAX_TOKEN_CHARS} characters")
        # Time and audience are checked by attest, on its own clock and with texts that name the values.
        options: Options = {
            "require": ["exp", "sub", "aud", "iss"],
            "verify_exp": False,
            "verify_iat": False,
            "verify_aud": False,
        }
        try:
            return jwt.decode(
                token, self._key.public_key(), algorithms=["ES256"], issuer=ISSUER, options=options
            )
        except jwt.InvalidSignatureError as error:
            raise AttestationError(
                "the token was not signed by this mesh's join-token key: issue one with "
                "`pilotfish token` and the same --ca-dir as the control plane's"
            ) from error
        except jwt.MissingRequiredClaimError as error:
            raise AttestationError(f"the token has no claim {error.claim!r}") from error
        except jwt.InvalidAlgorithmError as error:
            raise AttestationError("the token is not signed with ES256, so it is no join token") from error
        except jwt.InvalidIssuerError as error:
            raise AttestationError(f"the token is no join token: its issuer is not {ISSUER!r}") from error
        except jwt.InvalidTokenError as error:
            raise AttestationError(f"the token is not a valid JWT: {error}") from error

    def _check_time(self, claims: dict[str, Any]) -> None:
        expires = claims["exp"]
        if isinstance(expires, bool) or not isinstance(expires, int | float):
            raise AttestationError("the token's claim 'exp' is not a number")
        now = self._now()
        if now.timestamp() >= expires:
            ago = now.timestamp() - expires
            when = datetime.fromtimestamp(expires, UTC)
            raise AttestationError(
                f"the token for {claims['sub']} expired at {when:%Y-%m-%dT%H:%M:%SZ}, {ago:.0f} s ago: "
                "issue a new one with `pilotfish token`"
            )
