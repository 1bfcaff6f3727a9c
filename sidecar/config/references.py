"""Which clusters and route tables a piece of configuration names. Pure functions of `resources.py`."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.config.resources import (
    ClusterConfig,
    Discovery,
    EndpointsConfig,
    HttpConnectionManagerConfig,
    ListenerConfig,
    RouteConfiguration,
    TcpProxyConfig,
)


def route_clusters(routes: RouteConfiguration) -> Iterator[tuple[str, str]]:
    """Each cluster that a route sends to, with the path of the route inside the table."""
    for h, host in enumerate(routes.virtual_hosts):
        for r, route in enumerate(host.routes):
            for cluster in route.action.clusters if route.action is not None else ():
                yield f"virtual_hosts[{h}].routes[{r}].route", cluster.name


def listener_clusters(listener: ListenerConfig) -> Iterator[tuple[str, str]]:
    """Each cluster that a listener itself names (inline routes, TCP proxy, collector), with its path."""
    if listener.api_listener is not None:
        yield from _http_clusters("api_listener.api_listener", listener.api_listener)
    for where, chain in listener.chains():
        path = f"{where}.filters[0].typed_config"
        if isinstance(chain.network, TcpProxyConfig):
            for cluster in chain.network.clusters:
                yield path, cluster.name
        else:
            yield from _http_clusters(path, chain.network)


def _http_clusters(path: str, manager: HttpConnectionManagerConfig) -> Iterator[tuple[str, str]]:
    if manager.route_config is not None:
        for where, name in route_clusters(manager.route_config):
            yield f"{path}.route_config.{where}", name
    if manager.tracing is not None and manager.tracing.collector_cluster:
        yield f"{path}.tracing", manager.tracing.collector_cluster


def listener_route_names(listener: ListenerConfig) -> Iterator[str]:
    """Names of the route tables that a socket listener gets over RDS."""
    for _, chain in listener.chains():
        network = chain.network
        if isinstance(network, HttpConnectionManagerConfig) and network.rds_route_name:
            yield network.rds_route_name


def endpoints_name(cluster: ClusterConfig) -> str:
    """Name of the endpoints resource of an EDS cluster, "" for others."""
    return (cluster.eds_service_name or cluster.name) if cluster.discovery is Discovery.EDS else ""


def fits(cluster: ClusterConfig, endpoints: EndpointsConfig | None) -> bool:
    """Whether the endpoints can be reached as the cluster says. Where one has a sidecar the cluster must have
    TLS; otherwise one of the two is of before the Service came into the mesh, or left it."""
    if cluster.tls is not None or endpoints is None:
        return True
    return not any(each.tunnel_authority for locality in endpoints.localities for each in locality.endpoints)
