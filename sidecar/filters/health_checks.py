"""Which requests are health checks: an overloaded application must still be able to say that it lives."""

from __future__ import annotations

from sidecar.protocol.events import RequestHead

GRPC_HEALTH = b"/grpc.health.v1.Health/"
AGENTS = (
    b"kube-probe/",
    b"GoogleHC/",
    b"ELB-HealthChecker/",
    b"Envoy/HC",
    b"Consul Health Check",
)
"""Beginnings of `user-agent`: the kubelet, the load balancers of Google Cloud and AWS, Envoy, Consul."""


def is_health_check(head: RequestHead) -> bool:
    """By gRPC's health service (grpc.health.v1) or by who asks."""
    if head.path.startswith(GRPC_HEALTH):
        return True
    agent = head.get(b"user-agent")
    return agent is not None and agent.startswith(AGENTS)
