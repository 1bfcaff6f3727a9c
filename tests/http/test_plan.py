"""What is remembered with a head, and what must never be remembered."""

from __future__ import annotations

import gc

from sidecar.config.matcher import CompiledRoutes
from sidecar.config.resources import HeaderOperation, Route, RouteAction, RouteMatch, WeightedCluster
from sidecar.protocol.events import Field, RequestHead, ResponseHead
from tests.support.exchange_rig import RecordingCluster, Rig, get, route, table

XFCC = b"x-forwarded-client-cert"
REMOVE = HeaderOperation("remove", b"x-secret")


def sent(rig: Rig, head: RequestHead) -> RequestHead:
    rig.send(head)
    upstream = rig.upstream
    received: RequestHead = upstream.heads[0]
    upstream.handler.on_response(ResponseHead(200), True)
    upstream.dead = True
    return received


def test_an_operation_reaches_a_field_that_is_literal_although_a_head_without_it_came_first() -> None:
    rig = Rig(route(request_headers=(REMOVE,)))
    head = get((b"accept", b"*/*"))
    assert sent(rig, head).get(b"accept") == b"*/*"
    assert sent(rig, head.with_fresh(((b"x-secret", b"1"),))).get(b"x-secret") is None
    assert sent(rig, head.with_fresh(((b"x-other", b"1"),))).get(b"x-other") == b"1"


def test_a_client_certificate_field_is_stripped_wherever_it_stands() -> None:
    forged: tuple[Field, ...] = ((XFCC, b"URI=spiffe://forged"),)
    own: tuple[Field, ...] = ((XFCC, b"URI=spiffe://caller"),)
    rig = Rig(client_cert=own)
    assert sent(rig, get(*forged)).get_all(XFCC) == [b"URI=spiffe://caller"]
    assert sent(rig, get(fresh=forged)).get_all(XFCC) == [b"URI=spiffe://caller"]


def test_a_client_certificate_field_that_is_kept_comes_before_ours() -> None:
    theirs: tuple[Field, ...] = ((XFCC, b"theirs"),)
    rig = Rig(client_cert=((XFCC, b"ours"),), keep_client_cert=True)
    assert sent(rig, get(*theirs)).get_all(XFCC) == [b"theirs", b"ours"]
    assert sent(rig, get(fresh=theirs)).get_all(XFCC) == [b"theirs", b"ours"]


def test_heads_that_differ_only_in_a_literal_content_type_are_told_apart() -> None:
    rig = Rig()
    rig.clusters.clear()
    head = get(method=b"POST")
    first, _ = rig.send(head.with_fresh(((b"content-type", b"application/grpc"),)))
    second, _ = rig.send(head.with_fresh(((b"content-type", b"application/json"),)))
    assert first.heads[0].get(b"grpc-status") == b"14"
    assert second.heads[0].status == 503


def test_a_repeated_head_costs_one_plan_and_a_new_table_makes_a_new_one() -> None:
    rig = Rig()
    head = get()
    assert sent(rig, head).memo is sent(rig, head).memo
    rig.routes.table = table(route(match=RouteMatch(path="/")))
    sent(rig, head)
    memo = head.memo["plans"]
    assert memo[0] is rig.routes.table.identity
    assert len(memo[2]) == 1


def test_a_head_keeps_no_table_alive() -> None:
    """Heads are remembered for connections to come, and tables are replaced with each change."""
    rig = Rig()
    head = get()
    sent(rig, head)
    of_head = gc.get_referents(head.memo, *head.memo.values(), *head.memo["plans"])
    assert not any(isinstance(one, CompiledRoutes) for one in of_head)


def test_heads_that_differ_in_the_path_share_a_plan_where_they_share_a_route() -> None:
    append = HeaderOperation("append", b"x-by", b"a")
    first_route = route(match=RouteMatch(prefix="/a/"), request_headers=(append,))
    rewriting = RouteAction((WeightedCluster("users", 1),), timeout=0.0, prefix_rewrite="/")
    rig = Rig(first_route, Route("b", RouteMatch(prefix="/b/"), rewriting))
    head = get().vary(b"/a/1", ())
    first = sent(rig, head)
    second = sent(rig, head.vary(b"/a/2?x", ()))
    other = sent(rig, head.vary(b"/b/3", ()))
    assert (first.path, second.path, other.path) == (b"/a/1", b"/a/2?x", b"/3")
    assert first.memo is second.memo
    assert first.memo is not other.memo
    assert (second.get(b"x-by"), other.get(b"x-by")) == (b"a", None)


def test_what_is_remembered_of_paths_is_bounded() -> None:
    rig = Rig()
    head = get()
    for number in range(1000):
        assert sent(rig, head.vary(b"/%d" % number, ())).path == b"/%d" % number
    _, by_path, by_route = head.memo["plans"]
    assert len(by_path) <= 64
    assert len(by_route) == 1


def test_a_cluster_of_weight_zero_gets_nothing() -> None:
    clusters = (WeightedCluster("idle", 0), WeightedCluster("users", 1), WeightedCluster("gone", 0))
    rig = Rig(route(clusters=clusters))
    rig.clusters["idle"] = rig.clusters["gone"] = RecordingCluster()
    for _ in range(50):
        sent(rig, get())
    assert len(rig.cluster.finished) == 50


def test_weights_are_kept_to() -> None:
    rig = Rig(route(clusters=(WeightedCluster("users", 3), WeightedCluster("other", 1))))
    rig.clusters["other"] = other = RecordingCluster()
    for _ in range(400):
        stream, _ = rig.send(get())
        stream.die()
    assert len(rig.cluster.finished) + len(other.finished) == 400
    assert 260 < len(rig.cluster.finished) < 340
