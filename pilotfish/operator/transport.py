"""HTTP with the API server: one request, one answer, with the credentials and the trust of a kubeconfig.

Used by `api` for everything that it asks. Plain and blocking, a connection for each thread; knows no objects.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

from control_plane.kube.access import AccessError
from pilotfish.operator.errors import ApiError, TimedOut
from pilotfish.operator.kubeconfig import Context

Object = dict[str, Any]

TIMEOUT = 15.0
"""Seconds for one answer; the API server itself gives up on a webhook after 5."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    body: bytes
    date: float | None
    """The server's clock, seconds since the epoch."""

    def status_object(self) -> Object | None:
        """The API server's own error; None: this is something else, such as a page of a pod."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return None
        return found if isinstance(found, dict) and found.get("kind") == "Status" else None

    def text(self) -> str:
        return self.body.decode("utf-8", "replace").strip()


class Transport:
    """The way to one API server, as one user."""

    def __init__(self, context: Context, timeout: float = TIMEOUT) -> None:
        self._context = context
        self.timeout = timeout
        self._server = context.access.server
        self._url = urlsplit(self._server)
        self._connections = threading.local()
        self._opened: list[_Connection] = []

    def __repr__(self) -> str:
        return f"<Transport {self._server} connections={len(self._opened)}>"

    def close(self) -> None:
        for connection in self._opened:
            connection.close()

    def ask(self, method: str, path: str, query: dict[str, str] | None = None, body: object = None) -> Answer:
        """One answer, whatever its status. Raises ApiError when none came."""
        target = self._url.path + path + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json, */*;q=0.5", "User-Agent": "pilotfish"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            token = self._context.access.token()
            if token:
                headers["Authorization"] = f"Bearer {token}"
            return self._exchange(method, target, data, headers)
        except AccessError as error:
            raise ApiError(0, str(error)) from error
        except ssl.SSLCertVerificationError as error:
            raise ApiError(
                0,
                f"the certificate of the API server {self._server} is not trusted: {error.verify_message}",
                "certificate-authority in the kubeconfig is another cluster's, or out of date",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise (TimedOut if isinstance(error, TimeoutError) else ApiError)(
                0,
                f"no answer from the API server {self._server}: {error or type(error).__name__}",
                f"is context {self._context.name!r} the right one, and is a VPN needed? kubectl cluster-info",
            ) from error

    def _exchange(self, method: str, target: str, data: bytes | None, headers: dict[str, str]) -> Answer:
        known = getattr(self._connections, "open", None)
        if known is not None:
            # The server may have closed it meanwhile; what is asked here may be asked twice.
            with suppress(ConnectionError, http.client.BadStatusLine):
                return self._send(known, method, target, data, headers)
        connection = self._connections.open = self._connect()
        return self._send(connection, method, target, data, headers)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        data: bytes | None,
        headers: dict[str, str],
    ) -> Answer:
        try:
            connection.request(method, target, data, headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()  # what comes late belongs to nobody; the next request connects anew
            raise
        date = response.getheader("Date")
        try:
            seconds = parsedate_to_datetime(date).timestamp() if date else None
        except ValueError:
            seconds = None
        return Answer(response.status, body, seconds)

    def _connect(self) -> http.client.HTTPConnection:
        access, host, port = self._context.access, self._url.hostname or "", self._url.port or 443
        proxy = self._context.proxy or ("" if proxy_bypass(host) else getproxies().get("https", ""))
        at = urlsplit(proxy) if proxy else self._url
        if proxy and (at.scheme != "http" or not at.hostname):
            raise AccessError(
                f"the proxy {proxy!r} is of no kind that is supported: it takes http://HOST:PORT"
            )
        connection = _Connection(at.hostname or "", at.port or (80 if proxy else 443), timeout=self.timeout)
        self._opened.append(connection)
        connection.secure = (access.tls(), access.server_name or host)
        if proxy:
            connection.set_tunnel(host, port)
        return connection


class _Connection(http.client.HTTPConnection):
    """TLS inside, also through a proxy, with a name of one's own choice to expect in the certificate."""

    secure: tuple[ssl.SSLContext, str]

    def connect(self) -> None:
        super().connect()
        context, name = self.secure
        self.sock = context.wrap_socket(self.sock, server_hostname=name)
