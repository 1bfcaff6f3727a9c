"""Bursts of changes become one, and a steady stream of them does not starve anyone."""

from __future__ import annotations

from control_plane.model.discovery import Change
from control_plane.xds.debounce import Debouncer, merge

A = Change({"t": frozenset("a")})
B = Change({"t": frozenset("b"), "u": frozenset("x")})


def test_a_change_is_due_once_it_was_quiet_for_a_while() -> None:
    debouncer = Debouncer(quiet=0.1, longest=10)
    assert debouncer.deadline is None
    debouncer.add(A, now=5.0)
    debouncer.add(B, now=5.05)
    assert debouncer.deadline == 5.05 + 0.1
    assert debouncer.take(now=5.1) is None
    assert debouncer.take(now=5.15) == Change({"t": frozenset("ab"), "u": frozenset("x")})
    assert debouncer.take(now=99) is None
    assert debouncer.deadline is None


def test_changes_that_keep_coming_are_pushed_after_the_longest_wait() -> None:
    debouncer = Debouncer(quiet=0.1, longest=1.0)
    for step in range(20):
        debouncer.add(A, now=step * 0.09)
    assert debouncer.deadline == 1.0
    assert debouncer.take(now=1.0) == A


def test_merging_keeps_what_either_names() -> None:
    every_t = Change({"t": None})
    assert merge(A, every_t) == merge(every_t, A) == every_t
    assert merge(A, Change(everything=True)) == Change(everything=True)
    assert merge(Change(), A) == A
