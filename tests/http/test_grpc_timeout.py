"""The grpc-timeout field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.grpc_timeout import format_grpc_timeout, parse_grpc_timeout


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1S", 1.0),
        (b"250m", 0.25),
        (b"2M", 120.0),
        (b"1H", 3600.0),
        (b"10u", 1e-5),
        (b"99999999n", 0.099999999),
    ],
)
def test_each_unit_is_understood(value: bytes, seconds: float) -> None:
    assert parse_grpc_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [b"", b"S", b"1", b"1s", b"-1S", b"123456789S", b"1.5S", b" 1S"])
def test_malformed_values_are_no_deadline(value: bytes) -> None:
    assert parse_grpc_timeout(value) is None


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_what_is_sent_is_never_longer_than_what_is_left(seconds: float) -> None:
    sent = parse_grpc_timeout(format_grpc_timeout(seconds))
    assert sent is not None
    assert sent <= max(seconds, 1e-9) * (1 + 1e-9)
    assert sent >= seconds * 0.98 - 1e-9


def test_a_deadline_that_has_passed_becomes_the_shortest_one() -> None:
    assert format_grpc_timeout(-3.0) == b"1n"
