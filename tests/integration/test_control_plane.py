"""Configuration that changes under load, is wrong, or cannot come because the control plane is gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.clients import fetch
from tests.support.kubernetes import account, backend, endpoint_slice, route, service
from tests.support.load import Load
from tests.support.mesh import Mesh
from tests.support.processes import eventually, loopback
from tests.support.sidecars import OUTBOUND, Sidecar

WITHIN = 10.0
"""Seconds; ten times what a change may take to be in effect."""


class Changing:
    """A caller, and one replica each of `users` and `canary`."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.hosts = {name: loopback() for name in ("shopper", "users", "canary")}
        self.proxy = (self.hosts["shopper"], OUTBOUND)
        self.sidecars: dict[str, Sidecar] = {}

    def start(self) -> Changing:
        mesh = self.mesh
        mesh.save("accounts", *(account(name) for name in self.hosts))
        for name in ("users", "canary"):
            self.describe(name, self.hosts[name])
        self.route_to("users")
        mesh.start_control_plane()
        for name, host in self.hosts.items():
            self.sidecars[name] = mesh.sidecar(name, name, host)
        for name in ("users", "canary"):
            mesh.app(name, self.hosts[name])
        for sidecar in self.sidecars.values():
            sidecar.ready()
        return self

    def describe(self, name: str, host: str, runs_as: str = "") -> None:
        self.mesh.save(name, service(name), endpoint_slice(f"{name}-a", host, runs_as=runs_as or name))

    def route_to(self, name: str, **rule: Any) -> None:
        self.mesh.save("route", route("r", {"backendRefs": [backend(name)], **rule}, to="users"))

    def load(self) -> Load:
        return Load(self.proxy, "http://users/")

    def __repr__(self) -> str:
        return f"<Changing {self.hosts}>"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    mesh = Mesh(tmp_path_factory.mktemp("changing"))
    try:
        yield Changing(mesh).start()
    finally:
        mesh.stop()


@pytest.fixture
def changing(shared: Changing) -> Changing:
    """`users` is routed to itself, and nothing is wrong."""
    if shared.mesh.control_plane.child.poll() is not None:
        shared.mesh.start_control_plane()
    for name in ("users", "canary"):
        shared.describe(name, shared.hosts[name])
    shared.route_to("users")
    for name in ("bad", "later"):
        (shared.mesh.config / f"{name}.yaml").unlink(missing_ok=True)

    def calm() -> bool:
        return (
            fetch(shared.proxy, "http://users/").headers.get("x-replica", "users") == "users"
            and shared.mesh.status()["problems"] == []
        )

    eventually(calm)
    return shared


def replica(changing: Changing) -> str:
    return str(fetch(changing.proxy, "http://users/").json()["replica"])


def test_saving_a_route_moves_traffic_and_loses_no_request(changing: Changing) -> None:
    with changing.load() as load:
        for name in ("canary", "users", "canary"):
            changing.route_to(name)
            eventually(lambda name=name: load.outcomes[-1].replica == name, patience=WITHIN)
            load.more(10)
    assert load.failures() == []


def test_a_rule_s_change_is_in_effect_within_a_second_times_ten(changing: Changing) -> None:
    with changing.load() as load:
        modifier = {"type": "RequestHeaderModifier"}
        modifier["requestHeaderModifier"] = {"set": [{"name": "x-made", "value": "by-route"}]}  # type: ignore[assignment]
        changing.route_to("users", filters=[modifier])
        eventually(lambda: "by-route" in load.outcomes[-1].text, patience=WITHIN)
    assert load.failures() == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("kind: [", {"file": "bad.yaml", "object": "", "field": ""}),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n"
            "metadata: {name: dangling, namespace: shop}\nspec:\n"
            "  parentRefs: [{group: '', kind: Service, name: canary}]\n"
            "  rules: [{backendRefs: [{name: nobody, port: 80}]}]\n",
            {
                "file": "bad.yaml",
                "object": "HTTPRoute shop/dangling",
                "field": "spec.rules[0].backendRefs[0].name",
            },
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: shop}\n"
            "spec: {ports: [{port: 99999}]}\n",
            {"file": "bad.yaml", "object": "Service shop/odd", "field": "spec.ports[0].port"},
        ),
    ],
)
def test_what_is_wrong_is_shown_and_changes_nothing(
    changing: Changing, text: str, found: dict[str, str]
) -> None:
    """File, object and field, at the status page and in the log; the last good configuration serves."""
    with changing.load() as load:
        (changing.mesh.config / "bad.yaml").write_text(text)
        [problem] = eventually(lambda: changing.mesh.status()["problems"])
        changing.route_to("canary")  # good by itself, but the folder as a whole is not
        load.more(25)
    assert {key: problem[key] for key in found} | {"file": problem["file"].rpartition("/")[2]} == found
    assert problem["severity"] == "error"
    assert problem["message"]
    assert load.failures() == []
    assert {outcome.replica for outcome in load.outcomes} == {"users"}
    eventually(lambda: "bad.yaml" in changing.mesh.control_plane.log(), "the problem in the log")
    (changing.mesh.config / "bad.yaml").unlink()
    eventually(lambda: replica(changing) == "canary", "the good part")


def test_traffic_goes_on_without_the_control_plane_and_changes_come_with_the_next(changing: Changing) -> None:
    with changing.load() as load:
        changing.mesh.control_plane.kill()
        load.more(50)
        changing.route_to("canary")  # while nobody looks
        changing.mesh.start_control_plane()
        eventually(lambda: load.outcomes[-1].replica == "canary", "the change")
        changing.route_to("users")
        eventually(lambda: load.outcomes[-1].replica == "users", "the next change")
    assert load.failures() == []
    everybody = {f"{name}.shop" for name in changing.hosts}  # each returns after a back-off of its own
    eventually(lambda: {c["node"] for c in changing.mesh.status()["clients"]} == everybody, "all return")


def test_a_destination_that_is_created_later_becomes_available(changing: Changing) -> None:
    before = fetch(changing.proxy, "http://later.shop/")
    assert before.status == 503
    assert b"later.shop:80" in before.body
    changing.describe("later", changing.hosts["canary"], runs_as="canary")
    eventually(lambda: fetch(changing.proxy, "http://later.shop/").status == 200, patience=WITHIN)
    assert fetch(changing.proxy, "http://later.shop/").json()["replica"] == "canary"
    (changing.mesh.config / "later.yaml").unlink()
    eventually(lambda: fetch(changing.proxy, "http://later.shop/").status == 503, patience=WITHIN)


def test_an_endpoint_that_is_added_is_used_and_one_that_is_removed_is_not(changing: Changing) -> None:
    hosts = changing.hosts
    with changing.load() as load:
        slices = endpoint_slice("users-a", hosts["users"], runs_as="users")
        more = endpoint_slice("users-b", hosts["canary"], runs_as="canary")
        changing.mesh.save("users", service("users"), slices, more)
        eventually(lambda: load.outcomes[-1].replica == "canary", patience=WITHIN)
        changing.describe("users", hosts["users"])
        eventually(lambda: len(endpoints(changing)) == 1, patience=WITHIN)
        load.more(5)
        seen = len(load.outcomes)
        load.more(20)
    assert load.failures() == []
    assert {outcome.replica for outcome in load.outcomes[seen:]} == {"users"}


def endpoints(changing: Changing) -> list[Any]:
    """Of cluster users at the caller."""
    name = "users.shop.svc.cluster.local:80"
    [found] = [c for c in changing.sidecars["shopper"].json("/clusters") if c["name"] == name]
    return list(found["endpoints"])
