"""Gateway API's order of routes: xDS takes the first route that matches, so they must come sorted.

Called by `routes`. HTTPRoute: exact path, then the longest prefix, then a method, then the number of
headers, then of query parameters. GRPCRoute: length of the service, then of the method, then the number
of headers. Then for both: the older route, its name, the earlier rule. Regular expressions are left to
implementations: here they come between exact paths and prefixes, longest first, because a prefix such
as `/` would otherwise hide them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from control_plane.model.route import PathKind, Route, RouteKind, RouteMatch, RouteRule

_PATH_RANK = {PathKind.EXACT: 0, PathKind.REGEX: 1, PathKind.PREFIX: 2, PathKind.RAW_PREFIX: 2}


class Candidate(NamedTuple):
    """One match of one rule of one route."""

    route: Route
    rule_index: int
    rule: RouteRule
    match: RouteMatch


def most_specific(routes: Iterable[Route]) -> list[Route]:
    """Of the routes on one port those of the most specific kind, oldest first; it alone counts (GEP-1294)."""
    found = sorted(routes, key=lambda route: route.age_rank)
    for kind in RouteKind:
        if chosen := [route for route in found if route.kind is kind]:
            return chosen
    return []


def ordered(routes: Iterable[Route]) -> list[Candidate]:
    """Every match of every rule, first to be tried first."""
    candidates = [
        Candidate(route, index, rule, match)
        for route in sorted(routes, key=lambda route: route.age_rank)
        for index, rule in enumerate(route.rules)
        for match in rule.matches
    ]
    # The sort is stable: age, name, rule and match break ties by standing in that order already.
    candidates.sort(key=lambda candidate: _rank(candidate.match))
    return candidates


def _rank(match: RouteMatch) -> tuple[int, ...]:
    if match.grpc is not None:
        return (-match.grpc.service_length, -match.grpc.method_length, -len(match.headers))
    return (
        _PATH_RANK[match.path.kind],
        # Among exact paths length says nothing: two that both match are the same path.
        0 if match.path.kind is PathKind.EXACT else -len(match.path.value),
        0 if match.method else 1,
        -len(match.headers),
        -len(match.query),
    )
