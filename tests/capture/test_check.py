"""The comparison of the rules in force with the rules that should be."""

from __future__ import annotations

import pytest

from pilotfish.capture.check import differences

A, B, C = ("pilotfish/inbound/a/00000001", "pilotfish/inbound/b/00000002", "pilotfish/inbound/c/00000003")
OTHER_B = "pilotfish/inbound/b/0000000f"
AGAIN = "`pilotfish capture install` with the same options sets it"
ANEW = "`pilotfish capture install` sets it anew"


@pytest.mark.parametrize(
    ("found", "texts"),
    [
        ([A, B, C], []),
        ([A, C], [f"here: rule inbound/b is absent: {AGAIN}"]),
        ([], [f"here: rule inbound/{name} is absent: {AGAIN}" for name in "abc"]),
        (
            [A, OTHER_B, C],
            [f"here: rule inbound/b was set for other options: {ANEW}"],
        ),
        (
            [A, B, C, "tcp dport 80 return"],
            [f"here: rule tcp dport 80 return does not belong there: {ANEW}"],
        ),
        ([B, A, C], [f"here: the rules are in another order: {AGAIN}"]),
        ([A, B, B, C], [f"here: a rule is there more than once: {AGAIN}"]),
    ],
)
def test_every_difference_is_told(found: list[str], texts: list[str]) -> None:
    assert differences({"here": [A, B, C]}, {"here": found}) == texts


def test_a_chain_may_be_absent_or_too_many() -> None:
    assert differences({"here": [A]}, {}) == [f"here: rule inbound/a is absent: {AGAIN}"]
    assert differences({}, {"there": [A]}) == [f"there: rule inbound/a does not belong there: {ANEW}"]
