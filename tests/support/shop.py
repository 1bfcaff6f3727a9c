"""One mesh that many integration tests share: nothing in it may be stopped or reconfigured by a test.

Services of namespace shop: `users` (HTTP, two replicas), `orders` (HTTP), `greeter` (gRPC), `mirror`
(HTTP/2), `echo` (opaque TCP). `shopper` has only a sidecar: it is the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilotfish.workload_bootstrap import TcpUpstream
from tests.support.grpc_app import start_grpc_app
from tests.support.h2_app import start_h2_app
from tests.support.kubernetes import account, endpoint_slice, service
from tests.support.mesh import Mesh
from tests.support.processes import loopback
from tests.support.sidecars import OUTBOUND
from tests.support.spans import SpanCollector

GRPC = {"name": "grpc", "port": 50051, "appProtocol": "kubernetes.io/h2c"}
H2C = {"name": "h2", "port": 8081, "appProtocol": "kubernetes.io/h2c"}
TCP = {"name": "tcp", "port": 7000}
ECHO_PORT = 7001
"""Of the caller's sidecar: leads to service echo."""


def endpoint(name: str, host: str) -> Mapping[str, Any]:
    return {"addresses": [host], "targetRef": {"kind": "Pod", "name": name}}


class Shop:
    """`start` it, and `stop` it whether or not it started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spans = SpanCollector()
        options = ("--tracing-sampling", "100", "--tracing-cluster", "otlp")
        mesh = self.mesh = Mesh(directory, *options, otlp=f"{self.spans.host}:{self.spans.port}")
        names = ("shopper", "users-1", "users-2", "orders-1", "backend-1")
        self.hosts = {name: loopback() for name in names}
        hosts = self.hosts
        backend = endpoint("backend-1", hosts["backend-1"])
        mesh.save(
            "shop",
            *(account(name) for name in ("shopper", "users", "orders", "backend")),
            service("users"),
            service("orders"),
            service("greeter", GRPC),
            service("mirror", H2C),
            service("echo", TCP),
            endpoint_slice(
                "users-a", *(endpoint(n, hosts[n]) for n in ("users-1", "users-2")), runs_as="users"
            ),
            endpoint_slice("orders-a", endpoint("orders-1", hosts["orders-1"]), runs_as="orders"),
            endpoint_slice("greeter-a", backend, runs_as="backend", ports=[GRPC]),
            endpoint_slice("mirror-a", backend, runs_as="backend", ports=[H2C]),
            endpoint_slice("echo-a", backend, runs_as="backend", ports=[TCP]),
        )
        self.proxy = (hosts["shopper"], OUTBOUND)
        self.proxy_text = f"{hosts['shopper']}:{OUTBOUND}"

    def start(self) -> None:
        mesh, hosts, directory = self.mesh, self.hosts, self.directory
        mesh.start_control_plane()
        echo = TcpUpstream(ECHO_PORT, "echo.shop.svc.cluster.local:7000")
        self.sidecars = {
            name: mesh.sidecar(
                name, name.partition("-")[0], hosts[name], (echo,) if name == "shopper" else ()
            )
            for name in hosts
        }
        for name in ("users-1", "users-2", "orders-1"):
            mesh.app(name, hosts[name])
        mesh.app("echo-1", hosts["backend-1"], 7000, "echo")
        mesh.processes.append(start_grpc_app(hosts["backend-1"], 50051, "greeter-1", directory))
        mesh.processes.append(start_h2_app(hosts["backend-1"], 8081, "mirror-1", directory))
        for sidecar in self.sidecars.values():
            sidecar.ready()
        self.shopper = self.sidecars["shopper"]

    def stop(self) -> None:
        self.mesh.stop()
        self.spans.close()

    def __repr__(self) -> str:
        return f"<Shop {self.hosts}>"
