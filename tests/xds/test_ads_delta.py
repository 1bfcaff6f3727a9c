"""Incremental ADS from the client's side: what is sent, acknowledged, refused, and kept over streams."""

from __future__ import annotations

from typing import Any

from sidecar.config.resources import Node
from sidecar.config.type_urls import CLUSTER, ENDPOINTS, LISTENER
from sidecar.xds.ads import AdsClient
from sidecar.xds.delta import DeltaVariant
from tests.support.discovery import assignment, cluster, delta_requests, delta_response


class Recorder:
    def __init__(self) -> None:
        self.updates: list[tuple[str, list[str], list[str]]] = []
        self.outputs = 0
        self.ads = AdsClient(Node("n", "c", "r", "z", "s", '{"K": "v"}'), DeltaVariant())
        self.ads.on_update = self.on_update
        self.ads.on_output = self.on_output

    def on_update(self, type_url: str, accepted: Any, removed: frozenset[str]) -> None:
        self.updates.append((type_url, sorted(accepted), sorted(removed)))

    def on_output(self) -> None:
        self.outputs += 1

    def take(self) -> list[Any]:
        return delta_requests(self.ads.take_requests())

    def receive(self, nonce: str, **resources: tuple[str, Any]) -> None:
        self.ads.receive(delta_response(nonce, resources))


def connected(*names: str) -> Recorder:
    recorder = Recorder()
    recorder.ads.subscribe(CLUSTER, names)
    recorder.ads.connect()
    recorder.take()
    return recorder


def bad(name: str) -> Any:
    return cluster(name, lb_policy="MAGLEV")


def test_nothing_is_sent_before_a_stream_is_there() -> None:
    recorder = Recorder()
    recorder.ads.subscribe(CLUSTER, ["a"])
    assert (recorder.take(), recorder.outputs) == ([], 0)


def test_the_first_request_of_a_stream_alone_carries_the_node() -> None:
    recorder = Recorder()
    recorder.ads.subscribe(LISTENER, ["l"])
    recorder.ads.subscribe(CLUSTER, ["b", "a"])
    recorder.ads.connect()
    first, second = recorder.take()
    assert (first.type_url, list(first.resource_names_subscribe)) == (CLUSTER, ["a", "b"])
    assert (first.node.id, first.node.cluster, first.node.user_agent_name) == ("n", "c", "pilotfish")
    assert (first.node.locality.zone, first.node.metadata["K"]) == ("z", "v")
    assert (second.type_url, second.HasField("node")) == (LISTENER, False)


def test_a_wildcard_is_asked_for_as_a_star() -> None:
    recorder = Recorder()
    recorder.ads.subscribe(LISTENER, ["*"])
    recorder.ads.connect()
    assert [list(each.resource_names_subscribe) for each in recorder.take()] == [["*"]]


def test_good_resources_are_acknowledged_and_reported() -> None:
    recorder = connected("a", "b")
    recorder.receive("n1", a=("1", cluster("a")))
    (ack,) = recorder.take()
    assert (ack.response_nonce, ack.HasField("error_detail"), ack.type_url) == ("n1", False, CLUSTER)
    assert list(ack.resource_names_subscribe) == []
    assert recorder.updates == [(CLUSTER, ["a"], [])]


def test_a_bad_resource_is_refused_with_its_path_and_the_good_one_beside_it_is_taken() -> None:
    recorder = connected("a", "b")
    recorder.receive("n1", a=("1", bad("a")), b=("1", cluster("b")))
    (nack,) = recorder.take()
    assert nack.response_nonce == "n1"
    assert nack.error_detail.code == 3
    assert nack.error_detail.message == (
        "Cluster a.lb_policy: MAGLEV is not supported; supported are ROUND_ROBIN, LEAST_REQUEST, "
        "LOAD_BALANCING_POLICY_CONFIG"
    )
    assert recorder.updates == [(CLUSTER, ["b"], [])]
    assert list(recorder.ads.errors()) == ["Cluster a"]


def test_a_refused_update_keeps_the_old_version_for_the_next_stream() -> None:
    recorder = connected("a")
    recorder.receive("n1", a=("1", cluster("a")))
    recorder.receive("n2", a=("2", bad("a")))
    recorder.ads.disconnect()
    recorder.ads.connect()
    (request,) = recorder.take()
    assert dict(request.initial_resource_versions) == {"a": "1"}
    assert list(request.resource_names_subscribe) == ["a"]
    assert request.node.id == "n"
    assert request.response_nonce == ""


def test_an_error_is_forgotten_when_a_good_version_comes() -> None:
    recorder = connected("a")
    recorder.receive("n1", a=("1", bad("a")))
    recorder.receive("n2", a=("2", cluster("a")))
    assert recorder.ads.errors() == {}


def test_each_response_is_answered_with_its_own_nonce() -> None:
    recorder = connected("a")
    recorder.receive("n1", a=("1", cluster("a")))
    recorder.receive("n2", a=("2", cluster("a")))
    assert [each.response_nonce for each in recorder.take()] == ["n1", "n2"]


def test_replies_of_a_lost_stream_are_not_sent_on_the_next() -> None:
    recorder = connected("a")
    recorder.receive("n1", a=("1", cluster("a")))
    recorder.ads.disconnect()
    recorder.ads.connect()
    assert [each.response_nonce for each in recorder.take()] == [""]


def test_subscriptions_are_told_as_differences_and_once() -> None:
    recorder = connected("a", "b")
    recorder.ads.subscribe(CLUSTER, ["c"])
    recorder.ads.unsubscribe(CLUSTER, ["a"])
    (request,) = recorder.take()
    assert list(request.resource_names_subscribe) == ["c"]
    assert list(request.resource_names_unsubscribe) == ["a"]
    assert dict(request.initial_resource_versions) == {}
    assert recorder.take() == []


def test_a_name_dropped_and_wanted_again_before_the_next_request_is_asked_for_anew() -> None:
    recorder = connected("a")
    recorder.receive("n1", a=("1", cluster("a")))
    recorder.take()
    recorder.ads.unsubscribe(CLUSTER, ["a"])
    recorder.ads.subscribe(CLUSTER, ["a"])
    (request,) = recorder.take()
    assert list(request.resource_names_subscribe) == ["a"]
    assert list(request.resource_names_unsubscribe) == []


def test_a_resource_that_arrives_after_it_was_unsubscribed_is_ignored_and_acknowledged() -> None:
    recorder = connected("a", "b")
    recorder.ads.unsubscribe(CLUSTER, ["a"])
    recorder.receive("n1", a=("1", bad("a")))
    assert [each.HasField("error_detail") for each in recorder.take()] == [False, False]
    assert recorder.updates == [(CLUSTER, [], [])]


def test_removed_names_do_not_exist_and_stay_subscribed() -> None:
    recorder = connected("a", "b")
    recorder.receive("n1", a=("1", cluster("a")))
    recorder.ads.receive(delta_response("n2", {}, ("a", "b", "never asked for")))
    assert recorder.updates[-1] == (CLUSTER, [], ["a", "b"])
    recorder.ads.disconnect()
    recorder.ads.connect()
    (request,) = recorder.take()
    assert list(request.resource_names_subscribe) == ["a", "b"]
    assert dict(request.initial_resource_versions) == {}


def asked_again_after_dropping(*names: str) -> Recorder:
    """`a` was unsubscribed and then wanted again; the server knows, and has answered neither."""
    recorder = connected(*names)
    recorder.receive("n1", a=("1", cluster("a")))
    recorder.ads.unsubscribe(CLUSTER, ["a"])
    recorder.take()
    recorder.ads.subscribe(CLUSTER, ["a"])
    recorder.take()
    return recorder


def test_the_answer_to_dropping_a_name_does_not_say_that_it_is_gone_when_it_is_wanted_again() -> None:
    """Beside a wildcard a server answers an unsubscription with a removal, which may cross the new
    subscription. Which of both is answered cannot be seen: the name is asked for once more."""
    recorder = asked_again_after_dropping("*", "a")
    recorder.ads.receive(delta_response("n2", {}, ("a", "b")))
    assert recorder.updates[-1] == (CLUSTER, [], [])
    ack, again = recorder.take()
    assert ack.response_nonce == "n2"
    assert list(again.resource_names_subscribe) == ["a"]
    recorder.receive("n3", a=("1", cluster("a")))
    assert recorder.updates[-1] == (CLUSTER, ["a"], [])


def test_a_name_that_is_gone_when_it_is_asked_for_again_is_believed_to_be_the_second_time() -> None:
    recorder = asked_again_after_dropping("*", "a")
    recorder.ads.receive(delta_response("n2", {}, ("a",)))
    recorder.take()
    recorder.ads.receive(delta_response("n3", {}, ("a",)))
    assert recorder.updates[-1] == (CLUSTER, [], ["a"])
    assert len(recorder.take()) == 1


def test_a_change_that_crossed_the_dropping_of_its_name_is_no_answer_to_it() -> None:
    recorder = asked_again_after_dropping("*", "a")
    recorder.receive("n2", a=("2", cluster("a")))
    recorder.take()
    recorder.ads.receive(delta_response("n3", {}, ("a",)))
    assert recorder.updates[-1] == (CLUSTER, [], [])
    assert [list(each.resource_names_subscribe) for each in recorder.take()] == [[], ["a"]]


def test_each_dropping_of_a_name_has_an_answer_of_its_own() -> None:
    recorder = asked_again_after_dropping("*", "a")
    recorder.ads.unsubscribe(CLUSTER, ["a"])
    recorder.take()
    recorder.ads.receive(delta_response("n2", {}, ("a",)))
    recorder.ads.subscribe(CLUSTER, ["a"])
    recorder.take()
    recorder.ads.receive(delta_response("n3", {}, ("a",)))
    assert [removed for _, _, removed in recorder.updates[1:]] == [[], []]
    recorder.take()
    recorder.ads.receive(delta_response("n4", {}, ("a",)))
    assert recorder.updates[-1] == (CLUSTER, [], ["a"])


def test_without_a_wildcard_or_on_a_new_stream_dropping_a_name_has_no_answer() -> None:
    recorder = asked_again_after_dropping("a")
    recorder.ads.receive(delta_response("n2", {}, ("a",)))
    assert recorder.updates[-1] == (CLUSTER, [], ["a"])
    recorder = asked_again_after_dropping("*", "a")
    recorder.ads.disconnect()
    recorder.ads.connect()
    recorder.take()
    recorder.ads.receive(delta_response("n1", {}, ("a",)))
    assert recorder.updates[-1] == (CLUSTER, [], ["a"])


def test_what_came_by_wildcard_is_told_with_its_version_and_can_be_removed() -> None:
    recorder = connected("*")
    recorder.receive("n1", a=("1", cluster("a")))
    recorder.ads.disconnect()
    recorder.ads.connect()
    (request,) = recorder.take()
    assert dict(request.initial_resource_versions) == {"a": "1"}
    recorder.ads.receive(delta_response("n1", {}, ("a",)))
    assert recorder.updates[-1] == (CLUSTER, [], ["a"])


def test_a_resource_that_names_itself_differently_is_refused() -> None:
    recorder = connected("a")
    recorder.receive("n1", a=("1", cluster("b")))
    assert recorder.take()[0].error_detail.message == "Cluster a: names itself 'b'"


def test_a_resource_of_another_type_is_refused() -> None:
    recorder = connected("a")
    recorder.receive("n1", a=("1", assignment("a")))
    assert recorder.take()[0].error_detail.message == f"Cluster a: is of type {ENDPOINTS}, not {CLUSTER}"


def test_a_type_that_nobody_asked_for_is_refused() -> None:
    recorder = connected("a")
    recorder.ads.receive(delta_response("n1", {}, type_url="type.googleapis.com/x.Y"))
    (nack,) = recorder.take()
    assert (nack.type_url, nack.response_nonce) == ("type.googleapis.com/x.Y", "n1")
    assert nack.error_detail.message == "nothing of type type.googleapis.com/x.Y was asked for"
