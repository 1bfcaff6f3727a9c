"""Opaque TCP: joins a downstream byte stream with one to an endpoint, or a CONNECT stream to its sidecar.

Called by `detect.py` for TCP listeners and for what a CONNECT tunnel carries that is not HTTP. Bytes are
never looked at. Half-close passes in each direction by itself; back-pressure is the streams' own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from sidecar.config.resources import SocketAddress, TcpProxyConfig
from sidecar.http.buffer_budget import BufferBudget
from sidecar.http.context import Clock, ClusterSource
from sidecar.net.peer import PeerInfo
from sidecar.protocol.events import ErrorCode, Field, RequestHead, Reset, ResponseHead, Stream
from sidecar.telemetry.access_log import AccessLog, AccessRecord
from sidecar.telemetry.metrics import ListenerStats
from sidecar.upstream.cluster import Cluster
from sidecar.upstream.endpoint import Endpoint


class TcpProxy:
    """Where a listener's connections go; one session each."""

    def __init__(
        self,
        config: TcpProxyConfig,
        clusters: ClusterSource,
        random: Random,
        clock: Clock,
        now: Callable[[], float],
        access_log: AccessLog | None,
        budget: BufferBudget,
        stats: ListenerStats,
    ) -> None:
        self.config = config
        self.budget = budget
        self.stats = stats
        self.clusters = clusters
        self.now = now
        self._clock = clock
        self._sweeping = False
        self.access_log = access_log
        self._random = random
        self.sessions: set[TcpSession] = set()

    def accept(self, stream: Stream, remote: tuple[str, int], authority: bytes = b"") -> TcpSession:
        """A session that handles `stream`; what comes waits until it is told where to connect. `authority`
        is what the client asked for, if it could."""
        session = TcpSession(self, stream, remote, authority)
        stream.handler = session
        self.sessions.add(session)
        self.stats.connections_active += 1
        if self.config.idle_timeout and not self._sweeping:
            self._sweeping = True
            self._clock.call_later(self.config.idle_timeout / 2, self._sweep)
        return session

    def _sweep(self) -> None:
        """Twice in an idle period, while there are sessions: what has not moved in three looks is idle."""
        self._sweeping = bool(self.sessions)
        if self._sweeping:
            self._clock.call_later(self.config.idle_timeout / 2, self._sweep)
        for session in list(self.sessions):
            session.look_for_idleness(self.config.idle_timeout)

    def pick_cluster(self) -> str:
        """One of the configured clusters, by weight."""
        clusters = self.config.clusters
        return self._random.choices([c.name for c in clusters], [c.weight for c in clusters])[0]

    def abort(self) -> None:
        """Cut all sessions."""
        for session in list(self.sessions):
            if session.upstream is not None:
                session.upstream.cancel()
            session.fail("DT", "the sidecar's drain deadline has passed")


class TcpSession:
    """Handler of the downstream stream. Bytes that come before the upstream is there wait in `early`; they
    are not consumed, so the stream's window bounds them."""

    def __init__(
        self, proxy: TcpProxy, stream: Stream, remote: tuple[str, int], authority: bytes = b""
    ) -> None:
        self.proxy = proxy
        self.stream = stream
        self.remote = remote
        self.authority = authority
        self.cluster_name = ""
        self.cluster: Cluster | None = None
        self.destination: SocketAddress | None = None
        self.upstream: TcpUpstream | None = None
        self.tried: list[Endpoint] = []
        self.failure = ""
        """Why the last try failed."""
        self.early: list[bytes] = []
        self.held = 0
        """Bytes that one side has sent and the other has not accepted, as the process' budget counts them."""
        self.request_ended = False
        self.response_ended = False
        self.done = False
        self.started = proxy.now()
        self.bytes_in = 0
        self.bytes_out = 0
        self._idle_mark = -1
        self._idle_looks = 0

    def look_for_idleness(self, limit: float) -> None:
        """Cut the session when nothing has moved since the last two looks, `limit / 2` seconds apart."""
        moved = self.bytes_in + self.bytes_out
        if moved != self._idle_mark:
            self._idle_mark, self._idle_looks = moved, 0
            return
        self._idle_looks += 1
        if self._idle_looks >= 2:
            if self.upstream is not None:
                self.upstream.cancel()
            self.fail("SI", f"nothing was sent or received for {limit:g} s (idle_timeout)")

    def connect(self, cluster_name: str, destination: SocketAddress | None = None) -> None:
        """Join the stream with one to this cluster; `destination`: where the client was going before it was
        redirected, which a cluster of type ORIGINAL_DST goes by."""
        self.cluster_name = cluster_name
        self.destination = destination
        budget = self.proxy.budget
        if budget.exceeded:
            self.fail("OM", budget.describe())
        elif not self.done:
            self.try_next()

    def hold(self, n: int) -> None:
        """`n` more bytes wait in one of the directions; fewer when negative."""
        if not self.done:
            self.held += n
            self.proxy.budget.add(n)

    def try_next(self) -> None:
        """Try an endpoint that was not tried yet."""
        cluster = self.proxy.clusters.get(self.cluster_name)
        if cluster is None:
            self.fail("NC", f"cluster {self.cluster_name} is not configured")
            return
        self.cluster = cluster
        if self.destination is None:
            endpoint = cluster.pick(self.tried)
        else:
            endpoint = cluster.pick_for(self.destination, self.tried)
        if endpoint is None or endpoint in self.tried:
            why = self.failure or cluster.why_none()
            self.fail("UH", f"no endpoint of cluster {cluster.name} is left to try: {why}")
            return
        if not cluster.begin(endpoint):
            self.fail("UO", f"cluster {cluster.name} has reached its limit of concurrent requests")
            return
        self.tried.append(endpoint)
        self.upstream = TcpUpstream(self, endpoint)
        self.upstream.connect()

    # --- from downstream -------------------------------------------------------------------------

    def on_data(self, data: bytes, end_stream: bool) -> None:
        self.bytes_in += len(data)
        self.request_ended = end_stream
        upstream = self.upstream
        if upstream is not None and upstream.established:
            assert upstream.stream is not None
            n = upstream.stream.send_data(data, end_stream)
            if n:
                self.stream.consume(n)
            if n != len(data):
                self.hold(len(data) - n)
        else:
            self.early.append(data)
            self.hold(len(data))
        if end_stream and self.response_ended:
            self.finish("", "")

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        self.on_data(b"", True)

    def on_sent(self, n: int) -> None:
        self.hold(-n)
        if self.upstream is not None and self.upstream.stream is not None:
            self.upstream.stream.consume(n)

    def on_reset(self, reset: Reset) -> None:
        if not self.done:
            if self.upstream is not None:
                self.upstream.cancel()
            self.finish("DC", reset.reason)

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        raise AssertionError("a server's stream receives no response")

    def on_informational(self, head: ResponseHead) -> None:
        raise AssertionError("a server's stream receives no response")

    # --- from upstream ---------------------------------------------------------------------------

    def on_established(self, stream: Stream) -> None:
        """The other side is there: what waited goes out."""
        last = len(self.early) - 1
        for i, data in enumerate(self.early):
            n = stream.send_data(data, self.request_ended and i == last)
            if n:
                self.hold(-n)
                self.stream.consume(n)
        self.early = []

    def fail(self, flag: str, text: str) -> None:
        """Cut the downstream connection: TCP has no other way to say no."""
        if not self.done:
            self.stream.reset(ErrorCode.CONNECT_ERROR)
            self.finish(flag, text)

    def abandon(self) -> None:
        """The connection turned out to be another protocol's: nobody else is told, nothing is logged."""
        if not self.done:
            self._end()
            if self.upstream is not None:
                self.upstream.cancel()
                self.upstream.release(failed=False)

    def _end(self) -> None:
        self.hold(-self.held)
        self.done = True
        self.proxy.sessions.discard(self)
        self.proxy.stats.connections_active -= 1

    def finish(self, flag: str, text: str) -> None:
        """Both directions have ended, or the session was cut. Logged once."""
        if self.done:
            return
        self._end()
        upstream = self.upstream
        if upstream is not None:
            upstream.release(failed=bool(flag) and flag != "DC")
        log = self.proxy.access_log
        if log is not None:
            log.write(
                AccessRecord(
                    start=time.time() - (self.proxy.now() - self.started),
                    direction="outbound",
                    method=b"CONNECT",
                    path=b"",
                    authority=self.authority or self.cluster_name.encode(),
                    protocol="TCP",
                    status=0 if flag else 200,
                    grpc_status=None,
                    flags=flag,
                    details=text,
                    duration=self.proxy.now() - self.started,
                    bytes_in=self.bytes_in,
                    bytes_out=self.bytes_out,
                    upstream=self.tried[-1].name if self.tried else "",
                    attempts=len(self.tried),
                    route="tcp",
                    cluster=self.cluster_name,
                    peer="",
                    trace_id=b"",
                )
            )

    def __repr__(self) -> str:
        return f"<TcpSession {self.remote} to {self.cluster_name} in={self.bytes_in} out={self.bytes_out}>"


class TcpUpstream:
    """Handler of the upstream stream, plain TCP or CONNECT."""

    def __init__(self, session: TcpSession, endpoint: Endpoint) -> None:
        self.session = session
        self.endpoint = endpoint
        self.stream: Stream | None = None
        self.established = False
        self._started = session.proxy.now()
        self._connect_time: float | None = None
        self._released = False
        self._tunnel = session.proxy.config.tunneling and not endpoint.config.plaintext

    def connect(self) -> None:
        if self._tunnel:
            self.endpoint.acquire(self)
        else:
            self.endpoint.acquire_tcp(self)

    def on_stream(self, stream: Stream, peer: PeerInfo) -> None:
        self.stream = stream
        if self._tunnel:
            # A shared connection's handshake says nothing about how fast the endpoint takes streams.
            self._started = self.session.proxy.now()
            authority = self.session.proxy.config.tunneling_hostname or self.endpoint.config.tunnel_authority
            stream.send_request(
                RequestHead(b"CONNECT", b"", (authority or str(self.endpoint.address)).encode(), b""), False
            )
        else:
            self._establish(stream)

    def _establish(self, stream: Stream) -> None:
        self.established = True
        self._connect_time = self.session.proxy.now() - self._started
        self.session.on_established(stream)

    def on_connect_failure(self, reason: str, overflow: bool) -> None:
        self.release(failed=not overflow)
        self.session.failure = reason
        self.session.try_next()

    def on_response(self, head: ResponseHead, end_stream: bool) -> None:
        assert self.stream is not None
        if 200 <= head.status < 300 and not end_stream:
            self._establish(self.stream)
            return
        text = f"{self.endpoint.name} answered the CONNECT for {self.session.cluster_name} with {head.status}"
        self.cancel()
        self.session.fail("UF", text)

    def on_informational(self, head: ResponseHead) -> None:
        """Nothing to pass on: TCP has no interim answers."""

    def on_data(self, data: bytes, end_stream: bool) -> None:
        session = self.session
        session.bytes_out += len(data)
        stream = self.stream
        n = session.stream.send_data(data, end_stream)
        if n and stream is not None:
            stream.consume(n)
        if n != len(data):
            session.hold(len(data) - n)
        if end_stream:
            session.response_ended = True
            if session.request_ended:
                session.finish("", "")

    def on_trailers(self, fields: tuple[Field, ...]) -> None:
        self.on_data(b"", True)

    def on_sent(self, n: int) -> None:
        self.session.hold(-n)
        self.session.stream.consume(n)

    def on_reset(self, reset: Reset) -> None:
        self.stream = None
        session = self.session
        if not self.established and not reset.processed:
            self.release(failed=True)
            session.failure = f"{self.endpoint.name} refused the connection: {reset.reason}"
            session.try_next()
        else:
            session.fail("UR", f"upstream {self.endpoint.name} ended the connection: {reset.reason}")

    def cancel(self) -> None:
        """The downstream is gone."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(ErrorCode.CANCEL)
        elif not self._released:
            self.endpoint.cancel(self)

    def release(self, failed: bool) -> None:
        """Count it out of its cluster, once. Once established it was a success whatever ended it: opaque
        bytes have no errors that could be told from an ordinary end."""
        if not self._released:
            self._released = True
            assert self.session.cluster is not None
            failed = failed and not self.established
            self.session.cluster.finish(self.endpoint, self._connect_time, failed)

    def __repr__(self) -> str:
        return f"<TcpUpstream {self.endpoint.name} {'established' if self.established else 'connecting'}>"
