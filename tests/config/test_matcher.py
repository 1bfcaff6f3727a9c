"""Route look-up: virtual hosts by authority, first matching route, conditions, rewrites."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config.matcher import CompiledRoute, CompiledRoutes
from sidecar.config.resources import (
    HeaderMatcher,
    HeaderOperation,
    QueryMatcher,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    StringMatcher,
    VirtualHost,
    WeightedCluster,
)
from sidecar.protocol.events import NeverIndexedValue, RequestHead

ACTION = RouteAction((WeightedCluster("app", 1),))


def table(*matches: RouteMatch, action: RouteAction = ACTION) -> CompiledRoutes:
    """One virtual host for everything, its routes named by their place."""
    routes = tuple(Route(str(i), match, action) for i, match in enumerate(matches))
    return CompiledRoutes(RouteConfiguration("t", (VirtualHost("all", ("*",), routes),)))


def hosts(*domains: tuple[str, ...], ignore_port: bool = False) -> CompiledRoutes:
    """A virtual host for each group of domains, named by its place."""
    route = Route("", RouteMatch(prefix="/"), ACTION)
    virtual_hosts = tuple(VirtualHost(str(i), names, (route,)) for i, names in enumerate(domains))
    return CompiledRoutes(RouteConfiguration("t", virtual_hosts, ignore_port=ignore_port))


def get(
    path: bytes = b"/",
    fields: tuple[tuple[bytes, bytes], ...] = (),
    fresh: tuple[tuple[bytes, bytes], ...] = (),
    method: bytes = b"GET",
    authority: bytes = b"example.com",
    protocol: bytes = b"",
) -> RequestHead:
    return RequestHead(method, b"http", authority, path, fields, fresh, protocol)


def found(routes: CompiledRoutes, head: RequestHead) -> str | None:
    route = routes.match(head, Random(1))
    return None if route is None else route.name


def only(*matches: RouteMatch, action: RouteAction = ACTION) -> CompiledRoute:
    return table(*matches, action=action).virtual_hosts[0].routes[0]


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"a.example.com", "0"),
        (b"A.Example.COM", "0"),
        (b"a.example.com:80", "7"),
        (b"b.example.com", "2"),
        (b"x.b.example.com", "1"),
        (b"example.com", "5"),
        (b".example.com", "6"),
        (b"other.org", "6"),
        (b"ports.example.net:8080", "3"),
        (b"ports.example.net:81", "4"),
        (b"ports.example.net:", "6"),
    ],
)
def test_the_most_specific_domain_wins(authority: bytes, host: str) -> None:
    routes = hosts(
        ("a.example.com",),
        ("*.b.example.com",),
        ("*.example.com", "*.unused"),
        ("ports.example.net:8080",),
        ("ports.example.net:*",),
        ("example.*",),
        ("*",),
        ("*m:80",),
    )
    head = get(authority=authority)
    assert found(routes, head) == f"{host}/0"


def test_an_authority_that_no_domain_names_matches_nothing() -> None:
    assert found(hosts(("example.com",)), get(authority=b"example.com:80")) is None


def test_ports_are_ignored_when_the_table_says_so() -> None:
    routes = hosts(("example.com",), ("[::1]",), ignore_port=True)
    assert found(routes, get(authority=b"example.com:80")) == "0/0"
    assert found(routes, get(authority=b"[::1]:80")) == "1/0"


@pytest.mark.parametrize(
    ("match", "path", "expected"),
    [
        (RouteMatch(prefix="/a"), b"/abc?x=1", True),
        (RouteMatch(prefix="/a"), b"/A", False),
        (RouteMatch(prefix="/a", case_sensitive=False), b"/Abc", True),
        (RouteMatch(prefix=""), b"/", True),
        (RouteMatch(path="/a"), b"/a?b", True),
        (RouteMatch(path="/a"), b"/a#b", True),
        (RouteMatch(path="/a"), b"/a/", False),
        (RouteMatch(path="/a", case_sensitive=False), b"/A", True),
        (RouteMatch(path_separated_prefix="/a"), b"/a", True),
        (RouteMatch(path_separated_prefix="/a"), b"/a/b", True),
        (RouteMatch(path_separated_prefix="/a"), b"/a?b", True),
        (RouteMatch(path_separated_prefix="/a"), b"/ab", False),
        (RouteMatch(path_separated_prefix="/a", case_sensitive=False), b"/A/b", True),
        (RouteMatch(path_separated_prefix="/a", case_sensitive=False), b"/Ab", False),
        (RouteMatch(regex="/a[0-9]+"), b"/a12?x", True),
        (RouteMatch(regex="/a[0-9]+"), b"/a12/", False),
    ],
)
def test_paths_match_without_query_and_fragment(match: RouteMatch, path: bytes, expected: bool) -> None:
    assert (found(table(match), get(path)) == "0") is expected


PATHS = st.text("ab/", max_size=4).map(lambda text: "/" + text)
MATCHES = st.one_of(
    PATHS.map(lambda path: RouteMatch(path=path)),
    PATHS.map(lambda path: RouteMatch(prefix=path)),
    PATHS.map(lambda path: RouteMatch(prefix=path, case_sensitive=False)),
    PATHS.map(lambda path: RouteMatch(regex=path + ".*")),
    PATHS.filter(lambda path: len(path) > 1 and not path.endswith("/")).map(
        lambda path: RouteMatch(path_separated_prefix=path)
    ),
)
CONDITIONS = st.sampled_from([(), (HeaderMatcher("x"),)])


def naive(match: RouteMatch, path: str, has_x: bool) -> bool:
    """Envoy's documentation read word for word."""
    if match.headers and not has_x:
        return False
    if match.path is not None:
        return path == match.path
    if match.regex is not None:
        return path.startswith(match.regex[:-2])
    if match.path_separated_prefix is not None:
        separated = match.path_separated_prefix
        return path == separated or path.startswith(separated + "/")
    assert match.prefix is not None
    return path.startswith(match.prefix)


@given(st.lists(st.tuples(MATCHES, CONDITIONS), max_size=12), PATHS, st.booleans())
def test_the_index_finds_the_same_route_as_a_scan(
    routes: list[tuple[RouteMatch, tuple[HeaderMatcher, ...]]], path: str, has_x: bool
) -> None:
    matches = [
        RouteMatch(m.prefix, m.path, m.regex, m.path_separated_prefix, m.connect, m.case_sensitive, headers)
        for m, headers in routes
    ]
    expected = next((str(i) for i, match in enumerate(matches) if naive(match, path, has_x)), None)
    head = get(path.encode() + b"?q", fields=((b"x", b"1"),) if has_x else ())
    assert found(table(*matches), head) == expected


def string(kind: str, value: str, ignore_case: bool = False) -> StringMatcher:
    return StringMatcher(kind, value, ignore_case)


@pytest.mark.parametrize(
    ("matcher", "value", "expected"),
    [
        (HeaderMatcher("x", string("exact", "a")), b"a", True),
        (HeaderMatcher("x", string("exact", "a")), b"A", False),
        (HeaderMatcher("x", string("exact", "a", True)), b"A", True),
        (HeaderMatcher("x", string("prefix", "ab")), b"abc", True),
        (HeaderMatcher("x", string("suffix", "bc")), b"abc", True),
        (HeaderMatcher("x", string("contains", "b")), b"abc", True),
        (HeaderMatcher("x", string("regex", "a+")), b"aab", False),
        (HeaderMatcher("x", string("exact", "a"), invert=True), b"b", True),
        (HeaderMatcher("x", string("exact", "a"), invert=True), None, False),
        (HeaderMatcher("x", string("exact", "a"), invert=True, treat_missing_as_empty=True), None, True),
        (HeaderMatcher("x", string("exact", ""), treat_missing_as_empty=True), None, True),
        (HeaderMatcher("x", string("exact", "a")), None, False),
        (HeaderMatcher("x"), b"", True),
        (HeaderMatcher("x"), None, False),
        (HeaderMatcher("x", invert=True), None, True),
        (HeaderMatcher("x", present=False), None, True),
        (HeaderMatcher("x", present=False), b"a", False),
        (HeaderMatcher("x", present=False, invert=True), b"a", True),
        (HeaderMatcher("x", range=(-5, 10)), b"-5", True),
        (HeaderMatcher("x", range=(-5, 10)), b"10", False),
        (HeaderMatcher("x", range=(0, 10)), b"5.0", False),
        (HeaderMatcher("x", range=(0, 10)), b"", False),
    ],
)
def test_header_conditions(matcher: HeaderMatcher, value: bytes | None, expected: bool) -> None:
    routes = table(RouteMatch(prefix="/", headers=(matcher,)))
    field = () if value is None else ((b"x", value),)
    assert (found(routes, get(fields=field)) == "0") is expected
    assert (found(routes, get(fresh=field)) == "0") is expected


@pytest.mark.parametrize(("value", "expected"), [("a", True), ("b", True), ("a,b", False), ("c", False)])
def test_one_value_of_a_repeated_field_is_enough(value: str, expected: bool) -> None:
    head = get(fields=((b"x", b"a"),), fresh=((b"x", b"b"),))
    for invert in (False, True):
        matcher = HeaderMatcher("x", string("exact", value), invert=invert)
        assert (found(table(RouteMatch(prefix="/", headers=(matcher,))), head) == "0") is (expected != invert)


def test_pseudo_header_fields_can_be_compared() -> None:
    def routes(name: str, value: str) -> CompiledRoutes:
        return table(RouteMatch(prefix="/", headers=(HeaderMatcher(name, string("exact", value)),)))

    head = get(b"/p?q", method=b"POST", authority=b"a:1")
    for name, value in ((":method", "POST"), (":path", "/p?q"), (":authority", "a:1"), ("host", "a:1")):
        assert found(routes(name, value), head) == "0"
        assert routes(name, value).is_static
    assert found(routes(":method", "GET"), get(method=b"CONNECT", protocol=b"websocket")) == "0"


@pytest.mark.parametrize(
    ("query", "path", "expected"),
    [
        (QueryMatcher("a"), b"/?a", True),
        (QueryMatcher("a"), b"/?b=a", False),
        (QueryMatcher("a"), b"/", False),
        (QueryMatcher("a", string("exact", "1")), b"/?b=2&a=1", True),
        (QueryMatcher("a", string("exact", "2")), b"/?a=1&a=2", False),
        (QueryMatcher("a", string("exact", "")), b"/?a", True),
        (QueryMatcher("a", string("exact", "1")), b"/?a=1#a=2", True),
    ],
)
def test_query_conditions(query: QueryMatcher, path: bytes, expected: bool) -> None:
    assert (found(table(RouteMatch(prefix="/", query=(query,))), get(path)) == "0") is expected


def test_grpc_routes_take_grpc_content_types_alone() -> None:
    routes = table(RouteMatch(prefix="/", grpc=True))
    kinds = (b"application/grpc", b"application/grpc+proto", b"application/grpc-web", b"application/json")
    got = [found(routes, get(fields=((b"content-type", kind),))) for kind in kinds]
    assert got == ["0", "0", None, None]


def test_connect_goes_to_connect_routes_alone() -> None:
    routes = table(RouteMatch(prefix=""), RouteMatch(connect=True))
    assert found(routes, get(b"", method=b"CONNECT")) == "1"
    assert found(routes, get(b"/", method=b"CONNECT", protocol=b"websocket")) == "0"
    assert found(table(RouteMatch(prefix="")), get(b"", method=b"CONNECT")) is None


def test_a_share_of_requests_takes_the_first_route() -> None:
    routes = table(RouteMatch(prefix="/", runtime_fraction=0.25), RouteMatch(prefix="/"))
    random, head = Random(7), get()
    taken = sum(routes.match(head, random) is routes.virtual_hosts[0].routes[0] for _ in range(10_000))
    assert 2300 < taken < 2700


def test_what_may_be_remembered_ends_at_the_first_route_that_looks_at_fields() -> None:
    host = table(
        RouteMatch(path="/a"), RouteMatch(prefix="/", headers=(HeaderMatcher("x"),)), RouteMatch(path="/c")
    ).virtual_hosts[0]
    assert [route.is_static for route in host.routes] == [True, False, False]
    assert not host.is_static


def test_levels_are_merged_from_the_most_specific_to_the_least() -> None:
    def op(value: bytes) -> tuple[HeaderOperation, ...]:
        return (HeaderOperation("append", b"x", value),)

    policy = RetryPolicy(num_retries=7)
    route = Route("r", RouteMatch(prefix="/"), ACTION, request_headers=op(b"1"), response_headers=op(b"4"))
    host = VirtualHost("h", ("*",), (route,), policy, op(b"2"), op(b"5"))
    compiled = CompiledRoutes(RouteConfiguration("t", (host,), op(b"3"), op(b"6")))
    matched = compiled.match(get(), Random(1))
    assert matched is not None
    assert [each.value for each in matched.request_headers] == [b"1", b"2", b"3"]
    assert [each.value for each in matched.response_headers] == [b"4", b"5", b"6"]
    assert matched.retry_policy == policy


def test_the_retry_policy_of_a_route_replaces_the_one_of_its_virtual_host() -> None:
    action = RouteAction(ACTION.clusters, retry_policy=RetryPolicy(num_retries=1))
    host = VirtualHost("h", ("*",), (Route("r", RouteMatch(prefix="/"), action),), RetryPolicy(num_retries=7))
    matched = CompiledRoutes(RouteConfiguration("t", (host,))).match(get(), Random(1))
    assert matched is not None
    assert matched.retry_policy == RetryPolicy(num_retries=1)


@pytest.mark.parametrize(
    ("match", "action", "path", "expected"),
    [
        (RouteMatch(prefix="/a"), RouteAction(()), b"/a/b?c", b"/a/b?c"),
        (RouteMatch(prefix="/a/"), RouteAction((), prefix_rewrite="/"), b"/a/b?c", b"/b?c"),
        (RouteMatch(prefix="/A", case_sensitive=False), RouteAction((), prefix_rewrite="/x"), b"/ab", b"/xb"),
        (RouteMatch(path="/a"), RouteAction((), prefix_rewrite="/x"), b"/a?c", b"/x?c"),
        (RouteMatch(regex="/a.*"), RouteAction((), prefix_rewrite="/x"), b"/abc?d", b"/x?d"),
        (RouteMatch(path_separated_prefix="/a"), RouteAction((), prefix_rewrite="/x"), b"/a/b", b"/x/b"),
        (
            RouteMatch(prefix="/"),
            RouteAction((), regex_rewrite=("/v([0-9]+)/", r"/\g<1>/\g<0>")),
            b"/v1/a/v2/b?/v3/",
            b"/1//v1/a/2//v2/b?/v3/",
        ),
    ],
)
def test_rewritten_paths_keep_their_query(
    match: RouteMatch, action: RouteAction, path: bytes, expected: bytes
) -> None:
    rewritten = only(match, action=action).rewrite_path(path)
    assert rewritten == expected
    assert type(rewritten) is bytes
    # RFC 7541 section 6.2.3: what came never indexed stays so.
    secret = only(match, action=action).rewrite_path(NeverIndexedValue(path))
    assert secret == expected
    assert type(secret) is NeverIndexedValue


def test_unnamed_routes_are_named_by_their_place() -> None:
    routes = hosts(("*",))
    assert found(routes, get()) == "0/0"
    assert repr(routes) == "<CompiledRoutes t hosts=1 routes=1>"
