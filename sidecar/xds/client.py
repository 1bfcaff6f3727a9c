"""Runs the ADS state machine over gRPC: one stream at a time, opened again after a growing pause.

`app.py` makes it with a channel to the control plane and spawns `run`. While there is no stream the
sidecar works with what it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from random import Random
from typing import Protocol

from google.protobuf.message import DecodeError

from sidecar.config.resources import AdsConfig
from sidecar.net.grpc_messages import GrpcError
from sidecar.protocol.events import Field
from sidecar.xds.ads import AdsClient

_log = logging.getLogger(__name__)

_SERVICE = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 10.0
"""Seconds between streams, doubling while no response comes, with full jitter on the upper half."""


class RpcStream(Protocol):
    def send(self, message: bytes) -> None: ...
    def cancel(self) -> None: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Channel(Protocol):
    """The part of `GrpcChannel` that is needed here."""

    def stream(self, path: str, metadata: Sequence[Field] = ()) -> Awaitable[RpcStream]: ...


class XdsClient:
    def __init__(
        self,
        config: AdsConfig,
        channel: Channel,
        ads: AdsClient,
        random: Random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Sets `ads.on_output`. `sleep` is replaced in tests."""
        self._config = config
        self._channel = channel
        self._ads = ads
        self._random = random
        self._sleep = sleep
        self._stream: RpcStream | None = None
        self._flush_due = False
        self._responses = 0
        self.last_error = ""
        """Why there is no stream, or why the last one ended; for the admin port."""
        ads.on_output = self._schedule_flush

    async def run(self) -> None:
        """Keep a stream open until cancelled."""
        pause = FIRST_PAUSE
        while True:
            before = self._responses
            try:
                await self._session()
                self.last_error = "the control plane ended the stream"
            except (GrpcError, OSError, UnicodeError) as error:
                self.last_error = str(error)
            except DecodeError as error:
                self.last_error = f"a response is no valid protobuf: {error}"
            if self._responses > before:
                pause = FIRST_PAUSE
            delay = pause * self._random.uniform(0.5, 1.0)
            _log.warning("discovery: %s; next try in %.1f s", self.last_error, delay)
            await self._sleep(delay)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _session(self) -> None:
        method = "DeltaAggregatedResources" if self._config.delta else "StreamAggregatedResources"
        stream = await self._channel.stream(_SERVICE + method, self._metadata())
        self._stream = stream
        try:
            self._ads.connect()
            async for response in stream:
                self._responses += 1
                self._ads.receive(response)
        finally:
            self._stream = None
            self._ads.disconnect()
            stream.cancel()

    def _metadata(self) -> tuple[Field, ...]:
        """The bearer token, read anew because it is rotated. Raises OSError."""
        if not self._config.token_file:
            return ()
        with open(self._config.token_file, encoding="ascii") as file:
            return ((b"authorization", b"Bearer " + file.read().strip().encode()),)

    def _schedule_flush(self) -> None:
        """Subscriptions made in one loop tick go out together."""
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._stream is not None:
            for request in self._ads.take_requests():
                self._stream.send(request)

    def __repr__(self) -> str:
        state = "connected" if self._stream is not None else f"disconnected ({self.last_error})"
        return f"<XdsClient {self._config.cluster} {state} responses={self._responses}>"
