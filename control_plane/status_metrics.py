"""The control plane's metrics in Prometheus' text format (version 0.0.4).

Called by `control_plane.status` for `/metrics`. Labels come from configuration, never from the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from control_plane.status_sources import StatusSources
from control_plane.xds.types import METRIC_LABELS

Samples = Iterable[tuple[Mapping[str, str], float]]
_PREFIX = "pilotfish_control_plane"


class _Families:
    """Collects metric families as text."""

    def __init__(self) -> None:
        self.text = ""

    def __repr__(self) -> str:
        return f"<_Families {len(self.text)} characters>"

    def add(self, name: str, kind: str, text: str, samples: Samples) -> None:
        self.text += f"# HELP {_PREFIX}_{name} {text}\n# TYPE {_PREFIX}_{name} {kind}\n"
        for labels, value in samples:
            inner = ",".join(f'{key}="{label}"' for key, label in labels.items())
            self.text += f"{_PREFIX}_{name}{{{inner}}} {value}\n" if inner else f"{_PREFIX}_{name} {value}\n"

    def one(self, name: str, kind: str, text: str, value: float) -> None:
        self.add(name, kind, text, [({}, value)])


def metrics_text(sources: StatusSources) -> str:
    """What `/metrics` shows, in Prometheus' text format. Call on the running loop."""
    counts = sources.discovery.counts
    clients = sources.discovery.clients()
    by_severity = {
        severity: sum(p.severity.value == severity for p in sources.problems())
        for severity in ("error", "warning", "note")
    }
    families = _Families()
    add, one = families.add, families.one

    one("clients", "gauge", "Connected xDS clients.", len(clients))
    one("clients_behind", "gauge", "Those not in step.", sum(not client.in_step for client in clients))
    one("streams_total", "counter", "xDS streams accepted.", counts.streams)
    one("pushes_total", "counter", "Responses sent.", counts.pushes)
    add("acks_total", "counter", "Responses accepted by clients.", _by_type(counts.acks))
    add("nacks_total", "counter", "Responses refused by clients.", _by_type(counts.nacks))
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
    callers = sources.authenticator
    one("authentication_refused_total", "counter", "Calls without a valid token.", callers.refused)
    one("authentication_unavailable_total", "counter", "Calls by nobody knows whom.", callers.unavailable)
    if sources.reviews is not None:
        one("token_reviews_total", "counter", "Questions to the API server.", sources.reviews.reviews)
        one("token_reviews_stale_total", "counter", "Those answered from memory.", sources.reviews.stale)
    webhook = sources.webhook_counts()
    if webhook is not None:
        outcomes = [({"outcome": outcome}, number) for outcome, number in webhook.by_outcome().items()]
        add("webhook_reviews_total", "counter", "Pods that the webhook was asked about.", outcomes)
        one("webhook_seconds_total", "counter", "Time that the webhook took to answer.", webhook.seconds)
    one("tasks", "gauge", "Tasks that have not ended.", len(asyncio.all_tasks()))
    one("root_expires_seconds", "gauge", "Root's expiry, epoch.", sources.authority.not_after.timestamp())
    return families.text


def _by_type(totals: Mapping[str, int]) -> Samples:
    """Those of 0 too: a counter that begins with its first event has no increase, to Prometheus."""
    return [({"type": label}, totals.get(label, 0)) for label in METRIC_LABELS]
