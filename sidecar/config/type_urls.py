"""Type URLs of the four resources that make up the data plane's configuration."""

from __future__ import annotations

_PREFIX = "type.googleapis.com/envoy.config."

LISTENER = _PREFIX + "listener.v3.Listener"
ROUTE = _PREFIX + "route.v3.RouteConfiguration"
CLUSTER = _PREFIX + "cluster.v3.Cluster"
ENDPOINTS = _PREFIX + "endpoint.v3.ClusterLoadAssignment"
