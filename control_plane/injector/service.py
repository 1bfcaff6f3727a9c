"""The injector as one thing for the app: webhook server, its certificate, and what is published of them.

Made from the mesh's authority, so that the API server trusts the webhook by the root that sidecars trust.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.injector.namespaces import Namespaces
from control_plane.injector.publish import keep_published
from control_plane.injector.sidecar_container import InjectionSettings
from control_plane.injector.webhook import KeyPair, WebhookServer, WebhookTls
from control_plane.kube.client import KubeClient, Object

SERVICE = "pilotfish-injector"
"""Name of the Service by which the API server reaches the webhook."""


class Issued(Protocol):
    @property
    def chain(self) -> tuple[str, ...]:
        """PEM, the leaf first."""

    @property
    def not_after(self) -> datetime: ...


class Authority(Protocol):
    """What the injector needs of the mesh's certificate authority."""

    @property
    def root_pem(self) -> str: ...

    def sign_server(self, key: ec.EllipticCurvePrivateKey, names: Sequence[str]) -> Issued: ...


class Injector:
    """`start`, then `run` until it is to end, then `close`."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        authority: Authority,
        settings: InjectionSettings,
        now: Callable[[], datetime],
        watched_namespace: Callable[[str], Object | None],
        cluster_ips: Callable[[str, str], tuple[str, ...]],
    ) -> None:
        """Sidecars get the authority's root, whatever `settings` says. `watched_namespace`: as `Namespaces`
        has it; `cluster_ips`: as `WebhookServer`. Raises what the authority raises."""
        self._client = client
        self._namespace = namespace
        self._authority = authority
        names = (webhook_name(namespace),)
        self.webhook = WebhookServer(
            replace(settings, root_pem=authority.root_pem),
            WebhookTls(lambda: _issue(authority, names), now),
            Namespaces(client, watched_namespace).metadata,
            cluster_ips,
        )

    def __repr__(self) -> str:
        return f"<Injector {self.webhook!r}>"

    async def start(self, host: str, port: int) -> int:
        """Returns the port. Raises OSError."""
        return await self.webhook.start(host, port)

    async def run(self, stop: asyncio.Event) -> None:
        """Keeps root, CA bundle and certificate up to date until `stop` is set."""
        renew = self.webhook.tls.renew_if_due
        await keep_published(self._client, self._namespace, self._authority.root_pem, renew, stop)

    async def close(self) -> None:
        await self.webhook.close()


def webhook_name(namespace: str) -> str:
    """The DNS name in the webhook's certificate: the API server asks for it whatever the cluster's domain."""
    return f"{SERVICE}.{namespace}.svc"


def _issue(authority: Authority, names: Sequence[str]) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.sign_server(key, names)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair("".join(issued.chain), pem, issued.not_after)
