"""What a route asks of a request besides its path: header, query, gRPC and share-of-traffic conditions.

`compile_conditions` turns the matchers of one route into functions; `matcher.py` calls them for each
request. They never look at anything outside the request's head and the random numbers handed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from sidecar.config.resources import HeaderMatcher, QueryMatcher, RouteMatch, StringMatcher
from sidecar.protocol.events import RequestHead

Condition = Callable[[RequestHead, Random], bool]
_Reader = Callable[[RequestHead], bytes]

_DECIMAL = re.compile(rb"[+-]?[0-9]{1,19}")


def compile_conditions(match: RouteMatch) -> tuple[tuple[Condition, ...], bool]:
    """The conditions of `match`, all of which must hold, and whether their outcome depends on nothing
    but method, scheme, authority and path, so that it may be remembered for such requests."""
    conditions = [_header(matcher) for matcher in match.headers]
    stable = all(matcher.name in _PSEUDO for matcher in match.headers)
    conditions += [_query(matcher) for matcher in match.query]
    if match.grpc:
        conditions.append(_is_grpc)
        stable = False
    if match.runtime_fraction is not None:
        conditions.append(_share(match.runtime_fraction))
        stable = False
    return tuple(conditions), stable


def compile_string(matcher: StringMatcher) -> Callable[[bytes], bool]:
    """`matcher` as a function of the value's bytes."""
    kind, text = matcher.kind, matcher.value
    if kind == "regex":
        pattern = re.compile(text.encode())
        return lambda value: pattern.fullmatch(value) is not None
    wanted = text.encode()
    compare: Callable[[bytes], bool]
    if matcher.ignore_case:
        compare = _comparison(kind, wanted.lower())
        return lambda value: compare(value.lower())
    return _comparison(kind, wanted)


def _comparison(kind: str, wanted: bytes) -> Callable[[bytes], bool]:
    if kind == "exact":
        return lambda value: value == wanted
    if kind == "prefix":
        return lambda value: value.startswith(wanted)
    if kind == "suffix":
        return lambda value: value.endswith(wanted)
    if kind == "contains":
        return lambda value: wanted in value
    raise ValueError(f"unknown kind of string matcher: {kind}")


def _method(head: RequestHead) -> bytes:
    # Extended CONNECT (RFC 8441) is routed as the GET that it stands for.
    return b"GET" if head.protocol else head.method


_PSEUDO: dict[str, _Reader] = {
    ":method": _method,
    ":scheme": lambda head: head.scheme,
    ":authority": lambda head: head.authority,
    "host": lambda head: head.authority,
    ":path": lambda head: head.path,
}


def _header(matcher: HeaderMatcher) -> Condition:
    invert = matcher.invert
    test = _value_test(matcher)
    read = _PSEUDO.get(matcher.name)
    name = matcher.name.encode()
    if test is None:
        present = matcher.present != invert
        if read is not None:
            return lambda head, random: present
        return lambda head, random: (head.get(name) is not None) == present
    if read is not None:
        return lambda head, random: test(read(head)) != invert
    missing = (test(b"") != invert) if matcher.treat_missing_as_empty else False

    def condition(head: RequestHead, random: Random) -> bool:
        # Each value of a repeated field is compared on its own; one that fits is enough. A missing
        # field matches no value, inverted or not (Envoy `HeaderMatcher.invert_match`).
        absent = True
        for fields in (head.fields, head.fresh):
            for n, value in fields:
                if n == name:
                    absent = False
                    if test(value):
                        return not invert
        return missing if absent else invert

    return condition


def _value_test(matcher: HeaderMatcher) -> Callable[[bytes], bool] | None:
    if matcher.string is not None:
        return compile_string(matcher.string)
    if matcher.range is None:
        return None
    low, high = matcher.range

    def in_range(value: bytes) -> bool:
        return _DECIMAL.fullmatch(value) is not None and low <= int(value) < high

    return in_range


def _query(matcher: QueryMatcher) -> Condition:
    name = matcher.name.encode()
    test = None if matcher.string is None else compile_string(matcher.string)

    def condition(head: RequestHead, random: Random) -> bool:
        # The first parameter of the name decides; neither side is percent-decoded.
        query = head.path.partition(b"?")[2].partition(b"#")[0]
        for item in query.split(b"&"):
            key, _, value = item.partition(b"=")
            if key == name and item:
                return test is None or test(value)
        return False

    return condition


def _is_grpc(head: RequestHead, random: Random) -> bool:
    value = head.get(b"content-type")
    return value is not None and (value == b"application/grpc" or value.startswith(b"application/grpc+"))


def _share(fraction: float) -> Condition:
    return lambda head, random: random.random() < fraction
