"""The sidecar put together: identity, clusters, discovery, listeners, telemetry, admin; from start to drain.

`sidecar/main.py` calls `run`. Nothing else knows all the parts, and nothing here decides about a request.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

import uvloop

from mesh_api.names import INBOUND_SOURCE
from sidecar.admin import AdminServer, AnswerProbe
from sidecar.admin_pages import AdminSources
from sidecar.config.dependency_manager import DependencyManager
from sidecar.config.resources import Bootstrap, ClusterConfig, Http2Options, ListenerConfig, SocketAddress
from sidecar.exit_watch import applications_end, watch
from sidecar.http.buffer_budget import BufferBudget
from sidecar.identity.ca_client import CaClient
from sidecar.identity.certificate_provider import CertificateProvider
from sidecar.identity.tls_contexts import TlsConfigError, TlsContexts
from sidecar.net.connect import connect
from sidecar.net.grpc_client import GrpcChannel
from sidecar.pod import OutboundUntil, Pod
from sidecar.probes import AppProbes
from sidecar.protocol.events import Codec, ConnectionHandler
from sidecar.protocol.h1 import H1ClientCodec, H1Options
from sidecar.protocol.h2 import H2Codec
from sidecar.protocol.raw import RawCodec
from sidecar.runtime.tasks import cancel_all, spawn
from sidecar.server.callers import h2_options
from sidecar.server.chain import MakeH2
from sidecar.server.chain_factory import ChainFactory
from sidecar.server.listener_manager import ListenerManager
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry_exports import TelemetryExports
from sidecar.upstream.cluster_manager import ClusterManager
from sidecar.upstream.context import MakeCodec
from sidecar.upstream.context import MakeH2 as MakeClientH2
from sidecar.xds.ads import AdsClient
from sidecar.xds.client import XdsClient
from sidecar.xds.delta import DeltaVariant
from sidecar.xds.sotw import SotwVariant

logger = logging.getLogger(__name__)

WAITING = "waiting for "
LEAST_DRAIN = 2.0
"""Seconds for what is in flight when draining was announced so long ago that its deadline has passed."""
FLUSH_DEADLINE = 2.0
"""Seconds that the last spans may take to leave."""


class StartError(Exception):
    """The sidecar cannot start; the text says why and what to do."""


def run(
    bootstrap: Bootstrap,
    http2_engine: str,
    drain_deadline: float,
    buffer_limit: int,
    header_limit: int,
    pod: Pod,
) -> int:
    """Runs until SIGTERM or SIGINT has been obeyed, or `pod` has completed; returns the exit status."""
    try:
        uvloop.run(_serve(bootstrap, http2_engine, drain_deadline, buffer_limit, header_limit, pod))
    except (StartError, TlsConfigError) as error:
        logger.error("cannot start: %s", error)
        return 1
    return 0


async def _serve(
    bootstrap: Bootstrap,
    http2_engine: str,
    drain_deadline: float,
    buffer_limit: int,
    header_limit: int,
    pod: Pod,
) -> None:
    stop, ended = asyncio.Event(), asyncio.Event()

    def finish(_: object = None) -> None:
        """The applications have ended, or say so."""
        ended.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sidecar = Sidecar(bootstrap, http2_engine, buffer_limit, header_limit, finish, pod)
    if pod.applications:
        spawn(watch(pod), "exit watch").add_done_callback(finish)
    stopping = spawn(stop.wait(), "stop")
    starting = spawn(_started(sidecar), "start")
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()  # has no effect once it has started
        await asyncio.wait((starting,))
        problem = None if starting.cancelled() else starting.result()
        if problem is not None:
            raise problem
        await stopping
        if pod.outbound_until is OutboundUntil.SIGTERM:
            ended.set()
        else:
            spawn(applications_end(pod), "end of the applications").add_done_callback(lambda _: ended.set())
        # Also when SIGTERM came first: listeners may serve while discovery is still awaited.
        await sidecar.drain(drain_deadline, ended)
    finally:
        await sidecar.close()


async def _started(sidecar: Sidecar) -> Exception | None:
    """Start; what the user can do something about is returned, so that it is reported once and in words."""
    try:
        await sidecar.start()
    except (StartError, TlsConfigError) as error:
        return error
    return None


class Sidecar:
    """`start`, then `drain`, then `close`, all on one running loop."""

    def __init__(
        self,
        bootstrap: Bootstrap,
        http2_engine: str,
        buffer_limit: int,
        header_limit: int,
        quit: Callable[[], None],
        pod: Pod,
    ) -> None:
        """`buffer_limit` and `header_limit` in bytes; `quit` ends the process as SIGTERM does, and waits for
        no application."""
        self._bootstrap = bootstrap
        self._quit = quit
        self._pod = pod
        self._drain_began: float | None = None
        self._not_ready = "starting"
        loop = self._loop = asyncio.get_running_loop()
        random = self._random = Random()
        self.metrics = Metrics()
        make_h2 = h2_engine(http2_engine)
        self._providers: dict[str, CertificateProvider] = {}
        self.tls = TlsContexts(self._providers)
        for provider in bootstrap.ca_providers:
            client = CaClient(self._channel(provider.cluster), provider.token_file)
            self._providers[provider.instance] = CertificateProvider(provider, client.sign, loop, random)
        self.clusters = ClusterManager(
            loop,
            self.metrics,
            self.tls,
            random,
            _client_h2(make_h2, header_limit),
            _client_h1(header_limit),
            _client_raw,
            connect,
        )
        self._telemetry = TelemetryExports(self.clusters, self.metrics, random)
        self._ads = AdsClient(
            bootstrap.node, DeltaVariant() if bootstrap.ads is None or bootstrap.ads.delta else SotwVariant()
        )
        self.dependencies = DependencyManager(
            bootstrap, self._ads, self.clusters, self._on_listeners, time.monotonic
        )
        self._ads.on_update = self.dependencies.on_update
        self._xds: XdsClient | None = None
        factory = ChainFactory(
            self.clusters,
            self.dependencies,
            self.metrics,
            self._telemetry.tracer,
            self._telemetry.access_log,
            make_h2,
            loop,
            time.perf_counter,
            random,
            BufferBudget(buffer_limit),
            header_limit,
        )
        self.listeners = ListenerManager(factory, self.tls, self.metrics)
        self._discovered: Mapping[str, ListenerConfig] = {}
        self._listeners_changed = asyncio.Event()
        self._admin: AdminServer | None = None

    # --- starting --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns once traffic is taken. Raises StartError."""
        bootstrap = self._bootstrap
        if bootstrap.admin:
            self._admin = AdminServer(self._loop, self._admin_sources(), self._answer_probe())
            try:
                await self._admin.start(*bootstrap.admin)
            except OSError as error:
                raise StartError(str(error)) from error
        for path in bootstrap.without_effect:
            logger.info("%s: without effect", path)
        for name, provider in self._providers.items():
            self._not_ready = f"{WAITING}the first certificate of provider {name}"
            provider.start()
            await provider.ready()
        self.dependencies.start()
        if bootstrap.ads is not None:
            self._xds = XdsClient(
                bootstrap.ads, self._channel(bootstrap.ads.cluster), self._ads, self._random
            )
            spawn(self._xds.run(), "discovery")
        spawn(self._tick(), "tick")
        await self._apply_listeners(strict=True)
        spawn(self._follow_listeners(), "listeners")
        self._not_ready = f"{WAITING}discovery"
        while not self.dependencies.ready:  # noqa: ASYNC110 - once in a process' life
            await asyncio.sleep(0.02)
        self._not_ready = ""
        logger.info("ready")
        _settle_memory()

    def _channel(self, cluster_name: str) -> GrpcChannel:
        cluster = next((c for c in self._bootstrap.clusters if c.name == cluster_name), None)
        if cluster is None:
            raise StartError(
                f"cluster {cluster_name} of the control plane is not in static_resources.clusters"
            )
        tls = cluster.tls
        make_tls = (lambda: self.tls.client(tls)) if tls is not None else None
        return GrpcChannel(self._loop, _addresses(cluster), cluster_name, make_tls)

    def _why_not_ready(self) -> str:
        """With the last error of who is waited for, so that the reason is not only in the log."""
        errors = [str(provider.last_error) for provider in self._providers.values() if not provider.version]
        if self._xds is not None and not self.dependencies.ready:
            errors.append(self._xds.last_error)
        known = "; ".join(filter(None, errors))
        return (
            f"{self._not_ready}: {known}"
            if known and self._not_ready.startswith(WAITING)
            else self._not_ready
        )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.dependencies.tick()

    # --- listeners -------------------------------------------------------------------------------

    def _on_listeners(self, listeners: Mapping[str, ListenerConfig]) -> None:
        if any(listener.draining for listener in listeners.values()):
            self._announce_drain()
        # Draining is the process' business: the listeners themselves stay as they are.
        self._discovered = {
            name: replace(each, draining=False) if each.draining else each for name, each in listeners.items()
        }
        self._listeners_changed.set()

    async def _follow_listeners(self) -> None:
        while True:
            await self._listeners_changed.wait()
            await self._apply_listeners(strict=False)
            _settle_memory()

    async def _apply_listeners(self, strict: bool) -> None:
        """`strict`: what the bootstrap names must be there, or the process ends with status 1."""
        self._listeners_changed.clear()
        static = {listener.name: listener for listener in self._bootstrap.listeners}
        problems = await self.listeners.apply({**self._discovered, **static})
        if problems and strict:
            raise StartError("; ".join(problems))
        for problem in problems:
            logger.error("%s", problem)

    # --- admin -----------------------------------------------------------------------------------

    def _admin_sources(self) -> AdminSources:
        return AdminSources(
            ready=self._why_not_ready,
            stats=self.metrics.snapshot,
            prometheus=self.metrics.prometheus_parts,
            config_dump=self._config_dump,
            clusters=self.clusters.describe,
            certs=lambda: {name: provider.status() for name, provider in self._providers.items()},
            listeners=lambda: [listener.config for listener in self.listeners.listeners.values()],
            drain=self._announce_drain,
            quit=self._quit,
        )

    def _answer_probe(self) -> AnswerProbe | None:
        pod = self._pod
        if not pod.probes:
            return None
        sources = INBOUND_SOURCE if pod.captured else ()
        return AppProbes(self._loop, pod.probes, pod.address, sources, connect).answer

    def _config_dump(self) -> object:
        discovery = None
        if self._xds is not None:
            discovery = {"connected": self._ads.connected, "last_error": self._xds.last_error}
        return {"bootstrap": self._bootstrap, "discovery": discovery, **self.dependencies.describe()}

    # --- the end ---------------------------------------------------------------------------------

    def _announce_drain(self) -> None:
        """By `POST /drain` or because discovery says that the workload ends: whichever is first, once."""
        if self._drain_began is not None:
            return
        self._drain_began = self._loop.time()
        self._not_ready = "draining"
        logger.info("draining: clients are told to go elsewhere")
        self.listeners.announce()

    async def drain(self, deadline: float, ended: asyncio.Event) -> None:
        """Fail readiness, tell clients to go, wait for what is in flight and until the applications have
        `ended`, up to `deadline` seconds, counted from when draining was announced."""
        self._not_ready = "draining"
        if self._drain_began is not None:
            deadline = max(LEAST_DRAIN, deadline - (self._loop.time() - self._drain_began))
        logger.info("draining, for at most %.1f s", deadline)
        left = await self.listeners.drain(deadline, ended)
        logger.info("drained" if not left else f"drain deadline passed: {left} requests or sessions were cut")

    async def close(self) -> None:
        """Flush telemetry and let go of everything."""
        self.listeners.close()
        await self._telemetry.close(FLUSH_DEADLINE)
        for provider in self._providers.values():
            await provider.stop()
        await self.clusters.close()
        if self._admin is not None:
            self._admin.close()
        await cancel_all()


def _settle_memory() -> None:
    """What exists now lives long: collections need not look at it again. What was frozen before is looked
    at once more, or cycles that were in use then and are garbage now would stay for ever."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def h2_engine(name: str) -> MakeH2:
    """The HTTP/2 codec of `--http2-engine`."""
    if name == "h2":
        from sidecar.protocol.h2_reference import H2ReferenceCodec

        return H2ReferenceCodec
    return H2Codec


def _client_h2(make_h2: MakeH2, header_limit: int) -> MakeClientH2:
    def make(handler: ConnectionHandler, options: Http2Options, trusted_peer: bool) -> Codec:
        return make_h2(True, handler, h2_options(options, header_limit, trusted_peer=trusted_peer))

    return make


def _client_h1(header_limit: int) -> MakeCodec:
    options = H1Options(max_header_bytes=header_limit)
    return lambda handler: H1ClientCodec(handler, options)


def _client_raw(handler: ConnectionHandler) -> Codec:
    return RawCodec(handler)


def _addresses(cluster: ClusterConfig) -> list[SocketAddress]:
    if cluster.endpoints is None:
        return []
    return [e.address for locality in cluster.endpoints.localities for e in locality.endpoints]
