"""The sidecars that tests of this folder share: two with mutual TLS between them and an HTTP/1.1 application
behind, and one for frames of HTTP/2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.h2_hop import Hop
from tests.support.pairs import Peer, RawApp, World

WEB = {"service": "web", "name": "http", "port": 80, "at": 8080}
H2C = {"service": "stream", "name": "h2", "port": 8081, "appProtocol": "kubernetes.io/h2c"}
GRPC = {"service": "greeter", "name": "grpc", "port": 50051, "appProtocol": "kubernetes.io/h2c"}
SOCKETS = {"service": "sockets", "name": "http-ws", "port": 8082, "appProtocol": "kubernetes.io/ws"}
GUESS = {"service": "guess", "port": 7100}
GREETS = {"service": "greets", "port": 7101}
DATABASE = {"service": "database", "port": 3306}
DECLARED = {"service": "declared", "name": "tcp-x", "port": 7102}
NOBODY = {"service": "nobody", "port": 7199}
UPSTREAMS = {9101: "greets", 9102: "declared"}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    ports = (WEB, H2C, GRPC, SOCKETS, GUESS, GREETS, DATABASE, DECLARED, NOBODY)
    made = World(tmp_path_factory.mktemp("protocols"), ports, UPSTREAMS)
    try:
        yield made.ready()
    finally:
        made.stop()


@pytest.fixture(scope="session")
def web(world: World) -> RawApp:
    return world.web(8080)


@pytest.fixture
def client(world: World) -> Iterator[Peer]:
    with world.dial() as made:
        yield made


@pytest.fixture(scope="session")
def hop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hop]:
    made = Hop(tmp_path_factory.mktemp("hop"))
    try:
        yield made
    finally:
        made.stop()
