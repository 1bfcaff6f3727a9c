"""TCPRoutes to what a route table does with CONNECT, and, on ports that may carry it, with HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from control_plane.model.discovery import Dialect
from control_plane.model.service import AppProtocol, ServicePort
from control_plane.sources.references import check
from control_plane.sources.route_admission import _without_missing
from control_plane.translate.routes import route_configuration
from tests.support.kubernetes import Object, backend, mesh, route, service

DATABASE = "db.shop.svc.cluster.local:5432"
REPLICA = "replica.shop.svc.cluster.local:5432"
OPAQUE = ServicePort("tcp-db", 5432, 5432, AppProtocol.TCP, True)
SAYS_NOTHING = ServicePort("", 5432, 5432, AppProtocol.HTTP)
DECLARED_HTTP = ServicePort("http", 5432, 5432, AppProtocol.HTTP, True)
UPGRADE = [{"upgradeType": "CONNECT", "connectConfig": {}}]
CONNECT = {"connectMatcher": {}}


def tcp(name: str, *backends: Object, created: str = "", **more: Any) -> Object:
    return route(name, {"backendRefs": list(backends)}, to="db", kind="TCPRoute", created=created, **more)


def to(name: str, weight: int | None = None, port: int = 5432) -> Object:
    return backend(name, port, **({} if weight is None else {"weight": weight}))


def table(
    *routes: Object, port: ServicePort = OPAQUE, dialect: Dialect = Dialect.PILOTFISH
) -> list[dict[str, Any]]:
    """With references resolved against the Services that there are."""
    services = [service(name, {"name": "tcp-db", "port": 5432}) for name in ("db", "replica")]
    found = mesh(*services, *routes)
    findings = check(found)
    resolved = [_without_missing(each, findings) for each in found.routes]
    made = route_configuration(DATABASE, port, resolved, dialect, "cluster.local")
    return [MessageToDict(each) for each in made.virtual_hosts[0].routes]


def carried(name: str, **action: Any) -> dict[str, Any]:
    return {
        "name": name,
        "match": CONNECT,
        "route": {**action, "timeout": "0s", "upgradeConfigs": UPGRADE},
    }


def weights(**clusters: int) -> dict[str, Any]:
    names = {"db": DATABASE, "replica": REPLICA}
    return {"clusters": [{"name": names[name], "weight": weight} for name, weight in clusters.items()]}


def refused(name: str, why: str, **match: Any) -> dict[str, Any]:
    response = {"status": 503, "body": {"inlineString": why}}
    return {"name": name, "match": {**CONNECT, **match}, "directResponse": response}


def test_connections_follow_the_weights() -> None:
    assert table(tcp("r", to("db", 90), to("replica", 10))) == [
        carried("shop/r/0", weightedClusters=weights(db=90, replica=10))
    ]


def test_one_backend_is_one_cluster() -> None:
    assert table(tcp("r", to("replica"))) == [carried("shop/r/0", cluster=REPLICA)]


def test_a_backend_without_weight_gets_no_connection() -> None:
    assert table(tcp("r", to("db", 0), to("replica", 3))) == [carried("shop/r/0", cluster=REPLICA)]


def test_without_any_weight_every_connection_is_refused() -> None:
    assert table(tcp("r", to("db", 0), to("replica", 0))) == [
        refused("shop/r/0", "no backend of TCPRoute shop/r has a weight")
    ]


def test_the_share_of_a_backend_that_does_not_exist_is_refused() -> None:
    """Gateway API: with 80 % of the weight at an invalid backend 80 % of the connections are refused."""
    share = {"runtimeFraction": {"defaultValue": {"numerator": 800000, "denominator": "MILLION"}}}
    why = "this share of TCPRoute shop/r is of backends that do not exist or may not be named"
    assert table(tcp("r", to("gone", 80), to("db", 20))) == [
        refused("shop/r/0/unresolved", why, **share),
        carried("shop/r/0", cluster=DATABASE),
    ]


def test_with_no_backend_that_exists_every_connection_is_refused() -> None:
    assert table(tcp("r", to("gone"))) == [
        refused("shop/r/0", "no backend of TCPRoute shop/r exists and may be named")
    ]


def test_the_oldest_route_counts() -> None:
    old, new = "2026-01-01T00:00:00Z", "2026-02-02T00:00:00Z"
    newer, older = tcp("a", to("db"), created=new), tcp("b", to("replica"), created=old)
    assert table(newer, older) == [carried("shop/b/0", cluster=REPLICA)]
    assert table(tcp("b", to("replica")), tcp("a", to("db"))) == [carried("shop/a/0", cluster=DATABASE)]


def test_on_a_port_that_says_nothing_http_follows_it_too() -> None:
    """What is HTTP is found out in the end, and must not go elsewhere for that."""
    split = weights(db=1, replica=1)
    assert table(tcp("r", to("db"), to("replica")), port=SAYS_NOTHING) == [
        carried("shop/r/0", weightedClusters=split),
        {
            "name": "shop/r/0",
            "match": {"prefix": "/"},
            "route": {
                "weightedClusters": split,
                "timeout": "0s",
                "maxStreamDuration": {"grpcTimeoutHeaderMax": "0s"},
            },
        },
    ]


def test_on_a_port_that_is_declared_http_its_requests_follow_it() -> None:
    [only] = table(tcp("r", to("replica")), port=DECLARED_HTTP)
    assert (only["match"], only["route"]["cluster"]) == ({"prefix": "/"}, REPLICA)


@pytest.mark.parametrize("kind", ["HTTPRoute", "GRPCRoute"])
def test_a_route_of_a_more_specific_kind_counts_instead(kind: str) -> None:
    other = route("h", {"backendRefs": [to("db")]}, to="db", kind=kind, created="2026-02-02T00:00:00Z")
    found = table(tcp("r", to("replica"), created="2026-01-01T00:00:00Z"), other, port=SAYS_NOTHING)
    assert [each["name"] for each in found] == ["tcp", "shop/h/0"]
    assert REPLICA not in str(found)


def test_a_grpc_client_follows_it_with_its_calls() -> None:
    [only] = table(tcp("r", to("replica")), port=SAYS_NOTHING, dialect=Dialect.GRPC)
    assert (only["match"], only["route"]["cluster"]) == ({"prefix": "/"}, REPLICA)
    assert table(tcp("r", to("replica")), dialect=Dialect.GRPC) == []
