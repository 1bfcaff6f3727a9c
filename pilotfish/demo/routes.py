"""One row for each route, out of the access logs of the callers' sidecars. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_FAILED_GRPC = frozenset({2, 4, 12, 13, 14, 15})
"""UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: the server's fault."""


@dataclass(slots=True)
class Row:
    route: str
    requests: int = 0
    failed: int = 0
    retries: int = 0
    milliseconds: list[float] = field(default_factory=list)
    callers: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    """By replica, of requests that got an answer."""

    def quantile(self, q: float) -> float:
        """Milliseconds that the share `q` of requests did not pass (nearest rank)."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    @property
    def success_rate(self) -> float:
        return (self.requests - self.failed) / self.requests


def access_records(log: str) -> Iterator[Mapping[str, Any]]:
    """The JSON lines among a sidecar's output; its messages are none, and the last line may be cut."""
    for line in log.splitlines():
        if line.startswith("{") and line.endswith("}"):
            yield json.loads(line)


def route_rows(records: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Row]:
    """Rows by route's name, of outbound requests: there retries and the choice of replica happen."""
    rows: dict[str, Row] = {}
    for caller, record in records:
        if record["direction"] != "outbound":
            continue
        row = rows.setdefault(record["route"], Row(record["route"]))
        row.requests += 1
        failed = not 0 < record["status"] < 500 or record["grpc_status"] in _FAILED_GRPC
        row.failed += failed
        row.retries += max(0, record["attempts"] - 1)
        row.milliseconds.append(record["duration_ms"])
        row.callers[caller] += 1
        if not failed:
            row.served[record["upstream"]] += 1
    return sorted(rows.values(), key=lambda row: row.route)
