"""Calls that the sidecar makes for itself through one of its clusters, such as exporting traces.

Off the request path, so it awaits. No retries here: the caller knows whether a call may be made again.
"""

from __future__ import annotations

import asyncio

from sidecar.net.peer import PeerInfo
from sidecar.protocol.events import ErrorCode, Field, RequestHead, Reset, ResponseHead, Stream
from sidecar.upstream.cluster import Cluster

MAX_RESPONSE = 1024 * 1024


class CallError(OSError):
    """No whole response came; the text says from where and why."""


async def call(cluster: Cluster, head: RequestHead, body: bytes, deadline: float) -> tuple[int, bytes]:
    """Status and body. Raises CallError, or TimeoutError after `deadline` seconds."""
    endpoint = cluster.pick(())
    if endpoint is None or not cluster.begin(endpoint):
        raise CallError(f"no endpoint of cluster {cluster.name} can take requests: {cluster.why_none()}")
    waiter = _Call(head, body)
    failed = True
    try:
        async with asyncio.timeout(deadline):
            endpoint.acquire(waiter)
            status = await waiter.done
            failed = status >= 500
            return status, b"".join(waiter.chunks)
    except BaseException:
        if waiter.stream is not None:
            waiter.stream.reset(ErrorCode.CANCEL)
        else:
            endpoint.cancel(waiter)
        raise
    finally:
        cluster.finish(endpoint, None, failed)


class _Call:
    """StreamWaiter and StreamHandler of one call."""

    def __init__(self, head: RequestHead, body: bytes) -> None:
        self.head = head
        self.body = body
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.stream: Stream | None = None
        self.status = 0
        self.chunks: list[bytes] = []
        self.size = 0

    def on_stream(self, stream: Stream, peer: PeerInfo) -> None:
        self.stream = stream
        stream.send_request(self.head, not self.body)
        if self.body:
            stream.send_data(self.body, True)

    def on_connect_failure(self, reason: str, overflow: bool) -> None:
        self._fail(reason)

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        self.status = head.status
        if end_stream:
            self._finish()

    def on_informational(self, head: ResponseHead) -> None:
        """Interim answers do not matter to the sidecar's own calls."""

    def on_data(self, data: bytes, end_stream: bool) -> None:
        self.size += len(data)
        if self.size > MAX_RESPONSE:
            assert self.stream is not None
            self.stream.reset(ErrorCode.CANCEL)
            self._fail(f"the response exceeds {MAX_RESPONSE} bytes")
            return
        self.chunks.append(data)
        if self.stream is not None:
            self.stream.consume(len(data))
        if end_stream:
            self._finish()

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        self._finish()

    def on_sent(self, n: int) -> None:
        """The body is in memory already: there is nobody to give credit to."""

    def on_reset(self, reset: Reset) -> None:
        self.stream = None
        self._fail(reset.reason)

    def _finish(self) -> None:
        self.stream = None
        if not self.done.done():
            self.done.set_result(self.status)

    def _fail(self, reason: str) -> None:
        self.stream = None
        if not self.done.done():
            self.done.set_exception(CallError(reason))
