"""The status port: a page for people, the same as JSON, Prometheus metrics, readiness and liveness.

Plain HTTP, read-only, shows no secrets. The app starts it; everything is read live when asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from aiohttp import web

from control_plane.ca.authority import CertificateAuthority
from control_plane.ca.service import Authenticator, CertificateService
from control_plane.ca.serving import ServingCertificate
from control_plane.injector.webhook import WebhookCounts
from control_plane.model.problem import Problem
from control_plane.status_page import render
from control_plane.xds.server import ClientStatus, DiscoveryServer
from control_plane.xds.subscription import NackInfo, Subscription
from control_plane.xds.types import short_name

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class StatusSources:
    """Where the status port reads from."""

    discovery: DiscoveryServer
    authority: CertificateAuthority
    serving: ServingCertificate
    certificates: CertificateService
    authenticator: Authenticator
    problems: Callable[[], Sequence[Problem]]
    not_ready: Callable[[], str | None]
    """Why the control plane does not serve; None if it does."""
    webhook_not_after: Callable[[], datetime | None] = lambda: None
    """When the certificate of the webhook ends; None: there is no webhook."""
    webhook_counts: Callable[[], WebhookCounts | None] = lambda: None


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
        await web.TCPSite(self._runner, host, port).start()
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


def metrics_text(sources: StatusSources) -> str:
    """What `/metrics` shows, in Prometheus' text format. Call on the running loop."""
    counts = sources.discovery.counts
    clients = sources.discovery.clients()
    prefix = "pilotfish_control_plane"
    by_severity = {
        severity: sum(p.severity.value == severity for p in sources.problems())
        for severity in ("error", "warning", "note")
    }
    lines: list[str] = []

    def add(name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        lines.append(f"# HELP {prefix}_{name} {text}\n# TYPE {prefix}_{name} {kind}")
        for labels, value in samples:
            inner = ",".join(f'{key}="{label}"' for key, label in labels.items())
            lines.append(f"{prefix}_{name}{{{inner}}} {value}" if inner else f"{prefix}_{name} {value}")

    def one(name: str, kind: str, text: str, value: float) -> None:
        add(name, kind, text, [({}, value)])

    def by_type(totals: Mapping[str, int]) -> list[tuple[Mapping[str, str], float]]:
        return [({"type": label}, total) for label, total in sorted(totals.items())]

    one("clients", "gauge", "Connected xDS clients.", len(clients))
    one("clients_behind", "gauge", "Those not in step.", sum(not client.in_step for client in clients))
    one("streams_total", "counter", "xDS streams accepted.", counts.streams)
    one("pushes_total", "counter", "Responses sent.", counts.pushes)
    add("acks_total", "counter", "Responses accepted by clients.", by_type(counts.acks))
    add("nacks_total", "counter", "Responses refused by clients.", by_type(counts.nacks))
    one("answer_seconds_sum", "counter", "Time from response to ACK or NACK.", counts.ack_seconds)
    one("answer_seconds_count", "counter", "Answers.", counts.acks.total() + counts.nacks.total())
    add(
        "configuration_problems",
        "gauge",
        "Problems in the configuration.",
        [({"severity": severity}, number) for severity, number in by_severity.items()],
    )
    one("certificates_signed_total", "counter", "Workload certificates signed.", sources.certificates.signed)
    one("certificates_refused_total", "counter", "Signing requests refused.", sources.certificates.refused)
    tokens_refused = sources.authenticator.refused
    one("authentication_refused_total", "counter", "Calls without a valid token.", tokens_refused)
    webhook = sources.webhook_counts()
    if webhook is not None:
        outcomes = [({"outcome": outcome}, number) for outcome, number in webhook.by_outcome().items()]
        add("webhook_reviews_total", "counter", "Pods that the webhook was asked about.", outcomes)
        one("webhook_seconds_total", "counter", "Time that the webhook took to answer.", webhook.seconds)
    one("tasks", "gauge", "Tasks that have not ended.", len(asyncio.all_tasks()))
    one("root_expires_seconds", "gauge", "Root's expiry, epoch.", sources.authority.not_after.timestamp())
    return "\n".join(lines) + "\n"
