"""The mutating webhook: answers the API server's question what to add to a new pod, over TLS.

The app starts it beside discovery. Every replica answers alike; nothing is remembered between requests. It
refuses a pod only for an annotation that cannot be, with a message that its author sees.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from aiohttp import web

from control_plane.injector.host_aliases import sought_services
from control_plane.injector.patch import InjectionError, inject, json_patch
from control_plane.injector.sidecar_container import InjectionSettings
from control_plane.listening import site

PATH = "/inject"
MAX_BODY = 8 * 1024 * 1024
"""The API server's own limit for objects is 1.5 MiB; the review holds one or two."""

Object = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate for the webhook's names."""

    chain_pem: str
    key_pem: bytes
    not_after: datetime


class WebhookTls:
    """The TLS context of the webhook, with a new certificate at half of the old one's life."""

    def __init__(self, issue: Callable[[], KeyPair], now: Callable[[], datetime]) -> None:
        """`issue` makes a new key pair and raises what it likes when it cannot."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._issue = issue
        self._now = now
        self._renew_at = now()
        self.not_after = now()
        self.renew_if_due()

    def renew_if_due(self) -> bool:
        """True when there is a new certificate. New connections get it; raises what `issue` raises."""
        now = self._now()
        if now < self._renew_at:
            return False
        pair = self._issue()
        _load(self.context, pair)
        self.not_after = pair.not_after
        self._renew_at = now + (pair.not_after - now) / 2
        return True

    def __repr__(self) -> str:
        return f"<WebhookTls not_after={self.not_after.isoformat()}>"


def _load(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Through memory, because Python takes certificates and keys from files alone."""
    descriptor = os.memfd_create("webhook.pem")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(pair.key_pem + pair.chain_pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class WebhookCounts:
    """Reviews answered, for metrics."""

    injected: int = 0
    """With a patch."""
    skipped: int = 0
    refused: int = 0
    """For an annotation that cannot be."""
    malformed: int = 0
    """What came was no review of a pod."""
    seconds: float = 0.0
    """That all of them took."""

    def by_outcome(self) -> dict[str, int]:
        return {
            "injected": self.injected,
            "skipped": self.skipped,
            "refused": self.refused,
            "malformed": self.malformed,
        }


class WebhookServer:
    """HTTPS server with one path."""

    def __init__(
        self,
        settings: InjectionSettings,
        tls: WebhookTls,
        namespace_metadata: Callable[[str], Awaitable[Object | None]],
        cluster_ips: Callable[[str, str], tuple[str, ...]],
    ) -> None:
        """`namespace_metadata`: as `Namespaces.metadata`. `cluster_ips`: of the Service with this namespace
        and name; none where they are not known."""
        self.counts = WebhookCounts()
        self.tls = tls
        self._settings = settings
        self._namespace_metadata = namespace_metadata
        self._cluster_ips = cluster_ips
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post(PATH, self._review)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    def __repr__(self) -> str:
        return f"<WebhookServer {self.counts}>"

    async def start(self, host: str, port: int) -> int:
        """Returns the port, which the system chose if 0 was asked for. Raises OSError."""
        await self._runner.setup()
        await site(self._runner, host, port, self.tls.context).start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _review(self, request: web.Request) -> web.Response:
        began = time.perf_counter()
        try:
            review = json.loads(await request.read())
            asked = review["request"]
            uid, pod = asked["uid"], asked["object"]
            if review.get("apiVersion") != "admission.k8s.io/v1" or pod.get("kind", "Pod") != "Pod":
                raise ValueError("not an AdmissionReview v1 of a Pod")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.counts.malformed += 1
            return web.Response(status=400, text=f"not an AdmissionReview v1 of a Pod: {error!r}\n")
        response = {"uid": str(uid), **await self._answer(str(asked.get("namespace", "")), pod)}
        self.counts.seconds += time.perf_counter() - began
        return web.json_response(
            {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        )

    def _settings_now(self) -> InjectionSettings:
        sought = sought_services(self._settings)
        return replace(self._settings, addresses={host: self._cluster_ips(*key) for host, *key in sought})

    async def _answer(self, namespace: str, pod: Mapping[str, Any]) -> Object:
        metadata = pod.get("metadata") or {}
        name = f"{namespace}/{metadata.get('name') or metadata.get('generateName', '')}"
        known = await self._namespace_metadata(namespace)
        try:
            injection = inject(metadata, pod.get("spec") or {}, self._settings_now(), known)
        except InjectionError as error:
            self.counts.refused += 1
            log.warning("pod refused pod=%s reason=%s", name, error)
            return {"allowed": False, "status": {"code": 400, "message": f"pilotfish: {error}"}}
        if injection.skipped:
            self.counts.skipped += 1
            log.info("pod left as it is pod=%s reason=%s", name, injection.skipped)
            return {"allowed": True}
        self.counts.injected += 1
        log.info("%s pod=%s", injection.outcome, name)
        warnings = list(injection.warnings)
        if known is None:
            warnings.append(
                f"pilotfish: namespace {namespace} could not be read: its annotations do not count"
            )
        for warning in warnings:
            log.warning("pod=%s %s", name, warning)
        patch = json.dumps(json_patch(pod, injection)).encode()
        return {
            "allowed": True,
            "patchType": "JSONPatch",
            "patch": base64.b64encode(patch).decode(),
            **({"warnings": warnings} if warnings else {}),
        }
