"""The status port: a page for people, the same as JSON, Prometheus metrics, readiness and liveness.

Plain HTTP, read-only, shows no secrets. The app starts it; everything is read live when asked for.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from aiohttp import web

from control_plane.listening import site
from control_plane.status_metrics import metrics_text
from control_plane.status_page import render
from control_plane.status_sources import StatusSources
from control_plane.xds.server import ClientStatus
from control_plane.xds.subscription import NackInfo, Subscription
from control_plane.xds.types import short_name

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


class StatusServer:
    """The HTTP server of the status port."""

    def __init__(self, sources: StatusSources) -> None:
        self._sources = sources
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/status.json", self._json)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/live", self._live)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    def __repr__(self) -> str:
        return f"<StatusServer addresses={self._runner.addresses}>"

    async def start(self, host: str, port: int) -> int:
        """Returns the port, which the system chose if 0 was asked for. Raises OSError."""
        await self._runner.setup()
        await site(self._runner, host, port).start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _page(self, _request: web.Request) -> web.Response:
        page = render(status_of(self._sources))
        return web.Response(text=page, content_type="text/html", charset="utf-8", headers=_HEADERS)

    async def _json(self, _request: web.Request) -> web.Response:
        return web.json_response(status_of(self._sources), headers=_HEADERS)

    async def _metrics(self, _request: web.Request) -> web.Response:
        body = metrics_text(self._sources).encode()
        return web.Response(body=body, headers={"Content-Type": _METRICS_TYPE})

    async def _ready(self, _request: web.Request) -> web.Response:
        reason = self._sources.not_ready()
        return web.Response(status=200 if reason is None else 503, text=(reason or "ready") + "\n")

    async def _live(self, _request: web.Request) -> web.Response:
        return web.Response(text="live\n")


def status_of(sources: StatusSources) -> dict[str, Any]:
    """What `/status.json` shows."""
    clients = sorted(sources.discovery.clients(), key=lambda client: (client.node.id, client.connected_at))
    now = datetime.now(UTC)
    return {
        "version": version("pilotfish"),
        "replica": socket.gethostname(),
        "time": _time(now),
        "trust_domain": sources.authority.trust_domain,
        "not_ready": sources.not_ready(),
        "problems": [
            {
                "severity": problem.severity.value,
                "file": problem.file,
                "line": problem.line,
                "object": problem.object,
                "field": problem.field,
                "message": problem.message,
            }
            for problem in sources.problems()
        ],
        "clients": [_client(client) for client in clients],
        "certificates": {
            "root_not_after": _time(sources.authority.not_after),
            "root_days_left": (sources.authority.not_after - now).days,
            "root_sha256": fingerprint(sources.authority.root_pem),
            "serving_not_after": _time_or_none(sources.serving.not_after),
            "webhook_not_after": _time_or_none(sources.webhook_not_after()),
            "signed": sources.certificates.signed,
            "refused": sources.certificates.refused,
            "issued": [
                {"identity": str(identity), "host": host, "not_after": _time(end)}
                for identity, host, end in sources.certificates.issued.valid(now)
            ],
        },
    }


def fingerprint(pem: str) -> str:
    """SHA-256 of a certificate in DER, in hexadecimal."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def _client(client: ClientStatus) -> dict[str, Any]:
    return {
        "node": client.node.id,
        "version": client.version,
        "cluster": client.node.cluster,
        "identity": str(client.node.identity),
        "address": client.node.address,
        "dialect": client.node.dialect.value,
        "variant": client.variant,
        "peer": client.peer,
        "connected_at": _time(datetime.fromtimestamp(client.connected_at, UTC)),
        "in_step": client.in_step,
        "types": [_subscription(subscription) for subscription in client.subscriptions],
    }


def _subscription(subscription: Subscription) -> dict[str, Any]:
    return {
        "type": short_name(subscription.type_url),
        "type_url": subscription.type_url,
        "names": len(subscription.names),
        "wildcard": subscription.wildcard,
        "sent_version": subscription.sent_version,
        "accepted_version": subscription.acked_version,
        "in_step": subscription.in_step,
        "state": _state(subscription),
        "refused": None if subscription.nack is None else _refusal(subscription.nack),
    }


def _state(subscription: Subscription) -> str:
    if subscription.nack is not None:
        return "refused"
    if subscription.awaiting:
        return "sent, not answered yet"
    return "changes to be sent" if subscription.pending else "in step"


def _refusal(nack: NackInfo) -> dict[str, Any]:
    return {
        "version": nack.version,
        "names": list(nack.names),
        "text": nack.text,
        "time": _time(datetime.fromtimestamp(nack.time, UTC)),
    }


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _time_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else _time(moment)
