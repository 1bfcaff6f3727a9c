"""State-of-the-world ADS from the client's side."""

from __future__ import annotations

from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from sidecar.config.resources import Node
from sidecar.config.type_urls import CLUSTER, ENDPOINTS
from sidecar.xds.ads import AdsClient
from sidecar.xds.sotw import SotwVariant
from tests.support.discovery import assignment, cluster, pack, sotw_requests, sotw_response


class Recorder:
    def __init__(self, type_url: str, *names: str) -> None:
        self.updates: list[tuple[list[str], list[str]]] = []
        self.ads = AdsClient(Node("n"), SotwVariant())
        self.ads.on_update = lambda url, accepted, removed: self.updates.append(
            (sorted(accepted), sorted(removed))
        )
        self.ads.subscribe(type_url, names)
        self.ads.connect()

    def take(self) -> list[Any]:
        return sotw_requests(self.ads.take_requests())


def summary(request: Any) -> tuple[str, str, list[str], bool]:
    return (
        request.version_info,
        request.response_nonce,
        list(request.resource_names),
        request.HasField("error_detail"),
    )


def test_the_wildcard_is_a_request_without_names() -> None:
    recorder = Recorder(CLUSTER, "*")
    (request,) = recorder.take()
    assert (summary(request), request.node.id) == (("", "", [], False), "n")


def test_an_acknowledgement_carries_version_nonce_and_all_names() -> None:
    recorder = Recorder(CLUSTER, "b", "a")
    recorder.take()
    recorder.ads.receive(sotw_response("n1", "v1", [cluster("a")]))
    assert [summary(each) for each in recorder.take()] == [("v1", "n1", ["a", "b"], False)]
    assert recorder.updates == [(["a"], [])]


def test_a_refusal_carries_the_last_good_version_and_the_new_nonce() -> None:
    recorder = Recorder(CLUSTER, "a", "b")
    recorder.take()
    recorder.ads.receive(sotw_response("n1", "v1", [cluster("a")]))
    recorder.ads.receive(sotw_response("n2", "v2", [cluster("a", lb_policy="MAGLEV"), cluster("b")]))
    _, nack = recorder.take()
    assert summary(nack) == ("v1", "n2", ["a", "b"], True)
    assert recorder.updates == [(["a"], []), (["b"], [])]


def test_a_changed_subscription_uses_the_latest_nonce() -> None:
    recorder = Recorder(CLUSTER, "a")
    recorder.take()
    recorder.ads.receive(sotw_response("n1", "v1", [cluster("a")]))
    recorder.take()
    recorder.ads.subscribe(CLUSTER, ["b"])
    assert [summary(each) for each in recorder.take()] == [("v1", "n1", ["a", "b"], False)]


def test_a_new_stream_tells_the_accepted_version_without_nonce() -> None:
    recorder = Recorder(CLUSTER, "a")
    recorder.take()
    recorder.ads.receive(sotw_response("n1", "v1", [cluster("a")]))
    recorder.ads.disconnect()
    recorder.ads.connect()
    assert [summary(each) for each in recorder.take()] == [("v1", "", ["a"], False)]


def test_a_cluster_that_is_missing_from_a_response_is_gone() -> None:
    recorder = Recorder(CLUSTER, "*")
    recorder.ads.receive(sotw_response("n1", "v1", [cluster("a"), cluster("b")]))
    recorder.ads.receive(sotw_response("n2", "v2", [cluster("b")]))
    assert recorder.updates == [(["a", "b"], []), (["b"], ["a"])]


def test_what_is_missing_from_the_answer_to_an_older_request_is_not_gone() -> None:
    """`a` comes by a change that crossed its unsubscription, is wanted again, and is missing from the answer
    to the unsubscription. The next response has heard of it."""
    recorder = Recorder(CLUSTER, "*", "a")
    recorder.take()
    recorder.ads.receive(sotw_response("n1", "v1", [cluster("a")]))
    recorder.take()
    recorder.ads.unsubscribe(CLUSTER, ["a"])
    recorder.take()
    recorder.ads.receive(sotw_response("n2", "v2", [cluster("a")]))
    assert [summary(each)[2] for each in recorder.take()] == [[]]
    recorder.ads.subscribe(CLUSTER, ["a"])
    recorder.take()
    recorder.ads.receive(sotw_response("n3", "v3", []))
    assert recorder.updates[-1] == ([], [])
    assert [summary(each)[2] for each in recorder.take()] == [["*", "a"]]
    recorder.ads.receive(sotw_response("n4", "v4", []))
    assert recorder.updates[-1] == ([], ["a"])


def test_what_came_by_wildcard_and_is_missing_is_gone() -> None:
    recorder = Recorder(CLUSTER, "*")
    recorder.take()
    recorder.ads.receive(sotw_response("n1", "v1", [cluster("a")]))
    recorder.ads.receive(sotw_response("n2", "v2", []))
    assert recorder.updates == [(["a"], []), ([], ["a"])]


def test_a_refused_cluster_is_not_missing() -> None:
    recorder = Recorder(CLUSTER, "*")
    recorder.ads.receive(sotw_response("n1", "v1", [cluster("a")]))
    recorder.ads.receive(sotw_response("n2", "v2", [cluster("a", lb_policy="MAGLEV")]))
    assert recorder.updates == [(["a"], []), ([], [])]


def test_a_name_that_the_server_had_not_heard_of_is_not_gone() -> None:
    recorder = Recorder(CLUSTER, "a")
    recorder.ads.subscribe(CLUSTER, ["new"])
    recorder.ads.receive(sotw_response("n1", "v1", [cluster("a")]))
    assert recorder.updates == [(["a"], [])]


def test_endpoints_that_are_missing_from_a_response_stay() -> None:
    recorder = Recorder(ENDPOINTS, "a", "b")
    recorder.ads.receive(sotw_response("n1", "v1", [assignment("a"), assignment("b")], ENDPOINTS))
    recorder.ads.receive(sotw_response("n2", "v2", [assignment("b")], ENDPOINTS))
    assert recorder.updates == [(["a", "b"], []), (["b"], [])]


def test_wrapped_resources_are_understood() -> None:
    recorder = Recorder(CLUSTER, "a")
    wrapped = discovery_pb2.Resource(name="a", version="7", resource=pack(cluster("a")))
    recorder.ads.receive(sotw_response("n1", "v1", [wrapped]))
    assert recorder.updates == [(["a"], [])]


def test_resources_that_nobody_wants_are_ignored() -> None:
    recorder = Recorder(CLUSTER, "a")
    recorder.take()
    recorder.ads.receive(sotw_response("n1", "v1", [cluster("other", lb_policy="MAGLEV")]))
    assert [summary(each) for each in recorder.take()] == [("v1", "n1", ["a"], False)]
    assert recorder.updates == [([], [])]


def test_the_last_name_unsubscribed_leaves_an_empty_request() -> None:
    recorder = Recorder(ENDPOINTS, "a")
    recorder.take()
    recorder.ads.unsubscribe(ENDPOINTS, ["a"])
    assert [summary(each) for each in recorder.take()] == [("", "", [], False)]
    assert recorder.take() == []
