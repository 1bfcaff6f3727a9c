"""What the operator's commands say of an API server that is slow, and what they can still ask afterwards."""

from __future__ import annotations

import pytest

from pilotfish.operator.errors import ApiError
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
        assert unreached.value.hint.endswith("docs/troubleshooting.md#the-api-server-cannot-reach-a-pod")
        assert api.document("/version") == {"gitVersion": "v1.33.1"}


def test_an_api_server_that_is_silent_is_said(served: Served) -> None:
    served.reset(lambda api: api.silent.add("/version"))
    with (
        served.api(0.1) as api,
        pytest.raises(ApiError, match=r"^no answer from the API server") as away,
    ):
        api.document("/version")
    assert away.value.status == 0
