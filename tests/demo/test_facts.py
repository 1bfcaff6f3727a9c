"""The demo's verdict: it says that a claim held only where it was seen to hold."""

from __future__ import annotations

import pytest

from pilotfish.demo import facts
from pilotfish.demo.facts import FEWEST_CALLS, Fact
from pilotfish.demo.traffic import Call, failures, followed_after


def a_call(
    ok: bool = True, served_by: str = "users-1", start: float = 0.0, route: str = "", call: str = "GET /users"
) -> Call:
    return Call(call, start, 0.01, ok, "200" if ok else "503", served_by, route)


def test_the_exit_status_is_zero_only_if_every_fact_held() -> None:
    held, broken = Fact("a", True, ""), Fact("b", False, "")
    assert facts.exit_status([held, held]) == 0
    assert facts.exit_status([held, broken]) == 1
    assert facts.exit_status([]) == 1


def test_one_failed_request_among_thousands_breaks_the_fact_and_is_named() -> None:
    fact = facts.all_succeeded("no GET failed", [a_call()] * 5000 + [a_call(ok=False)])
    assert not fact.held
    assert fact.detail == "1 of 5001 failed: 1 times GET /users → 503"


def test_too_few_requests_prove_nothing() -> None:
    assert not facts.all_succeeded("", [a_call()] * (FEWEST_CALLS - 1)).held
    assert facts.all_succeeded("", [a_call()] * FEWEST_CALLS).held


def test_a_missing_or_foreign_identity_breaks_the_fact() -> None:
    expected = {"users-1": "spiffe://d/ns/shop/sa/users", "orders-1": "spiffe://d/ns/shop/sa/orders"}
    assert facts.identities(expected, expected).held
    assert facts.identities(expected, {"users-1": expected["users-1"]}).detail == "orders-1 has none"
    assert not facts.identities(expected, expected | {"orders-1": expected["users-1"]}).held


def test_a_sidecar_behind_or_away_and_a_refused_file_break_agreement() -> None:
    def status(in_step: bool, *problems: str) -> dict[str, object]:
        errors = [{"severity": "error", "message": text} for text in problems]
        return {"clients": [{"node": "users-1.shop", "in_step": in_step}], "problems": errors}

    assert facts.in_step(["users-1.shop"], status(True)).held
    assert facts.in_step(["users-1.shop"], status(False)).detail == "users-1.shop is not connected or behind"
    assert not facts.in_step(["users-1.shop", "users-2.shop"], status(True)).held
    assert facts.in_step(["users-1.shop"], status(True, "no such service")).detail == "no such service"


def test_a_replica_that_served_nothing_is_named() -> None:
    assert facts.served_by_all(["users-1"], [a_call()]).held
    fact = facts.served_by_all(["users-1", "users-2"], [a_call(), a_call(ok=False, served_by="users-2")])
    assert (fact.held, fact.detail) == (False, "users-2 served nothing")


def test_an_answer_from_a_killed_replica_breaks_the_fact() -> None:
    assert facts.moved_away("", "users-2", [a_call()]).held
    assert not facts.moved_away("", "users-2", [a_call(served_by="users-2")]).held


@pytest.mark.parametrize(("seconds", "held"), [(0.3, True), (1.0, False), (None, False)])
def test_a_reroute_has_to_reach_all_traffic_within_a_second(seconds: float | None, held: bool) -> None:
    assert facts.rerouted(seconds).held is held


def test_traffic_has_followed_when_no_later_call_shows_the_old_route() -> None:
    def calls(*seen: tuple[float, str]) -> list[Call]:
        return [a_call(start=start, route=route) for start, route in seen]

    before = (9.0, "")
    assert followed_after(
        calls(before, (10.1, ""), (10.2, "new"), (10.3, "new")), 10.0, "new"
    ) == pytest.approx(0.2)
    # One sidecar was ahead of another: only the last straggler counts.
    assert followed_after(calls((10.1, "new"), (10.6, ""), (10.9, "new")), 10.0, "new") == pytest.approx(0.9)
    assert followed_after(calls((10.1, "new"), (10.2, "")), 10.0, "new") is None
    assert followed_after(calls(before), 10.0, "new") is None


def test_a_request_without_a_whole_trace_breaks_the_fact() -> None:
    fact = facts.traced(None, frozenset({"users", "orders"}))
    assert (fact.held, fact.detail) == (False, "no complete trace goes through orders, users")


def test_failures_are_those_that_the_caller_saw() -> None:
    bad = a_call(ok=False)
    assert failures([a_call(), bad]) == [bad]
