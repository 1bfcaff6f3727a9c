"""How discovery says that the workload is about to end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.bootstraps import LISTENER, load, put, small


@pytest.mark.parametrize(
    ("metadata", "draining"),
    [
        ({"mesh.pilotfish.dev": {"draining": True}}, True),
        ({"mesh.pilotfish.dev": {"draining": False}}, False),
        ({"mesh.pilotfish.dev": {"draining": "yes"}}, False),
        ({"other": {"draining": True}}, False),
    ],
)
def test_a_listener_of_a_workload_that_ends_says_so(metadata: dict[str, Any], draining: bool) -> None:
    bootstrap = load(put(small(), f"{LISTENER}.metadata", {"filter_metadata": metadata}))
    assert bootstrap.listeners[0].draining is draining
