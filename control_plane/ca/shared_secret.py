"""The mesh's root and join-token key in a Secret, so that all replicas of a control plane sign alike.

Used by the app in a cluster, before anything is served. The first replica makes the Secret; one that
comes second at the same time finds it made and reads it. Nothing is ever replaced here, and no key is
written anywhere else.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from control_plane.ca import root
from control_plane.ca.attestation import JOIN_TOKEN_KEY_FILE, JoinTokens
from control_plane.ca.authority import CertificateAuthority, Clock, utc_now
from control_plane.ca.root import ROOT_FILE, ROOT_KEY_FILE
from control_plane.ca.store import CaError, key_pem, make_key, parse_key
from control_plane.kube.client import KubeClient, KubeError, Object

NAME = "pilotfish-ca"
RETRY = 2.0
"""Seconds between attempts while the API server does not answer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SharedKeys:
    authority: CertificateAuthority
    join_tokens: JoinTokens


async def load_or_make(
    client: KubeClient,
    namespace: str,
    trust_domain: str,
    max_leaf_lifetime: timedelta,
    stop: asyncio.Event,
    now: Clock = utc_now,
) -> SharedKeys | None:
    """From the Secret `pilotfish-ca` of `namespace`, made first if there is none. Waits for an API server
    that does not answer; None: `stop` was set meanwhile. Raises CaError."""
    where = f"Secret {namespace}/{NAME}"
    while not stop.is_set():
        try:
            secret = await _read_or_create(client, namespace, trust_domain, now)
            return _keys(secret, where, trust_domain, max_leaf_lifetime, now)
        except KubeError as error:
            if error.status in (400, 403, 404, 422):
                raise CaError(
                    f"{where} cannot be read or made: {error}; the control plane must be allowed to get and "
                    f"create Secrets in {namespace}"
                ) from error
            log.warning("%s: %s; trying again", where, error)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(RETRY, min(error.retry_after or 0.0, 60.0)))
    return None


async def _read_or_create(client: KubeClient, namespace: str, trust_domain: str, now: Clock) -> Object:
    folder = f"/api/v1/namespaces/{namespace}/secrets"
    try:
        return await client.request("GET", f"{folder}/{NAME}")
    except KubeError as error:
        if error.status != 404:
            raise
    try:
        made = await client.request("POST", folder, _new_secret(namespace, trust_domain, now))
        log.info("made a root for trust domain %s in Secret %s/%s", trust_domain, namespace, NAME)
        return made
    except KubeError as error:
        if error.status != 409:
            raise
    return await client.request("GET", f"{folder}/{NAME}")  # another replica was first


def _new_secret(namespace: str, trust_domain: str, now: Clock) -> Object:
    key = make_key()
    data = {
        ROOT_FILE: root.make_root_pem(key, trust_domain, now()).encode(),
        ROOT_KEY_FILE: key_pem(key),
        JOIN_TOKEN_KEY_FILE: key_pem(make_key()),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": NAME,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "pilotfish"},
        },
        "type": "Opaque",
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
    }


def _keys(
    secret: Object, where: str, trust_domain: str, max_leaf_lifetime: timedelta, now: Clock
) -> SharedKeys:
    def field(name: str) -> bytes:
        value = (secret.get("data") or {}).get(name)
        if not isinstance(value, str):
            raise CaError(f"{where} has no {name}: restore it, or delete the Secret to start a new mesh")
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise CaError(f"{name} of {where} is not base64: {error}") from error

    key_where = f"{ROOT_KEY_FILE} of {where}"
    key = parse_key(field(ROOT_KEY_FILE), key_where)
    authority = root.from_pem(
        field(ROOT_FILE), key, f"{ROOT_FILE} of {where}", key_where, trust_domain, max_leaf_lifetime, now
    )
    join_key = parse_key(field(JOIN_TOKEN_KEY_FILE), f"{JOIN_TOKEN_KEY_FILE} of {where}")
    return SharedKeys(authority, JoinTokens(join_key, now))
