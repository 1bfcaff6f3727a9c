"""What the operator's commands say of an API server that is slow, and what they can still ask afterwards."""

from __future__ import annotations

import pytest

from pilotfish.operator.errors import ApiError
from pilotfish.operator.kinds import PODS
from tests.support.kube_api import KubeApi
from tests.support.operator_cluster import SYSTEM
from tests.support.served_cluster import Served


def test_a_pod_that_is_silent_is_not_taken_for_an_api_server_that_is(served: Served) -> None:
    """The API server waits longer for a pod than we wait for the API server."""
    served.reset(lambda api: api.silent.add("/status.json"))
    with served.api(2.0) as api:
        with pytest.raises(ApiError) as unreached:
            api.page(SYSTEM, "cp-a", 15014, "/status.json")
        assert unreached.value.status == 504
        assert (
            unreached.value.text == f"the API server cannot reach {SYSTEM}/cp-a at port 15014: silent for 2 s"
        )
        assert unreached.value.link == "docs/troubleshooting.md#the-api-server-cannot-reach-a-pod"
        assert api.document("/version") == {"gitVersion": "v1.33.1"}


@pytest.mark.parametrize(
    ("status", "text", "hint", "link"),
    [
        (
            401,
            "the API server SERVER does not know you",
            "log in again",
            "docs/troubleshooting.md#the-api-server-does-not-answer-a-command",
        ),
        (
            403,
            "you may not get /version: as the test wants it",
            "is the ClusterRole system:discovery bound to all users, as Kubernetes does it?",
            "docs/operations.md#rights",
        ),
        (
            503,
            "get /version was answered with 503: as the test wants it",
            "kubectl get --raw '/readyz?verbose' says what it lacks",
            "docs/troubleshooting.md#the-api-server-does-not-answer-a-command",
        ),
        (
            200,
            "the answer to get /version is no JSON object",
            "is SERVER an API server?",
            "docs/troubleshooting.md#the-api-server-does-not-answer-a-command",
        ),
    ],
)
def test_an_answer_that_is_none_says_what_to_do(
    served: Served, status: int, text: str, hint: str, link: str
) -> None:
    def change(api: KubeApi) -> None:
        api.documents["/version"] = ["no", "object"]
        if status != 200:
            api.answer(status, path="/version")

    served.reset(change)
    with served.api() as api:
        with pytest.raises(ApiError) as refused:
            api.document("/version")
        found = refused.value
        assert (found.status, found.text, found.hint, found.link) == (
            status,
            text.replace("SERVER", api.server),
            hint.replace("SERVER", api.server),
            link,
        )


def test_a_dry_run_that_takes_too_long_is_not_taken_for_an_api_server_that_is_away(served: Served) -> None:
    served.reset(lambda api: api.silent.add("/pods"))
    with served.api(0.1) as api, pytest.raises(ApiError) as slow:
        api.dry_run(PODS, "shop", {})
    assert (slow.value.status, slow.value.text) == (504, "a dry run of pods took longer than 0.1 s")
    assert slow.value.hint.startswith("is there a webhook that does not answer?")


def test_an_api_server_that_is_silent_is_said(served: Served) -> None:
    served.reset(lambda api: api.silent.add("/version"))
    with (
        served.api(0.1) as api,
        pytest.raises(ApiError, match=r"^no answer from the API server") as away,
    ):
        api.document("/version")
    assert away.value.status == 0
