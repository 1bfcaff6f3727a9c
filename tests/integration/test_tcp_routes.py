"""TCPRoutes in a running mesh: connections follow weights, each as a whole, and are refused where Gateway API
says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.kubernetes import Object, backend, route
from tests.support.pairs import Peer, TcpApp, World
from tests.support.processes import eventually

PORTS = {"db": 5432, "replica": 5433, "guess": 7000}
CONNECTIONS = 300


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    ports = [{"service": name, "port": port} for name, port in PORTS.items()]
    made = World(tmp_path_factory.mktemp("tcp-routes"), ports)
    apps = [TcpApp(made.host, port, lambda peer, name=name: tell(peer, name)) for name, port in PORTS.items()]
    try:
        yield made.ready()
    finally:
        for app in apps:
            app.stop()
        made.stop()


def tell(peer: Peer, name: str) -> None:
    """Who it is, to clients that wait for that and to those that speak first."""
    peer.send(f"{name}\n".encode())
    peer.rest()


def follow(world: World, to: str, *backends: Object) -> None:
    """The one TCPRoute there is, and in use."""
    made = route("r", {"backendRefs": list(backends)}, to=to, kind="TCPRoute")
    world.mesh.save("route", made)
    key = [(each["name"], each.get("weight", 1)) for each in backends]
    eventually(lambda: in_use(world, to) == [each for each in key if each[1]], f"{key} to be in use")


def in_use(world: World, to: str) -> list[tuple[str, int]]:
    """Backends that the caller's sidecar chooses from."""
    ask(world, to)
    tables = world.caller.json("/config_dump")["routes"]
    [table] = [each for each in tables if each["name"].startswith(f"{to}.")]
    [last] = [each for each in table["virtual_hosts"][0]["routes"] if each["match"]["connect"]][-1:]
    action = last["action"] or {"clusters": []}
    return [(each["name"].partition(".")[0], each["weight"]) for each in action["clusters"]]


def ask(world: World, to: str) -> str:
    """The name that answers a new connection; empty: it was refused."""
    with world.tunnel(f"{to}:{PORTS[to]}") as peer:
        try:
            return peer.until(b"\n").decode().strip()
        except (OSError, EOFError):
            return ""


def counts(world: World, to: str) -> Counter[str]:
    with ThreadPoolExecutor(8) as pool:
        return Counter(pool.map(lambda _: ask(world, to), range(CONNECTIONS)))


def refusals(world: World) -> int:
    return int(world.caller.stats("listeners", listener="outbound")["tcp_refused"])


@pytest.mark.parametrize("to", ["db", "guess"])
def test_connections_are_split_by_weight(world: World, to: str) -> None:
    """For a port that is declared, and for one that says nothing."""
    follow(world, to, backend("db", 5432, weight=75), backend("replica", 5433, weight=25))
    found = counts(world, to)
    assert set(found) == {"db", "replica"}
    assert found.total() == CONNECTIONS
    assert 0.6 < found["db"] / CONNECTIONS < 0.9


def test_a_backend_without_weight_gets_nothing(world: World) -> None:
    follow(world, "db", backend("db", 5432, weight=0), backend("replica", 5433, weight=1))
    assert counts(world, "db") == {"replica": CONNECTIONS}


def test_without_any_weight_connections_are_refused_and_counted_and_the_log_says_why(world: World) -> None:
    follow(world, "db", backend("db", 5432, weight=0), backend("replica", 5433, weight=0))
    before = refusals(world)
    assert ask(world, "db") == ""
    assert refusals(world) == before + 1
    line = world.caller.logged(authority="db:5432", flags="NC")
    assert line["details"] == "refused by route shop/r/0: no backend of TCPRoute shop/r has a weight"


def test_a_change_moves_new_connections_and_leaves_those_that_are_open(world: World) -> None:
    follow(world, "db", backend("db", 5432))
    with world.tunnel("db:5432") as open_one:
        assert open_one.exactly(3) == b"db\n"
        follow(world, "db", backend("replica", 5433))
        assert ask(world, "db") == "replica"
        open_one.send(b"still here")
        open_one.end()
        assert open_one.rest() == b""
