"""A large cluster's objects, of the size that they have in a cluster. Used by `kube_scale` and by a test."""

from __future__ import annotations

from typing import Any

from tests.support import kube_api
from tests.support.kube_api import KubeApi, endpoint, pod
from tests.support.kubernetes import account, backend, endpoint_slice, route, service

POD_BYTES = 8000
"""What a Pod has beside what the mesh reads: managedFields, volumes, conditions."""


def fill(api: KubeApi, services: int, pods: int, endpoints: int) -> None:
    """Each pod is an endpoint of `endpoints / pods` services."""
    for number in range(20):
        api.put(kube_api.node(f"node-{number}", f"zone-{number % 3}"))
    for number in range(services):
        api.put(service(f"s{number}", clusterIP=_address(10, number)), account(f"s{number}"))
        api.put(route(f"s{number}", {"backendRefs": [backend(f"s{number}")]}, to=f"s{number}"))
    for number in range(pods):
        runs_as = f"s{number % services}"
        ports = ({"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090})
        address, node = pod_address(number), f"node-{number % 20}"
        api.put(pod(f"p{number}", runs_as, node=node, padding=POD_BYTES, addresses=(address,), ports=ports))
    each = endpoints // services
    for number in range(services):
        # Its own pods, and those of its neighbour: two Services that share pods.
        owners = (number, number ^ 1)
        members = [
            (owner + turn * services) % pods for owner in owners for turn in range(each // len(owners))
        ]
        api.put(slice_of(number, members))


def slice_of(number: int, members: list[int], ready: bool = True) -> dict[str, Any]:
    listed = [
        endpoint(
            pod_address(member), f"p{member}", nodeName=f"node-{member % 20}", conditions={"ready": ready}
        )
        for member in members
    ]
    return endpoint_slice(f"s{number}-abcde", *listed, of=f"s{number}")


def pod_address(number: int) -> str:
    return _address(172, number)


def _address(first: int, number: int) -> str:
    return f"{first}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
