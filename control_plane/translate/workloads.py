"""One port of one workload as a destination of its own, named by its address: for captured calls to a Pod's
address, for headless Services and for replicas that are called by their own names.

Pure functions of the model, called by the pipeline: thin forms of those for Services. Whoever calls an
address means that one workload, so it is tried whether it is ready or not.
"""

from __future__ import annotations

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from control_plane.model.discovery import Dialect
from control_plane.model.service import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Service,
    ServicePort,
    WorkloadPort,
)
from control_plane.translate.clusters import service_cluster
from control_plane.translate.endpoints import load_assignment
from control_plane.translate.routes import route_configuration


def workload_routes(name: str, workload: WorkloadPort, dialect: Dialect, domain: str) -> RouteConfiguration:
    return route_configuration(name, _port(workload), (), dialect, domain)


def workload_cluster(name: str, workload: WorkloadPort, dialect: Dialect, trust_domain: str) -> Cluster:
    """Without outlier detection: there is no other endpoint to go to."""
    port = _port(workload)
    service = Service(workload.namespace, workload.hostname, (port,))
    cluster = service_cluster(name, service, port, [_slice(workload)], dialect, trust_domain)
    cluster.ClearField("outlier_detection")
    return cluster


def workload_assignment(name: str, workload: WorkloadPort, dialect: Dialect) -> ClusterLoadAssignment:
    return load_assignment(name, _port(workload), [_slice(workload)], dialect)


def _port(workload: WorkloadPort) -> ServicePort:
    return ServicePort("", workload.port, workload.port, workload.protocol, workload.declared, workload.tls)


def _slice(workload: WorkloadPort) -> EndpointSlice:
    return EndpointSlice(
        workload.namespace,
        workload.hostname,
        workload.hostname,
        workload.service_account,
        (EndpointPort("", workload.port, workload.protocol),),
        (Endpoint(workload.address, workload.hostname),),
        workload.settings,
    )
