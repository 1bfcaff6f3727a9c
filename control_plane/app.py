"""The control plane put together: source, pipeline, authority, ADS, signing, status page; from start to stop.

`run` is called by the command line. Nothing else knows all the parts; nothing here decides anything about
routes or protocols.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import grpc

from control_plane.ca import root, shared_secret
from control_plane.ca.attestation import JoinTokens
from control_plane.ca.authority import CertificateAuthority, utc_now
from control_plane.ca.service import Authenticator, CertificateService, Trust
from control_plane.ca.serving import ServingCertificate
from control_plane.ca.token_review import ByIssuer, TokenReviews
from control_plane.cluster import Cluster, cluster_access, own_namespace
from control_plane.injector.native import native_sidecars
from control_plane.injector.service import Injector
from control_plane.injector.sidecar_container import InjectionSettings
from control_plane.injector.webhook import WebhookCounts
from control_plane.kube.access import AccessError
from control_plane.kube.client import KubeClient, KubeError, Object
from control_plane.listening import ALL
from control_plane.model.mesh import Mesh, MeshSettings, TracingSettings
from control_plane.model.problem import Problem
from control_plane.pipeline import Pipeline
from control_plane.registry import Registry
from control_plane.settings import Settings, split_address
from control_plane.sources.file import FileSource
from control_plane.status import StatusServer
from control_plane.status_sources import StatusSources
from control_plane.xds.server import DiscoveryOptions, DiscoveryServer
from control_plane.xds.snapshot_cache import ResourceSource

CONNECTION_GRACE = timedelta(seconds=5)
"""From asking a client to connect anew to closing its old connection."""

log = logging.getLogger(__name__)


class StartError(Exception):
    """The control plane cannot start; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Where resources come from, and how it is kept up to date."""

    resources: ResourceSource
    problems: Callable[[], Sequence[Problem]]
    loaded: Callable[[], bool]
    """Whether there has been a configuration without errors since the start."""
    follow: Callable[[asyncio.Event], Awaitable[None]]
    """Keeps reading until the event is set."""
    namespace: Callable[[str], Object | None] = lambda _name: None
    """Metadata of a Namespace, where they are watched."""
    cluster_ips: Callable[[str, str], tuple[str, ...]] = lambda _namespace, _name: ()
    """Of a Service, by namespace and name; none where it is not known."""


class ControlPlane:
    """One control plane. `start`, then `follow` until it is to end, then `stop`; all on one event loop."""

    def __init__(self, settings: Settings, configuration: Configuration, trust: Trust | None = None) -> None:
        """`trust` None: what lies in the CA directory. Raises CaError."""
        trust = trust or local_trust(settings)
        self.settings = settings
        self.port = 0
        self.status_port = 0
        self.authority = trust.authority
        self.webhook_not_after: Callable[[], datetime | None] = lambda: None
        """For the status page; set where there is a webhook."""
        self.webhook_counts: Callable[[], WebhookCounts | None] = lambda: None
        """The same, for metrics."""
        self._configuration = configuration
        self._stopping = False
        self._authenticator = Authenticator(trust.attestor)
        self._certificates = CertificateService(self.authority, self._authenticator)
        self._serving = ServingCertificate(self.authority, settings.server_names)
        options = DiscoveryOptions(settings.push_quiet.total_seconds(), settings.push_longest.total_seconds())
        self.discovery = DiscoveryServer(
            configuration.resources, self._authenticator, options, self._not_ready
        )
        self._status = StatusServer(
            StatusSources(
                discovery=self.discovery,
                authority=self.authority,
                serving=self._serving,
                certificates=self._certificates,
                authenticator=self._authenticator,
                problems=configuration.problems,
                not_ready=self._not_ready,
                webhook_not_after=lambda: self.webhook_not_after(),
                webhook_counts=lambda: self.webhook_counts(),
                reviews=trust.reviews,
            )
        )
        self._server: Any = None

    def __repr__(self) -> str:
        return f"<ControlPlane port={self.port} status_port={self.status_port} {self.discovery!r}>"

    async def start(self) -> None:
        """Binds both ports and serves. Raises StartError."""
        self._server = grpc.aio.server(options=_server_options(self.settings))
        self._server.add_generic_rpc_handlers((self.discovery.handler(), self._certificates.handler()))
        listen, status = self.settings.listen, self.settings.status
        try:
            self.port = self._server.add_secure_port(_grpc_address(listen), self._serving.credentials())
            await self._server.start()
        except RuntimeError as error:
            raise StartError(f"cannot listen on {listen} (--listen): {error}") from error
        try:
            self.status_port = await self._status.start(*split_address(status))
        except OSError as error:
            await self._server.stop(0)
            raise StartError(f"cannot listen on {status} (--status): {error.strerror}") from error
        log.info(
            "control plane started xds_port=%d status=http://%s:%d trust_domain=%s root_expires=%s",
            self.port,
            status.rpartition(":")[0],
            self.status_port,
            self.authority.trust_domain,
            self.authority.not_after.isoformat(),
        )

    async def stop(self) -> None:
        """Fails readiness, ends streams in good order, finishes signing requests, then closes."""
        self._stopping = True
        self.discovery.stop()
        await self._server.stop(self.settings.stop_grace.total_seconds())
        await self._status.close()
        log.info("control plane stopped")

    async def follow(self, stop: asyncio.Event) -> None:
        """Keeps the configuration up to date until `stop` is set."""
        await self._configuration.follow(stop)

    def _not_ready(self) -> str | None:
        if self._stopping:
            return "shutting down"
        if not self._configuration.loaded():
            errors = sum(problem.severity.value == "error" for problem in self._configuration.problems())
            return f"no configuration without errors has been read yet ({errors} errors, see the status page)"
        return None


def local_trust(settings: Settings) -> Trust:
    """Keys in the CA directory, and join tokens. Raises CaError."""
    return Trust(make_authority(settings), JoinTokens.in_directory(settings.ca_dir))


def make_authority(settings: Settings) -> CertificateAuthority:
    """The authority of the settings; its root is in `root.pem` of the CA directory in any case.
    Raises CaError."""
    if settings.ca_cert is None or settings.ca_key is None:
        return root.self_made(settings.ca_dir, settings.trust_domain, settings.max_leaf_lifetime)
    authority = root.from_files(
        settings.ca_cert, settings.ca_key, settings.trust_domain, settings.max_leaf_lifetime
    )
    root.publish(settings.ca_dir, authority)
    return authority


def folder_configuration(settings: Settings) -> Configuration:
    """The folder of YAML files, through registry and translation."""
    registry = Registry()
    pipeline = Pipeline(registry, _mesh_settings(settings))
    loaded = asyncio.Event()

    def publish(mesh: Mesh) -> None:
        registry.replace(mesh)
        loaded.set()

    source = FileSource(settings.config_dir, publish)
    source.load_now()
    return Configuration(pipeline, lambda: (*source.problems, *pipeline.problems), loaded.is_set, source.run)


def cluster_configuration(
    settings: Settings, client: KubeClient, namespace: str, random: Random
) -> Configuration:
    """A cluster's objects, through registry and translation."""
    registry = Registry()
    pipeline = Pipeline(registry, _mesh_settings(settings))
    cluster = Cluster(client, namespace, registry.replace, random)
    return Configuration(
        pipeline,
        lambda: (*cluster.problems, *pipeline.problems),
        lambda: cluster.loaded,
        cluster.follow,
        cluster.source.namespace,
        cluster.source.cluster_ips,
    )


async def cluster_trust(
    settings: Settings, client: KubeClient, namespace: str, stop: asyncio.Event
) -> Trust | None:
    """Keys in a Secret of the cluster, or the issuer given as files; TokenReviews and join tokens. None:
    `stop` was set before the API server answered. Raises CaError."""
    keys = await shared_secret.load_or_make(
        client, namespace, settings.trust_domain, settings.max_leaf_lifetime, stop
    )
    if keys is None:
        return None
    authority = keys.authority
    if settings.ca_cert is not None and settings.ca_key is not None:
        authority = root.from_files(
            settings.ca_cert, settings.ca_key, settings.trust_domain, settings.max_leaf_lifetime
        )
    reviews = TokenReviews(client)
    return Trust(authority, ByIssuer(keys.join_tokens, reviews), reviews)


def _mesh_settings(settings: Settings) -> MeshSettings:
    tracing = None
    if settings.tracing_sampling is not None:
        tracing = TracingSettings(sampling=settings.tracing_sampling, cluster=settings.tracing_cluster)
    return MeshSettings(
        trust_domain=settings.trust_domain,
        cluster_domain=settings.cluster_domain,
        tracing=tracing,
        access_log=settings.access_log,
        overload_protection=settings.overload_protection,
    )


def issue_token(ca_dir: Path, namespace: str, service_account: str, lifetime: timedelta) -> str:
    """A join token for one account, as `pilotfish token` prints it. Raises CaError and ValueError."""
    return JoinTokens.in_directory(ca_dir).issue(namespace, service_account, lifetime)


def run(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT. Raises CaError and StartError."""
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if not settings.kubernetes:
        await _serve(ControlPlane(settings, folder_configuration(settings)), stop)
        return
    try:
        access = cluster_access(settings)
        namespace = own_namespace(settings, access)
    except AccessError as error:
        raise StartError(str(error)) from error
    client = KubeClient(access)
    try:
        await _serve_cluster(settings, client, namespace, stop)
    finally:
        await client.close()


async def _serve_cluster(settings: Settings, client: KubeClient, namespace: str, stop: asyncio.Event) -> None:
    trust = await cluster_trust(settings, client, namespace, stop)
    if trust is None:
        return
    configuration = cluster_configuration(settings, client, namespace, Random())
    plane = ControlPlane(settings, configuration, trust)
    if not settings.injector:
        await _serve(plane, stop)
        return
    try:
        native = await native_sidecars(client, settings.native_sidecars, stop)
    except KubeError as error:
        raise StartError(
            f"the API server's version cannot be read: {error}; give --native-sidecars=on or off"
        ) from error
    if native is None:
        return
    injection = injection_settings(settings, native)
    injector = Injector(
        client,
        namespace,
        trust.authority,
        injection,
        utc_now,
        configuration.namespace,
        configuration.cluster_ips,
    )
    plane.webhook_not_after = lambda: injector.webhook.tls.not_after
    plane.webhook_counts = lambda: injector.webhook.counts
    try:
        await injector.start(*split_address(settings.injector))
    except OSError as error:
        raise StartError(f"cannot listen on {settings.injector} (--injector): {error.strerror}") from error
    try:
        await _serve(plane, stop, injector.run)
    finally:
        await injector.close()


def injection_settings(settings: Settings, native: bool) -> InjectionSettings:
    """What the webhook gives to sidecars; their root is the authority's."""
    sampling = settings.tracing_sampling
    return InjectionSettings(
        image=settings.sidecar_image,
        init_image=settings.init_image,
        capture=settings.capture,
        control_plane=settings.sidecar_control_plane,
        trust_domain=settings.trust_domain,
        otlp=settings.sidecar_otlp,
        trace_sampling="100" if sampling is None else f"{sampling:g}",
        native=native,
    )


async def _serve(
    plane: ControlPlane, stop: asyncio.Event, *beside: Callable[[asyncio.Event], Coroutine[Any, Any, None]]
) -> None:
    """Until `stop` is set; runs `beside` meanwhile."""
    await plane.start()
    try:
        async with asyncio.TaskGroup() as group:
            for follow in (plane.follow, *beside):
                group.create_task(follow(stop))
            await stop.wait()
    finally:
        await plane.stop()


def _grpc_address(listen: str) -> str:
    """To grpc the IPv6 wildcard means IPv4 too, and IPv4 alone where the kernel has no IPv6."""
    host, port = split_address(listen)
    return f"[::]:{port}" if host == ALL else listen


def _server_options(settings: Settings) -> list[tuple[str, int]]:
    return [
        # With SO_REUSEPORT a second control plane would take half of the connections instead of failing.
        ("grpc.so_reuseport", 0),
        # grpc spreads this by a tenth either way, so that clients do not come back all at once.
        ("grpc.max_connection_age_ms", int(settings.max_connection_age.total_seconds() * 1000)),
        ("grpc.max_connection_age_grace_ms", int(CONNECTION_GRACE.total_seconds() * 1000)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
