"""Requests to the API server with the user's own rights: objects, lists, and pages of pods behind it.

Used by the operator's verbs, which run once and end: plain blocking HTTP, a connection for each thread. Reads
only, but for reviews of rights and creations that are asked for as a dry run.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

from control_plane.kube.access import AccessError
from pilotfish.operator.errors import ApiError
from pilotfish.operator.kinds import ACCESS_REVIEWS, PODS, Kind, missing_right
from pilotfish.operator.kubeconfig import Context

Object = dict[str, Any]

TIMEOUT = 15.0
"""Seconds for one answer; the API server itself gives up on a webhook after 5."""
_PAGE = 500
_UNREACHED = (
    "is a NetworkPolicy or a firewall between them? docs/troubleshooting.md#the-api-server-cannot-reach-a-pod"
)


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


class Api:
    """One API server, as one user. To be used in a `with` block."""

    def __init__(self, context: Context, timeout: float = TIMEOUT) -> None:
        self.context = context
        self.server = context.access.server
        self._timeout = timeout
        self._url = urlsplit(self.server)
        self._connections = threading.local()
        self._opened: list[_Connection] = []

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._opened:
            connection.close()

    def __repr__(self) -> str:
        return f"<Api {self.server} context={self.context.name!r}>"

    # --- objects ---

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """None: there is no such object. Raises ApiError."""
        answer = self.ask("GET", kind.path(namespace, name))
        return None if answer.status == 404 else self._checked(answer, "get", kind, namespace)

    def items(self, kind: Kind, namespace: str = "", selector: str = "") -> list[Object]:
        """All of one kind; empty where the cluster does not know the kind. Raises ApiError."""
        found: list[Object] = []
        query = {"limit": str(_PAGE), **({"labelSelector": selector} if selector else {})}
        while True:
            answer = self.ask("GET", kind.path(namespace), query)
            if answer.status == 404:
                return []
            page = self._checked(answer, "list", kind, namespace)
            found += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return found
            query["continue"] = token

    def document(self, path: str) -> Object | None:
        """What is at a path that everybody may read, such as `/version`; None: nothing. Raises ApiError."""
        answer = self.ask("GET", path)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise ApiError(answer.status, f"{path} was answered with {answer.status}: {_message(answer)}")
        return self._json(answer, path)

    def may(self, verb: str, kind: Kind, namespace: str = "", sub: str = "") -> bool:
        """Whether the user has a right. Raises ApiError."""
        what = {"verb": verb, "group": kind.group, "version": kind.version, "resource": kind.plural}
        what |= {"namespace": namespace, "subresource": sub}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in what.items() if value}},
        }
        answer = self.ask("POST", ACCESS_REVIEWS.path(), body=review)
        status = self._checked(answer, "create", ACCESS_REVIEWS, "").get("status") or {}
        return bool(status.get("allowed"))

    # --- pages of pods ---

    def page(self, namespace: str, pod: str, port: int, path: str) -> Answer:
        """What a pod answers at `path`, whatever its status. Raises ApiError when it was not asked."""
        answer = self.ask("GET", PODS.path(namespace, f"{quote(pod)}:{port}", f"proxy{path}"))
        if answer.status in (401, 403, 404) and answer.status_object() is not None:
            self._checked(answer, "get", PODS, namespace, "proxy")
        unreached = answer.status_object() is not None or answer.text().startswith("error trying to reach")
        if answer.status >= 500 and unreached:
            raise ApiError(
                answer.status,
                f"the API server cannot reach {namespace}/{pod} at port {port}: {_message(answer)}",
                _UNREACHED,
            )
        return answer

    # --- HTTP ---

    def ask(self, method: str, path: str, query: dict[str, str] | None = None, body: object = None) -> Answer:
        """One answer, whatever its status. Raises ApiError when none came."""
        target = self._url.path + path + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json, */*;q=0.5", "User-Agent": "pilotfish"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            token = self.context.access.token()
            if token:
                headers["Authorization"] = f"Bearer {token}"
            return self._exchange(method, target, data, headers)
        except AccessError as error:
            raise ApiError(0, str(error)) from error
        except ssl.SSLCertVerificationError as error:
            raise ApiError(
                0,
                f"the certificate of the API server {self.server} is not trusted: {error.verify_message}",
                "certificate-authority in the kubeconfig is another cluster's, or out of date",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(
                0,
                f"no answer from the API server {self.server}: {error or type(error).__name__}",
                f"is context {self.context.name!r} the right one, and is a VPN needed? kubectl cluster-info",
            ) from error

    def _exchange(self, method: str, target: str, data: bytes | None, headers: dict[str, str]) -> Answer:
        known = getattr(self._connections, "open", None)
        if known is not None:
            try:
                return self._send(known, method, target, data, headers)
            except (ConnectionError, http.client.BadStatusLine):
                # The server may have closed it meanwhile; what is asked here may be asked twice.
                known.close()
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
        connection.request(method, target, data, headers)
        response = connection.getresponse()
        date = response.getheader("Date")
        try:
            seconds = parsedate_to_datetime(date).timestamp() if date else None
        except ValueError:
            seconds = None
        return Answer(response.status, response.read(), seconds)

    def _connect(self) -> http.client.HTTPConnection:
        access, host, port = self.context.access, self._url.hostname or "", self._url.port or 443
        proxy = self.context.proxy or ("" if proxy_bypass(host) else getproxies().get("https", ""))
        at = urlsplit(proxy) if proxy else self._url
        if proxy and (at.scheme != "http" or not at.hostname):
            raise AccessError(
                f"the proxy {proxy!r} is of no kind that is supported: it takes http://HOST:PORT"
            )
        connection = _Connection(at.hostname or "", at.port or (80 if proxy else 443), timeout=self._timeout)
        self._opened.append(connection)
        connection.secure = (access.tls(), access.server_name or host)
        if proxy:
            connection.set_tunnel(host, port)
        return connection

    def _checked(self, answer: Answer, verb: str, kind: Kind, namespace: str, sub: str = "") -> Object:
        """The object of a successful answer. Raises ApiError."""
        where = f" in namespace {namespace}" if namespace else ""
        what = f"{verb} {kind.resource(sub)}{where}"
        if answer.status == 401:
            raise ApiError(401, f"the API server {self.server} does not know you", "log in again")
        if answer.status == 403:
            hint = missing_right(verb, kind, namespace, sub)
            raise ApiError(403, f"you may not {what}: {_message(answer)}", hint)
        if answer.status >= 300:
            raise ApiError(answer.status, f"{what} was answered with {answer.status}: {_message(answer)}")
        return self._json(answer, what)

    def _json(self, answer: Answer, what: str) -> Object:
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ApiError(
                answer.status, f"the answer to {what} is no JSON object: is {self.server} an API server?"
            )
        return found


class _Connection(http.client.HTTPConnection):
    """TLS inside, also through a proxy, with a name of one's own choice to expect in the certificate."""

    secure: tuple[ssl.SSLContext, str]

    def connect(self) -> None:
        super().connect()
        context, name = self.secure
        self.sock = context.wrap_socket(self.sock, server_hostname=name)


def _message(answer: Answer) -> str:
    status = answer.status_object()
    text = str(status.get("message") or "") if status else answer.text()
    return text.partition("\n")[0][:500]
