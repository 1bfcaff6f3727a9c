"""ADS streams as state machines: rules from Envoy's "xDS REST and gRPC protocol", and the traps in it."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.model.discovery import Change, Dialect, Identity, NodeInfo
from control_plane.xds.session import MAX_TYPES, DeltaSession, ProtocolError, Session, SotwSession
from control_plane.xds.snapshot_cache import WatchIndex
from control_plane.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTE, SECRET
from tests.support.xds_source import MemorySource, cluster, endpoints

NODE = NodeInfo(id="n1", cluster="", dialect=Dialect.GRPC, identity=Identity("shop", "users"))
NOW = 1000.0


class Stream:
    """A client of one session, which reads what comes and answers when told to."""

    def __init__(self, variant: type[DeltaSession] | type[SotwSession], source: MemorySource) -> None:
        self.source = source
        self.watches: WatchIndex[Session] = WatchIndex()
        self.session = variant(NODE, source, self.watches, "s")
        self.delta = variant is DeltaSession

    def ask(self, type_url: str, *names: str, **fields: Any) -> list[Any]:
        if self.delta:
            message = discovery_pb2.DeltaDiscoveryRequest(
                type_url=type_url, resource_names_subscribe=names, **fields
            )
        else:
            message = discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=names, **fields)
        self.session.on_request(self.session.parse(message.SerializeToString()), NOW)
        return self.read()

    def ack(self, response: Any, *names: str, error: str = "", **fields: Any) -> list[Any]:
        if error:
            fields["error_detail"] = {"code": 3, "message": error}
        return self.ask(response.type_url, *names, response_nonce=response.nonce, **fields)

    def tell(self, change: Change) -> list[Any]:
        for session, type_url, names in list(self.watches.touched(change)):
            session.mark(type_url, names)
        return self.read()

    def put(self, type_url: str, name: str, body: Any) -> list[Any]:
        return self.tell(self.source.put(type_url, name, body))

    def remove(self, type_url: str, name: str) -> list[Any]:
        return self.tell(self.source.remove(type_url, name))

    def read(self, now: float = NOW) -> list[Any]:
        message = discovery_pb2.DeltaDiscoveryResponse if self.delta else discovery_pb2.DiscoveryResponse
        return [message.FromString(data) for data in self.session.responses(now)]

    def state(self, type_url: str) -> Any:
        return self.session.subscriptions[type_url]


def names_of(response: Any) -> list[str]:
    return [resource.name for resource in response.resources]


def bodies_of(response: Any) -> list[bytes]:
    return [resource.value for resource in response.resources]


@pytest.fixture
def source() -> MemorySource:
    return MemorySource()


@pytest.fixture
def delta(source: MemorySource) -> Stream:
    return Stream(DeltaSession, source)


@pytest.fixture
def sotw(source: MemorySource) -> Stream:
    return Stream(SotwSession, source)


# --- incremental ---


def test_delta_answers_names_that_exist_and_tells_which_do_not(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"A")
    [response] = delta.ask(ROUTE, "a", "missing")
    assert names_of(response) == ["a"]
    assert response.resources[0].resource.value == b"A"
    assert response.resources[0].resource.type_url == ROUTE
    assert response.resources[0].version == delta.source.by_type[ROUTE]["a"].version
    assert list(response.removed_resources) == ["missing"]
    assert response.type_url == ROUTE


def test_delta_sends_a_missing_resource_once_it_exists(delta: Stream) -> None:
    [first] = delta.ask(ROUTE, "late")
    assert list(first.removed_resources) == ["late"]
    assert delta.ack(first) == []
    [second] = delta.put(ROUTE, "late", b"L")
    assert names_of(second) == ["late"]


def test_delta_sends_only_what_changed(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"A")
    delta.source.put(ROUTE, "b", b"B")
    [first] = delta.ask(ROUTE, "a", "b")
    assert delta.ack(first) == []
    [second] = delta.put(ROUTE, "b", b"B2")
    assert names_of(second) == ["b"]


def test_delta_a_change_that_changes_nothing_sends_nothing(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"A")
    [first] = delta.ask(ROUTE, "a")
    delta.ack(first)
    assert delta.put(ROUTE, "a", b"A") == []
    assert delta.tell(Change(everything=True)) == []
    assert delta.state(ROUTE).in_step


def test_delta_tells_a_deletion_once(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"A")
    [first] = delta.ask(ROUTE, "a")
    delta.ack(first)
    [second] = delta.remove(ROUTE, "a")
    assert names_of(second) == []
    assert list(second.removed_resources) == ["a"]
    assert delta.ack(second) == []
    assert delta.tell(Change(everything=True)) == []


def test_delta_one_push_is_outstanding_and_changes_meanwhile_are_merged(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"1")
    [first] = delta.ask(ROUTE, "a")
    assert delta.put(ROUTE, "a", b"2") == []
    assert delta.put(ROUTE, "a", b"3") == []
    [second] = delta.ack(first)
    assert second.resources[0].resource.value == b"3"
    assert second.nonce != first.nonce


def test_delta_a_stale_nonce_acknowledges_nothing_but_its_names_count(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"1")
    delta.source.put(ROUTE, "b", b"B")
    [first] = delta.ask(ROUTE, "a")
    delta.ack(first)
    [second] = delta.put(ROUTE, "a", b"2")
    assert delta.ack(first, "b") == []
    assert delta.state(ROUTE).awaiting
    assert delta.state(ROUTE).names == {"a", "b"}
    [third] = delta.ack(second)
    assert names_of(third) == ["b"]


def test_delta_a_nonce_of_another_type_acknowledges_nothing(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"1")
    delta.source.put(SECRET, "s", b"1")
    [routes] = delta.ask(ROUTE, "a")
    [secrets] = delta.ask(SECRET, "s")
    assert routes.nonce != secrets.nonce
    delta.ask(SECRET, response_nonce=routes.nonce)
    assert delta.state(SECRET).awaiting
    assert delta.state(ROUTE).awaiting


def test_delta_after_a_nack_nothing_is_sent_until_the_configuration_changes(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"bad")
    [first] = delta.ask(ROUTE, "a")
    assert delta.ack(first, error="no such cluster") == []
    assert delta.tell(Change(everything=True)) == []
    [second] = delta.put(ROUTE, "a", b"good")
    assert second.resources[0].resource.value == b"good"
    delta.ack(second)
    assert delta.state(ROUTE).nack is None
    assert delta.state(ROUTE).in_step


def test_a_nack_is_recorded_with_names_version_text_and_time(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"bad")
    [response] = delta.ask(ROUTE, "a", "missing")
    request = discovery_pb2.DeltaDiscoveryRequest(
        type_url=ROUTE, response_nonce=response.nonce, error_detail={"message": "bad route"}
    )
    answer = delta.session.on_request(request, NOW + 2)
    assert answer is not None
    assert answer.seconds == 2
    nack = answer.nack
    assert nack is not None
    assert (nack.node, nack.type_url, nack.names) == ("n1", ROUTE, ("a", "missing"))
    assert (nack.text, nack.time, nack.version) == ("bad route", NOW + 2, response.system_version_info)
    assert delta.state(ROUTE).nack == nack
    assert delta.state(ROUTE).acked_version == ""
    assert not delta.state(ROUTE).in_step


def test_delta_initial_versions_spare_what_the_client_still_has(delta: Stream) -> None:
    delta.source.put(ROUTE, "same", b"S")
    delta.source.put(ROUTE, "newer", b"N")
    version = delta.source.by_type[ROUTE]["same"].version
    [response] = delta.ask(
        ROUTE,
        "same",
        "newer",
        "gone",
        "fresh",
        initial_resource_versions={"same": version, "newer": "old", "gone": "old"},
    )
    assert names_of(response) == ["newer"]
    assert sorted(response.removed_resources) == ["fresh", "gone"]


def test_delta_reconnect_with_everything_current_is_answered_by_silence(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"A")
    version = delta.source.by_type[ROUTE]["a"].version
    assert delta.ask(ROUTE, "a", initial_resource_versions={"a": version}) == []
    assert delta.state(ROUTE).in_step
    [response] = delta.put(ROUTE, "a", b"A2")
    assert names_of(response) == ["a"]


def test_delta_initial_versions_count_on_the_first_request_alone(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"A")
    delta.source.put(ROUTE, "b", b"B")
    [first] = delta.ask(ROUTE, "a")
    version = delta.source.by_type[ROUTE]["b"].version
    [second] = delta.ack(first, "b", initial_resource_versions={"b": version})
    assert names_of(second) == ["b"]


def test_delta_asking_again_for_a_name_sends_it_again(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"A")
    [first] = delta.ask(ROUTE, "a", "missing")
    assert delta.ack(first) == []
    [second] = delta.ask(ROUTE, "a", "missing")
    assert names_of(second) == ["a"]
    assert list(second.removed_resources) == ["missing"]


def test_delta_unsubscribed_names_are_sent_no_more(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"A")
    delta.source.put(ROUTE, "b", b"B")
    [first] = delta.ask(ROUTE, "a", "b")
    assert delta.ack(first, resource_names_unsubscribe=["a"]) == []
    assert delta.put(ROUTE, "a", b"A2") == []
    [second] = delta.put(ROUTE, "b", b"B2")
    assert names_of(second) == ["b"]


def test_delta_a_change_queued_for_a_name_is_dropped_with_its_subscription(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"A")
    [first] = delta.ask(ROUTE, "a")
    delta.put(ROUTE, "a", b"A2")
    assert delta.ack(first, resource_names_unsubscribe=["a"]) == []


def test_delta_a_name_dropped_and_asked_for_again_is_sent(delta: Stream) -> None:
    delta.source.put(ROUTE, "a", b"A")
    [first] = delta.ask(ROUTE, "a")
    delta.ack(first)
    assert delta.ask(ROUTE, resource_names_unsubscribe=["a"]) == []
    [second] = delta.ask(ROUTE, "a")
    assert names_of(second) == ["a"]


@pytest.mark.parametrize("names", [(), ("*",)], ids=["legacy", "star"])
def test_delta_wildcard_follows_all_that_exists(delta: Stream, names: tuple[str, ...]) -> None:
    delta.source.put(CLUSTER, "a", cluster("a"))
    [first] = delta.ask(CLUSTER, *names)
    assert names_of(first) == ["a"]
    delta.ack(first)
    [second] = delta.put(CLUSTER, "b", cluster("b"))
    assert names_of(second) == ["b"]
    delta.ack(second)
    [third] = delta.remove(CLUSTER, "a")
    assert list(third.removed_resources) == ["a"]


def test_delta_an_empty_wildcard_is_answered_because_the_client_waits(delta: Stream) -> None:
    [response] = delta.ask(CLUSTER)
    assert names_of(response) == []
    assert list(response.removed_resources) == []


def test_delta_an_empty_first_request_is_a_wildcard_for_listeners_and_clusters_alone(delta: Stream) -> None:
    delta.source.put(ENDPOINTS, "a", endpoints("a", 1))
    assert delta.ask(ENDPOINTS) == []


def test_delta_legacy_wildcard_survives_names_until_star_is_unsubscribed(delta: Stream) -> None:
    delta.source.put(CLUSTER, "a", cluster("a"))
    [first] = delta.ask(CLUSTER)
    [second] = delta.ack(first, "b")
    assert list(second.removed_resources) == ["b"]
    delta.ack(second)
    [third] = delta.put(CLUSTER, "c", cluster("c"))
    assert names_of(third) == ["c"]
    delta.ack(third, resource_names_unsubscribe=["*"])
    assert delta.put(CLUSTER, "a", cluster("a", altStatName="changed")) == []
    [fourth] = delta.put(CLUSTER, "b", cluster("b"))
    assert names_of(fourth) == ["b"]


def test_delta_wildcard_reconnect_removes_what_vanished_meanwhile(delta: Stream) -> None:
    delta.source.put(CLUSTER, "kept", cluster("kept"))
    version = delta.source.by_type[CLUSTER]["kept"].version
    [response] = delta.ask(CLUSTER, "*", initial_resource_versions={"kept": version, "gone": "1"})
    assert names_of(response) == []
    assert list(response.removed_resources) == ["gone"]


def test_delta_unsubscribing_a_name_that_the_wildcard_covers_tells_its_state(delta: Stream) -> None:
    delta.source.put(CLUSTER, "a", cluster("a"))
    [first] = delta.ask(CLUSTER, "*", "a", "b")
    delta.ack(first)
    [second] = delta.ask(CLUSTER, resource_names_unsubscribe=["a", "b"])
    assert names_of(second) == ["a"]
    assert list(second.removed_resources) == ["b"]


def test_delta_removed_clusters_wait_until_routes_left_them(delta: Stream) -> None:
    delta.source.put(CLUSTER, "old", cluster("old"))
    delta.source.put(ROUTE, "r", b"to old")
    for type_url in (CLUSTER, ROUTE):
        [response] = delta.ask(type_url, "old" if type_url == CLUSTER else "r")
        delta.ack(response)
    change = delta.source.put(ROUTE, "r", b"to new")
    gone = delta.source.remove(CLUSTER, "old")
    [routes] = delta.tell(Change({**change.names, **gone.names}))
    assert routes.type_url == ROUTE
    [removal] = delta.ack(routes)
    assert removal.type_url == CLUSTER
    assert list(removal.removed_resources) == ["old"]


def test_delta_a_removal_waits_for_nothing_when_no_route_changed(delta: Stream) -> None:
    delta.source.put(CLUSTER, "old", cluster("old"))
    delta.source.put(ROUTE, "r", b"R")
    for type_url, name in ((CLUSTER, "old"), (ROUTE, "r")):
        [response] = delta.ask(type_url, name)
        delta.ack(response)
    delta.source.remove(CLUSTER, "old")
    [removal] = delta.tell(Change(everything=True))
    assert list(removal.removed_resources) == ["old"]


# --- both ---


@pytest.mark.parametrize("variant", [DeltaSession, SotwSession])
def test_types_go_in_the_order_clusters_endpoints_listeners_routes(
    variant: type[DeltaSession] | type[SotwSession], source: MemorySource
) -> None:
    stream = Stream(variant, source)
    source.put(CLUSTER, "x", cluster("x"))
    for type_url in (ROUTE, LISTENER, ENDPOINTS):
        source.put(type_url, "x", b"")
    requests = [
        discovery_pb2.DeltaDiscoveryRequest(type_url=url, resource_names_subscribe=["x"])
        if stream.delta
        else discovery_pb2.DiscoveryRequest(type_url=url, resource_names=["x"])
        for url in (ROUTE, LISTENER, ENDPOINTS, CLUSTER)
    ]
    for request in requests:
        stream.session.on_request(request, NOW)
    assert [r.type_url for r in stream.read()] == [CLUSTER, ENDPOINTS, LISTENER, ROUTE]


@pytest.mark.parametrize("variant", [DeltaSession, SotwSession])
def test_routes_wait_while_a_changed_cluster_waits_for_its_turn(
    variant: type[DeltaSession] | type[SotwSession], source: MemorySource
) -> None:
    stream = Stream(variant, source)
    source.put(CLUSTER, "x", cluster("x"))
    source.put(ROUTE, "r", b"1")
    [clusters] = stream.ask(CLUSTER, "x")
    [routes] = stream.ask(ROUTE, "r")
    stream.ack(routes, *(() if stream.delta else ("r",)))
    newer = source.put(CLUSTER, "x", cluster("x", altStatName="2"))
    assert stream.tell(Change({**newer.names, **source.put(ROUTE, "r", b"2").names})) == []
    answers = stream.ack(clusters, *(() if stream.delta else ("x",)))
    assert [r.type_url for r in answers] == [CLUSTER, ROUTE]


@pytest.mark.parametrize("variant", [DeltaSession, SotwSession])
def test_endpoints_are_sent_again_with_their_cluster(
    variant: type[DeltaSession] | type[SotwSession], source: MemorySource
) -> None:
    stream = Stream(variant, source)
    eds = {"edsConfig": {"ads": {}}, "serviceName": "x-members"}
    source.put(CLUSTER, "x", cluster("x", edsClusterConfig=eds))
    source.put(CLUSTER, "y", cluster("y"))
    source.put(ENDPOINTS, "x-members", endpoints("x-members", 1))
    source.put(ENDPOINTS, "y", endpoints("y", 2))
    names = {CLUSTER: ("x", "y"), ENDPOINTS: ("x-members", "y")}
    for type_url in (CLUSTER, ENDPOINTS):
        [response] = stream.ask(type_url, *names[type_url])
        stream.ack(response, *(() if stream.delta else names[type_url]))
    changed = stream.put(CLUSTER, "x", cluster("x", edsClusterConfig=eds, altStatName="2"))
    assert [r.type_url for r in changed] == [CLUSTER, ENDPOINTS]
    assert len(changed[1].resources) == 1
    resource = changed[1].resources[0]
    assert (resource.resource.value if stream.delta else resource.value) == (
        source.by_type[ENDPOINTS]["x-members"].body
    )


@pytest.mark.parametrize("variant", [DeltaSession, SotwSession])
def test_a_closed_session_leaves_nothing_in_the_index(
    variant: type[DeltaSession] | type[SotwSession], source: MemorySource
) -> None:
    stream = Stream(variant, source)
    stream.ask(CLUSTER, "*", "a")
    stream.ask(ROUTE, "r")
    stream.session.close()
    assert repr(stream.watches) == "<WatchIndex names=0 types=[]>"
    assert list(stream.watches.touched(Change(everything=True))) == []


def test_only_watchers_of_what_changed_are_touched(source: MemorySource) -> None:
    watches: WatchIndex[str] = WatchIndex()
    watches.add("one", ROUTE, "a")
    watches.add("two", ROUTE, "b")
    watches.add("all", ROUTE, None)
    watches.add("other", CLUSTER, "a")
    touched = set(watches.touched(Change({ROUTE: frozenset(("a", "zzz"))})))
    assert touched == {
        ("one", ROUTE, frozenset(("a",))),
        ("all", ROUTE, frozenset(("a", "zzz"))),
    }
    assert {w for w, _, _ in watches.touched(Change({ROUTE: None}))} == {"one", "two", "all"}


def test_requests_that_break_the_protocol_are_refused_with_a_reason(delta: Stream) -> None:
    with pytest.raises(ProtocolError, match="type_url"):
        delta.ask("")
    with pytest.raises(ProtocolError, match="not a envoy"):
        delta.session.parse(b"\xff\xff")
    for number in range(MAX_TYPES):
        delta.ask(f"type/{number}", "x")
    with pytest.raises(ProtocolError, match="more than 32 resource types"):
        delta.ask("type/one-more", "x")


# --- state of the world ---


def test_sotw_clusters_and_listeners_always_come_as_the_complete_set(sotw: Stream) -> None:
    sotw.source.put(CLUSTER, "a", cluster("a"))
    sotw.source.put(CLUSTER, "b", cluster("b"))
    [first] = sotw.ask(CLUSTER, "a", "b")
    sotw.ack(first, "a", "b")
    [second] = sotw.put(CLUSTER, "b", cluster("b", altStatName="2"))
    known = sotw.source.by_type[CLUSTER]
    assert bodies_of(second) == [known["a"].body, known["b"].body]
    assert second.version_info != first.version_info
    sotw.ack(second, "a", "b")
    [third] = sotw.remove(CLUSTER, "a")
    assert bodies_of(third) == [known["b"].body]


def test_sotw_endpoints_and_routes_come_alone_when_they_change(sotw: Stream) -> None:
    sotw.source.put(ENDPOINTS, "a", b"A")
    sotw.source.put(ENDPOINTS, "b", b"B")
    [first] = sotw.ask(ENDPOINTS, "a", "b")
    assert bodies_of(first) == [b"A", b"B"]
    sotw.ack(first, "a", "b")
    [second] = sotw.put(ENDPOINTS, "b", b"B2")
    assert bodies_of(second) == [b"B2"]


def test_sotw_a_missing_listener_is_answered_by_a_set_without_it(sotw: Stream) -> None:
    [response] = sotw.ask(LISTENER, "nowhere")
    assert bodies_of(response) == []
    assert response.nonce != ""


def test_sotw_a_missing_route_is_answered_when_it_comes(sotw: Stream) -> None:
    assert sotw.ask(ROUTE, "late") == []
    [response] = sotw.put(ROUTE, "late", b"L")
    assert bodies_of(response) == [b"L"]


def test_sotw_requests_with_a_stale_nonce_are_ignored_whole(sotw: Stream) -> None:
    sotw.source.put(ROUTE, "a", b"1")
    [first] = sotw.ask(ROUTE, "a")
    sotw.ack(first, "a")
    [second] = sotw.put(ROUTE, "a", b"2")
    assert sotw.ack(first, "a", "b", error="late refusal") == []
    assert sotw.state(ROUTE).names == {"a"}
    assert sotw.state(ROUTE).awaiting
    assert sotw.state(ROUTE).nack is None
    sotw.ack(second, "a")
    assert sotw.state(ROUTE).in_step


def test_sotw_a_request_that_missed_the_newest_response_is_ignored(sotw: Stream) -> None:
    sotw.source.put(ROUTE, "a", b"1")
    [first] = sotw.ask(ROUTE, "a")
    assert sotw.ask(ROUTE, "a", "b") == []
    assert sotw.state(ROUTE).names == {"a"}
    sotw.source.put(ROUTE, "b", b"B")
    [second] = sotw.ack(first, "a", "b")
    assert bodies_of(second) == [b"B"]


def test_sotw_a_nonce_of_an_earlier_stream_does_not_spoil_the_first_request(sotw: Stream) -> None:
    sotw.source.put(ROUTE, "a", b"1")
    [response] = sotw.ask(ROUTE, "a", response_nonce="other-7", version_info="old")
    assert bodies_of(response) == [b"1"]


def test_sotw_a_plain_ack_is_not_answered(sotw: Stream) -> None:
    sotw.source.put(CLUSTER, "a", cluster("a"))
    [first] = sotw.ask(CLUSTER, "a")
    assert sotw.ack(first, "a", version_info=first.version_info) == []
    assert sotw.state(CLUSTER).acked_version == first.version_info


def test_sotw_new_names_are_answered_and_dropped_names_are_not(sotw: Stream) -> None:
    for name in "ab":
        sotw.source.put(ROUTE, name, name.encode())
        sotw.source.put(LISTENER, name, name.encode())
    [first] = sotw.ask(ROUTE, "a")
    [second] = sotw.ack(first, "a", "b")
    assert bodies_of(second) == [b"b"]
    assert sotw.ack(second, "b") == []
    [first] = sotw.ask(LISTENER, "a")
    [second] = sotw.ack(first, "a", "b")
    assert bodies_of(second) == [b"a", b"b"]
    assert sotw.ack(second, "b") == []
    assert sotw.put(LISTENER, "a", b"a2") == []


def test_sotw_a_nack_is_not_followed_by_the_same_thing_again(sotw: Stream) -> None:
    sotw.source.put(CLUSTER, "a", cluster("a"))
    [first] = sotw.ask(CLUSTER, "a")
    assert sotw.ack(first, "a", error="unknown policy") == []
    assert sotw.tell(Change(everything=True)) == []
    assert sotw.state(CLUSTER).nack.text == "unknown policy"
    [second] = sotw.put(CLUSTER, "a", cluster("a", altStatName="2"))
    sotw.ack(second, "a")
    assert sotw.state(CLUSTER).nack is None


def test_sotw_an_empty_first_request_is_a_wildcard_until_names_come(sotw: Stream) -> None:
    sotw.source.put(CLUSTER, "a", cluster("a"))
    sotw.source.put(CLUSTER, "b", cluster("b"))
    [first] = sotw.ask(CLUSTER)
    assert len(first.resources) == 2
    assert sotw.ack(first) == []
    [second] = sotw.put(CLUSTER, "c", cluster("c"))
    assert len(second.resources) == 3
    [third] = sotw.ack(second, "a")
    assert len(third.resources) == 1
    assert sotw.ack(third) == []
    assert not sotw.state(CLUSTER).wildcard, "an empty list after names subscribes to nothing"
    assert sotw.put(CLUSTER, "a", cluster("a", altStatName="2")) == []


def test_sotw_star_beside_names_is_a_wildcard(sotw: Stream) -> None:
    sotw.source.put(CLUSTER, "a", cluster("a"))
    [first] = sotw.ask(CLUSTER, "*", "zzz")
    assert len(first.resources) == 1
    sotw.ack(first, "*", "zzz")
    [second] = sotw.put(CLUSTER, "b", cluster("b"))
    assert len(second.resources) == 2


def test_sotw_every_type_that_a_reconnecting_client_asks_for_is_sent(sotw: Stream) -> None:
    sotw.source.put(CLUSTER, "a", cluster("a"))
    [first] = sotw.ask(CLUSTER, "a", version_info="anything, even the current one")
    assert len(first.resources) == 1
