"""What can only be seen across the resources of a file: names that are used and not defined, or twice."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.config.decode.view import View
from sidecar.config.references import listener_clusters
from sidecar.config.resources import (
    Bootstrap,
    ClusterConfig,
    Discovery,
    HttpConnectionManagerConfig,
    TlsConfig,
)


def check_references(config: Bootstrap, view: View) -> None:
    """Note duplicate names and addresses, and references to what the file does not define."""
    _unique(view, "static_resources.clusters", "name", (cluster.name for cluster in config.clusters))
    _unique(view, "static_resources.listeners", "name", (listener.name for listener in config.listeners))
    bound = (str(each.address) if each.address and each.address.port else "" for each in config.listeners)
    _unique(view, "static_resources.listeners", "address", bound)
    clusters = {cluster.name: cluster for cluster in config.clusters}
    _check_control_plane(config, clusters, view)
    if not config.cds_over_ads:
        for i, listener in enumerate(config.listeners):
            for path, name in listener_clusters(listener):
                if name and name not in clusters:
                    view.error(f"cluster {name!r} does not exist", f"static_resources.listeners[{i}].{path}")
    _check_discovery(config, view)
    _check_providers(config, view)


def _unique(view: View, path: str, field: str, values: Iterable[str]) -> None:
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        if value and value in seen:
            view.error(f"{value!r} is also at {path}[{seen[value]}]", f"{path}[{index}].{field}")
        seen.setdefault(value, index)


def _check_control_plane(config: Bootstrap, clusters: dict[str, ClusterConfig], view: View) -> None:
    """Whatever configuration or certificates come from must itself be reachable without them."""
    needed = [
        (f'certificate_provider_instances["{each.instance}"]', each.cluster) for each in config.ca_providers
    ]
    if config.ads is not None:
        needed.append(("dynamic_resources.ads_config", config.ads.cluster))
    for path, name in needed:
        cluster = clusters.get(name)
        if not name:
            continue
        if cluster is None:
            view.error(f"cluster {name!r} does not exist in static_resources.clusters", path)
        elif cluster.discovery is Discovery.EDS or cluster.http2 is None:
            view.error(f"cluster {name!r} must have HTTP/2 and a type other than EDS", path)


def _check_discovery(config: Bootstrap, view: View) -> None:
    """What only discovery can answer needs ads_config."""
    if config.ads is not None:
        return
    for i, cluster in enumerate(config.clusters):
        if cluster.discovery is Discovery.EDS:
            view.error("type EDS needs dynamic_resources.ads_config", f"static_resources.clusters[{i}]")
    for i, listener in enumerate(config.listeners):
        for where, chain in listener.chains():
            network = chain.network
            if isinstance(network, HttpConnectionManagerConfig) and (
                network.rds_route_name or network.on_demand
            ):
                path = f"static_resources.listeners[{i}].{where}.filters[0].typed_config.rds"
                view.error("needs dynamic_resources.ads_config", path)


def _check_providers(config: Bootstrap, view: View) -> None:
    known = {provider.instance for provider in config.ca_providers}
    used: list[tuple[str, TlsConfig | None]] = [
        (f"static_resources.clusters[{i}].transport_socket", cluster.tls)
        for i, cluster in enumerate(config.clusters)
    ]
    for i, listener in enumerate(config.listeners):
        for where, chain in listener.chains():
            used.append((f"static_resources.listeners[{i}].{where}.transport_socket", chain.tls))
    for path, tls in used:
        for name in sorted({tls.provider, tls.trusted_ca_provider} - known - {""}) if tls is not None else ():
            view.error(f"certificate provider {name!r} is not in certificate_provider_instances", path)
