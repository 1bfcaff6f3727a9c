"""What the sidecar's admin port answers: readiness, counters, configuration, certificates, drain.

`app.py` hands in callables that know the answers; `admin.py` puts this on a port. No I/O here.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sidecar.telemetry.prometheus import CONTENT_TYPE as PROMETHEUS

_log = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class AdminSources:
    """Where the answers come from. All are called on the event loop and must not block."""

    ready: Callable[[], str]
    """Empty when the sidecar takes traffic; otherwise the reason why it does not."""
    stats: Callable[[], object]
    prometheus: Callable[[], Iterable[str]]
    """The exposition in pieces (`Metrics.prometheus_parts`)."""
    config_dump: Callable[[], object]
    clusters: Callable[[], object]
    certs: Callable[[], object]
    listeners: Callable[[], object]
    drain: Callable[[], None]
    """Readiness fails and clients are told to go away; what is in flight goes on."""
    quit: Callable[[], None]
    """Drain, then end the process."""


@dataclass(frozen=True, slots=True)
class AdminResponse:
    status: int
    content_type: str
    body: bytes | Iterator[str]
    """An iterator is sent piece by piece, with other work of the event loop in between."""
    allow: str = ""


class AdminPages:
    """Method and path → response."""

    def __init__(self, sources: AdminSources) -> None:
        self._sources = sources
        self._gets: dict[str, tuple[str, Callable[[], AdminResponse]]] = {
            "/": ("This list", self._index),
            "/ready": ("200 when traffic is taken, else 503 and the reason", self._ready),
            "/live": ("200 while the process answers", lambda: _text(200, "live")),
            "/stats": (
                "Counters as JSON, with success rates and latencies by route",
                self._json(sources.stats),
            ),
            "/stats/prometheus": ("Metrics in Prometheus text format", self._prometheus),
            "/metrics": ("The same", self._prometheus),
            "/config_dump": ("The configuration in use, as JSON", self._json(sources.config_dump)),
            "/clusters": ("Clusters and the state of their endpoints", self._json(sources.clusters)),
            "/certs": ("Certificates, without keys, and when they expire", self._json(sources.certs)),
            "/listeners": ("Listeners and their addresses", self._json(sources.listeners)),
        }
        self._posts: dict[str, tuple[str, Callable[[], AdminResponse]]] = {
            "/drain": ("Fail readiness and send clients elsewhere", self._drain),
            "/quitquitquit": ("Drain, then exit", self._quit),
        }

    def respond(self, method: str, target: str, origin: bool, foreign: bool = False) -> AdminResponse:
        """`target` is the request target, its query is ignored. `origin`: the request has an Origin field.
        `foreign`: it comes from another host or pod."""
        path = target.partition("?")[0]
        known = self._gets.get(path) or self._posts.get(path)
        if known is None:
            return _text(404, f"there is no {path} here; there is:\n{self._listing()}")
        allow = "GET, HEAD" if path in self._gets else "POST"
        if method not in allow.split(", "):
            return dataclasses.replace(_text(405, f"{path} takes {allow}, not {method}"), allow=allow)
        if origin and path in self._posts:
            # Browsers send Origin with every POST: no web page may drain a sidecar behind a user's back.
            return _text(403, "refused: the request comes from a web page")
        if foreign and path in self._posts:
            # The port is open to the whole cluster, for probes and metrics.
            return _text(403, f"refused: {path} is for this host alone")
        try:
            return known[1]()
        except Exception as error:
            _log.exception("admin request %s %s failed", method, path)
            return _text(500, f"{path} failed: {type(error).__name__}: {error}")

    def _listing(self) -> str:
        gets = [f"GET  {path:18} {text}" for path, (text, _) in self._gets.items()]
        posts = [f"POST {path:18} {text}" for path, (text, _) in self._posts.items()]
        return "\n".join(gets + posts)

    def _index(self) -> AdminResponse:
        return _text(200, self._listing())

    def _ready(self) -> AdminResponse:
        reason = self._sources.ready()
        return _text(503, reason) if reason else _text(200, "ready")

    def _json(self, source: Callable[[], object]) -> Callable[[], AdminResponse]:
        return lambda: AdminResponse(200, JSON, to_json(source()))

    def _prometheus(self) -> AdminResponse:
        return AdminResponse(200, PROMETHEUS, iter(self._sources.prometheus()))

    def _drain(self) -> AdminResponse:
        self._sources.drain()
        return _text(200, "draining")

    def _quit(self) -> AdminResponse:
        self._sources.quit()
        return _text(200, "draining, then exiting")

    def __repr__(self) -> str:
        return f"<AdminPages {len(self._gets) + len(self._posts)} paths>"


def _text(status: int, text: str) -> AdminResponse:
    return AdminResponse(status, TEXT, f"{text}\n".encode())


def to_json(value: object) -> bytes:
    """Indented JSON; dataclasses become objects, enums their values, sets sorted lists, bytes text."""
    return json.dumps(value, indent=1, default=_plain).encode() + b"\n"


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    raise TypeError(f"{type(value).__name__} has no JSON form")
