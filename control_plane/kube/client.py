"""A small client of the Kubernetes API: JSON requests, lists read item by item, watches line by line.

Used by the watches, the token reviews, the lease, the shared Secret and the status writer. Knows HTTP and
the API's error objects, nothing of any kind of object. Never retries: who asks knows whether it may.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp

from control_plane.kube.access import AccessError, ClusterAccess

Object = dict[str, Any]

REQUEST_TIMEOUT = 30.0
"""Seconds for everything but watches."""
APPLY = "application/apply-patch+yaml"
"""Content type of server-side apply; JSON is YAML."""
_AGENT = "pilotfish-control-plane"
_CONNECT_TIMEOUT = 10.0
_MAX_LINE = 16 * 1024 * 1024


class KubeError(Exception):
    """A request failed. `status` is HTTP's, or that of a Status object; 0: no answer came."""

    def __init__(self, status: int, message: str, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        """Seconds that the server asked us to wait."""

    @classmethod
    def of_status(cls, status: int, body: object, retry_after: float | None = None) -> KubeError:
        """From a `Status` object, or whatever came instead of one."""
        if not isinstance(body, dict):
            return cls(status, "the API server sent no Status object", "", retry_after)
        if retry_after is None:
            seconds = (body.get("details") or {}).get("retryAfterSeconds")
            retry_after = float(seconds) if isinstance(seconds, int | float) else None
        code, reason = body.get("code"), str(body.get("reason") or "")
        return cls(
            code if isinstance(code, int) else status, str(body.get("message") or ""), reason, retry_after
        )


class KubeClient:
    """Requests to one API server. To be made and closed on the event loop that uses it."""

    def __init__(self, access: ClusterAccess) -> None:
        self.access = access
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=_socket, limit=0),
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT, sock_connect=_CONNECT_TIMEOUT),
            headers={"User-Agent": _AGENT, "Accept": "application/json"},
            read_bufsize=256 * 1024,
        )

    def __repr__(self) -> str:
        return f"<KubeClient {self.access.server}>"

    async def close(self) -> None:
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        within: float = REQUEST_TIMEOUT,
    ) -> Object:
        """The object that the API server answers with, `within` so many seconds. Raises KubeError."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if data is not None else {}
        try:
            async with self._send(method, path, params, data, headers, within) as response:
                return await _json(response)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unreachable(error) from error

    async def list_page(
        self, path: str, params: Mapping[str, str], each: Callable[[Object], object]
    ) -> tuple[str, str]:
        """One page of a list, each item given to `each` and then forgotten. Returns the list's
        resourceVersion and the token of the next page, empty after the last. Raises KubeError."""
        try:
            async with self._send("GET", path, params, None, {}, REQUEST_TIMEOUT) as response:
                if response.status != 200:
                    await _json(response)
                text = await response.text("utf-8", errors="replace")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unreachable(error) from error
        try:
            metadata = _read_list(text, each)
        except (ValueError, IndexError) as error:
            raise KubeError(0, f"the list {path} is not JSON as expected: {error}") from error
        if not metadata.get("resourceVersion"):
            raise KubeError(0, f"the list {path} has no resourceVersion")
        return str(metadata["resourceVersion"]), str(metadata.get("continue") or "")

    async def watch(
        self, path: str, params: Mapping[str, str], seconds: float, opened: Callable[[], object]
    ) -> AsyncIterator[Object]:
        """Events (`{"type": ..., "object": ...}`) until the server ends the watch, which it was asked to do
        after `seconds`. `opened` is called when it has agreed to. Raises KubeError; an ERROR event is an
        event."""
        asked = {**params, "watch": "1", "timeoutSeconds": str(int(seconds))}
        try:
            async with self._send("GET", path, asked, None, {}, seconds + REQUEST_TIMEOUT) as response:
                if response.status != 200:
                    await _json(response)
                opened()
                async for line in _lines(response.content):
                    yield _event(line)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unreachable(error) from error

    def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        data: bytes | None,
        headers: dict[str, str],
        timeout: float,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        try:
            tls, token = self.access.tls(), self.access.token()
        except AccessError as error:
            raise KubeError(0, str(error)) from error
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return self._session.request(
            method,
            self.access.server + path,
            params=params,
            data=data,
            headers=headers,
            ssl=tls,
            server_hostname=self.access.server_name or None,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_TIMEOUT),
        )

    def _unreachable(self, error: Exception) -> KubeError:
        what = str(error) or type(error).__name__
        if isinstance(error, asyncio.TimeoutError):
            what = "no answer in time"
        elif isinstance(error, aiohttp.ClientConnectorCertificateError):
            what = str(error.certificate_error)
        elif isinstance(error, aiohttp.ClientConnectorError):
            what = str(error.os_error)
        return KubeError(0, f"API server {self.access.server}: {what}")


def _socket(info: Any) -> socket.socket:
    """With keep-alive: a watch on a connection that died silently would show an old world for minutes."""
    made = socket.socket(*info[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
    return made


async def _json(response: aiohttp.ClientResponse) -> Object:
    """The answer's object. Raises KubeError for what is not a success."""
    text = await response.read()
    try:
        body = json.loads(text) if text else {}
    except ValueError:
        body = None
    if response.status >= 300:
        raise KubeError.of_status(response.status, body, _retry_after(response))
    if not isinstance(body, dict):
        raise KubeError(0, f"the answer to {response.method} {response.url.path} is no JSON object")
    return body


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length up to a bound; the last may lack its end."""
    kept: list[bytes] = []
    size = 0
    async for chunk in content.iter_any():
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            line = b"".join([*kept, part])
            kept, size = [], 0
            if line:
                yield line
        kept.append(rest)
        size += len(rest)
        if size > _MAX_LINE:
            raise KubeError(0, f"a watch event is longer than {_MAX_LINE} bytes")
    if any(kept):
        yield b"".join(kept)


def _event(line: bytes) -> Object:
    try:
        event = json.loads(line)
    except ValueError as error:
        # A connection that was cut ends in the middle of a line.
        raise KubeError(0, f"a watch event is not JSON: {error}") from error
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        raise KubeError(0, "a watch event has no object")
    return event


_decode = json.JSONDecoder().raw_decode
_BLANK = " \t\r\n"


def _read_list(text: str, each: Callable[[Object], object]) -> Object:
    """Walks `{"items": [...], "metadata": {...}}` so that one item exists at a time; returns the metadata.
    Raises ValueError and IndexError."""
    metadata: Object = {}
    at = _past(text, 0, "{")
    while text[at] != "}":
        key, at = _decode(text, at)
        at = _past(text, at, ":")
        if key == "items" and text[at] == "[":
            at = _read_items(text, at, each)
        else:
            value, at = _decode(text, at)
            if key == "metadata" and isinstance(value, dict):
                metadata = value
        at = _next(text, at)
    return metadata


def _read_items(text: str, at: int, each: Callable[[Object], object]) -> int:
    at = _past(text, at, "[")
    while text[at] != "]":
        item, at = _decode(text, at)
        each(item)
        at = _next(text, at)
    return at + 1


def _past(text: str, at: int, mark: str) -> int:
    """The first place after `mark` that is not blank."""
    at = _skip(text, at)
    if text[at] != mark:
        raise ValueError(f"expected {mark!r} at character {at}")
    return _skip(text, at + 1)


def _next(text: str, at: int) -> int:
    """Over a comma, if there is one, to the next key, item or end."""
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    while text[at] in _BLANK:
        at += 1
    return at
