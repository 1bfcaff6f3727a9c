"""Gateway API's order of matches, against its rules written out one by one."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from control_plane.model.route import (
    GrpcMethod,
    ParentRef,
    PathKind,
    PathMatch,
    Route,
    RouteKind,
    RouteMatch,
    RouteRule,
    ValueMatch,
)
from control_plane.translate.precedence import Candidate, ordered

PARENTS = (ParentRef("shop", "users"),)


def http(name: str, *rules: tuple[RouteMatch, ...], created: str = "") -> Route:
    return Route(RouteKind.HTTP, "shop", name, PARENTS, tuple(RouteRule(rule) for rule in rules), created)


def path(
    value: str, kind: PathKind = PathKind.PREFIX, headers: int = 0, query: int = 0, method: str = ""
) -> RouteMatch:
    return RouteMatch(
        PathMatch(kind, value),
        method,
        tuple(ValueMatch(f"h{number}", "1") for number in range(headers)),
        tuple(ValueMatch(f"q{number}", "1") for number in range(query)),
    )


def order(*routes: Route) -> list[tuple[str, int, str]]:
    return [(found.route.name, found.rule_index, found.match.path.value) for found in ordered(routes)]


def test_exact_paths_come_first_then_expressions_then_longer_prefixes() -> None:
    rules = (
        (path("/"),),
        (path("/users"),),
        (path("/users/longer"),),
        (path("/u.*", PathKind.REGEX),),
        (path("/x", PathKind.EXACT),),
    )
    assert [value for _, _, value in order(http("r", *rules))] == [
        "/x",
        "/u.*",
        "/users/longer",
        "/users",
        "/",
    ]


def test_then_a_method_then_more_headers_then_more_query_parameters_decide() -> None:
    matches = [
        path("/a"),
        path("/a", query=1),
        path("/a", query=2),
        path("/a", headers=1),
        path("/a", headers=1, query=1),
        path("/a", headers=2),
        path("/a", method="GET"),
        path("/a", method="GET", headers=1),
    ]
    for shuffled in itertools.islice(itertools.permutations(matches), 0, 40320, 997):
        assert [found.match for found in ordered([http("r", *((match,) for match in shuffled))])] == matches[
            ::-1
        ]


def test_then_the_older_route_then_its_name_then_the_earlier_rule_and_match() -> None:
    same = (path("/a"),)
    old = http("z-old", same, created="2025-01-01T00:00:00Z")
    new = http("y-new", same, same, created="2026-01-01T00:00:00Z")
    undated = http("a-undated", same)
    other = http("b-undated", (path("/a"), path("/a")))
    assert [(name, rule) for name, rule, _ in order(other, undated, new, old)] == [
        ("z-old", 0),
        ("y-new", 0),
        ("y-new", 1),
        ("a-undated", 0),
        ("b-undated", 0),
        ("b-undated", 0),
    ]


def test_grpc_matches_are_ranked_by_service_then_method_then_headers() -> None:
    def grpc(service: int, method: int, headers: int = 0) -> tuple[RouteMatch, ...]:
        values = tuple(ValueMatch(f"h{number}", "1") for number in range(headers))
        return (RouteMatch(PathMatch(), headers=values, grpc=GrpcMethod(service, method)),)

    rules = [grpc(0, 0), grpc(0, 9), grpc(3, 0), grpc(3, 2), grpc(3, 2, 1), grpc(4, 0)]
    route = Route(RouteKind.GRPC, "shop", "r", PARENTS, tuple(RouteRule(rule) for rule in rules))
    assert [found.rule_index for found in ordered([route])] == [5, 4, 3, 2, 1, 0]


KINDS = st.sampled_from([PathKind.EXACT, PathKind.PREFIX, PathKind.REGEX])
PATHS = st.sampled_from(["/", "/a", "/b", "/a/b", "/a/b/c"])
MATCHES = st.builds(
    path, PATHS, KINDS, st.integers(0, 2), st.integers(0, 2), st.sampled_from(["", "GET", "POST"])
)
ROUTES = st.lists(
    st.builds(
        lambda rules, created: (tuple(tuple(rule) for rule in rules), created),
        st.lists(st.lists(MATCHES, min_size=1, max_size=3), min_size=1, max_size=3),
        st.sampled_from(["", "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"]),
    ),
    max_size=4,
).map(
    lambda drawn: [
        http(f"r{number}", *rules, created=created) for number, (rules, created) in enumerate(drawn)
    ]
)


def before(first: Candidate, second: Candidate) -> bool | None:
    """Gateway API's tie-breaks one after the other; None: they name no winner."""
    a, b = first.match, second.match
    kinds = [PathKind.EXACT, PathKind.REGEX, PathKind.PREFIX]
    if a.path.kind is not b.path.kind:
        return kinds.index(a.path.kind) < kinds.index(b.path.kind)
    if a.path.kind is not PathKind.EXACT and len(a.path.value) != len(b.path.value):
        return len(a.path.value) > len(b.path.value)
    if bool(a.method) != bool(b.method):
        return bool(a.method)
    if len(a.headers) != len(b.headers):
        return len(a.headers) > len(b.headers)
    if len(a.query) != len(b.query):
        return len(a.query) > len(b.query)
    if first.route.created != second.route.created:
        return (first.route.created or "9") < (second.route.created or "9")
    if first.route.name != second.route.name:
        return first.route.name < second.route.name
    if first.rule_index != second.rule_index:
        return first.rule_index < second.rule_index
    return None


@given(ROUTES, st.randoms())
def test_every_pair_stands_in_gateway_apis_order_whatever_the_routes_came_in(
    routes: list[Route], random: object
) -> None:
    found = ordered(routes)
    assert len(found) == sum(len(rule.matches) for route in routes for rule in route.rules)
    for first, second in itertools.combinations(found, 2):
        assert before(first, second) is not False
    shuffled = list(routes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert ordered(shuffled) == found
