"""The aggregated discovery service on grpc.aio: drives one Session for each stream.

The app puts `handler` on its gRPC server. Everything that the protocol decides is in `session.py`; here
are streams, authentication, debouncing, and what the status page and the metrics show. Changes touch
only the streams that watch what changed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from control_plane.model.discovery import Change, Identity, NodeInfo
from control_plane.xds.debounce import Debouncer
from control_plane.xds.session import DeltaSession, ProtocolError, Session, SotwSession
from control_plane.xds.snapshot_cache import ResourceSource, WatchIndex
from control_plane.xds.subscription import Acknowledgement, NackInfo, Subscription
from control_plane.xds.types import metric_label, node_info, short_name

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"

log = logging.getLogger(__name__)

Authenticate = Callable[[Any], Awaitable[Identity]]
"""From a call's context to the caller's account; ends the call if there is none."""


@dataclass(frozen=True, slots=True)
class DiscoveryOptions:
    quiet: float = 0.1
    """Seconds without another change before changes are pushed."""
    longest: float = 10.0
    """Seconds that a change waits at most while others keep coming."""


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """One connected client, for the status page."""

    node: NodeInfo
    version: str
    """Of the client's program, as it says itself; empty: it did not."""
    variant: str
    peer: str
    connected_at: float
    """Seconds since the epoch."""
    subscriptions: tuple[Subscription, ...]
    """Live state: to be read at once, not kept."""

    @property
    def in_step(self) -> bool:
        return all(subscription.in_step for subscription in self.subscriptions)

    @property
    def nacks(self) -> tuple[NackInfo, ...]:
        return tuple(s.nack for s in self.subscriptions if s.nack is not None)


class DiscoveryCounts:
    """What the metrics show; totals since the start, acks and nacks by `types.metric_label`."""

    def __init__(self) -> None:
        self.streams = 0
        self.pushes = 0
        self.acks: Counter[str] = Counter()
        self.nacks: Counter[str] = Counter()
        self.ack_seconds = 0.0
        """Sum over all answers, from push to ACK or NACK."""

    def __repr__(self) -> str:
        return f"<DiscoveryCounts pushes={self.pushes} acks={self.acks.total()} nacks={self.nacks.total()}>"

    def record(self, answer: Acknowledgement) -> None:
        (self.acks if answer.nack is None else self.nacks)[metric_label(answer.type_url)] += 1
        self.ack_seconds += answer.seconds


class _Stream:
    """A session and the event that wakes its writer."""

    def __init__(self, session: Session, version: str, peer: str, connected_at: float) -> None:
        self.session = session
        self.version = version
        self.peer = peer
        self.connected_at = connected_at
        self.wake = asyncio.Event()
        self.ended = False

    def __repr__(self) -> str:
        return f"<_Stream {self.peer} ended={self.ended} {self.session!r}>"

    def end(self) -> None:
        self.ended = True
        self.wake.set()


class DiscoveryServer:
    """All ADS streams of this process. To be made and used on one event loop."""

    def __init__(
        self,
        source: ResourceSource,
        authenticate: Authenticate,
        options: DiscoveryOptions,
        not_ready: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`not_ready`: why nothing can be answered yet. A stream is refused then: told that its resources
        do not exist, a client that ran on would drop what it holds."""
        self.counts = DiscoveryCounts()
        self._source = source
        self._authenticate = authenticate
        self._not_ready = not_ready
        self._clock = clock
        self._watches: WatchIndex[Session] = WatchIndex()
        self._streams: dict[Session, _Stream] = {}
        self._debouncer = Debouncer(options.quiet, options.longest)
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        source.subscribe(self.on_change)

    def __repr__(self) -> str:
        return f"<DiscoveryServer streams={len(self._streams)} {self._watches!r} stopping={self._stopping}>"

    def handler(self) -> Any:
        """For `grpc.aio.Server.add_generic_rpc_handlers`."""
        methods = {
            "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(self._delta),
            "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(self._sotw),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def clients(self) -> list[ClientStatus]:
        return [
            ClientStatus(
                node=stream.session.node,
                version=stream.version,
                variant="delta" if isinstance(stream.session, DeltaSession) else "sotw",
                peer=stream.peer,
                connected_at=stream.connected_at,
                subscriptions=tuple(stream.session.subscriptions.values()),
            )
            for stream in self._streams.values()
        ]

    def on_change(self, change: Change) -> None:
        """Pushes, once changes have been quiet for a moment, what they touched."""
        loop = asyncio.get_running_loop()
        self._debouncer.add(change, loop.time())
        if self._timer is None:
            self._arm(loop)

    def stop(self) -> None:
        """Ends every stream in good order; new ones end at once. Clients reconnect elsewhere."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for stream in self._streams.values():
            stream.end()

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        deadline = self._debouncer.deadline
        self._timer = None if deadline is None else loop.call_at(deadline, self._publish)

    def _publish(self) -> None:
        loop = asyncio.get_running_loop()
        change = self._debouncer.take(loop.time())
        if change is not None:
            touched = set()
            for session, type_url, names in self._watches.touched(change):
                session.mark(type_url, names)
                touched.add(session)
            for session in touched:
                self._streams[session].wake.set()
            log.info("configuration pushed changed=%s streams=%d", _describe(change), len(touched))
        self._arm(loop)

    async def _delta(self, _requests: Any, context: Any) -> None:
        await self._serve(context, DeltaSession)

    async def _sotw(self, _requests: Any, context: Any) -> None:
        await self._serve(context, SotwSession)

    async def _serve(self, context: Any, variant: type[DeltaSession] | type[SotwSession]) -> None:
        identity = await self._authenticate(context)
        if (reason := self._not_ready()) is not None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the control plane is not ready: {reason}")
        data = await context.read()
        if data is grpc.aio.EOF or self._stopping:
            return
        try:
            first = variant.parse(data)
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        self.counts.streams += 1
        node = node_info(first.node, identity)
        session = variant(node, self._source, self._watches, nonce_prefix=f"{self.counts.streams:x}")
        version = first.node.user_agent_version
        stream = self._streams[session] = _Stream(session, version, context.peer(), self._clock())
        log.info(
            "stream opened node=%r identity=%s dialect=%s variant=%s peer=%s",
            node.id, identity, node.dialect.value, variant.__name__, stream.peer,
        )  # fmt: skip
        problem: str | None = None
        try:
            self._take(stream, first)
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(stream, context))
                await self._write(stream, context)
                reader.cancel()
        except* ProtocolError as errors:
            problem = str(errors.exceptions[0])
        finally:
            del self._streams[session]
            session.close()
            log.info(
                "stream closed node=%r identity=%s peer=%s problem=%s",
                node.id,
                identity,
                stream.peer,
                problem,
            )
        if problem is not None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)

    async def _read(self, stream: _Stream, context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            self._take(stream, stream.session.parse(data))
        stream.end()

    async def _write(self, stream: _Stream, context: Any) -> None:
        while True:
            for response in stream.session.responses(self._clock()):
                self.counts.pushes += 1
                await context.write(response)
            if stream.ended:
                return
            await stream.wake.wait()
            stream.wake.clear()

    def _take(self, stream: _Stream, request: Any) -> None:
        answer = stream.session.on_request(request, self._clock())
        stream.wake.set()
        if answer is None:
            return
        self.counts.record(answer)
        if answer.nack is not None:
            log.warning(
                "configuration refused node=%r type=%s version=%s names=%r reason=%r",
                answer.nack.node,
                short_name(answer.type_url),
                answer.nack.version,
                ",".join(answer.nack.names),
                answer.nack.text,
            )


def _describe(change: Change) -> str:
    if change.everything:
        return "everything"
    names: Mapping[str, frozenset[str] | None] = change.names
    return ",".join(f"{short_name(url)}:{'*' if n is None else len(n)}" for url, n in names.items())
