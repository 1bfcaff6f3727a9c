"""Runs the probes of a captured pod's applications, which the injector led to the admin port.

The kubelet asks `admin.py` for `/app-health/CONTAINER/PROBE`, and what the original probe asked of the
application is asked here, from an address that is not captured and as the kubelet would do it. Only probes
that the injector wrote can be run: the port is open to the whole cluster.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from sidecar.config.resources import SocketAddress
from sidecar.net.connection_types import ConnectError
from sidecar.net.grpc_messages import Deframer, frame, status_of_fields, status_of_http
from sidecar.net.tls import TlsParameters
from sidecar.net.tls_context import TlsContext
from sidecar.probe_request import Answer, ProbeRequest
from sidecar.protocol.events import Codec, ConnectionHandler, Field, RequestHead
from sidecar.protocol.h1 import H1ClientCodec, H1Options
from sidecar.protocol.h2 import H2Codec, H2Options
from sidecar.upstream.context import Connect

_log = logging.getLogger(__name__)

_MARGIN = 0.1
"""Seconds before the kubelet's own timeout, so that it hears the reason."""
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 10
_OF_THE_CONNECTION = frozenset({"connection", "content-length", "host", "transfer-encoding"})
_SERVING = b"\x08\x01"
"""`grpc.health.v1.HealthCheckResponse{status: SERVING}`."""


class ProbeError(Exception):
    """The probe failed; the text says how the application answered."""


@dataclass(frozen=True, slots=True)
class Probe:
    kind: str
    """httpGet, tcpSocket or grpc."""
    port: int
    timeout: float
    """Seconds."""
    scheme: str = "http"
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    service: str = ""


def parse_probes(text: str) -> dict[str, Probe]:
    """By path, from the variable PILOTFISH_PROBES: JSON of Kubernetes probes. Raises ValueError."""
    try:
        return {path: _parse(item) for path, item in json.loads(text).items()} if text else {}
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
        raise ValueError(f"PILOTFISH_PROBES is not what the injector writes: {error!r}") from error


def _parse(item: Mapping[str, Any]) -> Probe:
    kind = next(kind for kind in ("httpGet", "tcpSocket", "grpc") if kind in item)
    action = item[kind]
    path = str(action.get("path") or "/")
    return Probe(
        kind,
        int(action["port"]),
        float(item["timeoutSeconds"]),
        str(action.get("scheme") or "HTTP").lower(),
        path if path.startswith("/") else f"/{path}",
        tuple((str(each["name"]), str(each.get("value", ""))) for each in action.get("httpHeaders") or ()),
        str(action.get("service") or ""),
    )


class AppProbes:
    """`address`: the pod's own, where its applications listen; `sources`: from where they are asked, one of
    each family of addresses, or none: from anywhere."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        probes: Mapping[str, Probe],
        address: str,
        sources: tuple[str, ...],
        connect: Connect,
    ) -> None:
        self._loop = loop
        self._probes = probes
        self._host = address
        self._sources = sources
        self._connect = connect
        self._failing: set[str] = set()

    def __repr__(self) -> str:
        return f"<AppProbes {len(self._probes)} of {self._host} failing={sorted(self._failing)}>"

    async def answer(self, path: str) -> tuple[int, str]:
        """Status and text for the kubelet: 200, 503 with the reason, or 404 for what is no probe."""
        probe = self._probes.get(path)
        if probe is None:
            known = ", ".join(sorted(self._probes)) or "none"
            return 404, f"{path} is no probe of this pod; there are: {known}"
        try:
            async with asyncio.timeout(max(_MARGIN, probe.timeout - _MARGIN)):
                text = await self._run(probe)
        except (ProbeError, ConnectError) as error:
            return self._failed(path, str(error))
        except TimeoutError:
            return self._failed(path, f"no answer from {self._where(probe.port)} within {probe.timeout:g} s")
        if path in self._failing:
            self._failing.discard(path)
            _log.info("probe %s succeeds again", path)
        return 200, text

    def _failed(self, path: str, reason: str) -> tuple[int, str]:
        if path not in self._failing:
            self._failing.add(path)
            _log.warning("probe %s fails: %s", path, reason)
        return 503, reason

    def _where(self, port: int) -> str:
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    async def _run(self, probe: Probe) -> str:
        if probe.kind == "httpGet":
            return await self._get(probe)
        if probe.kind == "grpc":
            return await self._check_health(probe)
        await self._ask(probe, probe.port, None, None, b"", None)
        return f"{self._where(probe.port)} takes connections"

    # --- HTTP

    async def _get(self, probe: Probe) -> str:
        """Follows redirects to the same host, as the kubelet does; one elsewhere is a success."""
        url = f"{probe.scheme}://{self._where(probe.port)}{probe.path}"
        for _ in range(_MAX_REDIRECTS + 1):
            answer = await self._get_once(probe, url)
            if not 200 <= answer.status < 400:
                raise ProbeError(f"GET {url} was answered with {answer.status}")
            location = dict(answer.fields).get(b"location")
            if answer.status not in _REDIRECTS or location is None:
                break
            target = urljoin(url, location.decode("latin-1"))
            if urlsplit(target).hostname != self._host or urlsplit(target).scheme not in ("http", "https"):
                break
            url = target
        else:
            raise ProbeError(f"GET {url} is still a redirect after {_MAX_REDIRECTS}")
        return f"GET {url} was answered with {answer.status}"

    async def _get_once(self, probe: Probe, url: str) -> Answer:
        parts = urlsplit(url)
        given = {name.lower(): value for name, value in probe.headers}
        fields: dict[str, str] = {"user-agent": "kube-probe/pilotfish", "accept": "*/*", **given}
        authority = given.get("host") or parts.netloc
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        head = RequestHead(
            b"GET",
            parts.scheme.encode(),
            authority.encode(),
            target.encode(),
            tuple(
                (name.encode(), value.encode())
                for name, value in fields.items()
                if name not in _OF_THE_CONNECTION
            ),
        )
        tls = _unverified() if parts.scheme == "https" else None
        return await self._ask(probe, parts.port or (443 if tls else 80), tls, head, b"", _http1)

    # --- gRPC

    async def _check_health(self, probe: Probe) -> str:
        """`grpc.health.v1.Health/Check`, in plain text, as the kubelet asks."""
        service = probe.service.encode()
        message = b"\x0a" + _varint(len(service)) + service if service else b""
        where = self._where(probe.port)
        fields: tuple[Field, ...] = (
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"kube-probe/pilotfish"),
        )
        head = RequestHead(b"POST", b"http", where.encode(), b"/grpc.health.v1.Health/Check", fields)
        answer = await self._ask(probe, probe.port, None, head, frame(message), _http2)
        about = f"health of service {probe.service!r} at {where}"
        status = status_of_fields(answer.trailers or answer.fields)
        code, text = status or status_of_http(answer.status)
        if code:
            raise ProbeError(f"{about}: gRPC status {code}: {text}")
        if Deframer().receive(answer.body) != [_SERVING]:
            raise ProbeError(f"{about}: not SERVING")
        return f"{about}: SERVING"

    # --- both

    async def _ask(
        self,
        probe: Probe,
        port: int,
        tls: TlsParameters | None,
        head: RequestHead | None,
        body: bytes,
        make_codec: Callable[[ConnectionHandler], Codec] | None,
    ) -> Answer:
        """One request on a connection of its own; without `make_codec` only the connection."""
        request = ProbeRequest(self._loop, head, body, make_codec)
        address = SocketAddress(self._host, port)
        connection = await self._connect(self._loop, address, request, tls, probe.timeout, self._sources)
        try:
            answer = await request.answered
        except OSError as error:
            raise ProbeError(f"{address}: {error}") from error
        finally:
            connection.close("probed")
        return answer


def _http1(handler: ConnectionHandler) -> Codec:
    return H1ClientCodec(handler, H1Options())


def _http2(handler: ConnectionHandler) -> Codec:
    return H2Codec(True, handler, H2Options())


def _unverified() -> TlsParameters:
    """The kubelet verifies no certificate of a probe either."""
    return TlsParameters(TlsContext(server_side=False, old_too=True))


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
