"""What the operator's commands say of an API server that is slow, and what they can still ask afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pilotfish.operator.api import Api
from pilotfish.operator.errors import ApiError
from pilotfish.operator.kubeconfig import load_context
from tests.support.operator_cluster import SYSTEM, Served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("cluster")) as served:
        yield served


def in_time(served: Served, seconds: float) -> Api:
    return Api(load_context({}, served.directory, file=served.kubeconfig), seconds)


def test_a_pod_that_is_silent_is_not_taken_for_an_api_server_that_is(served: Served) -> None:
    """The API server waits longer for a pod than we wait for the API server."""
    served.reset(lambda api: api.silent.add("/status.json"))
    with in_time(served, 2.0) as api:
        with pytest.raises(ApiError) as unreached:
            api.page(SYSTEM, "cp-a", 15014, "/status.json")
        assert unreached.value.status == 504
        assert (
            unreached.value.text == f"the API server cannot reach {SYSTEM}/cp-a at port 15014: silent for 2 s"
        )
        assert unreached.value.hint.endswith("docs/troubleshooting.md#the-api-server-cannot-reach-a-pod")
        assert api.document("/version") == {"gitVersion": "v1.33.1"}


def test_an_api_server_that_is_silent_is_said(served: Served) -> None:
    served.reset(lambda api: api.silent.add("/version"))
    with (
        in_time(served, 0.1) as api,
        pytest.raises(ApiError, match=r"^no answer from the API server") as away,
    ):
        api.document("/version")
    assert away.value.status == 0
