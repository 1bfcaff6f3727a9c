"""Envoy `RouteMatch`: what a route asks of a request."""

from __future__ import annotations

from sidecar.config.decode.common import regex, string_matcher
from sidecar.config.decode.view import Fields, View
from sidecar.config.resources import HeaderMatcher, QueryMatcher, RouteMatch, StringMatcher

_MATCH = Fields(
    "prefix path safe_regex connect_matcher path_separated_prefix case_sensitive runtime_fraction headers "
    "query_parameters grpc"
)
_HEADER = Fields(
    "name string_match range_match present_match exact_match prefix_match suffix_match contains_match "
    "safe_regex_match "
    "invert_match treat_missing_header_as_empty"
)
_QUERY = Fields("name string_match present_match")
_FRACTION = Fields("default_value", "runtime_key")
_DENOMINATORS = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}


def route_match(view: View) -> RouteMatch:
    """The conditions of one route; exactly one is about the path."""
    view.check(_MATCH)
    kind = view.which("path_specifier")
    if kind is None:
        view.error("required: prefix, path, safe_regex, path_separated_prefix or connect_matcher")
    prefix = view.text("prefix") if kind == "prefix" else None
    separated = None
    if kind == "path_separated_prefix":
        separated = view.text("path_separated_prefix")
        if len(separated) < 2 or separated.endswith("/") or "?" in separated or "#" in separated:
            view.error("must have two characters or more, not end in '/' and have no '?' or '#'", kind)
    elif kind == "connect_matcher":
        view.sub("connect_matcher", Fields(""))
    return RouteMatch(
        prefix=prefix,
        path=view.text("path") if kind == "path" else None,
        regex=regex(view.sub("safe_regex")) if kind == "safe_regex" else None,
        path_separated_prefix=separated,
        connect=kind == "connect_matcher",
        case_sensitive=view.flag("case_sensitive", True),
        headers=tuple(_header(header) for header in view.subs("headers", _HEADER)),
        query=tuple(_query(query) for query in view.subs("query_parameters", _QUERY)),
        grpc=view.has("grpc"),
        runtime_fraction=_fraction(view.sub("runtime_fraction")) if view.has("runtime_fraction") else None,
    )


def _header(view: View) -> HeaderMatcher:
    kind = view.which("header_match_specifier")
    string: StringMatcher | None = None
    interval: tuple[int, int] | None = None
    if kind == "string_match":
        string = string_matcher(view.sub("string_match"))
    elif kind == "safe_regex_match":
        string = StringMatcher("regex", regex(view.sub("safe_regex_match")))
    elif kind == "range_match":
        interval = (view.message.range_match.start, view.message.range_match.end)
    elif kind is not None and kind != "present_match":
        string = StringMatcher(kind.removesuffix("_match"), view.required(kind))
    return HeaderMatcher(
        name=view.required("name").lower(),
        string=string,
        range=interval,
        present=view.flag("present_match") if kind == "present_match" else True,
        invert=view.flag("invert_match"),
        treat_missing_as_empty=view.flag("treat_missing_header_as_empty"),
    )


def _query(view: View) -> QueryMatcher:
    kind = view.which("query_parameter_match_specifier")
    if kind == "present_match" and not view.flag("present_match"):
        view.error("only true is supported", "present_match")
    string = string_matcher(view.sub("string_match")) if kind == "string_match" else None
    return QueryMatcher(view.required("name"), string)


def _fraction(view: View) -> float:
    view.check(_FRACTION)
    value = view.sub("default_value")
    denominator = value.choice("denominator", _DENOMINATORS, 100)
    return value.in_range(value.message.numerator, 0, denominator, "numerator") / denominator
